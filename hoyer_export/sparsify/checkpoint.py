"""Checkpoints of a training: its state and history in one safetensors file; no pickle anywhere.

Tensors are named ``model/NAME``, ``optimizer/INDEX/KEY`` and ``regulariser/NAME``; the metadata hold the settings of
the training, its history, the plan of a network that has shrunk, and a checksum of the tensors (safetensors notices a
truncated file, not a flipped bit). Random states are here within an epoch only: training seeds each anew.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import ConfigDict, ValidationError
from torch import Tensor

from hoyer_export.errors import FileError
from hoyer_export.record import Record, first_complaint
from hoyer_export.sparsify.phase import EpochPart, EpochRecord
from hoyer_export.sparsify.regulariser import Setting
from hoyer_export.sparsify.state import TrainState
from hoyer_export.tensors_file import damaged, read_about, read_tensors, write_tensors

FORMAT: Literal["hoyer-export-checkpoint/1"] = "hoyer-export-checkpoint/1"
_KEY = "hoyer_export.checkpoint"
_KIND, _ADVICE = "checkpoint", "delete it to train this phase anew"

History = tuple[EpochRecord, ...]


class _About(Record):
    """What a checkpoint says of itself in its metadata."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    format: Literal["hoyer-export-checkpoint/1"]
    settings: dict[str, Setting]
    history: History
    plan: str | None = None
    part: EpochPart | None = None
    crc32: int


def save_checkpoint(
    path: Path, state: TrainState, *, settings: Mapping[str, Setting], history: History, part: EpochPart | None = None
) -> None:
    """Write a checkpoint whole or not at all; an earlier one stays until the new one is on disk.

    Args:
        path: its folder must exist.
        state: what is trained.
        settings: what must be the same for the training to go on.
        history: the epochs so far.
        part: of the next one, that is trained too.
    """
    tensors = _tensors(state)
    crc = _checksum(tensors)
    about = _About(format=FORMAT, settings=dict(settings), history=history, plan=state.plan, part=part, crc32=crc)
    write_tensors(path, tensors, about, _KEY)


def load_checkpoint(
    path: Path,
    state: TrainState,
    *,
    settings: Mapping[str, Setting],
    rebuild: Callable[[TrainState, str], TrainState] | None = None,
) -> tuple[TrainState, History, EpochPart]:
    """Copy a checkpoint into a state, all of it or nothing.

    Args:
        path: of the file.
        state: of the same training before its first step; its model, optimizer and regulariser are changed in place.
        settings: what must be the same.
        rebuild: (``state``, the plan in the file) → the state of the network that has shrunk, with whatever weights.

    Returns:
        The state that training goes on with, which is ``state`` unless the network has shrunk; the epochs so far; and
        the part of the next one that is trained too.

    Raises:
        FileError: the file is damaged, or belongs to another training or network.
    """
    text, tensors = read_tensors(path, _KEY, kind=_KIND, advice=_ADVICE)
    about = _about(path, text)
    if about.crc32 != _checksum(tensors):
        raise damaged(path, _KIND, "its checksum differs", _ADVICE)
    for key in sorted(settings.keys() | about.settings.keys()):
        was, now = about.settings.get(key), settings.get(key)
        if was != now:
            raise _another("training", path, f"{key} was {was}, now {now}", "ask for the same again")
    if about.plan is not None:
        if rebuild is None:
            raise FileError(f"{path} holds a network that has shrunk: say how to rebuild it (rebuild), or delete it")
        state = replace(rebuild(state, about.plan), plan=about.plan)
    weights = _part("model/", tensors)
    expected = state.model.state_dict()
    kinds, wanted = ({(name, each.shape, each.dtype) for name, each in part.items()} for part in (weights, expected))
    if kinds != wanted:
        raise _another(
            "network",
            path,
            f"model/{min(name for name, *_ in kinds ^ wanted)} does not fit",
            "train the same network again",
        )
    moments = _moments(path, state.optimizer, _part("optimizer/", tensors))
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(weights[name])
    state.optimizer.load_state_dict({"state": moments, "param_groups": state.optimizer.state_dict()["param_groups"]})
    if state.regulariser is not None:
        state.regulariser.load_state_dict(_part("regulariser/", tensors))
    return state, about.history, about.part or EpochPart()


def load_momenta(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Copy only the optimizer's state of a checkpoint, into one over the same parameters; FileError as above."""
    _, tensors = read_tensors(path, _KEY, kind=_KIND, advice=_ADVICE)
    moments = _moments(path, optimizer, _part("optimizer/", tensors))
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def epochs_done(path: Path) -> int:
    """Return how many whole epochs a checkpoint holds, from its header alone; 0 where there is none.

    Raises:
        FileError: the file is damaged.
    """
    if not path.exists():
        return 0
    return len(_about(path, read_about(path, _KEY, kind=_KIND, advice=_ADVICE)).history)


def _about(path: Path, text: str) -> _About:
    try:
        return _About.model_validate_json(text, extra="ignore")
    except ValidationError as error:
        raise damaged(path, _KIND, first_complaint(error), _ADVICE) from None


def _tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        # SGD without momentum keeps a None.
        tensors |= {f"optimizer/{index}/{key}": value for key, value in moments.items() if value is not None}
    if state.regulariser is not None:
        tensors |= {f"regulariser/{name}": tensor for name, tensor in state.regulariser.state_dict().items()}
    return tensors


def _part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _moments(
    path: Path, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's state, laid out like its parameters; FileError where a tensor does not fit."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index_of = {str(index): index for index in range(len(parameters))}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition("/")
        if number not in index_of or tensor.shape not in (torch.Size(), parameters[index_of[number]].shape):
            raise _another("network", path, f"optimizer/{name} does not fit", "train the same network again")
        like = parameters[index_of[number]]
        # empty_like keeps the memory format, which safetensors does not know.
        value = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor) if tensor.ndim else tensor
        moments.setdefault(index_of[number], {})[key] = value
    return moments


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data, crc)
    return crc


def _another(kind: str, path: Path, reason: str, advice: str) -> FileError:
    return FileError(f"{path} is the checkpoint of another {kind} ({reason}); {advice}, or delete it to start anew")
