"""Told to stop, or the disk full: one line that says where it stopped and how to go on, and nothing half-written."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hoyer_export import run_folder
from hoyer_export.cli import program
from hoyer_export.run import chain
from hoyer_export.stopping import Stop, interrupted, stopped_by_signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")

RECIPE = """
[network]
name = "cifar_resnet20"
[data]
name = "digits"
[dense]
epochs = 500
lr = 0.1
[cut]
macs = 0.5
align = 4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def left_behind(out: Path) -> list[str]:
    return [str(path.relative_to(out)) for path in out.rglob(".*")]


def test_a_run_that_is_told_to_stop_says_where_and_nobody_else_enters_it_meanwhile(
    call, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hoyer_export", "run", str(recipe), "--out", str(out)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    try:
        while "dense 1/500" not in (line := running.stderr.readline()):
            assert line, "the run has ended"
        for arguments in (
            ("run", recipe, "--out", out),
            ("run", recipe, "--out", out, "--resume"),
            ("cut", "--network", "lenet5", "--macs", "0.5", "--out", out),
            ("report", out),
        ):
            code, _, err = call(*arguments)
            said = f"out is in use by another hoyer-export (process {running.pid}); wait until it has ended"
            assert (code, err.count("\n")) == (1, 1), err
            assert said in err
    finally:
        running.send_signal(signal.SIGTERM)
        printed, said = running.communicate()
    assert running.returncode == 128 + signal.SIGTERM == 143
    assert printed == ""
    lines = said.splitlines()
    done = sum("dense" in line for line in lines[:-1]) + 1
    # The last epoch's line may be missing: its checkpoint comes first.
    ends = [f"epoch {epoch} of 500; go on with the same command and --resume" for epoch in (done + 1, done + 2)]
    assert lines[-1] in [f"stopped by SIGTERM in dense, {end}" for end in ends]
    assert left_behind(out) == []
    assert (out / "checkpoint" / "dense.safetensors").is_file()


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_every_signal_that_asks_to_stop_has_its_exit_code_and_its_line(
    name: str, code: int, call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, number = tmp_path / "out", getattr(signal, name)
    # As a terminal leaves them; in the background, or under nohup, they may be ignored.
    signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    before = signal.getsignal(number)

    def stopped(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), number)

    who = "interrupted" if name == "SIGINT" else f"stopped by {name}"
    monkeypatch.setattr(chain, "run_recipe", stopped)
    assert call("run", recipe, "--out", out) == (code, "", f"{who}; nothing was written yet\n")
    monkeypatch.setattr(chain, "verify_run", stopped)
    assert call("verify", out) == (code, "", f"{who}; nothing was left half-written\n")
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_is_no_exception_that_foreign_code_swallows() -> None:
    assert not issubclass(Stop, Exception)
    assert interrupted(Stop(signal.SIGTERM), "; x").exit_code == 143
    assert interrupted(KeyboardInterrupt(), "; x").exit_code == 130


def test_a_disk_that_fills_up_says_so_and_the_run_goes_on_once_there_is_space(
    call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ("run", recipe, "--out", out, "--set", "dense.epochs=2")
    replace, checkpoints = os.replace, []

    def full(source: Path, target: Path) -> None:
        if Path(target).parent.name == "checkpoint":
            checkpoints.append(target)
            if len(checkpoints) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(run_folder.os, "replace", full)
    code, _, err = call(*command)
    line = err.splitlines()[-1]
    assert code == 1
    assert line.startswith(f"error: cannot write {out}/checkpoint/dense.safetensors (")
    assert "No space left on device; free some space there" in line
    assert line.endswith("; then go on in dense, epoch 2 of 2, with the same command and --resume")
    assert left_behind(out) == []


def test_a_full_disk_behind_stdout_is_no_bug_of_ours(call, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(program, "app", full)
    code, _, err = call("macs", "any.onnx")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: cannot write the output: No space left on device; free some space")


def test_python_m_is_the_command() -> None:
    for arguments in (["--version"], ["cut", "--help"]):
        printed = [
            subprocess.run([sys.executable, *how, *arguments], capture_output=True, text=True, check=True).stdout
            for how in (["-m", "hoyer_export"], ["-c", "from hoyer_export.cli import main; main()"])
        ]
        assert printed[0].replace("python -m hoyer_export", "").split() == printed[1].replace("-c", "", 1).split()
        assert "__main__" not in printed[0]
