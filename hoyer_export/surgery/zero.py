"""Make the chosen channels exact zeros: after this, taking them out cannot change the output."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap, removed_channels
from hoyer_export.surgery.plan import check_fits, checked_keep


def zero_(model: nn.Module, channels: ChannelMap, keep: Mapping[str, Tensor]) -> None:
    """Set every slice of every channel that is not in ``keep`` to zero, in place.

    All members of a channel go: its filter, bias, batch-norm γ, β and running mean, and every consumer's slice. A
    running variance stays, so that nothing is ever divided by zero.

    Args:
        model: the traced model.
        channels: its channel map.
        keep: group name → sorted int64 indices of the channels that stay.

    Raises:
        CutRefused: ``keep`` or the model does not fit the channel map; nothing is changed.
    """
    keep = checked_keep(channels, keep)
    check_fits(model, channels)
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for group in channels.groups:
            gone = removed_channels(group, keep[group.name])
            for member in group.members:
                if not is_variance(member.parameter):
                    slices = torch.isin(member.owner, gone).nonzero().flatten()
                    tensor = tensors[member.parameter]
                    tensor.index_fill_(member.dim, slices.to(tensor.device), 0)


def is_variance(name: str) -> bool:
    """Return whether a buffer is a batch norm's running variance."""
    return name.rpartition(".")[2] == "running_var"
