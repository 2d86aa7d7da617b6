"""Normalisations: whose statistics stay within a channel, they cut with it; whose mix channels, they keep them."""

from typing import Any

from torch import Tensor

from hoyer_export.channels.rules.names import named
from hoyer_export.channels.rules.pointwise import put, put_unknown
from hoyer_export.channels.sizes import Size, plain
from hoyer_export.channels.tracer import AxisLabels, Tracer


def batch_norm(
    tracer: Tracer,
    output: Tensor,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *options: Any,
    **named_options: Any,
) -> None:
    """γ (x − μ) / σ + β with statistics of each channel alone: all four vectors are cut with the channel.

    Zero where γ and β are; without them a zeroed channel is zero too, because its running mean is zeroed.
    """
    channels = tracer.axis(input, 1)
    for vector in (running_mean, running_var, weight, bias):
        if vector is not None:
            tracer.unite(channels, tracer.axis(vector, 0))
    centred = channels.zero and (running_mean is None or tracer.axis(running_mean, 0).zero)
    scaled = centred if weight is None else tracer.axis(weight, 0).zero
    shifted = bias is None or tracer.axis(bias, 0).zero
    for axis, side in tracer.known_axes(input).items():
        if axis != 1:
            tracer.fix(side, "a normalisation's statistics run over it")
    tracer.put(output, {1: AxisLabels(channels.labels, 0.0 if scaled and shifted else None)})


def instance_norm(
    tracer: Tracer,
    output: Tensor,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *options: Any,
    **named_options: Any,
) -> None:
    """As a batch norm whose statistics come from one image."""
    batch_norm(tracer, output, input, running_mean, running_var, weight, bias)


def layer_norm(
    tracer: Tracer, output: Tensor, input: Tensor, normalized_shape: Any, *weights: Any, **options: Any
) -> None:
    """A mean and a variance over channels: a channel that is zero still counts in both."""
    _mixes(tracer, output, input, range(input.ndim - len(normalized_shape), input.ndim), "layer_norm")
    for weight in (*weights, *options.values()):
        if isinstance(weight, Tensor):
            tracer.fix_tensor(weight, "layer_norm")


def group_norm(
    tracer: Tracer,
    output: Tensor,
    input: Tensor,
    num_groups: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> None:
    """A mean and a variance over the channels of a normalisation group: they go together, and the group with them."""
    axes = tracer.axes(input)
    channels = tracer.axis(input, 1)
    groups = plain(num_groups)
    if 1 in axes and groups == 1:
        tracer.fix(channels, "a group_norm over all channels")
    elif 1 in axes and not isinstance(num_groups, Size):
        tracer.fix(channels, "a group_norm with a literal number of groups")
    elif 1 in axes:
        runs = channels.labels.reshape(groups, -1)
        tracer.labels.unite(runs, runs[:, :1])
        num_groups.tie(AxisLabels(runs[:, 0]))
    for vector in (weight, bias):
        if vector is not None:
            tracer.unite(channels, tracer.axis(vector, 0))
    for axis, side in axes.items():
        if axis != 1:
            tracer.fix(side, "a normalisation's statistics run over it")
    scaled = channels.zero if weight is None else tracer.axis(weight, 0).zero
    shifted = bias is None or tracer.axis(bias, 0).zero
    put(tracer, output, {1: AxisLabels(channels.labels, 0.0 if scaled and shifted else None)} if 1 in axes else {})


def normalize(
    tracer: Tracer, output: Tensor, input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **options: Any
) -> None:
    """x / ‖x‖ₚ: a channel that is exactly zero adds nothing to the norm (p > 0)."""
    axes = tracer.axes(input)
    for axis in {d % input.ndim for d in ([dim] if isinstance(dim, int) else dim)} & axes.keys():
        if axes[axis].zero and p > 0:
            tracer.sums(axes[axis])
        else:
            tracer.fix(axes[axis], "normalised over channels of which a zeroed one is not zero")
    put(tracer, output, {a: side.mixed() for a, side in axes.items()})


def local_response_norm(
    tracer: Tracer, output: Tensor, input: Tensor, size: int, *options: Any, **named_options: Any
) -> None:
    """Each channel is divided by a sum over its neighbours: which they are depends on what lies between."""
    _mixes(tracer, output, input, [1], "local_response_norm")


def _mixes(tracer: Tracer, output: Tensor, input: Tensor, mixed: Any, name: str) -> None:
    axes = tracer.axes(input)
    for axis in mixed:
        if axis in axes:
            tracer.fix(axes[axis], name)
    put_unknown(tracer, output, axes)


RULES = {
    **named("batch_norm", batch_norm),
    **named("instance_norm", instance_norm),
    **named("layer_norm rms_norm", layer_norm),
    **named("group_norm", group_norm),
    **named("normalize", normalize),
    **named("local_response_norm", local_response_norm),
}
TAKES_SIZES = frozenset(named("group_norm", group_norm))
