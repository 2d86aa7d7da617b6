"""Take channels out of a network, exactly or not at all.

Before: every removed channel is exactly zero in every parameter that it owns a slice of, or it is unread: all of
its reader slices are zero. After: the slim network and the given one agree in float64 on the example inputs and on
noise. Where either fails the cut is refused, and the argument is as it was.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hoyer_export.call import Call, ExampleInputs, ExampleKwargs
from hoyer_export.channels.channel_map import ChannelMap, removed_channels
from hoyer_export.errors import CutRefused
from hoyer_export.surgery.extras.folding import fold_constants
from hoyer_export.surgery.perturb import perturbed
from hoyer_export.surgery.plan import PruningPlan, check_fits, checked_keep, compose, make_plan, with_plan
from hoyer_export.surgery.proof import prove_equal
from hoyer_export.surgery.step import SlimModel, as_slim
from hoyer_export.surgery.zero import live_channels, zero_
from hoyer_export.tensors import named_tensors

_HIDDEN_WIDTH = "the network depends on its width in a way that tracing cannot see"


def cut(
    model: nn.Module | SlimModel,
    channels: ChannelMap,
    keep: Mapping[str, Tensor],
    example_inputs: ExampleInputs,
    *,
    example_kwargs: ExampleKwargs | None = None,
    fold: bool = False,
) -> SlimModel:
    """Return a new model without the channels that are not in ``keep``; ``model`` is not changed.

    Args:
        model: a model whose channels outside ``keep`` are exactly zero (see ``zero_``), or unread: all of their
            reader slices are zero. A ``SlimModel`` is cut further, and its plan goes on.
        channels: its channel map.
        keep: group name → sorted int64 indices of the channels that stay; a group that is not named stays whole.
        example_inputs, example_kwargs: what the model is called with, as for ``trace_channels``.
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
    call = Call.of(given.model, example_inputs, example_kwargs)
    left: Mapping[str, Mapping[int, str]] = {}
    error = delivered = 0.0
    if fold:
        folding = fold_constants(given.model, channels, keep, call)
        given = SlimModel(folding.model, compose(given.plan, folding.plan))
        channels, keep, left = folding.channels, folding.keep, folding.left
        error, delivered = folding.max_rel_error, folding.delivered_rel_error
    _require_no_live_channel(given.model, channels, keep)
    plan = make_plan(channels, keep)
    slim = with_plan(given.model, plan)
    compared = prove_equal(given.model, slim, call, cause=_HIDDEN_WIDTH)
    # A head that starts at zero, for one: other weights of the same code tell.
    if compared.is_half_blind or _has_zero_weight(given.model):
        _prove_perturbed(given.model, channels, keep, plan, call)
    return SlimModel(
        slim,
        compose(given.plan, plan),
        max_rel_error=max(error, compared.error),
        delivered_rel_error=max(delivered, compared.error),
        left=left,
    )


def _has_zero_weight(model: nn.Module) -> bool:
    """Return whether some weight is zero as a whole, so that nothing shows of what it reads."""
    return any(weight.ndim > 1 and not bool(weight.any()) for weight in model.parameters())


def _prove_perturbed(
    model: nn.Module,
    channels: ChannelMap,
    keep: Mapping[str, Tensor],
    plan: PruningPlan,
    call: Call,
) -> None:
    """Prove the cut on copies whose weights let the input through; CutRefused where even that shows nothing."""
    for size in (1.0, 4.0, -4.0):  # a larger shift wakes what sleeps behind a ReLU, or a minimum
        other = perturbed(model, call, torch.Generator().manual_seed(0), size)
        zero_(other, channels, keep)
        if not prove_equal(other, with_plan(other, plan), call, cause=_HIDDEN_WIDTH).is_blind:
            return
    raise CutRefused(
        "nothing was proved: the network's outputs are the same whatever its input is, and so is what they are decided"
        " from; let it return its logits or scores as well"
    )


def _require_no_live_channel(model: nn.Module, channels: ChannelMap, keep: Mapping[str, Tensor]) -> None:
    tensors = named_tensors(model)
    for group in channels.groups:
        live = live_channels(group, removed_channels(group, keep[group.name]), tensors)
        for channel, (member, index) in live.items():
            largest = float(tensors[member.parameter].detach().select(member.dim, index).abs().max())
            raise CutRefused(
                f"{member.parameter}[index {index} of dim {member.dim}] is not zero (|w| up to {largest:.2e}), but"
                f" channel {channel} of group {group.name!r} is to be removed: zero it first with zero_(model,"
                " channels, keep)"
            )
