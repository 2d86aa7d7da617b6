"""The runtimes beside onnxruntime's CPU compute what the network computes, and are asked for by name.

Each is skipped where it is not installed: OpenVINO (``pip install 'hoyer-export[openvino]'``), an execution provider
that is not the CPU's, and onnxruntime-web, which runs as WebAssembly in Chromium (``npm ci --prefix tests/browser``).
"""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import hoyer_export as hx
from hoyer_export.deploy.explain import blocked_convolutions
from hoyer_export.deploy.runtime import as_runtime
from hoyer_export.deploy.runtime.protocol import Arrays, BlockedConvolutions, RunFailed, Runtime

BROWSER = Path(__file__).parents[1] / "browser"


class Web:
    """onnxruntime-web in the browser that ``server`` drives."""

    name = "onnxruntime-web"

    def __init__(self, server: "subprocess.Popen[str]") -> None:
        self.server = server

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()
        answer: dict[str, Any] = json.loads(self.server.stdout.readline())
        return answer

    def load(self, path: Path, threads: int, optimise: bool) -> "WebSession":
        answer = self.ask(load=str(path), level="all" if optimise else "disabled")
        if "error" in answer:
            raise hx.FileError(answer["error"])
        return WebSession(self, answer["session"])

    def explain(self, path: Path) -> BlockedConvolutions:
        return BlockedConvolutions(0, 0, None)


class WebSession:
    def __init__(self, web: Web, session: int) -> None:
        self.web, self.session = web, session

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        feeds = {
            name: {
                "type": str(array.dtype),
                "dims": array.shape,
                "base64": base64.b64encode(np.ascontiguousarray(array)).decode(),
            }
            for name, array in inputs.items()
        }
        answer = self.web.ask(session=self.session, feeds=feeds)
        if "error" in answer:
            raise RunFailed(answer["error"])
        return [
            np.frombuffer(base64.b64decode(it["base64"]), it["type"]).reshape(it["dims"]) for it in answer["outputs"]
        ]


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if shutil.which("node") is None or chromium is None:
        pytest.skip("onnxruntime-web needs node and chromium")
    if not (BROWSER / "node_modules").is_dir():
        pytest.skip("onnxruntime-web is not installed: npm ci --prefix tests/browser")
    command = ["node", str(BROWSER / "onnxruntime_web.mjs"), chromium]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield Web(server)
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(params=["onnxruntime:AzureExecutionProvider", "openvino", "onnxruntime-web"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    name = request.param
    if name == Web.name:
        found: Runtime = request.getfixturevalue("web")
        return found
    if name == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    elif name.partition(":")[2] not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {name.partition(':')[2]}")
    return as_runtime(name)


class Small(nn.Module):
    """Odd widths, a depthwise convolution, a residual sum and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 13, 3, padding=1)
        self.norm = nn.BatchNorm2d(13)
        self.depthwise = nn.Conv2d(13, 13, 3, padding=1, groups=13)
        self.head, self.map = nn.Linear(13, 5), nn.Conv2d(13, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.nn.functional.hardswish(self.depthwise(x))
        return self.head(x.mean((2, 3))), self.map(x)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def slim(images: torch.Tensor) -> nn.Module:
    """Return a network that was cut to odd widths."""
    torch.manual_seed(0)
    model = Small()
    model(images)  # running statistics
    model.eval()
    channels = hx.trace_channels(model, images)
    chosen = hx.select_channels(channels, model, macs=0.7, align=1)
    hx.zero_(model, channels, chosen.keep)
    return hx.cut(model, channels, chosen.keep, images).model


@pytest.fixture(scope="module")
def file(slim: nn.Module, images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtimes") / "slim.onnx"
    hx.export_onnx(slim, images, path)
    return path


def test_the_slim_file_passes_verification_in_full(
    runtime: Runtime, file: Path, slim: nn.Module, images: torch.Tensor
) -> None:
    found = hx.verify_onnx(file, slim, images, runtime=runtime)
    assert found.passed, [check for check in found.checks if not check.passed]
    assert {it.batch for it in found.onnx} == {1, 2, 3, 8}
    assert hx.verify_files(file, file, runtime=runtime).passed


def test_a_wrong_weight_is_found_and_its_node_named(
    runtime: Runtime, file: Path, slim: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    model = onnx.load(file)
    [tensor] = [it for it in model.graph.initializer if it.name == "depthwise.weight"]
    tensor.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    for found in (
        hx.verify_onnx(tmp_path / "wrong.onnx", slim, images, runtime=runtime),
        hx.verify_files(tmp_path / "wrong.onnx", file, runtime=runtime),
    ):
        assert not found.passed
        assert found.departure is not None
        assert found.departure.weights[0] == "depthwise.weight"


def test_inputs_and_files_that_it_does_not_take_are_one_line_each(runtime: Runtime, file: Path, tmp_path: Path) -> None:
    for optimise in (False, True):
        with pytest.raises(RunFailed) as failed:
            runtime.load(file, 1, optimise).run({"input": np.zeros((1, 4, 8, 8), np.float32)})
        assert "\n" not in str(failed.value)
    (tmp_path / "half.onnx").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for damaged in (tmp_path / "half.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(hx.FileError) as refused:
            runtime.load(damaged, 1, True)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("runtime", ["onnxruntime:AzureExecutionProvider", "openvino"], indirect=True)
def test_files_and_runtimes_are_measured_in_turn_and_a_run_names_what_it_was_measured_in(
    call: Callable[..., tuple[int, str, str]], runtime: Runtime, file: Path, tmp_path: Path
) -> None:
    measure = "bench", file, "--min-seconds", "0.1", "--runtime", "onnxruntime", "--runtime", runtime.name
    code, out, _ = call(*measure, "--json")
    assert (code, [it["runtime"] for it in json.loads(out)["files"]]) == (0, ["onnxruntime", runtime.name])
    code, out, _ = call(*measure)
    assert f"onnxruntime and {runtime.name}, threads 1" in out
    limits = "--max-latency", "50", "--min-seconds", "0.1", "--runtime", runtime.name
    assert call("check", file, "--against", file, *limits)[0] == 0
    assert call("verify", file, "--against", file, "--runtime", runtime.name)[0] == 0
    blocked = blocked_convolutions(file, runtime=runtime)
    assert (blocked.blocked, blocked.total, blocked.block) == (0, 3, None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("onnxruntime:CUDAExecutionProvider", r"has no CUDAExecutionProvider, only .*CPUExecutionProvider.*wheel"),
        ("openvino", r"needs OpenVINO.*pip install"),
        ("openvino:GPU", r"expected a runtime that is one of onnxruntime, openvino, onnxruntime:PROVIDER"),
    ],
)
def test_a_runtime_that_is_absent_is_one_line_before_anything_is_done(
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    file: Path,
    tmp_path: Path,
    name: str,
    said: str,
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "openvino", None)
    (tmp_path / "recipe.toml").write_text('network.name = "lenet300"\ndata.name = "digits"\ncut.macs = 0.5\n')
    for arguments in (
        ("bench", file, "--runtime", name),
        ("verify", file, "--against", file, "--runtime", name),
        ("run", tmp_path / "recipe.toml", "--out", tmp_path / "run", "--set", f"bench.runtime={name}"),
    ):
        code, _, error = call(*arguments)
        *headlines, line = error.splitlines()
        assert (code, len(headlines)) == (1, arguments[0] == "run")
        assert re.search(said, line)
    assert not (tmp_path / "run").exists()


def test_a_provider_that_does_not_start_is_no_silent_run_on_the_cpu(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime itself falls back to the CPU, and says so in its log."""

    class FallenBack(onnxruntime.InferenceSession):
        def __init__(self, path: str, options: Any, providers: list[str]) -> None:
            assert providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]
            super().__init__(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    with pytest.raises(hx.FileError, match="cannot start CUDAExecutionProvider"):
        as_runtime("onnxruntime:CUDAExecutionProvider").load(file, 1, optimise=True)
