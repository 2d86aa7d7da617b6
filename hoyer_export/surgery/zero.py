"""Make the chosen channels exact zeros, and tell which channels are: taking those out cannot change the output."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap, Member, removed_channels
from hoyer_export.surgery.plan import check_fits, checked_keep
from hoyer_export.tensors import named_tensors


def zero_(model: nn.Module, channels: ChannelMap, keep: Mapping[str, Tensor]) -> None:
    """Set every slice of every channel that is not in ``keep`` to zero, in place.

    All members of a channel go: its filter, bias, batch-norm γ, β and running mean, and every reader's slice. A
    running variance becomes 1, so that nothing is ever divided by zero.

    Args:
        model: the traced model.
        channels: its channel map.
        keep: group name → sorted int64 indices of the channels that stay.

    Raises:
        CutRefused: ``keep`` or the model does not fit the channel map; nothing is changed.
    """
    keep = checked_keep(channels, keep)
    check_fits(model, channels)
    tensors = named_tensors(model)
    with torch.no_grad():
        for group in channels.groups:
            gone = removed_channels(group, keep[group.name])
            for member in group.members:
                slices = torch.isin(member.owner, gone).nonzero().flatten()
                tensor = tensors[member.parameter]
                tensor.index_fill_(member.dim, slices.to(tensor.device), float(_is_variance(member.parameter)))


def live_channels(group: ChannelGroup, gone: Tensor, tensors: Mapping[str, Tensor]) -> dict[int, tuple[Member, int]]:
    """Return which channels cannot be taken out as they are: they are neither exactly zero nor unread.

    A channel is *unread* where all of its reader slices are zero, whatever its filter, γ and β are.

    Args:
        group: the channel group.
        gone: int64 channels that are to be removed.
        tensors: every parameter and buffer by name.

    Returns:
        Each of these channels, with the first member, and the index along it, where the channel is not zero.
    """
    first: dict[int, tuple[Member, int]] = {}
    read: set[int] = set()
    for member in group.members:
        if _is_irrelevant_statistic(member.parameter, tensors):
            continue
        slices = torch.isin(member.owner, gone).nonzero().flatten()
        for index in slices[~zero_slices(tensors[member.parameter], member.dim, slices)].tolist():
            channel = int(member.owner[index])
            first.setdefault(channel, (member, index))
            if member.reads:
                read.add(channel)
    return {channel: at for channel, at in first.items() if channel in read or not group.only_read}


def zero_slices(tensor: Tensor, dim: int, indices: Tensor) -> Tensor:
    """Return bool [number of indices], on the CPU: the slice at that index of ``dim`` is exactly zero."""
    filled = tensor.detach().index_select(dim, indices.to(tensor.device)) != 0
    others = [axis for axis in range(tensor.ndim) if axis != dim]
    return ~(filled.any(others) if others else filled).cpu()


def _is_variance(name: str) -> bool:
    """Return whether a buffer is a batch norm's running variance."""
    return name.rpartition(".")[2] == "running_var"


def _is_irrelevant_statistic(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """γ = β = 0 give zero whatever the running statistics are; without γ the running mean has to be zero too."""
    owner, _, attribute = name.rpartition(".")
    scaled = f"{owner}.weight".lstrip(".") in tensors
    return _is_variance(name) or (attribute == "running_mean" and scaled)
