"""The examples run as they are printed."""

import subprocess
import sys
from pathlib import Path

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
