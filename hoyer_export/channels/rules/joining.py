"""Several tensors to one, one to several: concatenation, chunks and splits, padding."""

from typing import Any

import numpy as np
from torch import Tensor

from hoyer_export.channels.labels import AxisLabels, TensorLabels, Tracer
from hoyer_export.channels.rule import rule
from hoyer_export.channels.sizes import Size
from hoyer_export.channels.union_find import NO_CHANNEL


@rule("cat concat concatenate", in_place=False)
def concatenate(tracer: Tracer, output: Tensor, tensors: Any, dim: int = 0, **options: Any) -> None:
    """Labels one after the other along ``dim``; along the other axes all tensors lose the same channels."""
    dim = options.get("axis", dim) % output.ndim
    axes: TensorLabels = {}
    for axis in range(output.ndim):
        if sides := _sides(tracer, tensors, axis):
            rest = _common_rest([side for side in sides if np.any(side.labels != NO_CHANNEL)])
            if axis == dim:
                axes[axis] = AxisLabels(np.concatenate([side.labels for side in sides]), rest)
            else:
                axes[axis] = tracer.unite(*sides).resting(rest)
    tracer.put(output, axes)


@rule("stack", in_place=False)
def stack(tracer: Tracer, output: Tensor, tensors: Any, dim: int = 0) -> None:
    """A concatenation along a new axis, which holds no channels."""
    dim %= output.ndim
    axes: TensorLabels = {}
    for axis in range(output.ndim - 1):
        if sides := _sides(tracer, tensors, axis):
            axes[axis + (axis >= dim)] = tracer.unite(*sides).resting(_common_rest(sides))
    tracer.put(output, axes)


def _sides(tracer: Tracer, tensors: Any, axis: int) -> list[AxisLabels]:
    """Return the labels of all tensors along an axis; none if no channels lie along it."""
    labelled = any(axis in tracer.axes(tensor) for tensor in tensors)
    return [tracer.axis(tensor, axis) for tensor in tensors] if labelled else []


def _common_rest(sides: list[AxisLabels]) -> float | None:
    rests = {side.rest for side in sides}
    return rests.pop() if len(rests) == 1 else None


@rule("chunk tensor_split", in_place=False)
def chunk(tracer: Tracer, output: Any, input: Tensor, chunks: Any, dim: int = 0) -> None:
    """Equal parts stay equal, whichever of their channels go."""
    axes = tracer.axes(input)
    if (dim := dim % input.ndim) in axes:
        if type(chunks) is int and len(output) == chunks and len(axes[dim]) % chunks == 0:
            for part in axes[dim].labels.reshape(chunks, -1)[: chunks - 1]:
                tracer.union_find.tie(axes[dim].labels, part, 1, chunks)
        else:
            tracer.fix(axes[dim], "cut into uneven parts")
    _put_parts(tracer, output, input, dim)


@rule("split split_with_sizes", in_place=False, takes_sizes=True)
def split(tracer: Tracer, output: Any, tensor: Tensor, split_size: Any, dim: int = 0) -> None:
    """Parts of a size that follows the width (``c // 2``, an attribute) shrink; parts of a literal size cannot."""
    axes = tracer.axes(tensor)
    if (dim := dim % tensor.ndim) in axes and isinstance(split_size, Size):
        if len(axes[dim]) % len(output) == 0 and len({part.shape[dim] for part in output}) == 1:
            for part in range(0, len(axes[dim]), output[0].shape[dim]):
                split_size.tie(axes[dim][part : part + output[0].shape[dim]])
        else:
            tracer.fix(axes[dim], "cut into uneven parts")
    elif dim in axes:
        start = 0
        lengths = [split_size] * len(output) if isinstance(split_size, int) else split_size
        for length, part in zip(lengths, output, strict=True):
            side = axes[dim][start : start + part.shape[dim]]
            if isinstance(length, Size):
                length.tie(side)
            else:
                tracer.fix(side, "split at literal positions")
            start += part.shape[dim]
    _put_parts(tracer, output, tensor, dim)


def _put_parts(tracer: Tracer, output: Any, input: Tensor, dim: int) -> None:
    start = 0
    for part in output:
        axes = dict(tracer.axes(input))
        if dim in axes:
            axes[dim] = axes[dim][start : start + part.shape[dim]]
        start += part.shape[dim]
        tracer.note_view(part, input)
        tracer.put(part, axes)


@rule("glu", in_place=False)
def glu(tracer: Tracer, output: Tensor, input: Tensor, dim: int = -1) -> None:
    """a · sigmoid(b) of two halves, which stay equal."""
    axes = dict(tracer.axes(input))
    if (dim := dim % input.ndim) in axes:
        axes[dim] = tracer.unite_blocks(axes[dim], 2)
    tracer.put(output, {axis: side.mixed() for axis, side in axes.items()})


@rule("pad", in_place=False)
def pad(tracer: Tracer, output: Tensor, input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> None:
    """Padding along other axes leaves the channels alone; constant padding along them adds positions of no channel."""
    axes: TensorLabels = {}
    for axis, side in tracer.axes(input).items():
        pair = 2 * (input.ndim - 1 - axis)
        rest = side.rest if not any(pad) or mode != "constant" or side.rest == (value or 0.0) else None
        before, after = pad[pair : pair + 2] if pair < len(pad) else (0, 0)
        if (before, after) == (0, 0):
            axes[axis] = side.resting(rest)
        elif mode == "constant":
            padded = np.full(output.shape[axis], NO_CHANNEL)
            kept = side.labels[max(-before, 0) : len(side) - max(-after, 0)]
            padded[max(before, 0) : max(before, 0) + len(kept)] = kept
            axes[axis] = AxisLabels(padded, rest)
            if before < 0 or after < 0:
                tracer.fix(side, "cropped at literal positions")
        else:
            tracer.fix(side, f"padded along the channels ({mode})")
    tracer.put(output, axes)
