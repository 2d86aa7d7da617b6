"""Killed at random moments, again and again: what is gone on with is the unbroken run, to the last bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")]

KILLS = 50
RECIPE = """
seed = 3
threads = 1
[network]
name = "cifar_resnet20"
[data]
name = "digits"
[dense]
epochs = 3
lr = 0.1
[train]
epochs = 5
lr = 0.05
cut_at = 0.4
[sparse]
norms = "function"
[cut]
macs = 0.5
[distill]
weight = 0.5
[export]
int8 = true
[bench]
min_seconds = 0
"""
SAME = ("dense.onnx", "dense.safetensors", "sparse.safetensors", "slim.onnx", "slim.safetensors", "widths.json")
"""Files that hang on no clock."""


def start(recipe: Path, out: Path, *more: str, verb: str = "run") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hoyer_export", verb, str(recipe), "--out", str(out), *more]
    with open(recipe.with_name("said.txt"), "wb") as said:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)


def epochs(out: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_run_that_is_killed_fifty_times_ends_as_one_that_never_was(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    began = time.monotonic()
    whole = start(recipe, tmp_path / "whole")
    assert whole.wait() == 0, (tmp_path / "said.txt").read_text()
    seconds = time.monotonic() - began
    out, moments, seen = tmp_path / "out", random.Random(0), set[str]()
    for _ in range(KILLS):
        running = start(recipe, out, "--resume")
        try:
            running.wait(timeout=moments.uniform(0.1, 0.6) * seconds)
            assert running.returncode == 0, (tmp_path / "said.txt").read_text()
            out = out.with_name(out.name + "1")  # done before the moment came: another one
        except subprocess.TimeoutExpired:
            running.kill()
            assert running.wait() == -signal.SIGKILL
            if (out / "stages.json").is_file():
                stages = json.loads((out / "stages.json").read_text())
                seen.add(list(stages)[-1])
    last = start(recipe, out, "--resume")
    assert last.wait() == 0, (tmp_path / "said.txt").read_text()
    for done in tmp_path.glob("out*"):
        for name in SAME:
            assert (done / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (done, name)
        assert epochs(done) == epochs(tmp_path / "whole")
        assert sorted(os.listdir(done)) == sorted(os.listdir(tmp_path / "whole"))
    assert len(seen) >= 4, seen  # in the middle of so many different stages


def test_a_sweep_that_is_killed_fifty_times_ends_as_one_that_never_was(tmp_path: Path) -> None:
    recipe, out, moments = tmp_path / "recipe.toml", tmp_path / "out", random.Random(1)
    recipe.write_text(RECIPE)
    budgets, kills = ("--budgets", "0.7,0.5"), 0
    began = time.monotonic()
    assert start(recipe, tmp_path / "whole", *budgets, verb="sweep").wait() == 0, (tmp_path / "said.txt").read_text()
    seconds = time.monotonic() - began
    while kills < KILLS:
        running = start(recipe, out, *budgets, verb="sweep")
        try:
            running.wait(timeout=moments.uniform(0.05, 0.3) * seconds)
            assert running.returncode == 0, (tmp_path / "said.txt").read_text()
            out = out.with_name(out.name + "1")
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            kills += 1
    assert start(recipe, out, *budgets, verb="sweep").wait() == 0, (tmp_path / "said.txt").read_text()
    for done in tmp_path.glob("out*"):
        assert sorted(os.listdir(done)) == sorted(os.listdir(tmp_path / "whole"))
        for whole in (tmp_path / "whole" / "runs").iterdir():
            found = done / "runs" / whole.name
            if whole.is_file():
                assert found.read_bytes() == whole.read_bytes()
                continue
            assert {name: (found / name).read_bytes() for name in SAME} == {
                name: (whole / name).read_bytes() for name in SAME
            }
            assert epochs(found) == epochs(whole)
