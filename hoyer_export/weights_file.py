"""A file of weights: path → what it holds, nested as it was saved, on the CPU; no code from the file runs.

Training scripts save more than tensors: options (``argparse.Namespace``), numpy's numbers, callbacks. torch reads
none of their classes with ``weights_only=True``, but names them without importing anything. Each gets an inert stand-in
here, the tensors are read, and what was left out is named.
"""

import pickle
import pickletools
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

from hoyer_export.errors import FileError
from hoyer_export.placeholder import refuse_placeholder
from hoyer_export.tensors_file import METADATA_KEY

_SAVE = "save torch.save(model.state_dict(), FILE) where it comes from"
_KNOWN = r"torch\._|torch\.\w*Storage$|torch\.nn\.parameter\.|collections\.OrderedDict$"
"""What torch's reader knows of an old file's names."""
_EXPECTED = "expected .safetensors, or a state dict saved with torch.save"


@dataclass(frozen=True)
class FileContent:
    """What a file holds.

    Args:
        content: as it was saved; ``Counter`` or an empty object in the place of what was left out.
        left_out: full names of the classes and functions that have a stand-in.
    """

    content: object
    left_out: tuple[str, ...] = ()


def read_file(path: Path) -> FileContent:
    """Read a ``.safetensors`` file, or what torch saved, onto the CPU.

    Raises:
        FileError: the file is missing or damaged, or is something else: a slim file, TorchScript, ONNX, a web page, ...
    """
    if not path.is_file() or not path.stat().st_size:
        found = "a folder" if path.is_dir() else "an empty file" if path.is_file() else "nothing"
        raise FileError(f"{path}: expected a file of weights (.safetensors, .pt, .pth), found {found}")
    if path.suffix == ".onnx":
        raise FileError(f"{path} is an ONNX file, whose weights have other names and are folded; {_EXPECTED}")
    refuse_placeholder(path)
    try:
        return _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    except FileError:
        raise
    except (pickle.UnpicklingError, ValueError) as error:  # the second from a pickle that is none
        # torch's own message advises to load the file with its code running.
        raise FileError(
            f"{path} is no state dict: it is damaged, or holds what only code reads, and code from a file is never "
            f"run; {_SAVE}"
        ) from error
    except Exception as error:  # a damaged file makes zipfile, pickle, struct, torch, ... fail in their own ways
        first_line = next(iter(str(error).splitlines()), "")
        raise FileError(
            f"{path} is no readable file of weights ({type(error).__name__}: {first_line}); {_EXPECTED}"
        ) from error


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with the size of a header and the header, in JSON: its name may say something else."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" or (path.suffix == ".safetensors" and not start.startswith(b"PK"))


def _read_safetensors(path: Path) -> FileContent:
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        if METADATA_KEY in about:
            raise FileError(
                f"{path} holds a slim network, cut already; load it with hx.load_slim({str(path)!r}), or give the "
                "weights of a dense network, as in the dense.safetensors of its run"
            )
    tensors = safetensors.torch.load_file(path)
    # save_model writes tied weights once, and there which name stands for which.
    tied = {name: tensors[kept] for name, kept in about.items() if kept in tensors and name not in tensors}
    return FileContent(tensors | tied)


def _read_torch(path: Path) -> FileContent:
    names = _unknown(path)
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(_stand_in(name), name) for name in names]
    # Open, for of a path torch asks the suffix.
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")  # of another pickle protocol; what cannot be read raises
        return FileContent(torch.load(file, map_location="cpu", weights_only=True), tuple(names))


def _unknown(path: Path) -> list[str]:
    """Return the names of what a file would import, beside what torch's reader knows; nothing is imported."""
    if not zipfile.is_zipfile(path):
        return _unknown_in_old(path)
    with zipfile.ZipFile(path) as file:
        entries = {name.partition("/")[2] for name in file.namelist()}
    for entry, kind, saved in (
        ("constants.pkl", "TorchScript", "torch.jit.load(FILE).state_dict()"),
        ("archive_format", "a program of torch.export", "torch.export.load(FILE).state_dict"),
    ):
        if entry in entries:
            raise FileError(f"{path} is {kind}, not weights; save torch.save({saved}, NEW) yourself, and give that")
    if "data.pkl" not in entries:
        raise FileError(f"{path} is a zip file that torch.save did not write; {_EXPECTED}")
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))


def _unknown_in_old(path: Path) -> list[str]:
    """Return the same of a file as PyTorch before 1.6 wrote them: three pickles about it, and one of its content.

    torch's own function reads zip files alone.
    """
    with path.open("rb") as file:
        if file.read(4) == b"PK\3\4":
            raise FileError(f"{path} is not whole: its end is missing; copy or download it again")
        file.seek(0)
        operations = [it for _ in range(4) for it in pickletools.genops(file)]
    # Written with the names that Python 2 used; the reader looks for today's.
    named = {str(value).replace(" ", ".") for operation, value, _ in operations if operation.name == "GLOBAL"}
    return sorted({name.replace("__builtin__.", "builtins.") for name in named if not re.match(_KNOWN, name)})


class _Thing:
    """Stands for what takes arguments and a state of any kind, and does nothing with them."""

    def __init__(self, *arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _Items:
    """Stands for a class that may be a dict of some kind: torch fills no class but its own three with items."""

    def __new__(cls, *arguments: object) -> Counter[str]:  # type: ignore[misc]
        return Counter()


class _Values:
    """Stands for a list of some kind, likewise."""

    def __new__(cls, *arguments: object) -> list[object]:  # type: ignore[misc]
        return []


def _stand_in(name: str) -> type:
    """Return an inert class for what has this full name; where it is shown, it has that name."""
    if name == "collections.deque":
        return _Values
    # Their states are tuples, which a Counter does not take.
    return type(name, (_Thing,), {}) if name.startswith(("numpy.", "functools.", "random.")) else _Items


def is_module(part: object) -> bool:
    """Return whether a part of a file was a whole network, pickled."""
    return isinstance(part, Counter) and {"_modules", "_parameters"} <= vars(part).keys()
