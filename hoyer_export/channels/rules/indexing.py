"""Picking positions: a literal position must stay where it is, and so must everything before it.

``x[:, :k]`` is the first k channels of whatever is left: those k must stay, and the others are free. Where k is the
width of something (``c // 2``, ``other.shape[1]``) or an attribute of a module, it follows the cut instead.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoyer_export.channels.rules.movement import move
from hoyer_export.channels.rules.names import functions_named, named
from hoyer_export.channels.rules.pointwise import meet, put
from hoyer_export.channels.sizes import Size, plain
from hoyer_export.channels.tracer import AxisLabels, Rule, Tracer

LITERAL = "the code picks channels by literal positions"


def getitem(tracer: Tracer, output: Tensor, input: Tensor, index: Any) -> None:
    """``x[index]``."""
    _address(tracer, input, index)
    move(tracer, output, input, lambda numbers: numbers[plain(index)])


def setitem(tracer: Tracer, output: None, input: Tensor, index: Any, value: Any) -> None:
    """``x[index] = value``: the positions written to and the value lose the same channels."""
    _address(tracer, input, index)
    written = input[plain(index)].clone()
    move(tracer, written, input, lambda numbers: numbers[plain(index)])
    operands = [written, value] if isinstance(value, Tensor) else [written]
    same_rest = True
    for axis in range(written.ndim):
        if met := meet(tracer, operands, written, axis):
            new = met[1].rest if 1 in met else value if isinstance(value, int | float) else None
            same_rest &= met[0].rest == new
    axes = tracer.axes(input)
    put(tracer, input, axes if same_rest else {a: AxisLabels(side.labels, None) for a, side in axes.items()})


def _address(tracer: Tracer, input: Tensor, index: Any) -> None:
    """Fix, or tie to what they follow, the channels that an index depends on."""
    axis = 0
    items = index if isinstance(index, tuple) else (index,)
    for number, item in enumerate(items):
        if item is None:
            continue
        if item is Ellipsis:
            axis = input.ndim - sum(_axes_taken(later) for later in items[number + 1 :])
            continue
        for taken in range(axis, axis + _axes_taken(item)):
            if taken in tracer.axes(input):
                side = tracer.axis(input, taken)
                if isinstance(item, slice):
                    _slice(tracer, side, item)
                elif isinstance(item, int) and not isinstance(item, bool | Size):
                    _pick(tracer, side, item)
                else:  # a list, a tensor of positions, a mask
                    tracer.fix(side, LITERAL)
        axis += _axes_taken(item)


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
        tracer.labels.unite(side.labels[:whole].reshape(-1, step), side.labels[:whole:step, None])
        tracer.labels.unite(side.labels[whole:], side.labels[whole : whole + 1])


def _bound(tracer: Tracer, side: AxisLabels, bound: Any, step: int) -> None:
    """Keep the channels before a bound, or let the bound follow them; from the end if it is negative."""
    if bound is None:
        return
    if isinstance(bound, Size):
        bound.tie(AxisLabels(side.labels[: plain(bound)], side.rest))
    elif bound < 0:
        tracer.fix(AxisLabels(side.labels[bound:]), LITERAL)
    elif bound < len(side):  # beyond the end a slice is cut short, and so is every narrower one
        tracer.fix(AxisLabels(side.labels[: bound // step * step]), LITERAL)


def _pick(tracer: Tracer, side: AxisLabels, position: int) -> None:
    reached = side.labels[: position + 1] if position >= 0 else side.labels[position:]
    tracer.fix(AxisLabels(reached), LITERAL)


def select(tracer: Tracer, output: Tensor, input: Tensor, dim: int, index: int) -> None:
    """One position of an axis."""
    if (axis := dim % input.ndim) in tracer.axes(input):
        _pick(tracer, tracer.axis(input, axis), index)
    move(tracer, output, input, lambda numbers: numbers.select(dim, index))


def narrow(tracer: Tracer, output: Tensor, input: Tensor, dim: int, start: Any, length: Any) -> None:
    """A slice that is not cut short at the end of the axis."""
    if (axis := dim % input.ndim) in tracer.axes(input):
        side = tracer.axis(input, axis)
        first = plain(start) % len(side)
        part = AxisLabels(side.labels[first : first + plain(length)], side.rest)
        if isinstance(length, Size):
            length.tie(part)
        else:
            tracer.fix(part, LITERAL)
        _bound(tracer, side, start, 1)
    move(tracer, output, input, lambda numbers: numbers.narrow(dim, plain(start), plain(length)))


def pick_all(operation: Callable[..., Any], dim_at: int) -> Rule:
    """Return the rule of an operation that names positions of one axis: channels along it must all stay."""

    def rule(tracer: Tracer, output: Any, input: Tensor, *arguments: Any, **options: Any) -> None:
        dim = options.get("dim", arguments[dim_at] if len(arguments) > dim_at else 0)
        if (axis := dim % input.ndim) in tracer.axes(input):
            tracer.fix(tracer.axis(input, axis), LITERAL)
        move(tracer, output, input, lambda numbers: operation(numbers, *arguments, **options))

    return rule


def roll(tracer: Tracer, output: Tensor, input: Tensor, shifts: Any, dims: Any = None) -> None:
    """A shift along the channels: those that are wrapped around must stay."""
    if dims is None:
        tracer.fix_tensor(input, "rolled as one long row")
        return
    axes = dict(tracer.axes(input))
    pairs = zip([shifts] if isinstance(shifts, int) else shifts, [dims] if isinstance(dims, int) else dims, strict=True)
    for shift, dim in pairs:
        if (axis := dim % input.ndim) in axes:
            side = axes[axis]
            wrapped = side.labels[-shift:] if shift > 0 else side.labels[:-shift]
            tracer.fix(AxisLabels(wrapped), "rolled along the channels by a literal shift")
            axes[axis] = AxisLabels(np.roll(side.labels, shift), side.rest)
    tracer.put(output, axes)


def _each(names: str, dim_at: int) -> dict[Callable[..., Any], Rule]:
    return {function: pick_all(function, dim_at) for function in functions_named(names, in_place=False)}


RULES: dict[Callable[..., Any], Rule] = {
    Tensor.__getitem__: getitem,
    Tensor.__setitem__: setitem,
    **named("select", select, in_place=False),
    **named("narrow", narrow, in_place=False),
    **_each("unbind index_select", 0),
    **named("roll", roll, in_place=False),
}
TAKES_SIZES = frozenset({Tensor.__getitem__, Tensor.__setitem__, *named("narrow", narrow, in_place=False)})
