"""Tensors in a safetensors file, with one JSON object in its metadata: written whole or not at all, read as data."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hoyer_export.errors import FileError, one_line
from hoyer_export.run_folder import write_whole


class TensorsFile(NamedTuple):
    """What a safetensors file holds.

    Args:
        tensors: by name, on the CPU.
        metadata: key → text.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], key: str) -> None:
    """Write tensors, whole or not at all; the same ones give the same bytes.

    Args:
        path: of the file.
        tensors: by name, on any device.
        about: a JSON object.
        key: of the metadata under which it is kept; one, for safetensors writes several in an order that changes.

    Raises:
        CannotWrite: the disk is full, or the folder cannot be written.
    """
    # A copy each: safetensors refuses tensors that share memory, as tied weights do.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, safetensors.torch.save(copies, {key: json.dumps(about)}))


def read_tensors(path: Path) -> TensorsFile:
    """Read a safetensors file onto the CPU.

    Raises:
        FileError: the file is missing, or it is damaged or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return TensorsFile({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118  (not a dict)
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist") from error
    except (OSError, SafetensorError, struct.error) as error:
        raise FileError(f"{path} cannot be read as safetensors ({one_line(error)}): it is damaged") from error
