"""Operations position by position: what they make of a zeroed channel is found by trying it on a single number.

The operands of a sum or a product lose the same channels. At all positions of a zeroed channel each holds one
number, its *rest*: f of the operands' rests is the rest of the result. Where one of them is not known the result's is
not either (but a product with zero is zero), and a function that may be infinite somewhere is refused.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hoyer_export.channels.labels import AxisLabels, TensorLabels, Tracer
from hoyer_export.channels.positions import hand_on
from hoyer_export.channels.rule import Function, rule
from hoyer_export.tensors import tensors_in

Sides = dict[int, AxisLabels]
"""Position among the operands of an operation → labels along one axis, of those that are not spread over it."""


@rule(
    "abs absolute add __add__ __radd__ __iadd__ addcmul asinh atan bitwise_and bitwise_not bitwise_or bitwise_xor ceil"
    " celu clamp clamp_max clamp_min clip cos cosh elu eq __eq__ erf erfc exp exp2 expm1 floor frac full_like ge __ge__"
    " gelu gt __gt__ hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan le __le__ leaky_relu lerp"
    " logical_not logical_or logical_xor logsigmoid lt __lt__ masked_fill maximum minimum mish nan_to_num ne __ne__ neg"
    " negative __neg__ ones_like positive relu relu6 round rsub __rsub__ selu sgn sigmoid sign silu sin sinh softplus"
    " softshrink softsign sqrt square sub subtract __sub__ __isub__ tanh tanhshrink threshold trunc where zero_ fill_"
    " zeros_like"
)
def elementwise(tracer: Tracer, output: Any, *arguments: Any, **options: Any) -> None:
    """A function that is finite wherever its operands are."""
    pointwise(tracer, output, arguments, options)


@rule("mul multiply __mul__ __rmul__ __imul__ logical_and")
def product(tracer: Tracer, output: Any, *arguments: Any, **options: Any) -> None:
    """Zero where one factor is, whatever the other."""
    pointwise(tracer, output, arguments, options, lambda sides: 0.0 if any(s.zero for s in sides.values()) else None)


@rule("div divide true_divide __truediv__ __itruediv__ floor_divide __floordiv__ fmod remainder")
def quotient(tracer: Tracer, output: Any, *arguments: Any, **options: Any) -> None:
    """Zero where the dividend is, if the divisor is not; a divisor without channels is the network's own affair."""
    dividend = 0 if isinstance((*arguments, *options.values())[0], Tensor) else -1  # torch.div(1, x)

    def unknown(sides: Sides) -> float | None:
        divisor = sides.get(dividend + 1)
        if divisor is not None and divisor.rest in (None, 0.0):
            return math.nan
        return 0.0 if dividend in sides and sides[dividend].zero else None

    pointwise(tracer, output, arguments, options, unknown)


@rule("pow __pow__")
def power(tracer: Tracer, output: Any, *arguments: Any, **options: Any) -> None:
    """Finite for every base where the exponent is a natural number."""
    exponent = next(iter((*arguments[1:], *options.values())), None)
    natural = isinstance(exponent, int | float) and exponent > 0 and exponent == int(exponent)
    pointwise(tracer, output, arguments, options, lambda sides: None if natural else math.nan)


@rule("log log2 log10 log1p logit rsqrt reciprocal __rdiv__ __rtruediv__ __rpow__ tan asin addcdiv atan2 copysign")
def elementwise_with_poles(tracer: Tracer, output: Any, *arguments: Any, **options: Any) -> None:
    """A function that may be infinite, or jump, for some finite number."""
    pointwise(tracer, output, arguments, options, lambda sides: math.nan)


@rule(
    "bfloat16 bool clone contiguous cpu cuda detach double float half int long requires_grad_ to type type_as",
    reads_shape=True, keeps_spread=True,
)  # fmt: skip
def same(tracer: Tracer, output: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """The same numbers, of another type or in another place."""
    if hand_on(tracer, output, input, lambda numbers: numbers):
        return
    tracer.note_view(output, input)  # detach() and to() may share memory
    tracer.put(output, tracer.axes(input))


@rule("empty_like rand_like randn_like bernoulli normal_ uniform_ exponential_ random_")
def like(tracer: Tracer, output: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """A new tensor of the same shape with numbers that nobody knows."""
    put_unknown(tracer, output, tracer.axes(input))


@rule("copy_", in_place=False)
def copied(tracer: Tracer, output: Tensor, input: Tensor, src: Tensor, *_: Any, **__: Any) -> None:
    """``input.copy_(src)``: both lose the same channels, and hold the same."""
    axes: TensorLabels = {}
    for axis in range(input.ndim):
        if sides := unite_operands(tracer, [input, src], input, axis):
            axes[axis] = first_of(sides).resting(sides[1].rest if 1 in sides else None)
    put(tracer, output, axes)


@rule("dropout dropout1d dropout2d dropout3d feature_dropout rrelu")
def dropout(tracer: Tracer, output: Tensor, input: Tensor, *_: Any, **__: Any) -> None:
    """Positions may be set to zero, the others scaled: 0 stays 0."""
    put(tracer, output, {axis: side.mixed() for axis, side in tracer.axes(input).items()})


@rule("alpha_dropout feature_alpha_dropout")
def alpha_dropout(
    tracer: Tracer,
    output: Tensor,
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    train: bool = False,
) -> None:
    """In training dropped positions hold SELU's lower limit, and all are scaled and shifted: 0 does not stay 0.

    Source: Klambauer et al. 2017, "Self-Normalizing Neural Networks", section 3, arXiv 1706.02515.
    """
    if training or train:  # as torch.nn.functional or as torch calls it
        put_unknown(tracer, output, tracer.axes(input))
    else:
        dropout(tracer, output, input)


@rule("prelu")
def prelu(tracer: Tracer, output: Tensor, input: Tensor, weight: Tensor) -> None:
    """PReLU's slopes are a scale for each channel, or one for all of them."""
    if weight.numel() > 1:
        tracer.unite(tracer.axis(input, 1), tracer.axis(weight, 0))
    dropout(tracer, output, input)  # 0 stays 0 here too


def pointwise(
    tracer: Tracer,
    output: Any,
    arguments: Any,
    options: Any,
    unknown: Callable[[Sides], float | None] = lambda sides: None,
    operation: Function | None = None,
) -> None:
    """Put labels on what an operation (the one whose rule is at work) makes of its operands, with broadcasting.

    ``unknown`` says what it makes of a zeroed channel where the rest of one operand is not known, or one operand is
    spread over the channels: the number, None where nobody knows, NaN where it may be infinite.
    """
    operation = operation or tracer.operation
    operands, results = list(tensors_in((arguments, options))), list(tensors_in(output))
    for operand in operands:
        tracer.axes(operand)
    axes: TensorLabels = {}
    for axis in range(results[0].ndim):
        if sides := unite_operands(tracer, operands, results[0], axis):
            rests = {id(operands[number]): side.rest for number, side in sides.items()}
            is_known = len(sides) == len(operands) and None not in rests.values()
            rest = _tried(operation, arguments, options, rests) if is_known else unknown(sides)
            if rest is not None and not math.isfinite(rest):
                name = operation.__name__.strip("_")
                for side in sides.values():
                    tracer.fix(side, f"`{'/' if 'div' in name else name}` may not be finite where a channel is zero")
                rest = None
            axes[axis] = first_of(sides).resting(rest)
    for result in results:
        put(tracer, result, axes)


def unite_operands(tracer: Tracer, operands: list[Tensor], output: Tensor, axis: int) -> Sides:
    """Unite the operands of a broadcast along one axis of its output; return nothing where no channels lie."""
    places: dict[int, int] = {}
    for number, operand in enumerate(operands):
        mine = axis - output.ndim + operand.ndim  # axes are aligned from the right
        if mine >= 0 and operand.shape[mine] == output.shape[axis]:
            places[number] = mine
        elif mine >= 0 and mine in tracer.known_axes(operand):
            tracer.fix(tracer.axis(operand, mine), "one channel that is spread over many")
    if not any(mine in tracer.known_axes(operands[number]) for number, mine in places.items()):
        return {}
    sides = {number: tracer.axis(operands[number], mine) for number, mine in places.items()}
    tracer.unite(*sides.values())
    return sides


def first_of(sides: Sides) -> AxisLabels:
    """Return the labels of one of the operands: they are united."""
    return next(iter(sides.values()))


def put(tracer: Tracer, output: Tensor, axes: TensorLabels) -> None:
    """Put labels on the result of an operation that may have worked in place.

    That changes every view of the same memory, whose labels then say what is no longer true.
    """
    if tracer.is_viewed(output):
        for axis, before in tracer.known_axes(output).items():
            if axis not in axes or axes[axis].rest != before.rest:
                tracer.fix(before, "overwritten in place through a view")
    tracer.put(output, axes)


def put_unknown(tracer: Tracer, output: Tensor, axes: TensorLabels) -> None:
    """Put labels of channels that hold finite numbers which nobody knows when they are zeroed."""
    put(tracer, output, {axis: side.resting(None) for axis, side in axes.items()})


def _tried(operation: Function, arguments: Any, options: Any, rests: dict[int, float | None]) -> float | None:
    """Return what the operation makes of the operands' rests."""

    def single(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.tensor(rests[id(value)], dtype=torch.float64 if value.is_floating_point() else value.dtype)
        if type(value) in (tuple, list):
            return type(value)(single(item) for item in value)
        return value

    answer = next(tensors_in(operation(*single(arguments), **{key: single(value) for key, value in options.items()})))
    if answer.is_complex():
        return 0.0 if answer == 0 else None if bool(answer.isfinite()) else math.nan
    return float(answer)
