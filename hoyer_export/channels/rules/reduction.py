"""Reductions over axes: along other axes they leave the channels alone, along the channels they may count them."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hoyer_export.channels.labels import AxisLabels, TensorLabels, Tracer
from hoyer_export.channels.rule import rule
from hoyer_export.channels.rules.pointwise import elementwise, put_unknown
from hoyer_export.tensors import tensors_in

OVER_CHANNELS = "a mean or maximum over the channels"


@rule("sum nansum")
def total(tracer: Tracer, output: Tensor, input: Tensor, dim: Any = None, keepdim: bool = False, **other: Any) -> None:
    """A sum over channels does not miss one that is exactly zero."""
    reason = "summed over the channels where a zeroed one is not zero"
    _reduce(tracer, output, input, other.get("axis", dim), keepdim, reason, zero_vanishes=True)


@rule("norm frobenius_norm vector_norm", spaces=(torch, Tensor, torch.linalg))
def norm(
    tracer: Tracer, output: Tensor, input: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, **options: Any
) -> None:
    """(Σ |x|ᵖ)^(1/p) does not miss a channel that is exactly zero, for p > 0; ``torch.linalg`` calls p ``ord``."""
    order = options.get("ord", p)
    positive = order in (None, "fro") or (isinstance(order, int | float) and order > 0)
    _reduce(tracer, output, input, dim, keepdim, "a norm over channels of which a zeroed one is not zero", positive)


@rule("mean nanmean amax amin aminmax max min median nanmedian mode prod argmax argmin all any count_nonzero")
def statistic(
    tracer: Tracer, output: Any, input: Tensor, dim: Any = None, keepdim: Any = False, *_: Any, **named: Any
) -> None:
    """A mean or a maximum: over channels it depends on how many there are."""
    dim = named.get("axis", dim)
    if isinstance(dim, Tensor) or "other" in named:  # max(x, y) is position by position
        elementwise(tracer, output, input, dim if isinstance(dim, Tensor) else named["other"])
    else:
        _reduce(tracer, output, input, dim, keepdim, OVER_CHANNELS)


@rule("std var std_mean var_mean")
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
    _reduce(tracer, output, input, dim, keepdim, OVER_CHANNELS)


@rule("logsumexp")
def logsumexp(tracer: Tracer, output: Tensor, input: Tensor, dim: Any, keepdim: bool = False) -> None:
    """log n where n numbers are zero."""
    _reduce(tracer, output, input, dim, keepdim, OVER_CHANNELS)
    put_unknown(tracer, output, tracer.axes(output))


@rule("softmax log_softmax softmin")
def softmax(tracer: Tracer, output: Tensor, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> None:
    """A softmax normalises over an axis: a zeroed channel there still counts, as e⁰ = 1."""
    axes = tracer.axes(input)
    tracer.fix(input, "softmax over the channels", dims=[dim] if isinstance(dim, int) else list(axes))
    put_unknown(tracer, output, axes)


@rule("cumsum cumprod cummax cummin logcumsumexp")
def running(tracer: Tracer, output: Any, input: Tensor, dim: Any = None, **options: Any) -> None:
    """A running sum along one axis: channels along it hang together, those along others stay apart."""
    axes = tracer.axes(input)
    tracer.fix(input, "a running sum or an order over the channels", dims=[options.get("axis", dim)])
    for result in tensors_in(output):
        put_unknown(tracer, result, axes)


@rule("topk sort argsort msort", in_place=False)
def order(tracer: Tracer, output: Any, input: Tensor, *arguments: Any, **options: Any) -> None:
    """Numbers along one axis by their size, and where they were: channels along it hang together."""
    numbers = [number for number in arguments if type(number) is int]  # of topk k comes first
    name = tracer.operation.__name__
    dim = options.get("dim", next(iter(numbers[name == "topk" and "k" not in options :]), 0 if name == "msort" else -1))
    axes = tracer.axes(input)
    tracer.fix(input, "a running sum or an order over the channels", dims=[dim])
    for result in tensors_in(output):
        tracer.put(result, {axis: side.resting(None) for axis, side in axes.items() if axis != dim % input.ndim})


def _reduce(
    tracer: Tracer, output: Any, input: Tensor, dim: Any, keepdim: bool, reason: str, zero_vanishes: bool = False
) -> None:
    dims = range(input.ndim) if dim is None or dim == () else [dim] if isinstance(dim, int) else list(dim)
    reduced = {axis % input.ndim for axis in dims}
    left: TensorLabels = {}
    counted: list[AxisLabels] = []
    for axis, side in tracer.axes(input).items():
        if axis not in reduced:
            position = axis if keepdim else axis - sum(gone < axis for gone in reduced)
            left[position] = side.mixed()
        elif zero_vanishes and side.zero:
            tracer.sums(side)
        else:
            counted.append(side)
    for result in tensors_in(output):
        tracer.put(result, left)
        if counted:
            tracer.once_used(result, partial(_fix_all, tracer, counted, reason))


def _fix_all(tracer: Tracer, sides: list[AxisLabels], reason: str, result: Tensor) -> None:
    for side in sides:
        tracer.fix(side, reason)
