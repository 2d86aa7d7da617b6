"""Several tensors to one, one to several: concatenation, chunks and splits, padding."""

from typing import Any

import numpy as np
from torch import Tensor

from hoyer_export.channels.labels import NOBODY
from hoyer_export.channels.rules.names import named
from hoyer_export.channels.sizes import Size
from hoyer_export.channels.tracer import AxisLabels, TensorLabels, Tracer


def concatenate(tracer: Tracer, output: Tensor, tensors: Any, dim: int = 0, **options: Any) -> None:
    """Labels one after the other along ``dim``; along the other axes all tensors lose the same channels."""
    dim = options.get("axis", dim) % output.ndim
    axes: TensorLabels = {}
    for axis in range(output.ndim):
        if not any(axis in tracer.axes(tensor) for tensor in tensors):
            continue
        sides = [tracer.axis(tensor, axis) for tensor in tensors]
        rests = {side.rest for side in sides if np.any(side.labels != NOBODY)}
        rest = rests.pop() if len(rests) == 1 else None
        if axis == dim:
            axes[axis] = AxisLabels(np.concatenate([side.labels for side in sides]), rest)
        else:
            for side in sides[1:]:
                tracer.unite(sides[0], side)
            axes[axis] = AxisLabels(sides[0].labels, rest)
    tracer.put(output, axes)


def stack(tracer: Tracer, output: Tensor, tensors: Any, dim: int = 0) -> None:
    """A concatenation along a new axis, which holds no channels."""
    dim %= output.ndim
    axes: TensorLabels = {}
    for axis in range(output.ndim - 1):
        if any(axis in tracer.axes(tensor) for tensor in tensors):
            sides = [tracer.axis(tensor, axis) for tensor in tensors]
            for side in sides[1:]:
                tracer.unite(sides[0], side)
            rests = {side.rest for side in sides}
            axes[axis + (axis >= dim)] = AxisLabels(sides[0].labels, rests.pop() if len(rests) == 1 else None)
    tracer.put(output, axes)


def chunk(tracer: Tracer, output: Any, input: Tensor, chunks: Any, dim: int = 0) -> None:
    """Equal parts stay equal: position j is tied across the parts."""
    dim %= input.ndim
    axes = tracer.axes(input)
    if dim in axes:
        if type(chunks) is int and len(output) == chunks and len(axes[dim]) % chunks == 0:
            tracer.tie_blocks(axes[dim], chunks)
        else:
            tracer.fix(axes[dim], "cut into uneven parts")
    _put_parts(tracer, output, input, dim)


def split(tracer: Tracer, output: Any, tensor: Tensor, split_size: Any, dim: int = 0) -> None:
    """Parts of a size that follows the width (``c // 2``, an attribute) shrink; parts of a literal size cannot."""
    dim %= tensor.ndim
    axes = tracer.axes(tensor)
    start, lengths = 0, _lengths(output, split_size, dim)
    if dim in axes and isinstance(split_size, int) and isinstance(split_size, Size):
        if len(axes[dim]) % len(output) == 0 and len({part.shape[dim] for part in output}) == 1:
            split_size.tie(tracer.tie_blocks(axes[dim], len(output)))
        else:
            tracer.fix(axes[dim], "cut into uneven parts")
    elif dim in axes:
        for length, part in zip(lengths, output, strict=True):
            side = AxisLabels(axes[dim].labels[start : start + part.shape[dim]])
            if isinstance(length, Size):
                length.tie(side)
            else:
                tracer.fix(side, "split at literal positions")
            start += part.shape[dim]
    _put_parts(tracer, output, tensor, dim)


def _lengths(output: Any, split_size: Any, dim: int) -> list[int]:
    return [split_size] * len(output) if isinstance(split_size, int) else list(split_size)


def glu(tracer: Tracer, output: Tensor, input: Tensor, dim: int = -1) -> None:
    """a · sigmoid(b) of two halves, which stay equal."""
    dim %= input.ndim
    axes = dict(tracer.axes(input))
    if dim in axes:
        axes[dim] = tracer.tie_blocks(axes[dim], 2)
    tracer.put(output, {axis: side.mixed() for axis, side in axes.items()})


def pad(tracer: Tracer, output: Tensor, input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> None:
    """Padding along other axes leaves the channels alone; constant padding along them adds positions of nobody's."""
    axes: TensorLabels = {}
    for axis, side in tracer.axes(input).items():
        pair = 2 * (input.ndim - 1 - axis)
        rest = side.rest if not any(pad) or mode != "constant" or side.rest == (value or 0.0) else None
        if pair >= len(pad) or (pad[pair], pad[pair + 1]) == (0, 0):
            axes[axis] = AxisLabels(side.labels, rest)
        elif mode == "constant":
            before, after = pad[pair], pad[pair + 1]
            padded = np.full(output.shape[axis], NOBODY)
            kept = side.labels[max(-before, 0) : len(side) - max(-after, 0)]
            padded[max(before, 0) : max(before, 0) + len(kept)] = kept
            axes[axis] = AxisLabels(padded, rest)
            if before < 0 or after < 0:
                tracer.fix(side, "cropped at literal positions")
        else:
            tracer.fix(side, f"padded along the channels ({mode})")
    tracer.put(output, axes)


def _put_parts(tracer: Tracer, output: Any, input: Tensor, dim: int) -> None:
    start = 0
    for part in output:
        axes = dict(tracer.axes(input))
        if dim in axes:
            axes[dim] = AxisLabels(axes[dim].labels[start : start + part.shape[dim]], axes[dim].rest)
        start += part.shape[dim]
        tracer.note_view(part, input)
        tracer.put(part, axes)


RULES = {
    **named("cat concat concatenate", concatenate, in_place=False),
    **named("stack", stack, in_place=False),
    **named("chunk tensor_split", chunk, in_place=False),
    **named("split split_with_sizes", split, in_place=False),
    **named("glu", glu, in_place=False),
    **named("pad", pad, in_place=False),
}
TAKES_SIZES = frozenset(named("split split_with_sizes", split, in_place=False))
