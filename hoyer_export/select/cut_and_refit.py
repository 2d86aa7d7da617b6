"""Make a trained network smaller without training it: cut by function and refit, in steps, until the budget is reached.

Every step takes some percent of the dense network's MACs out and refits what is left, so that the next one chooses by
what its channels do now. By sensitivity every network is cut from the dense one instead: what was measured there no
longer holds further down (measured: half a point of accuracy). The way down is a curve of MACs and loss; a budget in
accuracy is its last point within it.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

import torch
from torch import Tensor, nn

from hoyer_export.call import ExampleInputs
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import dense_macs, macs_of_keep
from hoyer_export.channels.trace import trace_channels
from hoyer_export.choices import BY_FUNCTION
from hoyer_export.errors import HoyerExportError
from hoyer_export.select.align import Keep, least_keep
from hoyer_export.select.budget import MACS, Budget
from hoyer_export.select.choose import keep_within
from hoyer_export.select.function import function_scores
from hoyer_export.select.latency import Latency
from hoyer_export.select.loss import Loss
from hoyer_export.select.sensitivity import sensitivities
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.extras.calibration import CalibrationInputs
from hoyer_export.surgery.extras.dense_outputs import DenseOutputs
from hoyer_export.surgery.extras.refit import Refit, refit_
from hoyer_export.surgery.plan import PruningPlan
from hoyer_export.surgery.step import SlimModel
from hoyer_export.surgery.zero import zero_
from hoyer_export.tensors import TensorRecord

Trace = Callable[[nn.Module, ExampleInputs], ChannelMap]
"""Model and example inputs → its channels."""

_FINEST = 8
"""A budget in accuracy is met to this part of a step."""


@dataclass(frozen=True)
class Point:
    """A network on the way down: its MACs, what it lost (None where nobody asked), and whether that may be."""

    macs: int
    loss: float | None
    within: bool = True


@dataclass(frozen=True, eq=False, repr=False)
class Shrunk(TensorRecord):
    """What ``cut_and_refit`` made.

    Args:
        slim: the smallest network within the budget, in eval mode, and its plan.
        keep: group name → channels of the dense network that stay.
        curve: every network that was tried, in that order; the first is the dense one.
        refit: of the last step; None where nothing could be taken out within the budget.
    """

    slim: SlimModel
    keep: Keep
    curve: tuple[Point, ...]
    refit: Refit | None = None


def cut_and_refit(
    model: nn.Module,
    batches: CalibrationInputs | DenseOutputs,
    *,
    macs: float | None = None,
    loss: Loss | None = None,
    at_most: float | None = None,
    align: int | Latency = 16,
    step: float = 0.05,
    method: str = "function",
    on_point: Callable[[Point], None] = lambda point: None,
    trace: Trace = trace_channels,
) -> Shrunk:
    """Take channels out in steps, by function, and refit after each, without labels and without training.

    Args:
        model: the trained network; it is not changed.
        batches: calibration images without labels, a batch or several, or the ``DenseOutputs`` of the network on them.
        macs: share of the dense MACs to stop at.
        loss: what a network has lost, measured after every step.
        at_most: the most that it may have lost: the smallest network within it is found, to an eighth of a step.
        align: widths are rounded up to a multiple of it; or chosen by a ``measured_latency`` of the model.
        step: share of the dense MACs that goes at once.
        method: ``function``, which chooses again after each step, or ``sensitivity``, which is measured once, on the
            dense network, and cuts that to every size.
        on_point: is told every network that is tried.
        trace: finds the channels of the network and of every smaller one; what it calls unprunable stays whole. With
            rules of your own, ``partial(hx.trace_channels, rules=...)``.

    Raises:
        HoyerExportError: there is nothing to stop at, a number is out of range, or the MACs cannot be reached.
        CutRefused, DataError, NetworkError: as ``cut`` and ``refit_``.
    """
    _check(macs, loss, at_most, step, method)
    targets = batches if isinstance(batches, DenseOutputs) else DenseOutputs(model, batches)
    state = _Walk.start(model, targets, align, trace)
    dense = state.macs
    if macs is not None:  # said before any work
        keep_within(state.channels, state.scores, align, Budget(MACS, macs), "function")
    if at_once := method == "sensitivity":
        state = replace(state, factors=sensitivities(state.channels, model, targets.batches))
        step = step if at_most is not None else 1.0
    start = state
    share, size, curve = 1.0, step, [Point(dense, None if loss is None else 0.0)]
    while size >= step / _FINEST and share > (macs or 0):
        aim = max(share - size, macs or 0)
        if aim * dense < state.least:
            size /= 2
            continue
        smaller = state if state.macs <= aim * dense else (start if at_once else state).smaller(aim * dense)
        if smaller is not state:
            lost = None if loss is None else loss(smaller.slim.model)
            curve.append(Point(smaller.macs, lost, lost is None or at_most is None or lost <= at_most))
            on_point(curve[-1])
        if curve[-1].within:
            state, share = smaller, aim
        else:
            size /= 2
    return Shrunk(state.slim, state.keep, tuple(curve), state.refit)


def _check(macs: float | None, loss: Loss | None, at_most: float | None, step: float, method: str) -> None:
    if (macs is None and at_most is None) or (at_most is not None and loss is None):
        raise HoyerExportError("give macs, the share to stop at, or loss and at_most, or all three")
    if at_most is not None and not 0 <= at_most < inf:
        raise HoyerExportError(f"at_most is what may be lost, 0 or more, got {at_most!r}")
    if method not in BY_FUNCTION:
        raise HoyerExportError(f"method must be one of {', '.join(BY_FUNCTION)}, got {method!r}")
    if not 0 < step <= 1:
        raise HoyerExportError(f"step is a share of the dense MACs, above 0 and at most 1, got {step!r}")


@dataclass(frozen=True)
class _Walk:
    """A network on the way down, and what its channels are worth."""

    slim: SlimModel
    channels: ChannelMap
    keep: Keep
    targets: DenseOutputs
    align: int | Latency
    trace: Trace
    refit: Refit | None = None
    factors: Mapping[str, Tensor] | None = None  # of sensitivity

    @staticmethod
    def start(model: nn.Module, targets: DenseOutputs, align: int | Latency, trace: Trace) -> "_Walk":
        slim = SlimModel(copy.deepcopy(model).eval(), PruningPlan())
        channels = trace(slim.model, targets.example)
        keep = {group.name: torch.arange(group.width) for group in channels.groups}
        return _Walk(slim, channels, keep, targets, align, trace)

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """What the channels are worth: asked of a network only from which one goes on."""
        scores, _ = function_scores(self.channels, self.slim.model, self.targets.batches)
        if self.factors is None:
            return scores
        return {name: score * self.factors[name] for name, score in scores.items()}

    @property
    def macs(self) -> int:
        return dense_macs(self.channels)

    @property
    def least(self) -> int:
        """The fewest MACs that can be reached from here."""
        align = self.align.table.block if isinstance(self.align, Latency) else self.align
        return macs_of_keep(self.channels, least_keep(self.channels, align))

    def smaller(self, macs: float) -> "_Walk":
        """Return the network with at most ``macs``, refitted; this one is not changed."""
        stay = keep_within(self.channels, self.scores, self.align, Budget(MACS, at_most=macs), "function")
        zeroed = replace(self.slim, model=copy.deepcopy(self.slim.model))
        zero_(zeroed.model, self.channels, stay)
        slim = cut(zeroed, self.channels, stay, self.targets.example)
        channels = self.trace(slim.model, self.targets.example)
        refit = refit_(slim, self.targets)
        keep = {name: kept[stay[name]] if name in stay else kept for name, kept in self.keep.items()}
        last, first = refit.slim, self.slim
        slim = replace(  # the largest errors of all steps so far
            last,
            max_rel_error=max(first.max_rel_error or 0.0, last.max_rel_error or 0.0),
            delivered_rel_error=max(first.delivered_rel_error or 0.0, last.delivered_rel_error or 0.0),
        )
        return _Walk(slim, channels, keep, self.targets, self.align, self.trace, refit)
