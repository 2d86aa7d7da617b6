"""One writer a folder, and what a process leaves behind that is killed on the spot: real processes, real SIGKILL."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hoyer_export.errors import FileError
from hoyer_export.lock import LOCK, check_unused, only_writer
from hoyer_export.run_folder import check_free, claimed, opened, whole_folder, write_whole

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

FILES = {f"{name}.txt": name * 3 for name in "abc"}
START = """
import os, signal, sys
from pathlib import Path
from hoyer_export import run_folder
from hoyer_export.run_folder import claimed, opened, whole_folder, write_whole

out, place = Path(sys.argv[1]), sys.argv[2]

def die_at(reached):
    if reached == place:
        os.kill(os.getpid(), signal.SIGKILL)

renamed = 0
replace = os.replace
def counting(source, target):
    global renamed
    die_at(f"rename {renamed}")
    replace(source, target)
    renamed += 1
os.replace = counting
"""
CUT = """
with claimed(out):
    die_at("claimed")
    with whole_folder(out) as made:
        die_at("made")
        for name in "abc":
            (made.path / f".{name}.txt.part").write_text("half")
            die_at(f"half of {name}")
            (made.path / f".{name}.txt.part").unlink()
            (made.path / f"{name}.txt").write_text(name * 3)
    die_at("published")
print("done", renamed)
"""
HOLD = """
with claimed(out, resume=True):
    write_whole(out / "recipe.toml", "seed = 0")
    (out / ".stages.json.part").write_text("being written")
    print("holding", flush=True)
    sys.stdin.read()
"""


def python(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    program = START + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def listing(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def cut_again(out: Path) -> None:
    with claimed(out), whole_folder(out) as made:
        for name, content in FILES.items():
            write_whole(made.path / name, content)


BEFORE = ["claimed", "made", "half of a", "half of c", "rename 0"]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("place", BEFORE)
def test_a_process_that_is_killed_before_its_files_are_whole_leaves_a_folder_that_is_free(
    place: str, existing: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if existing:
        out.mkdir()
    killed = python(CUT, out, place)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert all(name.startswith(".") for name in listing(out))
    assert check_free(out, resume=False) is False
    cut_again(out)
    assert listing(out) == sorted(FILES)


@pytest.mark.parametrize("place", ["rename 1", "rename 2", "rename 3"])
def test_a_process_that_is_killed_between_two_renames_has_them_finished_by_the_next(place: str, tmp_path: Path) -> None:
    killed = python(CUT, tmp_path, place)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    visible = [name for name in listing(tmp_path) if not name.startswith(".")]
    assert len(visible) == int(place[-1]) - 1  # the first rename is that of the whole folder
    with pytest.raises(FileError, match="an earlier cut was stopped while its files were put there; now they all are"):
        cut_again(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == FILES
    with pytest.raises(FileError, match=r"holds other files \(a\.txt"):
        cut_again(tmp_path)


def test_the_process_that_is_killed_would_have_gone_through(tmp_path: Path) -> None:
    whole = python(CUT, tmp_path / "out", "nowhere")
    out, err = whole.communicate()
    assert (out, err, whole.returncode) == ("done 4\n", "", 0)
    assert listing(tmp_path / "out") == sorted(FILES)


def test_two_processes_cannot_write_to_one_folder_and_a_kill_frees_it(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    first = python(HOLD, out, "")
    assert first.stdout is not None
    assert first.stdout.readline() == "holding\n"
    said = rf"out is in use by another hoyer-export \(process {first.pid}\)"
    for attempt in (
        lambda: check_free(out, resume=False),
        lambda: check_free(out, resume=True),
        lambda: claimed(out, resume=True).__enter__(),
        lambda: opened(out).__enter__(),
    ):
        with pytest.raises(FileError, match=said) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    second = python(HOLD, out, "")
    _, err = second.communicate()
    assert second.returncode == 1
    assert "is in use by another hoyer-export" in err
    assert ".stages.json.part" in listing(out), "what a living process is writing was taken away"
    first.kill()
    first.wait()
    assert LOCK in listing(out)
    with claimed(out, resume=True) as begun:
        assert begun
        assert listing(out) == [LOCK, "recipe.toml"]
    assert listing(out) == ["recipe.toml"]
    first.communicate()


def test_a_forked_child_does_not_keep_the_lock_of_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = """
    with claimed(out):
        if os.fork() == 0:
            print("the child runs", flush=True)
        sys.stdin.read()
        os._exit(0)
    """
    with python(script, tmp_path, "") as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == "the child runs\n"
        parent.kill()
        parent.wait()
        with only_writer(tmp_path):
            pass
        parent.stdin.close()  # which ends the child


def test_the_lock_of_one_process_is_not_taken_twice_and_goes_with_its_file(tmp_path: Path) -> None:
    with only_writer(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
        with pytest.raises(FileError, match="in use"), only_writer(tmp_path):
            pass
        with pytest.raises(FileError, match="in use"):
            check_unused(tmp_path)
    assert listing(tmp_path) == []
    check_unused(tmp_path)
    assert listing(tmp_path) == []


def test_a_folder_that_was_made_for_nothing_goes_again_with_those_above(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with claimed(out) as begun:
        assert not begun
        assert listing(out) == [LOCK]
    assert listing(tmp_path) == []
    with claimed(out):
        (out / "kept.txt").touch()
    assert listing(out) == ["kept.txt"]


def test_what_only_looks_like_a_leftover_is_not_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    theirs = tmp_path / ".thesis.part"
    theirs.mkdir()
    (theirs / "chapter1.tex").write_text("precious")
    with claimed(tmp_path):
        pass
    assert (theirs / "chapter1.tex").read_text() == "precious"
