"""Operations within a channel's own map: pooling, resizing, sampling, pixels made from channels and the reverse."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hoyer_export.channels.labels import TensorLabels, Tracer
from hoyer_export.channels.positions import Spread, numbered, spread
from hoyer_export.channels.rule import rule
from hoyer_export.tensors import tensors_in

ALONG = "pooled along the channels"


@rule(
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices"
    " avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d lp_pool3d adaptive_avg_pool1d adaptive_avg_pool2d"
    " adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices"
    " adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices fractional_max_pool2d fractional_max_pool3d"
    " fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices"
)
def pool(tracer: Tracer, output: Any, input: Tensor, *_: Any, **__: Any) -> None:
    """Pooling mixes positions along the last one, two or three axes, each channel apart."""
    _pool(tracer, output, input, int(tracer.operation.__name__.partition("pool")[2][0]))


@rule("interpolate upsample upsample_nearest upsample_bilinear grid_sample")
def resize(tracer: Tracer, output: Any, input: Tensor, *arguments: Any, **options: Any) -> None:
    """Interpolation and sampling mix positions along all axes after batch and channels."""
    for tensor in tensors_in((arguments, options)):  # the grid that is sampled at
        tracer.fix(tensor, "positions to sample at")
    _pool(tracer, output, input, input.ndim - 2)


def _pool(tracer: Tracer, output: Any, input: Tensor, last: int) -> None:
    axes = _before(tracer, input, input.ndim - last, ALONG)
    for result in tensors_in(output):  # values, and indices where they are asked for
        tracer.put(result, {axis: side.mixed() for axis, side in axes.items()})


def _before(tracer: Tracer, input: Tensor, axis: int, reason: str) -> TensorLabels:
    """Return the labels before an axis; fix those from there on."""
    tracer.fix(input, reason, dims=[at for at in tracer.axes(input) if at >= axis])
    return {at: side for at, side in tracer.axes(input).items() if at < axis}


@rule("max_unpool1d max_unpool2d max_unpool3d")
def unpool(tracer: Tracer, output: Tensor, input: Tensor, indices: Tensor, *_: Any, **__: Any) -> None:
    """The inverse of max pooling; the places come from a pooling of the same channels."""
    axes = _before(tracer, input, 2, ALONG)
    for axis, side in axes.items():
        if axis in tracer.axes(indices):
            tracer.unite(side, tracer.axis(indices, axis))
        else:
            tracer.fix(side, "unpooled at fixed places")
    tracer.put(output, axes)


@rule("torchvision::roi_align torchvision::roi_pool torchvision::ps_roi_align torchvision::ps_roi_pool")
def regions(tracer: Tracer, output: Any, input: Tensor, rois: Tensor, *_: Any) -> None:
    """Pooling within regions; where each of its positions has channels of its own, those go together."""
    tracer.fix(rois, "regions to pool in")
    values, *places = tensors_in(output)
    _regroup(tracer, values, input, 1)
    for result in places:
        tracer.put(result, {axis: side.resting(None) for axis, side in tracer.axes(values).items()})


@rule("pixel_shuffle pixel_unshuffle")
def pixels(tracer: Tracer, output: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """r² channels in a row become one of r × r times as many pixels, or one becomes r²: they go together."""
    _regroup(tracer, output, input, input.ndim - 3)


@rule("fold unfold", spaces=(F,))
def patches(tracer: Tracer, output: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """Patches as columns, with a row for each pixel of each channel, and back: the rows of one channel go together."""
    _regroup(tracer, output, input, input.ndim - (3 if tracer.operation is F.unfold else 2))


def _regroup(tracer: Tracer, output: Tensor, input: Tensor, axis: int) -> None:
    """Several channels in a row become one, or one becomes several in a row."""
    axes = _before(tracer, input, axis + 1, "mixed with the pixels around")
    if axis in axes:
        before, after = input.shape[axis], output.shape[axis]
        side = (
            tracer.unite_runs(axes[axis], before // after) if before > after else axes[axis].repeated(after // before)
        )
        axes[axis] = side.mixed()
    tracer.put(output, axes)


@rule("unfold", spaces=(Tensor,))
def windows(tracer: Tracer, output: Tensor, input: Tensor, dimension: int, size: int, step: int) -> None:
    """Windows along one axis, their positions along a new last one."""
    axes = dict(tracer.axes(input))
    if (axis := dimension % input.ndim) in axes:
        tracer.fix(axes.pop(axis), "windows along the channels")
    tracer.note_view(output, input)
    tracer.put(output, axes)


@rule("channel_shuffle native_channel_shuffle")
def channel_shuffle(tracer: Tracer, output: Tensor, input: Tensor, groups: int) -> None:
    """Interleaves ``groups`` blocks of channels."""
    axes = dict(tracer.axes(input))
    if list(axes) == [1]:
        tracer.keep_divisible(axes[1], groups)
        spread(tracer, output, Spread(axes[1], (groups, -1), tracer.operation(numbered(input, 1), groups), True))
        return
    if 1 in axes:
        axes[1] = tracer.unite_blocks(axes[1], groups).repeated(groups)
    tracer.put(output, axes)
