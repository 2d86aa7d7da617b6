"""Checkpoints of a training: model, optimizer state and history in one safetensors file; no pickle anywhere.

Tensors are named ``model/NAME`` and ``optimizer/INDEX/KEY``; the metadata holds one JSON object with the settings of
the training, its history and a checksum of the tensors (safetensors notices a truncated file, not a flipped bit).
Random states are not here, neither the CPU's nor a GPU's: training seeds every epoch anew.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hoyer_export.errors import FileError, one_line
from hoyer_export.run_folder import write_whole

FORMAT = "hoyer-export-checkpoint/1"
_KEY = "hoyer_export.checkpoint"

Settings = Mapping[str, str | float | None]


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    settings: Settings,
    history: list[dict[str, Any]],
) -> None:
    """Write a checkpoint whole or not at all; an earlier one stays until the new one is on disk.

    Args:
        path: its folder must exist.
        model: its state dict holds tensors only.
        optimizer: its state holds tensors only, as that of torch's own does.
        settings: what must be the same for the training to go on.
        history: one JSON object an epoch.

    Raises:
        FileError: the file cannot be written.
    """
    # A copy each: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _tensors(model, optimizer).items()}
    about = {"format": FORMAT, "settings": dict(settings), "history": history, "crc32": _checksum(tensors)}
    write_whole(path, save(tensors, metadata={_KEY: json.dumps(about)}))


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, settings: Settings
) -> list[dict[str, Any]]:
    """Copy a checkpoint into ``model`` and ``optimizer``, all of it or nothing, and return its history.

    Raises:
        FileError: the file is damaged, or belongs to another training or network.
    """
    about, tensors = _read(path)
    for key in sorted(settings.keys() | about["settings"].keys()):
        was, now = about["settings"].get(key), settings.get(key)
        if was != now:
            raise FileError(
                f"{path} is the checkpoint of another training ({key} was {was}, now {now}); "
                "ask for the same again, or delete it to start anew"
            )
    expected = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            number, _, key = name.removeprefix("optimizer/").partition("/")
            index = int(number) if number.isdecimal() else len(parameters)
            if index >= len(parameters) or (tensor.ndim and tensor.shape != parameters[index].shape):
                raise _misfit(path, name)
            like = parameters[index]
            # empty_like keeps the memory format, which safetensors does not know.
            value = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor) if tensor.ndim else tensor
            state.setdefault(index, {})[key] = value
        elif name not in expected or expected[name].shape != tensor.shape or expected[name].dtype != tensor.dtype:
            raise _misfit(path, name)
    for name in expected:
        if name not in tensors:
            raise _misfit(path, name)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    history: list[dict[str, Any]] = about["history"]
    return history


def epochs_done(path: Path) -> int:
    """Return how many whole epochs a checkpoint holds, from its header alone; 0 where there is none.

    Raises:
        FileError: the file is damaged.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            return len(json.loads(file.metadata()[_KEY])["history"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        # SGD without momentum keeps a None.
        tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items() if value is not None}
    return tensors


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}, expected {FORMAT}")
        if about["crc32"] != _checksum(tensors):
            raise ValueError("its checksum differs")
        if not (isinstance(about["settings"], dict) and isinstance(about["history"], list)):
            raise ValueError("settings or history missing")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return about, tensors


def _damaged(path: Path, error: Exception) -> FileError:
    return FileError(f"{path} is no whole checkpoint ({one_line(error)}); delete it to train this phase anew")


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def _misfit(path: Path, name: str) -> FileError:
    return FileError(
        f"{path} is the checkpoint of another network ({name} does not fit); "
        "train the same network again, or delete it to start anew"
    )
