"""A safetensors file of ours: tensors by name, and one JSON text in the metadata that says what they are.

It is written whole or not at all. Nothing in it is ever executed.
"""

import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hoyer_export.errors import FileError, one_line
from hoyer_export.placeholder import refuse_placeholder
from hoyer_export.record import Record
from hoyer_export.run_folder import write_whole

METADATA_KEY = "hoyer_export"
"""Of a slim file, see ``store/slim_file.py``."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Record | str, key: str) -> None:
    """Write tensors and what they are: the same ones leave the same bytes.

    Args:
        path: its folder must exist.
        tensors: on any device, of any memory format; some may share memory.
        about: a record, or JSON.
        key: of ``about`` in the metadata, the only one: safetensors writes several in random order.

    Raises:
        FileError: the file cannot be written.
    """
    text = about if isinstance(about, str) else about.model_dump_json()
    # A copy each: safetensors refuses tensors that share memory, as tied weights do.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, save(whole, {key: text}))


def read_tensors(path: Path, key: str, *, kind: str, advice: str) -> tuple[str, dict[str, Tensor]]:
    """Return what ``write_tensors`` wrote, ``about`` as JSON and the tensors on the CPU.

    Args:
        path: of the file.
        key: of ``about`` in the metadata.
        kind: what the file should be, for the error, e.g. "checkpoint".
        advice: what to do if it is none, for the error.

    Raises:
        FileError: the file is missing, damaged, or has no such key; one line.
    """
    about, tensors = _read(path, key, kind, advice, tensors=True)
    return about, tensors


def read_about(path: Path, key: str, *, kind: str, advice: str) -> str:
    """Return ``about`` alone, from the header: no tensor is read. Arguments and errors as for ``read_tensors``."""
    return _read(path, key, kind, advice, tensors=False)[0]


def damaged(path: Path, kind: str, reason: str, advice: str) -> FileError:
    """Return the error that says in one line why a file is not what it should be, and what to do."""
    return FileError(f"{path} is no whole {kind} ({reason}); {advice}")


def _read(path: Path, key: str, kind: str, advice: str, *, tensors: bool) -> tuple[str, dict[str, Tensor]]:
    refuse_placeholder(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {})[key]
            names = file.keys() if tensors else ()
            return about, {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise damaged(path, kind, "there is no such file", advice) from None
    except KeyError:
        raise damaged(path, kind, f"its metadata has no {key}", advice) from None
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise damaged(path, kind, one_line(error), advice) from error
