"""Reductions over axes: along other axes they leave the channels alone, along the channels they may count them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hoyer_export.channels.rules.names import functions_named, named
from hoyer_export.channels.rules.pointwise import elementwise, put_unknown
from hoyer_export.channels.tracer import Rule, TensorLabels, Tracer, tensors_in

OVER_CHANNELS = "a mean or maximum over the channels"


def total(
    tracer: Tracer, output: Tensor, input: Tensor, dim: Any = None, keepdim: bool = False, **options: Any
) -> None:
    """A sum over channels does not miss one that is exactly zero."""
    dim = options.get("axis", dim)
    _reduce(tracer, output, input, dim, keepdim, "summed over the channels where a zeroed one is not zero", True)


def norm(
    tracer: Tracer, output: Tensor, input: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, **options: Any
) -> None:
    """(Σ |x|ᵖ)^(1/p) does not miss a channel that is exactly zero, for p > 0."""
    order = options.get("ord", p)
    positive = order in (None, "fro") or (isinstance(order, int | float) and order > 0)
    _reduce(tracer, output, input, dim, keepdim, "a norm over channels of which a zeroed one is not zero", positive)


def vector_norm(
    tracer: Tracer, output: Tensor, x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, **options: Any
) -> None:
    """``torch.linalg``'s spelling of the same."""
    norm(tracer, output, x, ord, dim, keepdim)


def statistic(operation: Callable[..., Any]) -> Rule:
    """Return the rule of a mean or a maximum: over channels it depends on how many there are."""

    def rule(
        tracer: Tracer, output: Any, input: Tensor, dim: Any = None, keepdim: Any = False, *_: Any, **named: Any
    ) -> None:
        dim = named.get("axis", dim)
        if isinstance(dim, Tensor) or "other" in named:  # max(x, y) is position by position
            elementwise(operation)(tracer, output, input, dim if isinstance(dim, Tensor) else named["other"])
        else:
            _reduce(tracer, output, input, dim, keepdim, OVER_CHANNELS, False)

    return rule


def spread(
    tracer: Tracer,
    output: Any,
    input: Tensor,
    dim: Any = None,
    unbiased: Any = True,
    keepdim: Any = False,
    **named: Any,
) -> None:
    """A variance or standard deviation; ``dim`` may be left out, and ``unbiased`` stand in its place."""
    dim = None if isinstance(dim, bool) else named.get("axis", dim)
    _reduce(tracer, output, input, dim, keepdim, OVER_CHANNELS, False)


def logsumexp(tracer: Tracer, output: Tensor, input: Tensor, dim: Any, keepdim: bool = False) -> None:
    """log n where n numbers are zero."""
    _reduce(tracer, output, input, dim, keepdim, OVER_CHANNELS, False)
    put_unknown(tracer, output, tracer.axes(output))


def softmax(tracer: Tracer, output: Tensor, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> None:
    """A softmax normalises over an axis: a zeroed channel there still counts, as e⁰ = 1."""
    axes = dict(tracer.axes(input))
    normalised = [dim % input.ndim] if isinstance(dim, int) else list(axes)
    for axis in normalised:
        if axis in axes:
            tracer.fix(axes[axis], "softmax over the channels")
    put_unknown(tracer, output, axes)


def ordered(tracer: Tracer, output: Any, input: Tensor, *arguments: Any, **options: Any) -> None:
    """A running sum or an order along one axis: channels along it hang together, those along others stay apart."""
    numbers = [value for value in (*arguments, *options.values()) if type(value) is int]
    dim = options.get("dim", numbers[-1] if numbers else -1)
    axes = dict(tracer.axes(input))
    for axis, side in axes.items():
        if axis == dim % input.ndim or len(numbers) > 1:
            tracer.fix(side, "a running sum or an order over the channels")
    for result in tensors_in(output):
        put_unknown(tracer, result, axes)


def _reduce(
    tracer: Tracer, output: Any, input: Tensor, dim: Any, keepdim: bool, reason: str, zero_vanishes: bool
) -> None:
    dims = range(input.ndim) if dim is None or dim == () else [dim] if isinstance(dim, int) else list(dim)
    reduced = {axis % input.ndim for axis in dims}
    left: TensorLabels = {}
    for axis, side in tracer.axes(input).items():
        if axis not in reduced:
            position = axis if keepdim else axis - sum(gone < axis for gone in reduced)
            left[position] = side.mixed()
        elif zero_vanishes and side.zero:
            tracer.sums(side)
        else:
            tracer.fix(side, reason)
    for result in tensors_in(output):
        tracer.put(result, left)


def _each(names: str) -> dict[Callable[..., Any], Rule]:
    return {function: statistic(function) for function in functions_named(names)}


RULES = {
    **named("sum nansum", total),
    **named("norm frobenius_norm", norm),
    **_each("mean nanmean amax amin aminmax max min median nanmedian mode prod"),
    **_each("argmax argmin all any count_nonzero"),
    **named("std var std_mean var_mean", spread),
    **named("logsumexp", logsumexp),
    **named("softmax log_softmax softmin", softmax),
    **named("cumsum cumprod cummax cummin logcumsumexp", ordered),
    **named("vector_norm norm", vector_norm, spaces=(torch.linalg,)),
}
