"""The user's mistakes, each explained by one line: what was expected, what came, what to do.

Everything else that is raised is a bug of ours and keeps its traceback.
"""

import errno
from pathlib import Path


def one_line(error: BaseException, *, typed: bool = False) -> str:
    """Return the message of somebody else's exception on one line, ``typed`` behind its type; that alone for none."""
    name, message = type(error).__name__, " ".join(str(error).split())
    return f"{name}: {message}" if typed and message else message or name


class HoyerExportError(Exception):
    """A mistake that its message explains; the command line prints the message and exits with ``exit_code``."""

    exit_code = 1


class RecipeError(HoyerExportError):
    """A recipe that cannot be read, or holds a wrong key or value."""


class DataError(HoyerExportError):
    """A data set that is missing, damaged, or does not fit the network."""


class NetworkError(HoyerExportError):
    """A network that cannot be built, loaded or traced."""


class FileError(HoyerExportError):
    """A file or folder that is missing, damaged, or in the way."""


class CannotWrite(FileError):
    """A file that the disk, or whoever owns it, does not let us write; nothing of it was left."""


class InUse(FileError):
    """A folder in which another process writes now."""


class CutRefused(HoyerExportError):
    """A cut that would change what the network computes."""


class TrainingError(HoyerExportError):
    """A training that cannot go on, for instance because the loss is not a number."""


class VerificationFailed(HoyerExportError):
    """A check of the exported file that did not pass, or a budget that was missed."""

    exit_code = 3


_FULL = "free some space there, or choose a folder on another disk"
WHAT_TO_DO = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "free some of your quota there, or choose a folder on another disk",
    errno.EFBIG: "the file system or a limit (ulimit -f) allows no file of that size; choose a folder on another disk",
    errno.EROFS: "that disk can only be read; choose a folder on another one",
    errno.EIO: "that disk, or the connection to it, is failing; choose a folder on another one",
}
"""What helps where a disk refuses to be written, by the number of the error."""


def cannot_write(path: Path, error: OSError, needed_bytes: int | None = None) -> CannotWrite:
    """Return the error of ours that says why ``path`` cannot be written, and what helps.

    Args:
        path: of the file or folder.
        error: of the operating system.
        needed_bytes: how large the file would be, where that is known.
    """
    size = "" if needed_bytes is None else f" ({needed_bytes:,} bytes)"
    advice = WHAT_TO_DO.get(error.errno or 0, "choose a folder that can be written")
    return CannotWrite(f"cannot write {path}{size}: {error.strerror or error}; {advice}")
