"""Reshapes: an axis may shrink only where the code gave its new length as -1 or as a size that shrinks with it."""

from typing import Any

from torch import Tensor

from hoyer_export.channels.rules.movement import numbered, place, positions
from hoyer_export.channels.rules.names import named
from hoyer_export.channels.sizes import AttributeSize, AxisSize, Size
from hoyer_export.channels.tracer import AxisLabels, TensorLabels, Tracer


def reshape(tracer: Tracer, output: Tensor, input: Tensor, *shape: Any, **options: Any) -> None:
    """``view`` and ``reshape``, the lengths one by one or in one sequence."""
    shape = shape or tuple(options.values())
    wanted = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else list(shape)
    if wanted and not all(isinstance(length, int) for length in wanted):
        tracer.fix_tensor(input, "reinterpreted as another type")
        return
    _reshape(tracer, output, input, wanted)


def reshape_as(tracer: Tracer, output: Tensor, input: Tensor, other: Tensor) -> None:
    """A reshape whose lengths are another tensor's."""
    theirs = tracer.axes(other)
    sizes = [AxisSize.make(tracer, theirs[a]) if a in theirs else size for a, size in enumerate(other.shape)]
    _reshape(tracer, output, input, sizes)


def unflatten(tracer: Tracer, output: Tensor, input: Tensor, dim: int, sizes: Any) -> None:
    """One axis split into several."""
    dim %= input.ndim
    wanted: list[int] = [-1] * dim + list(sizes) + [-1] * (input.ndim - dim - 1)
    _reshape(tracer, output, input, wanted)


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
        # Where the channels lie along other new axes too, what can go are whole slices along the free one.
        rows = numbers[tuple(slice(None) if a in placed else slice(1) for a in range(numbers.ndim))]
        labels = side.labels[rows.movedim(new, 0).reshape(rows.shape[new], -1).numpy()]
        tracer.labels.unite(labels, labels[:, :1])
        place(tracer, axes, new, AxisLabels(labels[:, 0], side.rest))
        length = wanted[new]
        if isinstance(length, Size):
            length.tie(axes[new])
    tracer.note_view(output, input)
    tracer.put(output, axes)


def _free(wanted: list[int], placed: list[int], side: AxisLabels) -> list[int]:
    """Return the new axes that may shrink: by themselves before those that an attribute would have to follow."""
    by_itself = [axis for axis in placed if isinstance(wanted[axis], AxisSize) or int.__eq__(wanted[axis], -1)]
    sizes = {axis: size for axis in placed if isinstance(size := wanted[axis], AttributeSize)}
    if by_itself and not any(size.attribute.is_preferred for size in sizes.values()):
        for size in sizes.values():
            size.decline(side)
        return by_itself
    # (heads, width of a head): whole heads go, unless the code has shown before that something else can.
    return sorted(sizes, key=lambda axis: not (sizes[axis].attribute.is_preferred or sizes[axis].attribute.uses))[:1]


def expand(tracer: Tracer, output: Tensor, input: Tensor, *shape: Any) -> None:
    """Repeats along axes of length 1; a labelled axis keeps its length, written as -1 or as its own size."""
    wanted = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
    axes: TensorLabels = {}
    added = output.ndim - input.ndim
    for new, length in enumerate(wanted):
        side = tracer.axes(input).get(new - added)
        if side is not None and isinstance(length, Size):
            length.tie(side)
        elif side is not None and length != -1:
            tracer.fix(side, "expanded to a literal size")
        elif side is None and (new < added or input.shape[new - added] == 1):
            side = _copies(length)
        if side is not None:
            axes[new] = side
    tracer.note_view(output, input)
    tracer.put(output, axes)


def repeat(tracer: Tracer, output: Tensor, input: Tensor, *repeats: Any) -> None:
    """Whole copies one after the other along each axis."""
    wanted = list(repeats[0]) if len(repeats) == 1 and not isinstance(repeats[0], int) else list(repeats)
    wanted = [1] * (output.ndim - len(wanted)) + wanted  # ``tile`` may be given fewer
    axes: TensorLabels = {}
    added = output.ndim - input.ndim
    for new, times in enumerate(wanted):
        side = tracer.axes(input).get(new - added)
        if side is not None and not isinstance(times, Size):
            axes[new] = AxisLabels(side.labels.reshape(1, -1).repeat(times, 0).reshape(-1), side.rest)
        elif side is None and (new < added or input.shape[new - added] == 1) and (copies := _copies(times)):
            axes[new] = copies
        elif side is not None:
            tracer.fix(side, "copied as often as there are other channels")
    tracer.put(output, axes)


def repeat_interleave(tracer: Tracer, output: Tensor, input: Tensor, repeats: Any, dim: Any = None, **_: Any) -> None:
    """Each position several times in a row."""
    axes = dict(tracer.axes(input))
    if not isinstance(repeats, int) or isinstance(repeats, Size) or dim is None:
        tracer.fix_tensor(input, "repeated in a way that cannot be followed")
        axes = {}
    elif (axis := dim % input.ndim) in axes:
        axes[axis] = AxisLabels(axes[axis].labels.repeat(repeats), axes[axis].rest)
    tracer.put(output, axes)


def expand_as(tracer: Tracer, output: Tensor, input: Tensor, other: Tensor) -> None:
    """Repeats along axes of length 1, as long as another tensor's."""
    theirs = tracer.axes(other)
    wanted = [AxisSize.make(tracer, theirs[a]) if a in theirs else -1 for a in range(other.ndim)]
    mine = {axis - input.ndim + output.ndim: side for axis, side in tracer.axes(input).items()}
    for axis, side in mine.items():
        if axis not in theirs and len(side) > 1:
            tracer.fix(side, "meets a tensor of fixed size")
    expand(tracer, output, input, wanted)


def _copies(length: int) -> AxisLabels | None:
    """Return the labels of an axis of as many copies as there are channels: all hold the same, so zero nowhere."""
    if isinstance(length, AxisSize) and length.times == length.over == 1:
        axis = AxisLabels(length.source.labels, None)
        length.tie(axis)
        return axis
    return None


RULES = {
    **named("reshape view", reshape, in_place=False),
    **named("view_as reshape_as", reshape_as, in_place=False),
    **named("unflatten", unflatten, in_place=False),
    **named("expand broadcast_to", expand, in_place=False),
    **named("expand_as", expand_as, in_place=False),
    **named("repeat tile", repeat, in_place=False),
    **named("repeat_interleave", repeat_interleave, in_place=False),
}
TAKES_SIZES = frozenset(named("reshape view unflatten expand broadcast_to repeat tile", reshape, in_place=False))
