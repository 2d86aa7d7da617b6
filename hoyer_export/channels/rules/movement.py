"""Operations that move positions about without computing: the same operation is done to numbered positions.

For every labelled axis the positions are numbered 0, 1, 2, ... along it, the operation runs on those numbers, and
where they come out along exactly one axis the labels go there in the same order. Offsets through flatten,
permutations and slices are then right by construction.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from hoyer_export.channels.labels import AxisLabels, TensorLabels, Tracer
from hoyer_export.channels.positions import hand_on, numbered, positions
from hoyer_export.channels.rule import rule
from hoyer_export.tensors import tensors_in


@rule(
    "permute transpose swapaxes swapdims movedim moveaxis t T mT unsqueeze flatten ravel flip fliplr flipud"
    " atleast_1d atleast_2d atleast_3d rot90 adjoint",
    in_place=False, keeps_spread=True,
)  # fmt: skip
def moved(tracer: Tracer, output: Any, input: Tensor, *arguments: Any, **options: Any) -> None:
    """Whole channels are moved, whatever the width."""
    move(tracer, output, input, lambda numbers: tracer.operation(inhabited(numbers), *arguments, **options))


@rule("squeeze", in_place=False)
def squeeze(tracer: Tracer, output: Tensor, input: Tensor, dim: Any = None) -> None:
    """Drops axes of length 1: an axis of which one channel were left would go too, so two must stay."""
    dims = range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    for axis in {position % input.ndim for position in dims} & tracer.axes(input).keys():
        if len(side := tracer.axis(input, axis)) > 1:
            tracer.fix(side[:2], "a squeeze would drop the axis of a single channel")
    move(tracer, output, input, lambda numbers: numbers.squeeze() if dim is None else numbers.squeeze(dim))


def move(tracer: Tracer, output: Any, input: Tensor, operation: Callable[[Tensor], Any]) -> None:
    """Put labels on the results of an operation that only moves the positions of ``input`` about."""
    if isinstance(output, Tensor) and hand_on(tracer, output, input, operation):
        return
    results = list(tensors_in(output))
    placed: list[TensorLabels] = [{} for _ in results]
    for axis, side in tracer.axes(input).items():
        for numbers, axes in zip(tensors_in(operation(numbered(input, axis))), placed, strict=True):
            found = positions(numbers)
            if len(found) == 1:
                new, order = next(iter(found.items()))
                place(tracer, axes, new, side[order])
            elif found:
                tracer.fix(side, "moved so that channels do not stay apart")
            elif len(side) > 1 and numbers.numel():  # a slice of length 1: what is left cannot be told from no axis
                tracer.fix(side[np.unique(numbers.numpy())], "the only position left of an axis")
    for result, axes in zip(results, placed, strict=True):
        tracer.note_view(result, input)
        tracer.put(result, axes)


def inhabited(numbers: Tensor) -> Tensor:
    """Return numbers with two positions along an axis without any (no boxes found), so that one sees where axes go."""
    return numbers.as_strided([size or 2 for size in numbers.shape], numbers.stride())


def place(tracer: Tracer, axes: TensorLabels, axis: int, side: AxisLabels) -> None:
    """Put channels on an axis of the output; two kinds that are flattened into one axis cannot shrink apart."""
    if axis in axes:
        for one in (axes[axis], side):
            tracer.fix(one, "two kinds of channels flattened into one axis")
    axes[axis] = side
