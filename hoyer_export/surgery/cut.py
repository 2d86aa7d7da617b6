"""Take channels out of a network, exactly or not at all.

Before: every removed channel is exactly zero in every parameter that it owns a slice of, or nobody reads it: all of
its consumer slices are zero. After: the slim network and the given one agree in float64 on the example inputs and on
noise. Where either fails the cut is refused, and the argument is as it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap, removed_channels
from hoyer_export.errors import CutRefused
from hoyer_export.surgery.folding import fold_constants
from hoyer_export.surgery.plan import PruningPlan, check_fits, checked_keep, compose, make_plan, with_plan
from hoyer_export.surgery.proof import ExampleInputs, prove_equal
from hoyer_export.surgery.unsettle import unsettled
from hoyer_export.surgery.zero import loud_channels, zero_
from hoyer_export.tensors import named_tensors

_HIDDEN_WIDTH = "the network depends on its width in a way that tracing cannot see"


@dataclass(frozen=True)
class SlimModel:
    """A smaller model and how it came from the dense one.

    Args:
        model: the slim model.
        plan: what rebuilds it from the dense code, over all steps so far.
        max_rel_error: largest difference that the last step made, relative to the largest output, in float64; None
            for a model that was loaded.
        delivered_rel_error: the same step with the numbers that it computed (folded constants) rounded to the model's
            own type, as they are in ``model``.
        left: group → channel → why it stays although it is not in ``keep``: ``cut(..., fold=True)`` only.
    """

    model: nn.Module
    plan: PruningPlan
    max_rel_error: float | None = None
    delivered_rel_error: float | None = None
    left: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


def cut(
    model: nn.Module | SlimModel,
    channels: ChannelMap,
    keep: Mapping[str, Tensor],
    example_inputs: ExampleInputs,
    *,
    fold: bool = False,
) -> SlimModel:
    """Return a new model without the channels that are not in ``keep``; ``model`` is not changed.

    Args:
        model: a model whose channels outside ``keep`` are exactly zero (see ``zero_``), or read by nobody: all of
            their consumer slices are zero. A ``SlimModel`` is cut further, and its plan goes on.
        channels: its channel map.
        keep: group name → sorted int64 indices of the channels that stay; a group that is not named stays whole.
        example_inputs: what the model is called with.
        fold: also remove channels whose output is a constant, by folding it into what reads them (see
            ``fold_constants``). Those where that is not exact stay: ``SlimModel.left`` says why.

    Returns:
        The slim model, its plan, and the largest relative error against ``model`` in float64.

    Raises:
        CutRefused: a channel to be removed is neither exactly zero nor unread, or the slim model would compute
            something else.
    """
    given = as_slim(model)
    keep = checked_keep(channels, keep)
    check_fits(given.model, channels)
    left: Mapping[str, Mapping[int, str]] = {}
    error = delivered = 0.0
    if fold:
        folding = fold_constants(given.model, channels, keep, example_inputs)
        given = SlimModel(folding.model, compose(given.plan, folding.plan))
        channels, keep, left = folding.channels, folding.keep, folding.left
        error, delivered = folding.max_rel_error, folding.delivered_rel_error
    _require_silence(given.model, channels, keep)
    plan = make_plan(channels, keep)
    slim = with_plan(given.model, plan)
    compared = prove_equal(given.model, slim, example_inputs, cause=_HIDDEN_WIDTH)
    if compared.is_half_blind or _has_zero_weight(
        given.model
    ):  # a head that starts at zero, for one: other weights of the same code tell
        _prove_unsettled(given.model, channels, keep, plan, example_inputs)
    error, delivered = max(error, compared.error), max(delivered, compared.error)
    return SlimModel(slim, compose(given.plan, plan), error, delivered, left)


def as_slim(model: nn.Module | SlimModel) -> SlimModel:
    """Return a model to which nothing was done yet with an empty plan, and a slim one as it is."""
    return model if isinstance(model, SlimModel) else SlimModel(model, PruningPlan({}, {}))


def _has_zero_weight(model: nn.Module) -> bool:
    """Return whether some weight is zero as a whole, so that nothing shows of what it reads."""
    return any(weight.ndim > 1 and not bool(weight.any()) for weight in model.parameters())


def _prove_unsettled(
    model: nn.Module,
    channels: ChannelMap,
    keep: Mapping[str, Tensor],
    plan: PruningPlan,
    example_inputs: ExampleInputs,
) -> None:
    """Prove the cut on copies whose weights let the input through; CutRefused where even that shows nothing."""
    for size in (1.0, 4.0, -4.0):  # a larger shift wakes what sleeps behind a ReLU, or a minimum
        other = unsettled(model, example_inputs, torch.Generator().manual_seed(0), size)
        zero_(other, channels, keep)
        if not prove_equal(other, with_plan(other, plan), example_inputs, cause=_HIDDEN_WIDTH).is_blind:
            return
    raise CutRefused(
        "nothing was proved: the network's outputs are the same whatever its input is, and so is what they are decided"
        " from; let it return its logits or scores as well"
    )


def _require_silence(model: nn.Module, channels: ChannelMap, keep: Mapping[str, Tensor]) -> None:
    tensors = named_tensors(model)
    for group in channels.groups:
        for channel, (member, index) in loud_channels(
            group, removed_channels(group, keep[group.name]), tensors
        ).items():
            largest = float(tensors[member.parameter].detach().select(member.dim, index).abs().max())
            raise CutRefused(
                f"{member.parameter}[index {index} of dim {member.dim}] is not zero (|w| up to {largest:.2e}), but"
                f" channel {channel} of group {group.name!r} is to be removed: zero it first with zero_(model,"
                " channels, keep)"
            )
