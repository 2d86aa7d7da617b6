"""Take zeroed channels out of a network, exactly or not at all.

Before: every removed channel is exactly zero in every parameter that it owns a slice of. After: the slim network and
the zeroed one agree in float64 on the example inputs and on noise. Where either fails the cut is refused, and the
argument is as it was.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap, removed_channels
from hoyer_export.channels.tracer import tensors_in
from hoyer_export.errors import CutRefused, one_line
from hoyer_export.surgery.plan import PruningPlan, apply_plan_, check_fits, checked_keep, make_plan
from hoyer_export.surgery.zero import is_variance

# float64 sums of other lengths round differently: 1e-15 a term and some 10⁴ terms leave 1e-9 ample room, and a
# single wrong channel moves an output by orders of magnitude more.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class SlimModel:
    """A smaller model and how it came from the dense one.

    Args:
        model: the slim model.
        plan: what rebuilds it from the dense code.
        max_rel_error: largest difference from the zeroed model, relative to its largest output, in float64; None for
            a model that was loaded.
    """

    model: nn.Module
    plan: PruningPlan
    max_rel_error: float | None = None


def cut(
    model: nn.Module,
    channels: ChannelMap,
    keep: Mapping[str, Tensor],
    example_inputs: Tensor | tuple[Tensor, ...],
) -> SlimModel:
    """Return a new model without the channels that are not in ``keep``; ``model`` is not changed.

    Args:
        model: a model whose channels outside ``keep`` are exactly zero (see ``zero_``).
        channels: its channel map.
        keep: group name → sorted int64 indices of the channels that stay; a group that is not named stays whole.
        example_inputs: what the model is called with.

    Returns:
        The slim model, its plan, and the largest relative error against ``model`` in float64.

    Raises:
        CutRefused: a channel to be removed is not exactly zero, or the slim model would compute something else.
    """
    keep = checked_keep(channels, keep)
    check_fits(model, channels)
    _require_zero(model, channels, keep)
    plan = make_plan(channels, keep)
    slim = copy.deepcopy(model)
    apply_plan_(slim, plan)
    _require_training(model, slim, example_inputs)
    error = _max_rel_error(model, slim, example_inputs)
    if not error <= TOLERANCE:  # also refuses NaN
        raise CutRefused(
            f"the slim network differs from the zeroed one by {error:.1e} (relative, float64; rounding is at most"
            f" {TOLERANCE:.0e}): the network depends on its width in a way that tracing cannot see; nothing was changed"
        )
    return SlimModel(slim, plan, error)


def _require_zero(model: nn.Module, channels: ChannelMap, keep: Mapping[str, Tensor]) -> None:
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for group in channels.groups:
        gone = removed_channels(group, keep[group.name])
        if not len(gone):
            continue
        for member in group.members:
            if _is_irrelevant_statistic(member.parameter, tensors):
                continue
            tensor = tensors[member.parameter].detach()
            slices = torch.isin(member.owner, gone).nonzero().flatten()
            largest = tensor.index_select(member.dim, slices.to(tensor.device)).abs().movedim(member.dim, 0)
            largest = largest.flatten(1).amax(1) if largest.ndim > 1 else largest
            if not bool((largest == 0).all()):
                worst = int(slices[largest.argmax().cpu()])
                raise CutRefused(
                    f"{member.parameter}[index {worst} of dim {member.dim}] is not zero (|w| up to"
                    f" {float(largest.max()):.2e}), but channel {int(member.owner[worst])} of group {group.name!r} is"
                    " to be removed: zero it first with zero_(model, channels, keep)"
                )


def _is_irrelevant_statistic(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """γ = β = 0 give zero whatever the running statistics are; without γ the running mean has to be zero too."""
    owner, _, attribute = name.rpartition(".")
    scaled = f"{owner}.weight".lstrip(".") in tensors
    return is_variance(name) or (attribute == "running_mean" and scaled)


def _max_rel_error(zeroed: nn.Module, slim: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> float:
    inputs = tuple(tensors_in(example_inputs))
    generator = torch.Generator().manual_seed(0)
    noise = tuple(
        torch.randn(x.shape, generator=generator).to(x.device, torch.float64) if x.is_floating_point() else x
        for x in inputs
    )
    real = tuple(x.detach().double() if x.is_floating_point() else x for x in inputs)
    # Another batch size, where the network takes one: a size may hide behind the example's.
    tripled = tuple(x.repeat_interleave(3, 0) if x.ndim else x for x in noise)
    first, second = (copy.deepcopy(model).double().eval() for model in (zeroed, slim))
    worst = 0.0
    with torch.no_grad():
        for case in (real, noise, tripled):
            try:
                expected = list(tensors_in(first(*_copies(case))))
            except Exception as error:
                if case is tripled:
                    continue
                raise CutRefused(
                    f"the network does not run in float64, which the cut is proved in ({one_line(error)}): give it"
                    " inputs that fit, and let its code follow its input's type"
                ) from error
            found = _run_slim(second, case)
            worst = max(
                worst,
                *(_rel_error(a, b) for a, b in zip(expected, found, strict=True)),
                key=_nan_is_largest,
            )
    return worst


def _require_training(zeroed: nn.Module, slim: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> None:
    """Refuse a slim network that cannot train although the zeroed one can: code that runs only then was not traced."""
    inputs = tuple(tensors_in(example_inputs))
    first, second = (copy.deepcopy(model).train() for model in (zeroed, slim))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            first(*_copies(inputs))
        except Exception:  # e.g. a batch norm that needs more than one value
            return
        _run_slim(second, inputs)


def _run_slim(slim: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    try:
        return list(tensors_in(slim(*_copies(inputs))))
    except Exception as error:
        mode = "in training mode " if slim.training else ""
        raise CutRefused(
            f"the slim network does not run {mode}({one_line(error)}): the code holds a size that the cut cannot"
            " change; nothing was changed"
        ) from error


def _copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.clone() for x in inputs)  # a model may write into its input


def _rel_error(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if not expected.is_floating_point() or expected.numel() == 0:
        return 0.0 if torch.equal(expected, found) else float("inf")
    return float((expected - found).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny))


def _nan_is_largest(value: Any) -> float:
    return float("inf") if value != value else float(value)
