"""What pulls channels or single weights to zero in training: the one shape of every regulariser, and those with a name.

``docs/adding-a-regulariser.md`` shows how to add one.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.errors import TrainingError
from hoyer_export.select.budget import Budget
from hoyer_export.sparsify.function_hs import FunctionHS
from hoyer_export.sparsify.group_hs import GroupHS
from hoyer_export.sparsify.weight_penalty import MEASURES, WeightPenalty

Setting = str | int | float | None


@runtime_checkable
class Regulariser(Protocol):
    """Adds a gradient to every step; training, epochs and checkpoints know no more of it than this."""

    @property
    def channels(self) -> ChannelMap | None:
        """The channels that it acts on; None: on single weights."""

    @property
    def settings(self) -> Mapping[str, Setting]:
        """What must be the same for a training to go on from a checkpoint."""

    def describe(self) -> str:
        """Return one line for console and card."""

    def observe(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which the model makes the steps of an epoch: for hooks on its activations."""

    def add_gradient_(self) -> Tensor:
        """Add to ``.grad``, between ``backward()`` and the optimizer's step; return the penalty's value, 0-d.

        It is where the weights are, so that no step waits for a device.
        """

    def after_step_(self, lr: float) -> None:
        """Change the weights themselves, after the optimizer's step with this learning rate."""

    def norms(self) -> dict[str, Tensor]:
        """Return the norms that it acts on, group name → [width]: effective widths in the records are made of them."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return whatever changes while it trains, for the checkpoint."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` returned; the tensors are on the CPU."""


REGULARISERS: dict[str, Callable[..., Regulariser]] = {
    "group-hs": GroupHS,
    "group-hs-function": FunctionHS,
} | {name: partial(WeightPenalty, name) for name in MEASURES}
"""Name → what makes it of (channels, model) and options; recipes say ``-function`` by the norms, ``-layer`` by the
grouping."""


def make_regulariser(
    name: str, channels: ChannelMap, model: nn.Module, options: Mapping[str, Setting | Budget]
) -> Regulariser:
    """Make the regulariser that a recipe names.

    Args:
        name: a key of ``REGULARISERS``.
        channels: the channel map of ``model``.
        model: the network that will train.
        options: keyword arguments of that regulariser.

    Raises:
        TrainingError: there is none of this name, it takes no such option, or a value makes no sense.
    """
    if name not in REGULARISERS:
        raise TrainingError(f"expected a regulariser that is one of {', '.join(REGULARISERS)}, got {name!r}")
    try:
        inspect.signature(REGULARISERS[name]).bind(channels, model, **options)
    except TypeError as error:
        raise TrainingError(f"the regulariser {name}: {error}; leave that option out") from error
    return REGULARISERS[name](channels, model, **options)
