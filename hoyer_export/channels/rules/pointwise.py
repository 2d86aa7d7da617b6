"""Operations position by position: activations pass labels on, sums and products tie the two sides together."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hoyer_export.channels.rules.names import named
from hoyer_export.channels.tracer import AxisLabels, TensorLabels, Tracer


def keeps_zero(tracer: Tracer, output: Tensor, input: Tensor, *options: Any, **named_options: Any) -> None:
    """f(0) = 0: a zeroed channel stays exactly zero."""
    tracer.note_view(output, input)  # detach() and to() may share memory
    tracer.put(output, tracer.axes(input))


def stays_finite(tracer: Tracer, output: Tensor, input: Tensor, *options: Any, **named_options: Any) -> None:
    """f(0) is some finite number, as sigmoid's 0.5: no longer zero, but a zero weight still silences it."""
    put_constant(tracer, output, tracer.axes(input))


def clamp(tracer: Tracer, output: Tensor, input: Tensor, min: Any = None, max: Any = None, **options: Any) -> None:
    """A clamp keeps zero where zero lies between its bounds."""
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        _combine(tracer, output, [input, min, max], zero_needs=all)
    elif (min is None or min <= 0) and (max is None or max >= 0):
        keeps_zero(tracer, output, input)
    else:
        stays_finite(tracer, output, input)


def hardtanh(
    tracer: Tracer, output: Tensor, input: Tensor, min_val: float = -1, max_val: float = 1, *_: Any, **__: Any
) -> None:
    """A clamp by another name."""
    clamp(tracer, output, input, min_val, max_val)


def prelu(tracer: Tracer, output: Tensor, input: Tensor, weight: Tensor) -> None:
    """PReLU's slopes are a scale for each channel, or one for all of them."""
    if weight.numel() > 1:
        tracer.unite(tracer.axis(input, 1), tracer.axis(weight, 0))
    tracer.put(output, tracer.axes(input))


def power(tracer: Tracer, output: Tensor, input: Any, exponent: Any, **options: Any) -> None:
    """xᵖ keeps zero for a plain p > 0; for anything else a zeroed channel may be infinite."""
    if isinstance(input, Tensor) and not isinstance(exponent, Tensor) and exponent > 0:
        return keeps_zero(tracer, output, input)
    for factor in (input, exponent):
        if isinstance(factor, Tensor):
            tracer.fix_tensor(factor, "a power that may not be finite at zero")
    return None


def add(tracer: Tracer, output: Tensor, input: Any, other: Any, *options: Any, **named_options: Any) -> None:
    """A sum is zero where every term is; both sides lose the same channels."""
    _combine(tracer, output, [input, other], zero_needs=all)


def multiply(tracer: Tracer, output: Tensor, input: Any, other: Any, *options: Any, **named_options: Any) -> None:
    """A product is zero where one factor is (the other is finite); both sides lose the same channels."""
    _combine(tracer, output, [input, other], zero_needs=any)


def divide(tracer: Tracer, output: Tensor, input: Any, other: Any, *options: Any, **named_options: Any) -> None:
    """A zeroed channel in a denominator is not finite."""
    if isinstance(other, Tensor):
        tracer.fix_tensor(other, "a denominator")
    _combine(tracer, output, [input, other], zero_needs=any)


def _combine(tracer: Tracer, output: Tensor, sides: list[Any], zero_needs: Callable[[list[bool]], bool]) -> None:
    operands = [operand for operand in sides if isinstance(operand, Tensor)]
    for operand in operands:
        tracer.axes(operand)
    combined: TensorLabels = {}
    for axis in range(output.ndim):
        if met := meet(tracer, operands, output, axis):
            # What is spread over the axis, a number or a tensor of length 1 there, is not zero on a zeroed channel.
            zeros = [side.zero for side in met] + [False] * (len(sides) - len(met))
            combined[axis] = AxisLabels(met[0].labels, zero_needs(zeros))
    _put_in_place_aware(tracer, output, combined)


def meet(tracer: Tracer, operands: list[Tensor], output: Tensor, axis: int) -> list[AxisLabels]:
    """Tie the operands of a broadcast along one axis of its output.

    Returns:
        The labels of the operands that have the output's length there, or nothing where no channels lie.
    """
    sides: list[tuple[Tensor, int]] = []
    for operand in operands:
        mine = axis - output.ndim + operand.ndim  # axes are aligned from the right
        if mine >= 0 and operand.shape[mine] == output.shape[axis]:
            sides.append((operand, mine))
        elif mine >= 0 and mine in tracer.known_axes(operand):
            tracer.fix(tracer.axis(operand, mine), "one channel that is spread over many")
    if not any(mine in tracer.known_axes(operand) for operand, mine in sides):
        return []
    met = [tracer.axis(operand, mine) for operand, mine in sides]
    for other in met[1:]:
        tracer.unite(met[0], other)
    return met


def put_constant(tracer: Tracer, output: Tensor, axes: TensorLabels) -> None:
    """Put labels of channels that are finite, but not zero, when they are zeroed."""
    _put_in_place_aware(tracer, output, {axis: AxisLabels(side.labels, zero=False) for axis, side in axes.items()})


def _put_in_place_aware(tracer: Tracer, output: Tensor, axes: TensorLabels) -> None:
    # An in-place operation that turns zero into something else changes every view of the same memory.
    if tracer.is_viewed(output):
        for axis, before in tracer.axes(output).items():
            if before.zero and not (axis in axes and axes[axis].zero):
                tracer.fix(before, "overwritten in place through a view")
    tracer.put(output, axes)


RULES = {
    **named(
        "abs asin asinh atan celu clone contiguous detach dropout alpha_dropout feature_alpha_dropout dropout1d"
        " dropout2d dropout3d elu erf expm1 float double half bfloat16 gelu hardshrink hardswish leaky_relu"
        " log1p mish nan_to_num neg positive relu relu6 round floor ceil trunc selu sign silu sin sinh softshrink"
        " softsign sqrt square tan tanh tanhshrink to cpu cuda type_as zeros_like",
        keeps_zero,
    ),
    **named("sigmoid hardsigmoid exp exp2 cos cosh softplus logsigmoid ones_like", stays_finite),
    **named("clamp clip clamp_min clamp_max", clamp),
    **named("hardtanh", hardtanh),
    **named("prelu", prelu),
    **named("pow __pow__", power),
    **named("add __add__ __radd__ __iadd__ sub subtract __sub__ __rsub__ rsub __isub__ maximum minimum", add),
    **named("mul multiply __mul__ __rmul__ __imul__", multiply),
    **named("div divide true_divide __truediv__ __itruediv__", divide),
}
