"""Files appear whole or not at all, a folder that is not ours is left alone, and a full disk is said to be full."""

import errno
import os
from pathlib import Path

import pytest

from hoyer_export.errors import CannotWrite, FileError
from hoyer_export.run_folder import (
    check_free,
    claimed,
    open_folder,
    whole_file,
    whole_folder,
    write_whole,
)


def listing(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_whole(target, "old")
    write_whole(target, b"new")
    assert target.read_bytes() == b"new"
    assert listing(tmp_path) == ["a.txt"]


def test_a_body_that_raises_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_whole(target, "old")

    def write_half() -> None:
        with whole_file(target) as part:
            part.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_half()
    assert target.read_text() == "old"
    assert listing(tmp_path) == ["a.txt"]


def test_a_folder_that_is_missing_is_said_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot write .*a\.txt"):
        write_whole(tmp_path / "absent" / "a.txt", "x")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space there"),
        (errno.EDQUOT, "free some of your quota"),
        (errno.EROFS, "that disk can only be read"),
        (errno.EFBIG, "allows no file of that size"),
        (errno.EIO, "is failing"),
        (errno.EACCES, "choose a folder that can be written"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_disk_that_refuses_says_what_helps_and_leaves_the_old_file(
    call: str, number: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.txt"
    write_whole(target, "old")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(*((Path, "write_bytes") if call == "open" else (os, call)), refuse)
        with pytest.raises(CannotWrite) as caught:
            write_whole(target, "twelve bytes")
    assert f"cannot write {target} (12 bytes): {os.strerror(number)}; " in str(caught.value)
    assert advice in str(caught.value)
    assert ("free" in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert target.read_text() == "old"
    assert listing(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("out", ["absent", "absent/deep", "empty"])
def test_the_files_of_a_folder_appear_together(out: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".a.txt.part").touch()  # of an interrupted write
    with claimed(tmp_path / out), whole_folder(tmp_path / out) as made:
        for name in ("a.txt", "b.txt"):
            write_whole(made.path / name, name)
        assert not list(tmp_path.glob(f"{out}/[!.]*"))
    assert listing(tmp_path / out) == ["a.txt", "b.txt"]
    assert listing(tmp_path) == sorted({"empty", Path(out).parts[0]})
    (tmp_path / "ordinary").mkdir()
    assert (tmp_path / out).stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("out", ["absent/deep", "empty"])
def test_a_folder_whose_making_fails_is_as_it_was(out: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    def make_half() -> None:
        with claimed(tmp_path / out), whole_folder(tmp_path / out) as made:
            write_whole(made.path / "a.txt", "a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_half()
    assert listing(tmp_path) == ["empty"]
    assert listing(tmp_path / "empty") == []


@pytest.mark.parametrize("resume", [False, True])
def test_an_absent_or_empty_folder_is_free_and_stays_as_it_is(resume: bool, tmp_path: Path) -> None:
    assert check_free(tmp_path / "new" / "deep", resume=resume) is False
    assert check_free(tmp_path, resume=resume) is False
    assert listing(tmp_path) == []


def test_what_an_interrupted_write_left_does_not_occupy_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".recipe.toml.part").write_text("half")
    assert check_free(tmp_path, resume=False) is False
    with claimed(tmp_path):
        pass
    assert listing(tmp_path) == []


def test_a_file_a_strangers_folder_and_a_second_run_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text("seed = 0")
    for resume in (False, True):
        with pytest.raises(FileError, match="is a file"):
            check_free(file, resume=resume)
        with pytest.raises(FileError, match="which is a file"):
            check_free(file / "below", resume=resume)
        with pytest.raises(FileError, match=r"holds other files \(thesis\.txt"):
            check_free(stranger, resume=resume)
    with pytest.raises(FileError, match="already holds a run; add `resume=True`"):
        check_free(run, resume=False)
    assert check_free(run, resume=True) is True
    assert file.read_text() == (stranger / "thesis.txt").read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match="cannot be written"):
        check_free(tmp_path / "new", resume=False)


def test_opening_what_is_no_run_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, said in [("absent", "is absent"), ("file", "is a file"), (".", "holds no run")]:
        with pytest.raises(FileError, match=said):
            open_folder(tmp_path / name)
