"""A run's folder: what it holds, whose it is, and files that appear whole or not at all.

A file is written under a temporary name beside the target, flushed to disk and renamed. What a finished stage found
out is kept in ``stages.json``, so that a later stage can start from the folder alone.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hoyer_export.errors import CannotWrite, FileError, cannot_write
from hoyer_export.lock import LOCK, check_unused, only_writer


@contextmanager
def whole_file(path: Path, size_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed to ``path``.

    If the body raises, the temporary file is removed and ``path`` is as it was before.

    Args:
        path: of the file.
        size_bytes: how large it will be, where that is known, for the error.

    Raises:
        CannotWrite: the disk is full, or the folder of ``path`` cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with open(part, "r+b") as written:  # Windows flushes no handle that can only read
            os.fsync(written.fileno())
        os.replace(part, path)
    except OSError as error:
        raise cannot_write(path, error, size_bytes) from error
    finally:
        with suppress(OSError):  # what went wrong before is what is said
            part.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` whole or not at all; text is UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    with whole_file(path, len(data)) as part:
        part.write_bytes(data)


class _Named:
    """A file of a run, by its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: "RunFolder", owner: type) -> Path:
        return folder.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """The names of the files of one run."""

    path: Path

    recipe = _Named("recipe.toml")
    metrics = _Named("metrics.jsonl")
    stages = _Named("stages.json")
    channels = _Named("channels.json")
    checkpoint = _Named("checkpoint")
    dense_weights = _Named("dense.safetensors")
    sparse_weights = _Named("sparse.safetensors")
    slim_weights = _Named("slim.safetensors")
    widths = _Named("widths.json")
    dense_onnx = _Named("dense.onnx")
    slim_onnx = _Named("slim.onnx")
    report = _Named("report.json")


def check_free(out: Path, *, resume: bool) -> bool:
    """Look at the output folder without changing anything, and return whether a run has begun there.

    Args:
        out: absent, or an empty folder; with ``resume`` also the folder of an earlier run.
        resume: an earlier run may be there.

    Raises:
        FileError: ``out`` is a file, holds something else, is written by another process now, or holds a run and
            ``resume`` is off.
    """
    if out.is_dir():
        check_unused(out)
    return _begun(out, resume)


def _begun(out: Path, resume: bool) -> bool:
    names = sorted(entry.name for entry in out.iterdir() if not _is_leftover(entry)) if out.is_dir() else []
    begun = bool(names) and not (out / _WHOLE).is_dir()  # whose files ``claimed`` puts there first
    nearest = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    wrong = ""
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        wrong = "is a file; give a folder that is absent or empty"
    elif begun and not (out / "recipe.toml").is_file():
        wrong = f"holds other files ({names[0]}, ...); give a folder that is absent or empty"
    elif begun and not resume:
        wrong = "already holds a run; add `resume=True` to go on with it, or give another folder"
    elif not nearest.is_dir():
        wrong = f"is below {nearest}, which is a file; give another folder"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        wrong = f"cannot be made or changed: {nearest} cannot be written; give another folder"
    if wrong:
        raise FileError(f"`out` {out} {wrong}")
    return begun


@contextmanager
def claimed(out: Path, *, resume: bool = False) -> Iterator[bool]:
    """Make the output folder and be the only one who writes there; yield whether a run has begun there already.

    What interrupted writes left there is cleared: the lock says that nobody is at it any more. If nothing is in the
    folder afterwards, it goes again.

    Args:
        out: as for ``check_free``.
        resume: as for ``check_free``.

    Raises:
        FileError: as for ``check_free``, or ``out`` cannot be made.
    """
    check_free(out, resume=resume)
    absent = [place for place in (out, *out.parents) if not place.exists()]
    try:
        with _made_and_locked(out):
            _clear(out)
            if (out / _WHOLE).is_dir():
                _publish(out)
                raise FileError(
                    f"`out` {out}: an earlier cut was stopped while its files were put there; now they all are, but its"
                    " figures were never printed; to cut again, give another folder or empty this one"
                )
            yield _begun(out, resume)
    finally:
        for place in absent:
            with suppress(OSError):  # there is something in it
                place.rmdir()


@contextmanager
def _made_and_locked(out: Path) -> Iterator[None]:
    """Hold the lock of a folder that is made first; another process may take it away again in between."""
    with ExitStack() as stack:
        for attempt in range(_ATTEMPTS):
            try:
                out.mkdir(parents=True, exist_ok=True)
                stack.enter_context(only_writer(out))
                break
            except (OSError, CannotWrite) as error:
                if out.is_dir() or attempt == _ATTEMPTS - 1:
                    raise error if isinstance(error, CannotWrite) else cannot_write(out, error) from error
        yield


@contextmanager
def whole_folder(out: Path) -> Iterator[RunFolder]:
    """Yield a temporary folder in ``out``, whose files appear in ``out`` together on success.

    If the body raises, ``out`` is as it was before. The files are renamed one by one, because ``out`` may be a mount
    point or somebody's working directory; if that is interrupted, the next who claims ``out`` finishes it.

    Args:
        out: ``claimed`` by the caller.

    Raises:
        FileError: ``out`` cannot be written.
    """
    try:
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, suffix=".part", dir=out))
        try:
            yield RunFolder(aside)
            os.replace(aside, out / _WHOLE)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            if (out / _WHOLE).is_dir():  # also if somebody interrupts just now
                _publish(out)
    except OSError as error:
        raise cannot_write(out, error) from error


_ASIDE = ".hoyer-export-"
_WHOLE = f"{_ASIDE}whole"
"""Holds files that are all written and measured, and only have to be renamed."""
_ATTEMPTS = 3


def _publish(out: Path) -> None:
    try:
        for file in sorted((out / _WHOLE).iterdir()):
            os.replace(file, out / file.name)
        (out / _WHOLE).rmdir()
    except OSError as error:
        raise cannot_write(out, error) from error


@contextmanager
def opened(path: Path) -> Iterator[RunFolder]:
    """Yield the folder of an earlier run, to write there: nobody else does meanwhile.

    Raises:
        FileError: there is no run at ``path``, or another process writes there.
    """
    folder = open_folder(path)
    with only_writer(path):
        _clear(path)
        yield folder


def open_folder(path: Path) -> RunFolder:
    """Return the folder of an earlier run.

    Raises:
        FileError: there is no run at ``path``.
    """
    if not path.is_dir():
        raise FileError(f"{path} is {'a file' if path.exists() else 'absent'}; give the folder of a run")
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        raise FileError(f"{path} holds no run: recipe.toml is missing; give the folder that a run was written to")
    return folder


def _is_leftover(path: Path) -> bool:
    """Whether an interrupted write left this behind: it belongs to nobody."""
    return path.name in (LOCK, _WHOLE) or (path.name.startswith(".") and path.name.endswith(".part"))


def _clear(out: Path) -> None:
    """Remove what interrupted writes left in a folder whose lock we hold."""
    with suppress(OSError):  # whatever cannot be removed is in nobody's way
        for part in [*out.glob(".*.part"), *(out / "checkpoint").glob(".*.part")]:
            if part.is_file():
                part.unlink()
            elif part.name.startswith(_ASIDE):  # only a folder that has our name goes with all that is in it
                shutil.rmtree(part)
