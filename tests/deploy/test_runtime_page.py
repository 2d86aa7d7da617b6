"""docs/adding-a-runtime.md does what it says: its blocks are run, one after the other, as a reader would."""

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import hoyer_export as hx
from hoyer_export.deploy.explain import blocked_convolutions
from hoyer_export.deploy.runtime import RUNTIMES
from hoyer_export.deploy.runtime.onnx_runtime import OnnxRuntime

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-runtime.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what is defined after the page's blocks, run in a folder of their own."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        patch.setattr("hoyer_export.deploy.runtime.RUNTIMES", dict(RUNTIMES))
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(block, names)
        names["path"] = Path("model.onnx").absolute()
    return names


def test_a_runtime_of_ones_own_verifies_and_is_measured_beside_the_one_that_is_there(followed: dict[str, Any]) -> None:
    assert followed["verified"].passed
    assert {comparison.optimization for comparison in followed["verified"].onnx} == {"disabled", "all"}
    assert [file.runtime for file in followed["both"].files] == ["onnxruntime", "reference"]
    assert followed["both"].speedups[0].median < 0.8  # NumPy is slower than onnxruntime on any machine
    found = blocked_convolutions(followed["path"], runtime=followed["Reference"]())
    assert (found.blocked, found.total, found.block) == (0, 1, None)


def test_what_it_computes_wrongly_is_found(followed: dict[str, Any]) -> None:
    class Wrong(followed["ReferenceSession"]):  # type: ignore[misc]
        def run(self, inputs: Any) -> Any:
            return [1.01 * output for output in super().run(inputs)]

    class Runtime(followed["Reference"]):  # type: ignore[misc]
        def load(self, path: Path, threads: int, optimise: bool) -> Any:
            session = super().load(path, threads, optimise)
            return Wrong(session.evaluator) if optimise else session

    found = hx.verify_onnx(followed["path"], followed["model"], followed["images"], runtime=Runtime())
    failed = [check.name for check in found.checks if not check.passed]
    assert failed == ["outputs, optimisation all"]


def test_a_file_that_it_cannot_load_and_inputs_that_it_cannot_run_on_are_said_in_one_line(
    followed: dict[str, Any], tmp_path: Path
) -> None:
    model = onnx.load(followed["path"])
    next(node for node in model.graph.node if node.op_type == "Relu").domain = "nobody"
    model.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
    onnx.save(model, tmp_path / "odd.onnx")
    for runtime in ("onnxruntime", followed["Reference"]()):
        with pytest.raises(hx.FileError, match=r"odd\.onnx"):
            hx.benchmark([tmp_path / "odd.onnx"], runtime=runtime, min_seconds=0.01)
    with pytest.raises(hx.VerificationFailed, match=r"does not run|takes input"):
        hx.verify_onnx(followed["path"], followed["model"], torch.zeros(2, 3, 9, 9), runtime=followed["Reference"]())


@pytest.mark.parametrize("wrong", ["onnx-runtime", 3, OnnxRuntime, ["onnxruntime", "onnxruntime"]])
def test_no_runtime_is_named(followed: dict[str, Any], wrong: Any) -> None:
    with pytest.raises(hx.HoyerExportError, match=r"expected (a|one) runtime"):
        hx.benchmark([followed["path"]], runtime=wrong)
