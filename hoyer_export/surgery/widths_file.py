"""``widths.json``, group → kept channels, and a network's name: enough to build the slim network, untrained.

For training a slim architecture from scratch, and for a reader who wants to know what a run arrived at.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import FileError, NetworkError
from hoyer_export.networks import build_network, default_input_shape
from hoyer_export.surgery.cut import SlimModel
from hoyer_export.surgery.plan import make_plan, with_plan


def build_slim(
    widths: str | Path,
    network: str | nn.Module,
    *,
    in_channels: int | None = None,
    classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> SlimModel:
    """Build the slim network that a run folder's ``widths.json`` describes, with the dense network's initial weights.

    Args:
        widths: path of a ``widths.json``: group name → sorted indices of the channels that stay.
        network: the dense network, which is not changed, or a name for ``build_network``; a network of your own is
            never imported by its name.
        in_channels: channels of the image, where the network is named; its own number where None.
        classes: number of outputs, likewise.
        input_shape: (C, H, W) of one image, what the network is traced with; what its name is meant for where None.

    Returns:
        The slim model, and the plan that leads to it.

    Raises:
        FileError: the file is missing or damaged, or its groups or indices are not the network's.
        NetworkError: the network cannot be built or traced, or its input shape is not known.
        CutRefused: something hangs on the network that a copy would lose.
    """
    path = Path(widths)
    if isinstance(network, str):
        input_shape = input_shape or default_input_shape(network)
        network = build_network(network, in_channels=in_channels, classes=classes)
    if input_shape is None:
        raise NetworkError("what the network takes is not known: give input_shape, e.g. (3, 224, 224)")
    example = torch.randn((2, *input_shape), generator=torch.Generator().manual_seed(0))
    channels = trace_channels(network, example)
    plan = make_plan(channels, _read_keep(path, channels))
    return SlimModel(with_plan(network, plan), plan)


def _read_keep(path: Path, channels: ChannelMap) -> dict[str, Tensor]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} cannot be read as JSON: expected group → kept channels") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} holds a {type(content).__name__}, expected group → kept channels")
    of_name = {group.name: group.width for group in channels.groups}
    for name, kept in content.items():
        if name not in of_name:
            raise FileError(f"{path} names the group {name[:80]!r}, which the network does not have")
        # Before a tensor is made: a stranger's number may be of any size.
        sane = isinstance(kept, list) and all(type(index) is int for index in kept)
        if not sane or not kept or not 0 <= kept[0] <= kept[-1] < of_name[name] or sorted(set(kept)) != kept:
            raise FileError(
                f"{path}: the kept channels of {name} must be sorted indices within 0..{of_name[name] - 1}, without"
                " repeats, at least one"
            )
    return {name: torch.tensor(kept) for name, kept in content.items()}
