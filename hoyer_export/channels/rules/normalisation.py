"""Normalisations: whose statistics stay within a channel, they cut with it; whose mix channels, they keep them."""

from typing import Any

from torch import Tensor

from hoyer_export.channels.labels import AxisLabels, Tracer
from hoyer_export.channels.rule import rule
from hoyer_export.channels.rules.pointwise import put, put_unknown
from hoyer_export.channels.sizes import Size, plain

Vector = Tensor | None


@rule("batch_norm instance_norm")
def batch_norm(
    tracer: Tracer,
    output: Tensor,
    input: Tensor,
    running_mean: Vector = None,
    running_var: Vector = None,
    weight: Vector = None,
    bias: Vector = None,
    *_: Any,
    **__: Any,
) -> None:
    """γ (x − μ) / σ + β with statistics of each channel alone: all four vectors are cut with the channel.

    Zero where γ and β are; without them a zeroed channel is zero too, because its running mean is zeroed.
    """
    channels = tracer.axis(input, 1)
    for statistic in (running_mean, running_var):
        if statistic is not None:
            tracer.unite(channels, tracer.axis(statistic, 0))
    centred = channels.zero and (running_mean is None or tracer.axis(running_mean, 0).zero)
    tracer.put(output, {1: _scaled(tracer, input, channels.resting(0.0 if centred else None), weight, bias)})


def _scaled(tracer: Tracer, input: Tensor, channels: AxisLabels, weight: Vector, bias: Vector) -> AxisLabels:
    """Return the channels of γ x + β, which are cut with γ and β; fix what other axes the statistics run over."""
    for vector in (weight, bias):
        if vector is not None:
            tracer.unite(channels, tracer.axis(vector, 0))
    others = [axis for axis in tracer.known_axes(input) if axis != 1]
    tracer.fix(input, "a normalisation's statistics run over it", dims=others)
    zero = channels.zero if weight is None else tracer.axis(weight, 0).zero
    return channels.resting(0.0 if zero and (bias is None or tracer.axis(bias, 0).zero) else None)


@rule("layer_norm rms_norm")
def layer_norm(
    tracer: Tracer, output: Tensor, input: Tensor, normalized_shape: Any, *rest: Any, **options: Any
) -> None:
    """A mean and a variance over channels: a channel that is zero still counts in both."""
    _mix(tracer, output, input, range(-len(normalized_shape), 0), "layer_norm")
    for weight in (*rest, *options.values()):
        if isinstance(weight, Tensor):
            tracer.fix(weight, "layer_norm")


@rule("local_response_norm")
def local_response_norm(tracer: Tracer, output: Tensor, input: Tensor, size: int, *_: Any, **__: Any) -> None:
    """Each channel is divided by a sum over its neighbours: which they are depends on what lies between."""
    _mix(tracer, output, input, [1], "local_response_norm")


def _mix(tracer: Tracer, output: Tensor, input: Tensor, dims: Any, name: str) -> None:
    axes = tracer.axes(input)
    tracer.fix(input, name, dims)
    put_unknown(tracer, output, axes)


@rule("group_norm", takes_sizes=True)
def group_norm(
    tracer: Tracer,
    output: Tensor,
    input: Tensor,
    num_groups: Any,
    weight: Vector = None,
    bias: Vector = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> None:
    """A mean and a variance over the channels of a normalisation group: they go together, and the group with them."""
    labelled, channels, groups = 1 in tracer.axes(input), tracer.axis(input, 1), plain(num_groups)
    if labelled and groups == 1:
        tracer.fix(channels, "a group_norm over all channels")
    elif labelled and not isinstance(num_groups, Size):
        tracer.fix(channels, "a group_norm with a literal number of groups")
    elif labelled:
        num_groups.tie(tracer.unite_runs(channels, len(channels) // groups))
    channels = _scaled(tracer, input, channels, weight, bias)
    put(tracer, output, {1: channels} if labelled else {})


@rule("normalize")
def normalize(tracer: Tracer, output: Tensor, input: Tensor, p: float = 2.0, dim: Any = 1, *_: Any, **__: Any) -> None:
    """x / ‖x‖ₚ: a channel that is exactly zero adds nothing to the norm (p > 0)."""
    axes = tracer.axes(input)
    for axis in {d % input.ndim for d in ([dim] if isinstance(dim, int) else dim)} & axes.keys():
        if axes[axis].zero and p > 0:
            tracer.sums(axes[axis])
        else:
            tracer.fix(axes[axis], "normalised over channels of which a zeroed one is not zero")
    put(tracer, output, {a: side.mixed() for a, side in axes.items()})


@rule("_weight_norm", in_place=False)
def weight_norm(tracer: Tracer, output: Tensor, v: Tensor, g: Tensor, dim: int = 0) -> None:
    """g v / ‖v‖: what a filter reads can go, as zero slices add nothing to its norm; itself it has to have one."""
    axes = tracer.axes(v)
    for axis, side in axes.items():
        if axis == dim:
            tracer.fix(side, "weight_norm divides by the norm of a filter: call remove_parametrizations first")
        else:
            tracer.sums(side)
    tracer.put(output, axes)
