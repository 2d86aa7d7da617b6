"""What a network would cost at the widths that its norms speak of: the share of the MACs that training watches."""

from dataclasses import dataclass

import torch
from torch import nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import dense_macs, macs_at
from hoyer_export.channels.norms import channel_norms
from hoyer_export.sparsify.penalties import alive_channels, effective_width


@dataclass(frozen=True)
class MacsShares:
    """Shares of the dense MACs.

    Args:
        effective: at the effective widths G_H: smooth, falls before channels are dead.
        alive: at the channels that are alive.
    """

    effective: float
    alive: float


@torch.no_grad()
def macs_shares(channels: ChannelMap, model: nn.Module, dense: int | None = None) -> MacsShares:
    """Compute the MACs at the effective and at the alive widths, in shares of the dense MACs.

    Args:
        channels: the channel map of ``model``.
        model: its weights are read.
        dense: the dense MACs, where ``model`` was cut already.

    Raises:
        NetworkError: ``channels`` does not fit ``model``.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    effective, alive = {}, {}
    for name, norms in channel_norms(channels, tensors).items():
        norms = norms.cpu()
        if len(norms):
            effective[name] = (effective_width(norms) / len(norms)).expand(len(norms))
            alive[name] = alive_channels(norms).double()
    whole = dense_macs(channels) if dense is None else dense
    return MacsShares(macs_at(channels, effective) / whole, macs_at(channels, alive) / whole)
