"""docs/adding-an-artifact.md does what it says: its blocks are run, one after the other, as a reader would."""

import re
from pathlib import Path
from typing import Any

import onnx
import pytest

from hoyer_export.run import artifacts
from hoyer_export.run.chain import verify_run
from hoyer_export.run.progress import Silent

PAGE = (Path(__file__).parents[2] / "docs" / "adding-an-artifact.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory):
    """Yield what is defined after the page's blocks, run in a folder of their own; the artifact is there meanwhile."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        patch.setitem(artifacts.ARTIFACTS, "half", None)
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(block, names)
        names["folder"] = Path("cut").absolute()
        yield names


def test_an_artifact_of_ones_own_is_exported_verified_measured_and_reported(followed: dict[str, Any]) -> None:
    report, folder = followed["report"], followed["folder"]
    dense, slim, half = report.artifacts
    assert (half.file.name, half.file.file, half.file.kind) == ("half", "half.onnx", "onnx, weights in float16")
    assert half.file.macs == slim.file.macs
    assert half.file.size_bytes == (folder / "half.onnx").stat().st_size < 0.6 * slim.file.size_bytes
    (outputs,) = [it for it in half.verified.checks if it.name == "outputs, optimisation all"]
    assert outputs.tolerance == followed["HALF"].tolerance
    assert 1e-5 < outputs.value < outputs.tolerance
    assert all(it.verified.passed for it in (dense, slim, half))
    assert half.latency.speedup.median > 0
    assert "| dense | slim | half |" in (folder / "card.md").read_text(encoding="utf-8")
    assert "half.onnx" in (folder / "report.html").read_text(encoding="utf-8")


def test_verified_again_it_is_compared_with_what_it_writes(followed: dict[str, Any]) -> None:
    folder = followed["folder"]
    assert verify_run(folder, progress=Silent()).passed
    model = onnx.load(folder / "half.onnx")
    weight = next(it for it in model.graph.initializer if it.name.startswith("fc1.bias"))
    changed = onnx.numpy_helper.to_array(weight) + 1e-3  # too little to be seen in the outputs
    weight.CopyFrom(onnx.numpy_helper.from_array(changed.astype("float16"), weight.name))
    onnx.save(model, folder / "half.onnx")
    found = verify_run(folder, progress=Silent()).artifacts[-1]
    assert [check.name for check in found.checks if not check.passed] == ["weights"]
