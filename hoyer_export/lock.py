"""One writer a folder: a lock that its process cannot leave behind, however it ends.

The operating system holds it on an open file, and lets go of it when the process is gone. The file itself means
nothing: it stays behind after a SIGKILL, and is locked anew.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hoyer_export.errors import InUse, cannot_write

LOCK = ".hoyer-export.lock"

_held: set[int] = set()
"""Descriptors of locks; a forked child gets copies of them, which would keep a lock when its parent has been killed."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, or refuse where another process holds it.

    A file system that cannot lock (some network drives) gives no protection, and no error.

    Args:
        folder: must exist.

    Raises:
        InUse: somebody else writes there.
        FileError: the folder cannot be written.
    """
    path = folder / LOCK
    try:
        descriptor = _acquired(path)
    except BlockingIOError:
        raise _in_use(folder) from None
    except OSError as error:
        raise cannot_write(path, error) from error
    _held.add(descriptor)
    try:
        with suppress(OSError):
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        _held.discard(descriptor)
        if sys.platform != "win32":  # while it is still ours
            path.unlink(missing_ok=True)
        os.close(descriptor)
        if sys.platform == "win32":  # which removes no open file
            with suppress(OSError):
                path.unlink()


def check_unused(folder: Path) -> None:
    """Refuse a folder that another process writes to now; nothing is made or changed.

    Raises:
        InUse: somebody writes there.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:  # no lock, or nothing that could be written anyway
        return
    try:
        _lock(descriptor)
    except BlockingIOError:
        raise _in_use(folder) from None
    finally:
        os.close(descriptor)


def _acquired(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.ftruncate(descriptor, 0)
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder has taken the file away meanwhile


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        """Lock a byte far behind the text, which others may still read."""
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # that of a lock which somebody holds is another
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL):
                raise

    def _let_go() -> None:
        while _held:
            os.close(_held.pop())

    os.register_at_fork(after_in_child=_let_go)


def _in_use(folder: Path) -> InUse:
    holder = ""
    with suppress(OSError, ValueError):
        holder = f" (process {int((folder / LOCK).read_text())})"
    return InUse(f"{folder} is in use by another hoyer-export{holder}; wait until it has ended, or give another folder")
