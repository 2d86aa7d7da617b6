"""MACs and parameters at given widths: the network's cost without building it.

MACs = Σ over contractions of constant · Π over axes of the axis' size, batch 1. At whole channels this equals the
count on the exported ONNX graph; at fractional shares it is the smooth continuation that training watches.
"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from hoyer_export.channels.channel_map import ChannelMap, removed_channels


def macs_at(channels: ChannelMap, shares: Mapping[str, Tensor]) -> float:
    """Return the MACs of one example when channel k of group g counts ``shares[g][k]``.

    Args:
        channels: the channel map.
        shares: group name → [width], each entry between 0 (gone) and 1 (there); a group not named is whole.
    """
    return channels.macs(shares)


def macs_of_keep(channels: ChannelMap, keep: Mapping[str, Tensor]) -> int:
    """Return the MACs of one example once only the channels in ``keep`` are left."""
    return round(macs_at(channels, shares_of_keep(channels, keep)))


def dense_macs(channels: ChannelMap) -> int:
    """Return the MACs of one example of the uncut network."""
    return macs_of_keep(channels, {})


def params_of_keep(channels: ChannelMap, keep: Mapping[str, Tensor]) -> int:
    """Return the number of elements of all parameters once only the channels in ``keep`` are left."""
    sizes = {name: list(shape) for name, shape in channels.shapes.items()}
    for group in channels.groups:
        if group.name in keep:
            gone = removed_channels(group, keep[group.name])
            for member in group.members:
                sizes[member.parameter][member.dim] -= int(torch.isin(member.owner, gone).sum())
    return sum(prod(shape) for name, shape in sizes.items() if name not in channels.buffers)


def marginal_macs(channels: ChannelMap) -> dict[str, Tensor]:
    """Return for every group the MACs that go with each of its channels alone, float64 [width], all others staying."""
    gone = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in channels.groups}
    for contraction in channels.contractions:
        sizes = [axis.size({}) for axis in contraction.axes]
        for name in {name for axis in contraction.axes for name in axis.counts}:
            counts = (axis.counts.get(name, torch.zeros(1)).double() for axis in contraction.axes)
            left = prod((size - count for size, count in zip(sizes, counts, strict=True)), start=torch.ones(1))
            gone[name] += contraction.constant * (prod(sizes) - left)
    return gone


def shares_of_keep(channels: ChannelMap, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return share 1 for every channel in ``keep`` and 0 for the others of the groups that it names."""
    shares = {}
    for group in channels.groups:
        if group.name in keep:
            shares[group.name] = torch.zeros(group.width, dtype=torch.float64)
            shares[group.name][keep[group.name]] = 1
    return shares
