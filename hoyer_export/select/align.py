"""Widths that the runtime runs fast: rounded up to a multiple, counted on the tensor's axis."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap, weight_members

Keep = dict[str, Tensor]
"""Group name → sorted int64 indices of the channels that stay."""


def aligned_keep(channels: ChannelMap, scores: Mapping[str, Tensor], threshold: float, align: int) -> Keep:
    """Return the channels that score at least ``threshold``, and the strongest of the others up to aligned widths.

    Args:
        channels: the channel map.
        scores: group name → [width].
        threshold: on the scores.
        align: multiple that widths are rounded up to.
    """
    keep = {}
    for group in channels.groups:
        score = scores[group.name]
        width = aligned_width(group, int((score >= threshold).sum()), align)
        # Stable, so that equal scores give the same choice on every run.
        keep[group.name] = score.argsort(descending=True, stable=True)[:width].sort().values
    return keep


def least_keep(channels: ChannelMap, align: int = 16) -> Keep:
    """Return the narrowest aligned network: what the least reachable cost is counted on."""
    return {group.name: torch.arange(aligned_width(group, 1, align)) for group in channels.groups}


def aligned_width(group: ChannelGroup, count: int, align: int) -> int:
    """Return the width to which ``count`` channels are rounded up: never above the dense width, never below 1.

    The tensor's axis counts: a channel of a grouped convolution stands on it once in every group.
    """
    producers = [member for member in weight_members(group) if member.dim == 0] or list(group.members)
    positions = int((producers[0].owner == 0).sum())  # of one channel
    for width in range(max(count, 1), group.width):
        length = width * positions
        if length % align == 0 or (align == 16 and length == 8):
            return width
    return group.width
