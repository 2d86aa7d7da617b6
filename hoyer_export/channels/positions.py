"""Numbered positions, and channels whose positions are spread over two axes until they are joined again: a shuffle.

A channel shuffle splits the axis of channels in two, swaps them and joins them again. In between a tensor stays
rectangular only where whole rows of channels go. But nobody looks at it there. So the positions stay spread until
something else than a move reads them, and then whole rows go; where they are joined before that, each channel has gone
its own way. With fewer channels the code moves them to other places: it is noted which module returns them, so that the
cut can put them in order again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hoyer_export.channels.labels import AxisLabels, LabelledShuffle, Tracer
from hoyer_export.channels.union_find import Vector


def numbered(tensor: Tensor, axis: int) -> Tensor:
    """Return int64 of the shape of ``tensor`` that holds every position's index along ``axis``."""
    shape = [1] * tensor.ndim
    shape[axis] = tensor.shape[axis]
    return torch.arange(tensor.shape[axis]).view(shape).expand(tensor.shape)


def positions(numbers: Tensor) -> dict[int, Vector]:
    """Return, for each axis along which the numbers change, the numbers along it."""
    placed: dict[int, Vector] = {}
    for axis, (size, stride) in enumerate(zip(numbers.shape, numbers.stride(), strict=True)):
        if size > 1 and stride != 0:
            first = numbers.narrow(axis, 0, 1)
            if not torch.equal(numbers, first.expand_as(numbers)):
                placed[axis] = numbers[tuple(slice(None) if a == axis else 0 for a in range(numbers.ndim))].numpy()
    return placed


@dataclass(frozen=True, eq=False)
class Spread:
    """Where the channels of an axis are that was split in two.

    Args:
        side: the axis before.
        shape: the two lengths, -1 for the one that shrinks.
        numbers: int64 of the tensor's shape: the position along that axis.
        is_joined: they lie along one axis again, shuffled.
    """

    side: AxisLabels
    shape: tuple[int, int]
    numbers: Tensor
    is_joined: bool = False


def shuffled(width: int, shape: tuple[int, int]) -> Vector:
    """Return which position comes to each place where ``width`` of them are split, swapped and joined."""
    return np.arange(width).reshape(shape).T.reshape(-1)


def spread(tracer: Tracer, tensor: Tensor, found: Spread) -> None:
    """Let a tensor's positions stay where they are until it is used."""
    tracer.spreads[tensor] = found
    tracer.once_used(tensor, partial(_settle, tracer, found))


def hand_on(tracer: Tracer, output: Tensor, input: Tensor, operation: Callable[[Tensor], Tensor]) -> bool:
    """Follow a move of spread positions; False, and nothing is done, where they are not, or come out in other order."""
    if (found := tracer.spreads.get(input)) is None:
        return False
    numbers = operation(found.numbers)
    placed = positions(numbers)
    if len(placed) == 1 and not found.is_joined:
        (order,) = placed.values()
        if not np.array_equal(order, shuffled(len(found.side), found.shape)):
            return False
    tracer.note_view(output, input)
    spread(tracer, output, replace(found, numbers=numbers, is_joined=len(placed) == 1))
    return True


def _settle(tracer: Tracer, found: Spread, tensor: Tensor) -> None:
    """Whole rows go: put labels along the axis that shrinks."""
    tracer.spreads.pop(tensor, None)
    rows, columns = found.shape
    if columns < 0:
        labels = np.tile(tracer.unite_blocks(found.side, rows).labels, rows)
    else:
        labels = tracer.unite_runs(found.side, columns).labels.repeat(columns)
    lines = {axis: labels[line] for axis, line in positions(found.numbers).items()}
    axes = {axis: AxisLabels(line, found.side.rest) for axis, line in lines.items() if (line != line[0]).any()}
    tracer.put(tensor, axes)


def returned(tracer: Tracer, module: str, output: object) -> None:
    """Note that a module returns what it has shuffled: its channels go one by one."""
    found = tracer.spreads.get(output) if isinstance(output, Tensor) else None
    if found is None or not found.is_joined:
        return
    assert isinstance(output, Tensor)
    tracer.unused(output)
    ((axis, order),) = positions(found.numbers).items()
    earlier = tracer.shuffles.setdefault(module, LabelledShuffle(module, axis, found.shape, found.side, order))
    if len(earlier.side) == len(found.side):
        tracer.unite(earlier.side, found.side)
    else:
        for side in (earlier.side, found.side):
            tracer.fix(side, "shuffled in a module that also shuffles another number of channels")
    tracer.put(output, {axis: found.side[order]})
