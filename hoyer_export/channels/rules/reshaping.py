"""Reshapes: an axis may shrink only where the code gave its new length as -1 or as a size that shrinks with it."""

from typing import Any

import numpy as np
from torch import Tensor

from hoyer_export.channels.labels import AxisLabels, TensorLabels, Tracer
from hoyer_export.channels.positions import Spread, hand_on, numbered, positions, spread
from hoyer_export.channels.rule import rule
from hoyer_export.channels.rules.movement import place
from hoyer_export.channels.sizes import AttributeSize, AxisSize, Size, plain, sourced_shape


def lengths_in(arguments: Any) -> list[Any]:
    """Return the lengths of axes that a call was given one by one or in one sequence."""
    return list(arguments[0] if len(arguments) == 1 and isinstance(arguments[0], tuple | list) else arguments)


@rule("reshape view", in_place=False, takes_sizes=True, keeps_spread=True)
def reshape(tracer: Tracer, output: Tensor, input: Tensor, *shape: Any, **options: Any) -> None:
    """``view`` and ``reshape``."""
    wanted = lengths_in(shape or tuple(options.values()))
    if _joined(tracer, output, input, wanted):
        return
    if all(isinstance(length, int) for length in wanted):
        _reshape(tracer, output, input, wanted)
    else:
        tracer.fix(input, "reinterpreted as another type")


@rule("view_as reshape_as", in_place=False)
def reshape_as(tracer: Tracer, output: Tensor, input: Tensor, other: Tensor) -> None:
    """A reshape whose lengths are another tensor's."""
    _reshape(tracer, output, input, list(sourced_shape(tracer, other)))


@rule("unflatten", in_place=False, takes_sizes=True)
def unflatten(tracer: Tracer, output: Tensor, input: Tensor, dim: int, sizes: Any) -> None:
    """One axis split into several."""
    dim %= input.ndim
    _reshape(tracer, output, input, [-1] * dim + list(sizes) + [-1] * (input.ndim - dim - 1))


def _reshape(tracer: Tracer, output: Tensor, input: Tensor, wanted: list[int]) -> None:
    axes: TensorLabels = {}
    for axis, side in tracer.axes(input).items():
        numbers = numbered(input, axis).reshape(output.shape)
        placed = positions(numbers)
        if not placed:  # its length is 1
            continue
        free = _free(wanted, list(placed), side)
        if len(free) != 1:
            tracer.fix(side, "reshaped to a literal size" if not free else "reshaped so that two lengths could shrink")
            continue
        new = free[0]
        if _split(tracer, output, input, side, numbers, wanted, new):
            return
        # Where the channels lie along other new axes too, what can go are whole slices along the free one.
        rows = numbers[tuple(slice(None) if a in placed else slice(1) for a in range(numbers.ndim))]
        order = rows.movedim(new, 0).reshape(-1).numpy()
        place(tracer, axes, new, tracer.unite_runs(side[order], len(order) // rows.shape[new]))
        length = wanted[new]
        if isinstance(length, Size):
            length.tie(axes[new])
    tracer.note_view(output, input)
    tracer.put(output, axes)


def _split(
    tracer: Tracer, output: Tensor, input: Tensor, side: AxisLabels, numbers: Tensor, wanted: list[int], new: int
) -> bool:
    """Let the channels of the only labelled axis, split into a number and what follows their width, keep apart."""
    length = wanted[new]
    split = [axis for axis, size in enumerate(output.shape) if axis in positions(numbers)]
    other = sum(split) - new
    if len(tracer.axes(input)) > 1 or len(split) != 2 or isinstance(length, AttributeSize):
        return False
    if isinstance(wanted[other], Size) or output.shape[new] * output.shape[other] != len(side):
        return False
    times = output.shape[other]
    if isinstance(length, AxisSize):
        tracer.untied.pop(id(length), None)
        (length * times).tie(side)
    else:
        tracer.keep_divisible(side, times)
    tracer.note_view(output, input)
    spread(tracer, output, Spread(side, (times, -1) if other < new else (-1, times), numbers))
    return True


def _joined(tracer: Tracer, output: Tensor, input: Tensor, wanted: list[Any]) -> bool:
    """Follow the end of a shuffle, if this is one, whose length follows the width."""
    if (found := tracer.spreads.get(input)) is not None:
        placed = list(positions(found.numbers.reshape(output.shape)))
        length = wanted[placed[0]] if len(placed) == 1 else None
        follows = isinstance(length, AxisSize) or (type(length) is int and length == -1)
        if follows and hand_on(tracer, output, input, lambda numbers: numbers.reshape(output.shape)):
            if isinstance(length, AxisSize):
                length.tie(found.side)
            return True
        tracer.use(input)
    return False


def _free(wanted: list[int], placed: list[int], side: AxisLabels) -> list[int]:
    """Return the new axes that may shrink: by themselves before those that an attribute would have to follow."""
    by_itself = [axis for axis in placed if isinstance(wanted[axis], AxisSize) or int.__eq__(wanted[axis], -1)]
    sizes = {axis: size for axis in placed if isinstance(size := wanted[axis], AttributeSize)}
    if by_itself and not any(size.origin.is_preferred for size in sizes.values()):
        for size in sizes.values():
            size.pass_over(side)
        return by_itself
    # (heads, width of a head): whole heads go, unless the code has shown before that something else can.
    return sorted(sizes, key=lambda axis: not (sizes[axis].origin.is_preferred or sizes[axis].origin.uses))[:1]


@rule("expand broadcast_to", in_place=False, takes_sizes=True, makes_rows=True)
def expand(tracer: Tracer, output: Tensor, input: Tensor, *shape: Any) -> None:
    """Repeats along axes of length 1; a labelled axis keeps its length, written as -1 or as its own size."""
    axes: TensorLabels = {}
    added = output.ndim - input.ndim
    for new, length in enumerate(lengths_in(shape)):
        side = tracer.axes(input).get(new - added)
        if side is not None and isinstance(length, Size):
            length.tie(side)
        elif side is not None and length != -1:
            tracer.fix(side, "expanded to a literal size")
        elif side is None and (new < added or input.shape[new - added] == 1):
            side = axis_of_length(length)
        if side is not None:
            axes[new] = side
    tracer.note_view(output, input)
    tracer.put(output, axes)


@rule("expand_as", in_place=False)
def expand_as(tracer: Tracer, output: Tensor, input: Tensor, other: Tensor) -> None:
    """Repeats along axes of length 1, as long as another tensor's."""
    theirs = tracer.axes(other)
    for axis, side in tracer.axes(input).items():
        if axis - input.ndim + output.ndim not in theirs and len(side) > 1:
            tracer.fix(side, "meets a tensor of fixed size")
    wanted = [AxisSize.make(tracer, theirs[axis]) if axis in theirs else -1 for axis in range(other.ndim)]
    expand(tracer, output, input, wanted)


@rule("repeat tile", in_place=False, takes_sizes=True, makes_rows=True)
def repeat(tracer: Tracer, output: Tensor, input: Tensor, *repeats: Any) -> None:
    """Whole copies one after the other along each axis."""
    wanted = lengths_in(repeats)
    wanted = [1] * (output.ndim - len(wanted)) + wanted  # ``tile`` may be given fewer
    axes: TensorLabels = {}
    added = output.ndim - input.ndim
    for new, times in enumerate(wanted):
        side = tracer.axes(input).get(new - added)
        if side is not None and not isinstance(times, Size):
            axes[new] = side[np.tile(np.arange(len(side)), times)]
        elif side is None and (new < added or input.shape[new - added] == 1) and (copies := axis_of_length(times)):
            axes[new] = copies
        elif side is not None:
            tracer.fix(side, "copied as often as there are other channels")
    tracer.put(output, axes)


@rule("repeat_interleave", in_place=False)
def repeat_interleave(tracer: Tracer, output: Tensor, input: Tensor, repeats: Any, dim: Any = None, **_: Any) -> None:
    """Each position several times in a row."""
    axes = dict(tracer.axes(input))
    if not isinstance(repeats, int) or dim is None:
        tracer.fix(input, "repeated in a way that cannot be followed")
        axes = {}
    elif (axis := dim % input.ndim) in axes:
        axes[axis] = axes[axis].repeated(repeats)
    tracer.put(output, axes)


def axis_of_length(length: int, rest: float | None = None) -> AxisLabels | None:
    """Return the labels of a new axis of a length that may shrink: those of the axis that it is the length of."""
    if not isinstance(length, Size) or not length.is_whole:
        return None
    if isinstance(length, AxisSize):
        axis = length.origin.resting(rest)
    else:  # an attribute's: whatever the axis meets
        axis = AxisLabels(length.tracer.union_find.new_apart(plain(length)), rest)
    length.tie(axis)
    return axis
