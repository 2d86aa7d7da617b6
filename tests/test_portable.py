"""What Windows and macOS do differently, patched in: nobody has run the tests there."""

import errno
import fcntl
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from hoyer_export import environment, lock
from hoyer_export.errors import FileError
from hoyer_export.run_folder import write_whole
from hoyer_export.stopping import stopped_by_signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="patches what is there")


def test_only_a_handle_that_can_write_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []

    def fsync(descriptor: int) -> None:  # as on Windows
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flushed.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert len(flushed) == 1


@pytest.fixture
def windows_lock(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return lock.py as Windows imports it: it locks a byte where it stands, and removes no file that is open."""
    places: list[int] = []
    unlink = Path.unlink

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (2, 1)
        places.append(os.lseek(descriptor, 0, os.SEEK_CUR))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(path: Path, missing_ok: bool = False) -> None:
        for descriptor in os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else ():
            try:
                is_open = os.path.samefile(f"/proc/self/fd/{descriptor}", path)
            except OSError:  # the listing's own
                continue
            if is_open:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(Path, "unlink", remove)
    specification = importlib.util.spec_from_file_location("windows_lock", lock.__file__)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.places = places  # type: ignore[attr-defined]
    return module


def test_the_lock_of_windows_is_held_once_says_by_whom_and_goes_with_its_file(
    windows_lock: ModuleType, tmp_path: Path
) -> None:
    with windows_lock.only_writer(tmp_path):
        for attempt in (
            lambda: windows_lock.only_writer(tmp_path).__enter__(),
            lambda: windows_lock.check_unused(tmp_path),
        ):
            with pytest.raises(FileError, match=rf"in use by another hoyer-export \(process {os.getpid()}\)"):
                attempt()
    assert list(tmp_path.iterdir()) == []
    windows_lock.check_unused(tmp_path)
    assert set(windows_lock.places) == {1 << 30}  # behind the text, which stays readable


def test_where_there_is_no_sighup_the_other_signals_still_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), stopped_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_where_nobody_tells_affinity_load_or_processor_the_record_is_still_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "getloadavg")
    monkeypatch.setattr(environment, "_cpuinfo", lambda: "")
    record = environment.environment_record()
    assert (record.load, record.threads, record.flags) == (None, os.cpu_count(), ())
    assert record.cpu


def test_a_name_between_colons_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    from hoyer_export.live import progress

    with progress() as shown:
        shown.headline("my_package:two: build")
    assert "my_package:two: build" in capsys.readouterr().err
