"""What the exporting process has done to itself hides no fault of a file: it is run in another one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import hoyer_export as hx
from hoyer_export.deploy.runtime.fresh import fresh
from hoyer_export.deploy.runtime.protocol import RunFailed, Runtime

IMAGES = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


@pytest.fixture(scope="module")
def file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fresh") / "slim.onnx"
    hx.export_onnx(net, IMAGES, path)
    return path


def test_a_fault_that_a_patched_process_hides_is_found_in_a_fresh_one(
    net: nn.Module, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(file)
    bias = next(it for it in model.graph.initializer if it.name == "3.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.1, bias.name))
    onnx.save(model, tmp_path / "wrong.onnx")

    class Right(onnxruntime.InferenceSession):
        """Runs the right file where the wrong one is asked for."""

        def __init__(self, path: str, *how: object, **more: object) -> None:
            super().__init__(path.replace(str(tmp_path / "wrong.onnx"), str(file)), *how, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Right)

    def outputs(runtime: Runtime | str) -> list[bool]:
        found = hx.verify_onnx(tmp_path / "wrong.onnx", net, IMAGES, batches=(1, 2), runtime=runtime)
        return [it.passed for it in found.checks if it.name.startswith("outputs")]

    assert outputs("onnxruntime") == [True, True]
    with fresh("onnxruntime") as runtime:
        assert outputs(runtime) == [False, False]
        assert hx.verify_onnx(file, net, IMAGES, runtime=runtime).passed
        found = hx.verify_onnx(tmp_path / "wrong.onnx", net, IMAGES, runtime=runtime)
    assert found.departure is not None
    assert "3.bias" in found.departure.weights


def test_arrays_and_errors_come_back_as_from_the_runtime_itself(file: Path, tmp_path: Path) -> None:
    with fresh("onnxruntime") as runtime:
        session = runtime.load(file, 1, optimise=True)
        [rows] = session.run({"input": IMAGES.numpy()})
        [other] = runtime.load(file, 1, optimise=False).run({"input": IMAGES.numpy()[::2]})
        np.testing.assert_allclose(other, rows[::2], rtol=1e-5, atol=1e-6)
        assert (rows.dtype, session.run({"input": np.zeros((0, 2, 8, 8), "f")})[0].shape) == (np.float32, (0, 3))
        with pytest.raises(RunFailed, match="invalid dimensions"):
            session.run({"input": np.zeros((1, 3, 8, 8), "f")})
        with pytest.raises(hx.FileError, match=r"absent\.onnx"):
            runtime.load(tmp_path / "absent.onnx", 1, optimise=True)
        assert runtime.explain(file).total == 1


def test_what_lies_in_the_working_directory_is_not_imported_and_an_end_is_one_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    with fresh("onnxruntime") as runtime:
        runtime.load(file, 1, optimise=True)
        runtime._process.kill()
        with pytest.raises(hx.FileError, match=r"onnxruntime ended \(exit code -?\d+\)"):
            runtime.load(file, 1, optimise=True)
    assert runtime._process.returncode is not None


def test_its_start_is_cheap() -> None:
    """No torch: verification loads that in the process that holds the network, and not twice."""
    asked = "import sys, hoyer_export.deploy.runtime.fresh; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout == "False\n"
