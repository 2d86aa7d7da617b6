"""Operations within a channel's own map, and reductions over axes."""

from typing import Any

from torch import Tensor

from hoyer_export.channels.rules.names import named
from hoyer_export.channels.rules.pointwise import add, put_constant
from hoyer_export.channels.tracer import AxisLabels, Rule, TensorLabels, Tracer, tensors_in


def pool(axes: int) -> Rule:
    """Return the rule of pooling, which mixes positions along the last ``axes`` axes, each channel apart."""

    def rule(tracer: Tracer, output: Any, input: Tensor, *options: Any, **named_options: Any) -> None:
        _pool(tracer, output, input, axes)

    return rule


def resize(tracer: Tracer, output: Any, input: Tensor, *options: Any, **named_options: Any) -> None:
    """Interpolation mixes positions along all axes after batch and channels."""
    _pool(tracer, output, input, input.ndim - 2)


def _pool(tracer: Tracer, output: Any, input: Tensor, axes: int) -> None:
    channels: TensorLabels = {}
    for axis, side in tracer.axes(input).items():
        if axis >= input.ndim - axes:
            tracer.fix(side, "pooled along the channels")
        else:
            channels[axis] = side
    for result in tensors_in(output):  # values, and indices where they are asked for
        tracer.put(result, channels)


def total(
    tracer: Tracer, output: Tensor, input: Tensor, dim: Any = None, keepdim: bool = False, **options: Any
) -> None:
    """A sum over channels does not miss one that is exactly zero."""
    _reduce(tracer, output, input, dim, keepdim, "summed over the channels where a zeroed one is not zero", True)


def statistic(
    tracer: Tracer, output: Any, input: Tensor, dim: Any = None, keepdim: Any = False, *_: Any, **__: Any
) -> None:
    """A mean, a variance or a maximum over channels depends on how many there are."""
    if isinstance(dim, Tensor):  # max(x, y) is position by position
        add(tracer, output, input, dim)
    elif isinstance(keepdim, bool):
        _reduce(tracer, output, input, dim, keepdim, "a mean or maximum over the channels", False)
    else:
        tracer.fix_tensor(input, "a statistic in an unusual form")


def softmax(tracer: Tracer, output: Tensor, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> None:
    """A softmax normalises over an axis: a zeroed channel there still counts, as e⁰ = 1."""
    axes = dict(tracer.axes(input))
    normalised = [dim % input.ndim] if isinstance(dim, int) else list(axes)
    for axis in normalised:
        if axis in axes:
            tracer.fix(axes[axis], "softmax over the channels")
    put_constant(tracer, output, axes)


def _reduce(
    tracer: Tracer, output: Any, input: Tensor, dim: Any, keepdim: bool, reason: str, zero_vanishes: bool
) -> None:
    dims = range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    reduced = {axis % input.ndim for axis in dims}
    left: TensorLabels = {}
    for axis, side in tracer.axes(input).items():
        if axis not in reduced:
            position = axis if keepdim else axis - sum(gone < axis for gone in reduced)
            left[position] = AxisLabels(side.labels, side.zero)
        elif zero_vanishes and side.zero:
            tracer.sums(side)
        else:
            tracer.fix(side, reason)
    for result in tensors_in(output):
        tracer.put(result, left)


RULES = {
    **named("max_pool1d avg_pool1d lp_pool1d adaptive_avg_pool1d adaptive_max_pool1d max_pool1d_with_indices", pool(1)),
    **named("max_pool2d avg_pool2d lp_pool2d adaptive_avg_pool2d adaptive_max_pool2d max_pool2d_with_indices", pool(2)),
    **named("max_pool3d avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d", pool(3)),
    **named("interpolate upsample", resize),
    **named("sum", total),
    **named("mean amax amin max min", statistic),
    **named("softmax log_softmax", softmax),
}
