"""Picking positions: a literal position must stay where it is, and so must everything before it.

``x[:, :k]`` is the first k channels of whatever is left: those k must stay, and the others are free. Where k is the
width of something (``c // 2``, ``other.shape[1]``) or an attribute of a module, it follows the cut instead.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoyer_export.channels.channel_map import ORDER
from hoyer_export.channels.labels import AxisLabels, TensorLabels, Tracer
from hoyer_export.channels.positions import hand_on
from hoyer_export.channels.rule import rule
from hoyer_export.channels.rules.movement import inhabited, move
from hoyer_export.channels.rules.pointwise import first_of, put, put_unknown, unite_operands
from hoyer_export.channels.sizes import Size, plain
from hoyer_export.tensors import tensors_in

LITERAL = "the code picks channels by literal positions"


@rule("__getitem__", takes_sizes=True)
def getitem(tracer: Tracer, output: Tensor, input: Tensor, index: Any) -> None:
    """``x[index]``."""
    _address(tracer, input, index)
    move(tracer, output, input, lambda numbers: inhabited(numbers)[_picking(plain(index), output)])


@rule("__setitem__", takes_sizes=True)
def setitem(tracer: Tracer, output: None, input: Tensor, index: Any, value: Any) -> None:
    """``x[index] = value``: the positions written to and the value lose the same channels."""
    _address(tracer, input, index)
    written = input[plain(index)].clone()
    move(tracer, written, input, lambda numbers: numbers[_picking(plain(index), written)])
    operands = [written, value] if isinstance(value, Tensor) else [written]
    same_rest = True
    for axis in range(written.ndim):
        if sides := unite_operands(tracer, operands, written, axis):
            new = sides[1].rest if 1 in sides else value if isinstance(value, int | float) else None
            same_rest &= sides[0].rest == new
    (put if same_rest else put_unknown)(tracer, input, tracer.axes(input))


def _address(tracer: Tracer, input: Tensor, index: Any) -> None:
    """Fix, or tie to what they follow, the channels that an index depends on."""
    axis = 0
    items = index if isinstance(index, tuple) else (index,)
    for number, item in enumerate(items):
        if item is Ellipsis:
            axis = input.ndim - sum(_axes_taken(later) for later in items[number + 1 :])
        for taken in range(axis, axis + _axes_taken(item)):
            if taken in tracer.axes(input):
                side = tracer.axis(input, taken)
                if isinstance(item, slice):
                    _slice(tracer, side, item)
                elif isinstance(item, int) and not isinstance(item, bool | Size):
                    tracer.fix(side[: item + 1] if item >= 0 else side[item:], LITERAL)
                else:  # a list, a tensor of positions, a mask
                    tracer.fix(side, LITERAL)
        axis += _axes_taken(item)


def _picking(index: Any, picked: Tensor) -> Any:
    """Return an index that picks something: of nothing (no box on a level) nobody sees where its axes come from."""
    if picked.numel():
        return index
    if isinstance(index, tuple | list):
        return type(index)(_picking(item, picked) for item in index)
    if isinstance(index, Tensor):
        return index.new_full([size or 2 for size in index.shape], index.dtype == torch.bool)
    return index


def _axes_taken(item: Any) -> int:
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if isinstance(item, Tensor) and item.dtype == torch.bool else 1


def _slice(tracer: Tracer, side: AxisLabels, item: slice) -> None:
    """``[start:stop:step]`` along the channels."""
    step = plain(item.step) or 1
    _bound(tracer, side, item.start, step)
    _bound(tracer, side, item.stop, 1)
    if step > 1:  # whole runs of ``step`` channels go, so that what is left keeps its place in the rhythm
        whole = len(side) // step * step
        tracer.unite_runs(side[:whole], step)
        tracer.unite_runs(side[whole:], max(len(side) - whole, 1))


def _bound(tracer: Tracer, side: AxisLabels, bound: Any, step: int) -> None:
    """Keep the channels before a bound, or let the bound follow them; from the end if it is negative."""
    if bound is None:
        return
    if isinstance(bound, Size):
        bound.tie(side[: plain(bound)])
    elif bound < 0:
        tracer.fix(side[bound:], LITERAL)
    elif bound < len(side):  # beyond the end a slice is cut short, and so is every narrower one
        tracer.fix(side[: bound // step * step], LITERAL)


@rule("select", in_place=False)
def select(tracer: Tracer, output: Tensor, input: Tensor, dim: int, index: int) -> None:
    """One position of an axis."""
    getitem(tracer, output, input, (slice(None),) * (dim % input.ndim) + (index,))


@rule("narrow", in_place=False, takes_sizes=True)
def narrow(tracer: Tracer, output: Tensor, input: Tensor, dim: int, start: Any, length: Any) -> None:
    """A slice that is not cut short at the end of the axis."""
    if (axis := dim % input.ndim) in tracer.axes(input):
        side = tracer.axis(input, axis)
        first = plain(start) % len(side)
        part = side[first : first + plain(length)]
        if isinstance(length, Size):
            length.tie(part)
        else:
            tracer.fix(part, LITERAL)
        _bound(tracer, side, start, 1)
    move(tracer, output, input, lambda numbers: numbers.narrow(dim, plain(start), plain(length)))


@rule("unbind index_select", in_place=False, keeps_spread=True)
def picked(tracer: Tracer, output: Any, input: Tensor, *arguments: Any, **options: Any) -> None:
    """Positions of one axis by their numbers: channels along it must all stay, but for an earlier cut's own order."""
    index = arguments[-1] if arguments else None
    if input in tracer.spreads and isinstance(index, Tensor) and tracer.name_of(index).endswith(ORDER):
        hand_on(tracer, output, input, lambda numbers: numbers.index_select(*arguments))
        return
    tracer.axes(input)
    tracer.fix(input, LITERAL, dims=[options.get("dim", arguments[0] if arguments else 0)])
    move(tracer, output, input, lambda numbers: tracer.operation(numbers, *arguments, **options))


@rule("roll", in_place=False)
def roll(tracer: Tracer, output: Tensor, input: Tensor, shifts: Any, dims: Any = None) -> None:
    """A shift along the channels: those that are wrapped around must stay."""
    if dims is None:
        tracer.fix(input, "rolled as one long row")
        return
    axes = dict(tracer.axes(input))
    pairs = zip([shifts] if isinstance(shifts, int) else shifts, [dims] if isinstance(dims, int) else dims, strict=True)
    for shift, dim in pairs:
        if (axis := dim % input.ndim) in axes:
            side = axes[axis]
            tracer.fix(side[-shift:] if shift > 0 else side[:-shift], "rolled along the channels by a literal shift")
            axes[axis] = side[np.roll(np.arange(len(side)), shift)]
    tracer.put(output, axes)


@rule("embedding")
def embedding(tracer: Tracer, output: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> None:
    """Rows of a table: its columns are channels, its rows are picked by literal numbers."""
    tracer.fix(weight, "picked by number", dims=[0])
    tracer.put(output, {output.ndim - 1: tracer.axis(weight, 1)})


@rule("gather take_along_dim", in_place=False)
def gather(tracer: Tracer, output: Tensor, input: Tensor, *arguments: Any, **options: Any) -> None:
    """One position along ``dim`` for each of an index; along the other axes both lose the same channels."""
    index = next(tensors_in((arguments, options)))
    dim = options.get("dim", next((number for number in arguments if type(number) is int), None))
    if dim is None:
        for tensor in (input, index):
            tracer.fix(tensor, "picked by number from one long row")
        return
    dim %= input.ndim
    tracer.axes(input)
    tracer.fix(input, LITERAL, dims=[dim])
    axes = {dim: tracer.axis(index, dim).resting(None)} if dim in tracer.axes(index) else {}
    for axis in {*range(input.ndim)} - {dim}:
        if axis in tracer.axes(input) and input.shape[axis] > output.shape[axis]:  # gather cuts it short
            tracer.fix(input, LITERAL, dims=[axis])
        elif sides := unite_operands(tracer, [input, index], output, axis):
            axes[axis] = first_of(sides).resting(sides[0].rest if 0 in sides else None)
    tracer.put(output, axes)


@rule("scatter scatter_add scatter_reduce")
def scatter(tracer: Tracer, output: Tensor, input: Tensor, dim: int, *arguments: Any, **options: Any) -> None:
    """Numbers written to one position along ``dim`` for each of an index; along the others all lose the same."""
    operands = [input, *tensors_in((arguments, options))]
    axes: TensorLabels = {}
    for tensor in operands:
        tracer.axes(tensor)
        tracer.fix(tensor, LITERAL, dims=[dim])
    for axis in {*range(input.ndim)} - {dim % input.ndim}:
        for tensor in operands if len({tensor.shape[axis] for tensor in operands}) > 1 else ():
            tracer.fix(tensor, LITERAL, dims=[axis])  # only a part is written
        if sides := unite_operands(tracer, operands, output, axis):
            axes[axis] = first_of(sides).resting(None)
    put(tracer, output, axes)
