"""channels.json: the channel map of a run, as its self-test left it, so that nothing has to be traced again."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hoyer_export.channels.channel_map import (
    Axis,
    ChannelGroup,
    ChannelMap,
    Contraction,
    Lending,
    Member,
    Shuffle,
    SizeAttribute,
    Unprunable,
)
from hoyer_export.errors import FileError
from hoyer_export.run_folder import write_whole


def write_channels(path: Path, channels: ChannelMap) -> None:
    """Write a channel map whole or not at all."""

    def listed(value: Any) -> Any:
        return value.tolist() if isinstance(value, Tensor) else sorted(value)

    write_whole(path, json.dumps(asdict(channels), default=listed) + "\n")


def read_channels(path: Path) -> ChannelMap:
    """Return the channel map in a file.

    Raises:
        FileError: it is missing or damaged.
    """
    try:
        found = json.loads(path.read_bytes())
        return ChannelMap(
            groups=tuple(
                ChannelGroup(**group | {"members": tuple(Member(**_tensors(m, "owner")) for m in group["members"])})
                for group in found["groups"]
            ),
            unprunable=tuple(Unprunable(**_tensors(entry, "indices")) for entry in found["unprunable"]),
            contractions=tuple(
                Contraction(entry["name"], entry["constant"], tuple(map(_axis, entry["axes"])))
                for entry in found["contractions"]
            ),
            shapes={name: tuple(shape) for name, shape in found["shapes"].items()},
            buffers=frozenset(found["buffers"]),
            attributes=tuple(SizeAttribute(**entry | {"axis": _axis(entry["axis"])}) for entry in found["attributes"]),
            shuffles=tuple(map(_shuffle, found.get("shuffles", ()))),  # an older file has none
            lendings=tuple(
                Lending(it["module"], tuple(it["layers"]), _axis(it["axis"])) for it in found.get("lendings", ())
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise FileError(
            f"{path} is missing or damaged ({error}); put it back, or start again in another folder"
        ) from error


def _tensors(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return entry | {key: torch.tensor(entry[key], dtype=torch.int64)}


def _axis(entry: dict[str, Any]) -> Axis:
    return Axis(entry["fixed"], {name: torch.tensor(c, dtype=torch.int64) for name, c in entry["counts"].items()})


def _shuffle(entry: dict[str, Any]) -> Shuffle:
    owner = {name: torch.tensor(channels, dtype=torch.int64) for name, channels in entry["owner"].items()}
    rows, columns = entry["shape"]
    return Shuffle(**_tensors(entry, "order") | {"shape": (rows, columns), "owner": owner})
