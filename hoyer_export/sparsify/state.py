"""A network in training: what an epoch works on and a checkpoint holds, and what it costs at the widths it tends to."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import dense_macs, macs_at
from hoyer_export.channels.norms import channel_norms
from hoyer_export.errors import TrainingError
from hoyer_export.sparsify.penalties import alive_channels, effective_width
from hoyer_export.sparsify.regulariser import Regulariser


@dataclass(frozen=True, eq=False)
class TrainState:
    """A network in training. One that shrinks is another state: its own model, optimizer, channels and regulariser.

    Args:
        model: the network.
        optimizer: over parameters of ``model``; its state holds tensors only, as that of torch's own does.
        channels: the channel map of ``model``, for the MACs in the records.
        regulariser: of ``model``.
        plan: what rebuilds ``model`` from the network that training was given, as text that training never reads;
            None: it is that network.

    Raises:
        TrainingError: the optimizer is not that of ``model``.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    channels: ChannelMap | None = None
    regulariser: Regulariser | None = None
    plan: str | None = None

    def __post_init__(self) -> None:
        own = {id(parameter) for parameter in self.model.parameters()}
        if not own >= {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}:
            raise TrainingError("the optimizer holds parameters that are not the model's: make it for this very model")


@dataclass(frozen=True)
class MacsShares:
    """Shares of the dense MACs: at the effective widths, which fall before channels are dead; at the alive channels."""

    effective: float
    alive: float


@torch.no_grad()
def macs_shares(
    channels: ChannelMap, model: nn.Module, dense: int | None = None, norms: Mapping[str, Tensor] | None = None
) -> MacsShares:
    """Compute the MACs at the effective and at the alive widths, in shares of the dense MACs.

    Args:
        channels: the channel map of ``model``.
        model: its weights are read.
        dense: the dense MACs, where ``model`` was cut already.
        norms: of every channel, group name → [width]; None: those of its weights.

    Raises:
        NetworkError: ``channels`` does not fit ``model``.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    effective, alive = {}, {}
    for name, found in (channel_norms(channels, tensors) if norms is None else norms).items():
        if len(found):
            found = found.cpu()
            effective[name] = (effective_width(found) / len(found)).expand(len(found))
            alive[name] = alive_channels(found).double()
    whole = dense_macs(channels) if dense is None else dense
    return MacsShares(macs_at(channels, effective) / whole, macs_at(channels, alive) / whole)
