"""Make a trained network smaller without training it: cut by function and refit, in steps, until the budget is reached.

Every step takes some percent of the dense network's MACs out and refits what is left, so that the next one chooses by
what its channels do now. The way down is a curve of MACs and loss; a budget in accuracy is its last point within it.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from hoyer_export.call import Call, ExampleInputs
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import dense_macs, macs_of_keep
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import DataError, HoyerExportError, NetworkError
from hoyer_export.modes import kept_modes
from hoyer_export.select.align import Keep, aligned_keep, least_keep
from hoyer_export.select.budget import MACS, Budget
from hoyer_export.select.choose import meet
from hoyer_export.select.function import function_scores
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.extras.calibration import CalibrationInputs, as_batches, run_each
from hoyer_export.surgery.extras.refit import DenseOutputs, Refit, refit_
from hoyer_export.surgery.plan import PruningPlan
from hoyer_export.surgery.step import SlimModel
from hoyer_export.surgery.zero import zero_
from hoyer_export.tensors import TensorRecord, tensors_in

Loss = Callable[[nn.Module], float]
"""What a smaller network has lost, e.g. ``accuracy_drop`` or ``output_change``; less is better."""

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
    batches: CalibrationInputs,
    *,
    macs: float | None = None,
    loss: Loss | None = None,
    at_most: float | None = None,
    align: int = 16,
    step: float = 0.05,
    seed: int = 0,
    on_point: Callable[[Point], None] = lambda point: None,
    trace: Trace = trace_channels,
) -> Shrunk:
    """Take channels out in steps, by function, and refit after each, without labels and without training.

    Args:
        model: the trained network; it is not changed.
        batches: calibration images without labels, a batch or several.
        macs: share of the dense MACs to stop at.
        loss: what a network has lost, measured after every step.
        at_most: the most that it may have lost: the smallest network within it is found, to an eighth of a step.
        align: widths are rounded up to a multiple of it.
        step: share of the dense MACs that goes at once.
        seed: of the places that layers are refitted at.
        on_point: is told every network that is tried.
        trace: finds the channels of the network and of every smaller one; what it calls unprunable stays whole. With
            rules of your own, ``partial(hx.trace_channels, rules=...)``.

    Raises:
        HoyerExportError: there is nothing to stop at, a number is out of range, or the MACs cannot be reached.
        CutRefused, DataError, NetworkError: as ``cut`` and ``refit_``.
    """
    if (macs is None and at_most is None) or (at_most is not None and loss is None):
        raise HoyerExportError("give macs, the share to stop at, or loss and at_most, or all three")
    if at_most is not None and not 0 <= at_most < inf:
        raise HoyerExportError(f"at_most is what may be lost, 0 or more, got {at_most!r}")
    if not 0 < step <= 1:
        raise HoyerExportError(f"step is a share of the dense MACs, above 0 and at most 1, got {step!r}")
    targets = DenseOutputs(model, batches, seed=seed)
    state = _Walk.start(model, targets, align, trace)
    dense = state.macs
    if macs is not None:  # said before any work
        meet(state.channels, state.scores, align, Budget(MACS, macs))
    share, size, curve = 1.0, step, [Point(dense, None if loss is None else 0.0)]
    while size >= step / _FINEST and share > (macs or 0):
        aim = max(share - size, macs or 0)
        if aim * dense < state.least:
            size /= 2
            continue
        smaller = state if state.macs <= aim * dense else state.smaller(aim * dense)
        if smaller is not state:
            lost = None if loss is None else loss(smaller.slim.model)
            curve.append(Point(smaller.macs, lost, lost is None or at_most is None or lost <= at_most))
            on_point(curve[-1])
        if curve[-1].within:
            state, share = smaller, aim
        else:
            size /= 2
    return Shrunk(state.slim, state.keep, tuple(curve), state.refit)


@dataclass(frozen=True)
class _Walk:
    """A network on the way down, and what its channels are worth."""

    slim: SlimModel
    channels: ChannelMap
    keep: Keep
    targets: DenseOutputs
    align: int
    trace: Trace
    refit: Refit | None = None

    @staticmethod
    def start(model: nn.Module, targets: DenseOutputs, align: int, trace: Trace) -> "_Walk":
        slim = SlimModel(copy.deepcopy(model).eval(), PruningPlan())
        channels = trace(slim.model, targets.example)
        keep = {group.name: torch.arange(group.width) for group in channels.groups}
        return _Walk(slim, channels, keep, targets, align, trace)

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """What the channels are worth: asked of a network only from which one goes on."""
        return function_scores(self.channels, self.slim.model, self.targets.batches)[0]

    @property
    def macs(self) -> int:
        return dense_macs(self.channels)

    @property
    def least(self) -> int:
        """The fewest MACs that can be reached from here."""
        return macs_of_keep(self.channels, least_keep(self.channels, self.align))

    def smaller(self, macs: float) -> "_Walk":
        """Return the network with at most ``macs``, refitted; this one is not changed."""
        threshold = meet(self.channels, self.scores, self.align, Budget(MACS, at_most=macs))
        stay = aligned_keep(self.channels, self.scores, threshold, self.align)
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


def output_change(dense: nn.Module, batches: CalibrationInputs) -> Loss:
    """Return the loss of a network that is the mean over images of ‖y − y_dense‖ / ‖y_dense‖, without labels.

    y: all outputs of an image. Where those of the dense network are all 0, an image counts as 0 if they still are, else
    as 1.

    Args:
        dense: the network before the cut.
        batches: images that did not calibrate.

    Raises:
        DataError, NetworkError: there is no batch, or the network does not run on one; when the loss is asked for, too.
    """
    held = list(as_batches(dense, batches))
    expected = list(_rows(dense, held))

    def loss(model: nn.Module) -> float:
        changes = []
        for y, before in zip(_rows(model, held), expected, strict=True):
            change, size = (y - before).norm(dim=1), before.norm(dim=1)
            changes.append(torch.where(size > 0, change / size, (change != 0).double()))
        return float(torch.cat(changes).mean())

    return loss


def accuracy_drop(dense: nn.Module, labelled: Iterable[tuple[Tensor, Tensor]]) -> Loss:
    """Return the loss of a network that is the points of top-1 accuracy which it lost against the dense one.

    Args:
        dense: the network before the cut, which returns logits [N, classes].
        labelled: batches of images and classes [N], which neither calibrated nor trained the dense network.

    Raises:
        DataError, NetworkError: there is no batch, or it is none of images and classes; the network does not run on
            one, or returns something else than logits. When the loss is asked for, too.
    """
    held = list(labelled)
    for batch in held:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(it, Tensor) for it in batch):
            raise DataError("accuracy_drop needs batches (images [N, ...], classes [N]), got something else")
        if batch[1].shape != batch[0].shape[:1]:
            got = f"labels {list(batch[1].shape)} of images {list(batch[0].shape)}"
            raise DataError(f"top-1 needs one class an image, got {got}; give output_change, which needs no labels")

    def accuracy(model: nn.Module) -> float:
        right = 0
        for outputs, (_, targets) in zip(_returned(model, [images for images, _ in held]), held, strict=True):
            if not isinstance(outputs, Tensor) or outputs.ndim != 2:
                got = list(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
                raise NetworkError(
                    f"top-1 needs logits [N, classes], the network returns {got}; give output_change, which takes all"
                    " outputs, or a loss of your own"
                )
            right += int((outputs.argmax(1).cpu() == targets.cpu()).sum())
        return 100 * right / sum(len(targets) for _, targets in held)

    before = accuracy(dense)
    return lambda model: before - accuracy(model)


def _returned(model: nn.Module, batches: CalibrationInputs) -> Iterator[Any]:
    """Yield what a model returns in eval mode."""
    with kept_modes(model):
        yield from run_each(model.eval(), batches)


def _rows(model: nn.Module, batches: list[Call]) -> Iterator[Tensor]:
    """Yield all outputs of a model in eval mode, one row an image, float64."""
    for images, outputs in zip((call.batch_size for call in batches), _returned(model, batches), strict=True):
        tensors = [tensor.cpu().double() for tensor in tensors_in(outputs)]
        if not tensors or any(tensor.shape[:1] != (images,) for tensor in tensors):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors) or "none"
            raise NetworkError(
                f"output_change compares outputs [{images}, ...] of {images} images, the network returns"
                f" {shapes}; give a loss of your own"
            )
        yield torch.cat([tensor.reshape(images, -1) for tensor in tensors], 1)
