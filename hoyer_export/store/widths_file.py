"""``widths.json``, group → kept channels, and a network's name: enough to build the slim network, untrained.

For training a slim architecture from scratch, and for a reader who wants to know what a run arrived at.
"""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.rules import Rules
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import CutRefused, FileError, NetworkError
from hoyer_export.networks import build_network, default_input_shape
from hoyer_export.record import first_complaint
from hoyer_export.surgery.extras.gather import INPUT, with_input_features
from hoyer_export.surgery.plan import checked_keep, make_plan, with_plan
from hoyer_export.surgery.step import SlimModel

_ADVICE = "expected group → sorted indices of the channels that stay"
# A stranger's number may be larger than a tensor's.
_WIDTHS = TypeAdapter(dict[str, list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]]])


def build_slim(
    widths: str | Path,
    network: str | nn.Module,
    *,
    in_channels: int | None = None,
    classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    rules: Rules | None = None,
) -> SlimModel:
    """Build the slim network that a run folder's ``widths.json`` describes, with the dense network's initial weights.

    Args:
        widths: path of a ``widths.json``: group name → sorted indices of the channels that stay.
        network: the dense network, which is not changed, or a name for ``build_network``; a network of your own is
            never imported by its name.
        in_channels: channels of the image, where the network is named; its own number where None.
        classes: number of outputs, likewise.
        input_shape: (C, H, W) of one image, what the network is traced with; what its name is meant for where None.
        rules: as for ``trace_channels``.

    Returns:
        The slim model, and the plan that leads to it.

    Raises:
        FileError: the file is missing or damaged, or its groups or indices are not the network's.
        NetworkError: the network cannot be built or traced, or its input shape is not known.
        CutRefused: something hangs on the network that a copy would lose.
    """
    if isinstance(network, str):
        input_shape = input_shape or default_input_shape(network)
        network = build_network(network, in_channels=in_channels, classes=classes)
    if input_shape is None:
        raise NetworkError("what the network takes is not known: give input_shape, e.g. (3, 224, 224)")
    example = torch.randn((2, *input_shape), generator=torch.Generator().manual_seed(0))
    channels = trace_channels(network, example, rules=rules)
    content = _read_widths(Path(widths))
    channels = with_input_features(channels, [name.removesuffix(INPUT) for name in content if name.endswith(INPUT)])
    plan = make_plan(channels, _checked(content, Path(widths), channels))
    return SlimModel(with_plan(network, plan), plan)


def _read_widths(path: Path) -> dict[str, list[int]]:
    try:
        return _WIDTHS.validate_json(path.read_bytes())
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror}): {_ADVICE}") from error
    except ValidationError as error:
        raise FileError(f"{path} is damaged: {first_complaint(error)}; {_ADVICE}") from error


def _checked(content: dict[str, list[int]], path: Path, channels: ChannelMap) -> dict[str, Tensor]:
    try:
        return checked_keep(channels, {name: torch.tensor(kept, dtype=torch.int64) for name, kept in content.items()})
    except CutRefused as error:  # it quotes the file, which may hold names of any length
        raise FileError(f"{path} does not fit the network: {error!s:.300}") from error
