"""Operations within a channel's own map: pooling, resizing, sampling, pixels made from channels and the reverse."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hoyer_export.channels.rules.names import named
from hoyer_export.channels.tracer import AxisLabels, Rule, TensorLabels, Tracer, tensors_in


def pool(axes: int) -> Rule:
    """Return the rule of pooling, which mixes positions along the last ``axes`` axes, each channel apart."""

    def rule(tracer: Tracer, output: Any, input: Tensor, *options: Any, **named_options: Any) -> None:
        _pool(tracer, output, input, axes)

    return rule


def resize(tracer: Tracer, output: Any, input: Tensor, *options: Any, **named_options: Any) -> None:
    """Interpolation and sampling mix positions along all axes after batch and channels."""
    for tensor in tensors_in((options, named_options)):  # the grid that is sampled at
        tracer.fix_tensor(tensor, "positions to sample at")
    _pool(tracer, output, input, input.ndim - 2)


def _pool(tracer: Tracer, output: Any, input: Tensor, axes: int) -> None:
    channels: TensorLabels = {}
    for axis, side in tracer.axes(input).items():
        if axis >= input.ndim - axes:
            tracer.fix(side, "pooled along the channels")
        else:
            channels[axis] = side.mixed()
    for result in tensors_in(output):  # values, and indices where they are asked for
        tracer.put(result, channels)


def unpool(tracer: Tracer, output: Tensor, input: Tensor, indices: Tensor, *options: Any, **named_options: Any) -> None:
    """The inverse of max pooling; the places come from a pooling of the same channels."""
    channels = {axis: side for axis, side in tracer.axes(input).items() if axis < 2}
    for axis, side in tracer.axes(input).items():
        if axis >= 2:
            tracer.fix(side, "pooled along the channels")
        elif axis in tracer.axes(indices):
            tracer.unite(side, tracer.axis(indices, axis))
        else:
            tracer.fix(side, "unpooled at fixed places")
    tracer.put(output, channels)


def pixel_shuffle(tracer: Tracer, output: Tensor, input: Tensor, upscale_factor: int) -> None:
    """r² channels in a row become one of r × r times as many pixels: they go together."""
    _gather_runs(tracer, output, input, input.ndim - 3, upscale_factor**2)


def pixel_unshuffle(tracer: Tracer, output: Tensor, input: Tensor, downscale_factor: int) -> None:
    """Each channel becomes r² channels in a row."""
    _spread_runs(tracer, output, input, input.ndim - 3, downscale_factor**2)


def unfold(tracer: Tracer, output: Tensor, input: Tensor, *options: Any, **named_options: Any) -> None:
    """Patches as columns: each channel becomes as many rows as a patch has pixels."""
    channels = input.ndim - 3
    _spread_runs(tracer, output, input, channels, output.shape[channels] // input.shape[channels])


def fold(tracer: Tracer, output: Tensor, input: Tensor, *options: Any, **named_options: Any) -> None:
    """Columns back to pixels: the rows of one channel go together."""
    channels = input.ndim - 2
    _gather_runs(tracer, output, input, channels, input.shape[channels] // output.shape[channels])


def windows(tracer: Tracer, output: Tensor, input: Tensor, dimension: int, size: int, step: int) -> None:
    """Windows along one axis, their positions along a new last one."""
    axes = dict(tracer.axes(input))
    if (axis := dimension % input.ndim) in axes:
        tracer.fix(axes.pop(axis), "windows along the channels")
    tracer.note_view(output, input)
    tracer.put(output, axes)


def channel_shuffle(tracer: Tracer, output: Tensor, input: Tensor, groups: int) -> None:
    """Interleaves ``groups`` runs of channels: position j is tied across the runs."""
    axes = dict(tracer.axes(input))
    if 1 in axes:
        side = axes[1]
        tracer.tie_blocks(side, groups)
        axes[1] = AxisLabels(side.labels.reshape(groups, -1).T.reshape(-1), side.rest)
    tracer.put(output, axes)


def _gather_runs(tracer: Tracer, output: Tensor, input: Tensor, channel_axis: int, length: int) -> None:
    axes = _other_axes(tracer, input, channel_axis)
    if channel_axis in tracer.axes(input):
        side = tracer.axis(input, channel_axis)
        runs = side.labels.reshape(-1, length)
        tracer.labels.unite(runs, runs[:, :1])
        axes[channel_axis] = AxisLabels(runs[:, 0], side.rest if side.zero else None)
    tracer.put(output, axes)


def _spread_runs(tracer: Tracer, output: Tensor, input: Tensor, channel_axis: int, length: int) -> None:
    axes = _other_axes(tracer, input, channel_axis)
    if channel_axis in tracer.axes(input):
        side = tracer.axis(input, channel_axis)
        axes[channel_axis] = AxisLabels(side.labels.repeat(length), side.rest if side.zero else None)
    tracer.put(output, axes)


def _other_axes(tracer: Tracer, input: Tensor, channel_axis: int) -> TensorLabels:
    """Return the labels before the channels; fix those after, which are pixels."""
    for axis, side in tracer.axes(input).items():
        if axis > channel_axis:
            tracer.fix(side, "mixed with the pixels around")
    return {axis: side for axis, side in tracer.axes(input).items() if axis < channel_axis}


RULES: dict[Callable[..., Any], Rule] = {
    **named("max_pool1d avg_pool1d lp_pool1d adaptive_avg_pool1d adaptive_max_pool1d max_pool1d_with_indices", pool(1)),
    **named("max_pool2d avg_pool2d lp_pool2d adaptive_avg_pool2d adaptive_max_pool2d max_pool2d_with_indices", pool(2)),
    **named("max_pool3d avg_pool3d lp_pool3d adaptive_avg_pool3d adaptive_max_pool3d max_pool3d_with_indices", pool(3)),
    **named("adaptive_max_pool1d_with_indices", pool(1)),
    **named("adaptive_max_pool2d_with_indices fractional_max_pool2d fractional_max_pool2d_with_indices", pool(2)),
    **named("adaptive_max_pool3d_with_indices fractional_max_pool3d fractional_max_pool3d_with_indices", pool(3)),
    **named("max_unpool1d max_unpool2d max_unpool3d", unpool),
    **named("interpolate upsample upsample_nearest upsample_bilinear grid_sample", resize),
    **named("pixel_shuffle", pixel_shuffle),
    **named("pixel_unshuffle", pixel_unshuffle),
    **named("channel_shuffle native_channel_shuffle", channel_shuffle),
    Tensor.unfold: windows,
    F.unfold: unfold,
    F.fold: fold,
}
