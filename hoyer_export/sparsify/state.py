"""What an epoch of training works on and a checkpoint holds: all that changes when the network trains or shrinks."""

from dataclasses import dataclass

import torch
from torch import nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.errors import TrainingError
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
            raise TrainingError(
                "the optimizer holds parameters that are not the model's: make it for this model (slice_optimizer does)"
            )
