"""The examples run as they are printed."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_ones_own_training_loop_ends_with_a_verified_smaller_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "01_own_training_loop.py", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
        cwd=EXAMPLES.parent,
    )
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["verified"] == "True"
    assert float(lines["slim"].split()[0]) > 95
    assert (tmp_path / "out" / "slim.onnx").stat().st_size < (tmp_path / "out" / "dense.onnx").stat().st_size


def test_a_network_of_ones_own_is_proved_taught_cut_and_trained_on() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "03_your_own_network.py"],
        capture_output=True,
        text=True,
        check=True,
        cwd=EXAMPLES.parent,
    )
    unknown, known = done.stdout.split("with a rule")
    assert "unprunable down2     32 channels: unknown op `sinc`" in unknown
    assert "proved     down2     32 channels" in known
    assert "refuted    hidden    24 channels" in known
    zeroed, slim = done.stdout.splitlines()[-1].removeprefix("the next step: loss ").split(", ")
    assert float(zeroed.split()[0]) == float(slim.split()[0])


@pytest.mark.parametrize(
    ("name", "needs", "shipped"),
    [
        ("04_from_loop_to_report", ["torch"], "."),
        ("05_lightning", ["lightning"], "."),
        ("06_timm_script", ["timm"], "shipped"),
        ("07_hugging_face_trainer", ["transformers", "accelerate"], "shipped"),
    ],
)
def test_anybodys_loop_ends_with_a_verified_report(name: str, needs: list[str], shipped: str, tmp_path: Path) -> None:
    for library in needs:
        pytest.importorskip(library)
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", tmp_path / "out"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()[-1]
    dense, slim = (float(part.split(" %")[0]) for part in found.split(" -> "))
    assert found.endswith("verified: True")
    assert min(dense, slim) > 90
    assert (tmp_path / "out" / shipped / "report.html").is_file()
