"""Operations that move positions about without computing: the same operation is done to numbered positions.

For every labelled axis the positions are numbered 0, 1, 2, ... along it, the operation runs on those numbers, and
where they come out along exactly one axis the labels go there in the same order. Offsets through flatten,
concatenation and shuffles are then right by construction.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoyer_export.channels.labels import NOBODY, Vector
from hoyer_export.channels.rules.names import getters, named
from hoyer_export.channels.sizes import SourcedSize, plain, tie_to_size
from hoyer_export.channels.tracer import AxisLabels, Rule, TensorLabels, Tracer, tensors_in

Placed = dict[int, Vector]


def moves(operation: Callable[..., Any]) -> Callable[..., None]:
    """Return the rule of an operation that moves whole channels, whatever the width: transpose, flatten, squeeze."""

    def rule(tracer: Tracer, output: Any, input: Tensor, *arguments: Any, **options: Any) -> None:
        _move(tracer, output, input, lambda numbered: operation(numbered, *plain(arguments), **plain(options)))

    return rule


def index(operation: Callable[..., Any]) -> Callable[..., None]:
    """Return the rule of an operation that picks positions: fine on other axes, a literal choice along the channels."""

    def rule(tracer: Tracer, output: Any, input: Tensor, *arguments: Any, **options: Any) -> None:
        _fix_addressed(tracer, input, operation, arguments, options)
        for axis, side in tracer.axes(input).items():
            numbered = operation(_numbered(input, axis), *plain(arguments), **plain(options))
            for result in tensors_in(numbered):
                placed = _positions(result)
                if not (len(placed) == 1 and np.array_equal(next(iter(placed.values())), np.arange(len(side)))):
                    tracer.fix(side, "the code picks channels by literal positions")
        _move(tracer, output, input, lambda numbered: operation(numbered, *plain(arguments), **plain(options)))

    return rule


def _fix_addressed(tracer: Tracer, input: Tensor, operation: Any, arguments: Any, options: Any) -> None:
    """Fix the channels that are addressed one by one, even if all of them are: that does not clamp, as a slice does."""
    if operation.__name__ in ("narrow", "index_select"):
        dim = (options.get("dim", arguments[0] if arguments else 0)) % input.ndim
        if dim in tracer.axes(input):
            tracer.fix(tracer.axis(input, dim), "the code picks channels by literal positions")
    elif operation.__name__ == "__getitem__":
        items = arguments[0] if isinstance(arguments[0], tuple) else arguments
        if any(not (item is None or item is Ellipsis or isinstance(item, slice | int)) for item in items):
            for axis, side in tracer.axes(input).items():
                if _addresses(input, axis, items):
                    tracer.fix(side, "the code picks channels by literal positions")


def _addresses(input: Tensor, axis: int, items: tuple[Any, ...]) -> bool:
    """Return whether a list or tensor of positions stands at ``axis`` in an index; masks count for all they cover."""
    position = 0
    for number, item in enumerate(items):
        if item is None:
            continue
        if item is Ellipsis:
            later = sum(_axes_taken(item) for item in items[number + 1 :])
            position = input.ndim - later
            continue
        taken = _axes_taken(item)
        if position <= axis < position + taken:
            return not isinstance(item, slice | int)
        position += taken
    return False


def _axes_taken(item: Any) -> int:
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if isinstance(item, Tensor) and item.dtype == torch.bool else 1


def reshape(tracer: Tracer, output: Tensor, input: Tensor, *shape: Any) -> None:
    """A reshape may cut an axis only where the code gave the new length as -1 or as a size that shrinks with it."""
    wanted = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
    if any(not isinstance(length, int) for length in wanted):
        tracer.fix_tensor(input, "reinterpreted as another type")
        return
    _reshape(tracer, output, input, wanted)


def reshape_as(tracer: Tracer, output: Tensor, input: Tensor, other: Tensor) -> None:
    """A reshape whose lengths are another tensor's."""
    theirs = tracer.known_axes(other)
    _reshape(
        tracer,
        output,
        input,
        [SourcedSize.make(tracer, theirs[a]) if a in theirs else size for a, size in enumerate(other.shape)],
    )


def unflatten(tracer: Tracer, output: Tensor, input: Tensor, dim: int, sizes: Any) -> None:
    """One axis split into several."""
    dim %= input.ndim
    wanted: list[int] = [-1] * dim + list(sizes) + [-1] * (input.ndim - dim - 1)
    _reshape(tracer, output, input, wanted)


def _reshape(tracer: Tracer, output: Tensor, input: Tensor, wanted: list[int]) -> None:
    axes: TensorLabels = {}
    for axis, side in tracer.axes(input).items():
        numbered = _numbered(input, axis).reshape(output.shape)
        placed = _positions(numbered)
        free = [new for new in placed if isinstance(wanted[new], SourcedSize) or wanted[new] == -1]
        if len(free) != 1:
            tracer.fix(side, "reshaped to a literal size" if not free else "reshaped so that two lengths could shrink")
            continue
        new = free[0]
        # Where the channels lie along other new axes too, what can go are whole slices along the free one.
        rows = numbered[tuple(slice(None) if a in placed else slice(1) for a in range(numbered.ndim))]
        labels = side.labels[rows.movedim(new, 0).reshape(rows.shape[new], -1).numpy()]
        tracer.labels.unite(labels, labels[:, :1])
        _place(tracer, axes, new, AxisLabels(labels[:, 0], side.zero))
        length = wanted[new]
        if isinstance(length, SourcedSize):
            tie_to_size(tracer, axes[new], length)
    _fix_idle(tracer, wanted, axes)
    tracer.note_view(output, input)
    tracer.put(output, axes)


def expand(tracer: Tracer, output: Tensor, input: Tensor, *shape: Any) -> None:
    """Repeats along axes of length 1; a labelled axis keeps its length, written as -1 or as its own size."""
    wanted = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
    axes: TensorLabels = {}
    added = output.ndim - input.ndim
    for new, length in enumerate(wanted):
        side = tracer.axes(input).get(new - added)
        if side is not None and isinstance(length, SourcedSize):
            tie_to_size(tracer, side, length)
        elif side is not None and length != -1:
            tracer.fix(side, "expanded to a literal size")
        elif isinstance(length, SourcedSize) and new >= added and input.shape[new - added] > 1:
            tracer.fix(length.source, "the number of channels is the length of an axis without channels")
        elif isinstance(length, SourcedSize):  # as many copies as there are channels
            side = AxisLabels(length.source.labels, zero=False)
            if length.times != 1 or length.over != 1:
                tracer.fix(side, "expanded to a multiple of the number of channels")
                continue
        if side is not None:
            axes[new] = side
    tracer.note_view(output, input)
    tracer.put(output, axes)


def expand_as(tracer: Tracer, output: Tensor, input: Tensor, other: Tensor) -> None:
    """Repeats along axes of length 1, as long as another tensor's."""
    axes: TensorLabels = {}
    for axis in range(output.ndim):
        mine = axis - output.ndim + input.ndim
        if mine >= 0 and tracer.is_labelled(input, mine) and input.shape[mine] == output.shape[axis]:
            axes[axis] = tracer.axis(input, mine)
            tracer.unite(axes[axis], tracer.axis(other, axis))
        elif axis in tracer.known_axes(other):
            axes[axis] = AxisLabels(tracer.axis(other, axis).labels, zero=False)
            if mine >= 0 and input.shape[mine] > 1:
                tracer.fix(axes[axis], "meets a tensor of fixed size")
    tracer.note_view(output, input)
    tracer.put(output, axes)


def concatenate(tracer: Tracer, output: Tensor, tensors: Any, dim: int = 0) -> None:
    """Labels one after the other along ``dim``; along the other axes all tensors lose the same channels."""
    dim %= output.ndim
    axes: TensorLabels = {}
    for axis in range(output.ndim):
        if not any(axis in tracer.axes(tensor) for tensor in tensors):
            continue
        sides = [tracer.axis(tensor, axis) for tensor in tensors]
        zero = all(side.zero or np.all(side.labels == NOBODY) for side in sides)
        if axis == dim:
            axes[axis] = AxisLabels(np.concatenate([side.labels for side in sides]), zero)
        else:
            for side in sides[1:]:
                tracer.unite(sides[0], side)
            axes[axis] = AxisLabels(sides[0].labels, all(side.zero for side in sides))
    tracer.put(output, axes)


def chunk(tracer: Tracer, output: Any, input: Tensor, chunks: int, dim: int = 0) -> None:
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
    """Parts of a size that is a share of the width (``c // 2``) stay equal; parts of a literal size cannot shrink."""
    dim %= tensor.ndim
    axes = tracer.axes(tensor)
    if dim in axes:
        lengths = [split_size] if isinstance(split_size, int) else list(split_size)
        sourced = [length for length in lengths if isinstance(length, SourcedSize)]
        if len(sourced) == len(lengths) and all(part.shape[dim] == output[0].shape[dim] for part in output):
            part = tracer.tie_blocks(axes[dim], len(output))
            for length in sourced:
                tie_to_size(tracer, part, length)
        else:
            tracer.fix(axes[dim], "split at literal positions")
    else:
        for size in [split_size] if isinstance(split_size, int) else list(split_size):
            if isinstance(size, SourcedSize):
                tracer.fix(size.source, "the number of channels is the length of an axis without channels")
    _put_parts(tracer, output, tensor, dim)


def pad(tracer: Tracer, output: Tensor, input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> None:
    """Padding along other axes leaves the channels alone; constant padding along them adds positions of nobody's."""
    axes: TensorLabels = {}
    for axis, side in tracer.axes(input).items():
        pair = 2 * (input.ndim - 1 - axis)
        if pair >= len(pad) or (pad[pair], pad[pair + 1]) == (0, 0):
            axes[axis] = AxisLabels(side.labels, side.zero and not value)
        elif mode == "constant":
            before, after = pad[pair], pad[pair + 1]
            padded = np.full(output.shape[axis], NOBODY)
            kept = side.labels[max(-before, 0) : len(side) - max(-after, 0)]
            padded[max(before, 0) : max(before, 0) + len(kept)] = kept
            axes[axis] = AxisLabels(padded, side.zero and not value)
            if before < 0 or after < 0:
                tracer.fix(side, "cropped at literal positions")
        else:
            tracer.fix(side, f"padded along the channels ({mode})")
    tracer.put(output, axes)


def channel_shuffle(tracer: Tracer, output: Tensor, input: Tensor, groups: int) -> None:
    """Interleaves ``groups`` runs of channels: position j is tied across the runs."""
    axes = dict(tracer.axes(input))
    if 1 in axes:
        side = axes[1]
        tracer.tie_blocks(side, groups)
        axes[1] = AxisLabels(side.labels.reshape(groups, -1).T.reshape(-1), side.zero)
    tracer.put(output, axes)


def _place(tracer: Tracer, axes: TensorLabels, axis: int, side: AxisLabels) -> None:
    """Put channels on an axis of the output; two kinds that are flattened into one axis cannot shrink apart."""
    if axis in axes:
        for one in (axes[axis], side):
            tracer.fix(one, "two kinds of channels flattened into one axis")
    axes[axis] = side


def _fix_idle(tracer: Tracer, wanted: list[int], axes: TensorLabels) -> None:
    """Fix the channels of a size that was used where no channels lie: that axis would not shrink with it."""
    for axis, length in enumerate(wanted):
        if isinstance(length, SourcedSize) and axis not in axes:
            tracer.fix(length.source, "the number of channels is the length of an axis without channels")


def _put_parts(tracer: Tracer, output: Any, input: Tensor, dim: int) -> None:
    start = 0
    for part in output:
        axes = dict(tracer.axes(input))
        if dim in axes:
            axes[dim] = AxisLabels(axes[dim].labels[start : start + part.shape[dim]], axes[dim].zero)
        start += part.shape[dim]
        tracer.note_view(part, input)
        tracer.put(part, axes)


def _move(tracer: Tracer, output: Any, input: Tensor, operation: Callable[[Tensor], Any]) -> None:
    results = list(tensors_in(output))
    moved: list[TensorLabels] = [{} for _ in results]
    for axis, side in tracer.axes(input).items():
        for numbered, axes in zip(tensors_in(operation(_numbered(input, axis))), moved, strict=True):
            placed = _positions(numbered)
            if len(placed) == 1:
                new, order = next(iter(placed.items()))
                _place(tracer, axes, new, AxisLabels(side.labels[order], side.zero))
            else:
                tracer.fix(side, "moved so that channels do not stay apart")
    for result, axes in zip(results, moved, strict=True):
        tracer.note_view(result, input)
        tracer.put(result, axes)


def _numbered(tensor: Tensor, axis: int) -> Tensor:
    """Return int64 of the shape of ``tensor`` that holds every position's index along ``axis``."""
    shape = [1] * tensor.ndim
    shape[axis] = tensor.shape[axis]
    return torch.arange(tensor.shape[axis]).view(shape).expand(tensor.shape)


def _positions(numbered: Tensor) -> Placed:
    """Return, for each axis along which the numbers change, the numbers along it."""
    placed: Placed = {}
    for axis, (size, stride) in enumerate(zip(numbered.shape, numbered.stride(), strict=True)):
        if size > 1 and stride != 0:
            first = numbered.narrow(axis, 0, 1)
            if not torch.equal(numbered, first.expand_as(numbered)):
                placed[axis] = numbered[tuple(slice(None) if a == axis else 0 for a in range(numbered.ndim))].numpy()
    return placed


def _each(names: str, make: Callable[[Callable[..., Any]], Rule]) -> dict[Callable[..., Any], Rule]:
    functions = named(names, moves, in_place=False)
    return {function: make(function) for function in functions}


RULES = {
    **_each("permute transpose swapaxes swapdims movedim moveaxis t squeeze unsqueeze flatten ravel flip", moves),
    **_each("select narrow index_select unbind __getitem__", index),
    **getters("T mT", moves(lambda numbered: numbered.mT)),
    **named("reshape view", reshape, in_place=False),
    **named("view_as reshape_as", reshape_as, in_place=False),
    **named("unflatten", unflatten, in_place=False),
    **named("expand", expand, in_place=False),
    **named("expand_as", expand_as, in_place=False),
    **named("cat concat concatenate", concatenate, in_place=False),
    **named("chunk tensor_split", chunk, in_place=False),
    **named("split split_with_sizes", split, in_place=False),
    **named("pad", pad, in_place=False),
    **named("channel_shuffle native_channel_shuffle", channel_shuffle, in_place=False),
}
# The rules that read a sourced size; anywhere else it is a number whose use nobody can follow.
TAKES_SIZES = frozenset(named("reshape view unflatten expand split split_with_sizes", moves, in_place=False))
