"""A run's folder: what it holds, whose it is, and files that appear whole or not at all.

A file is written under a temporary name beside the target, flushed to disk and renamed. What a finished stage found
out is kept in ``stages.json``, so that a later stage can start from the folder alone.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hoyer_export.errors import FileError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed to ``path``.

    If the body raises, the temporary file is removed and ``path`` is as it was before.

    Raises:
        FileError: the folder of ``path`` cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    except OSError as error:
        raise FileError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` whole or not at all; text is UTF-8."""
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@dataclass(frozen=True)
class RunFolder:
    """The names of the files of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def stages(self) -> Path:
        return self.path / "stages.json"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def dense_weights(self) -> Path:
        return self.path / "dense.safetensors"

    @property
    def sparse_weights(self) -> Path:
        return self.path / "sparse.safetensors"

    @property
    def slim_weights(self) -> Path:
        return self.path / "slim.safetensors"

    @property
    def widths(self) -> Path:
        return self.path / "widths.json"

    @property
    def dense_onnx(self) -> Path:
        return self.path / "dense.onnx"

    @property
    def slim_onnx(self) -> Path:
        return self.path / "slim.onnx"

    @property
    def report(self) -> Path:
        return self.path / "report.json"


def check_free(out: Path, *, resume: bool) -> bool:
    """Look at the output folder without changing anything, and return whether a run has begun there.

    Args:
        out: absent, or an empty folder; with ``resume`` also the folder of an earlier run.
        resume: an earlier run may be there.

    Raises:
        FileError: ``out`` is a file, holds something else, or holds a run and ``resume`` is off.
    """
    if not out.exists() and not out.is_symlink():
        _check_writable(out)
        return False
    if not out.is_dir():
        raise FileError(f"--out {out} is a file; give a folder that is absent or empty")
    # What an interrupted write leaves behind belongs to nobody.
    names = sorted(entry.name for entry in out.iterdir() if not _is_part(entry))
    if not names:
        _check_writable(out)
        return False
    if not (out / "recipe.toml").is_file():
        raise FileError(f"--out {out} holds other files ({names[0]}, ...); give a folder that is absent or empty")
    if not resume:
        raise FileError(f"--out {out} already holds a run; add --resume to go on with it, or give another folder")
    _check_writable(out)
    return True


def _check_writable(folder: Path) -> None:
    nearest = _nearest(folder)
    if not nearest.is_dir():
        raise FileError(f"--out {folder}: {nearest} is a file, so no folder can be made in it; give another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise FileError(f"--out {folder}: {nearest} cannot be written; give another folder")


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def create_folder(out: Path) -> RunFolder:
    """Make the folder if it is absent, clear what interrupted writes left, and return its names."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for entry in out.iterdir():
            if _is_part(entry):
                entry.unlink()
    except OSError as error:
        raise FileError(f"cannot make the folder {out}: {error.strerror}; give another folder") from error
    return RunFolder(out)


@contextmanager
def whole_folder(out: Path) -> Iterator[RunFolder]:
    """Yield a temporary folder near ``out``; on success it is renamed to ``out``.

    Into a folder that is there already its files are renamed: that folder may be a mount point, or somebody's working
    directory. If the body raises, the temporary folder is removed and ``out`` is as it was before.

    Args:
        out: absent or empty (``check_free``).

    Raises:
        FileError: ``out`` cannot be made or written.
    """
    try:
        # On the same disk, so that nothing has to be copied; inside, so that the mode is an ordinary folder's.
        with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=_nearest(out)) as aside:
            made = RunFolder(Path(aside) / "out")
            made.path.mkdir()
            yield made
            if not out.exists():
                out.parent.mkdir(parents=True, exist_ok=True)
                os.replace(made.path, out)
                return
            create_folder(out)
            for file in sorted(made.path.iterdir()):
                os.replace(file, out / file.name)
    except OSError as error:
        raise FileError(f"cannot write {out}: {error.strerror or error}; give another folder") from error


def open_folder(path: Path) -> RunFolder:
    """Return the folder of an earlier run.

    Raises:
        FileError: there is no run at ``path``.
    """
    if not path.is_dir():
        raise FileError(f"{path} is {'a file' if path.exists() else 'absent'}; give the folder of a run")
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        raise FileError(f"{path} holds no run: recipe.toml is missing; give the --out folder of  hoyer-export run")
    return folder


def _is_part(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".part") and path.is_file()


def read_stages(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Return what the finished stages found out: stage → record; empty before the first.

    Raises:
        FileError: the file is damaged.
    """
    if not folder.stages.exists():
        return {}
    try:
        stages = json.loads(folder.stages.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{folder.stages} is damaged ({error}); start again in another folder") from error
    if not isinstance(stages, dict) or not all(isinstance(record, dict) for record in stages.values()):
        raise FileError(f"{folder.stages} is damaged (not an object of objects); start again in another folder")
    return stages


def write_stage(folder: RunFolder, stage: str, record: Mapping[str, Any]) -> None:
    """Keep what a finished stage found out (numbers, strings, lists and dicts of them)."""
    stages = read_stages(folder) | {stage: dict(record)}
    write_whole(folder.stages, json.dumps(stages, indent=1, allow_nan=False) + "\n")


def drop_stages(folder: RunFolder, *stages: str) -> None:
    """Forget what these stages found out, because it holds no longer."""
    kept = {stage: record for stage, record in read_stages(folder).items() if stage not in stages}
    write_whole(folder.stages, json.dumps(kept, indent=1, allow_nan=False) + "\n")
