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

from hoyer_export.channels.labels import Vector
from hoyer_export.channels.rules.names import functions_named, named
from hoyer_export.channels.tracer import AxisLabels, Rule, TensorLabels, Tracer, tensors_in

PRODUCTS = frozenset({"mul", "multiply", "imul", "rmul", "logical_and"})
QUOTIENTS = frozenset({"div", "divide", "true_divide", "truediv", "itruediv", "floor_divide", "fmod", "remainder"})
# Of finite numbers; overflow is the network's own affair. A power is looked at by its exponent.
MAYBE_INFINITE = frozenset(
    {"log", "log2", "log10", "log1p", "logit", "rsqrt", "reciprocal", "rdiv", "rtruediv", "rpow", "tan", "asin"}
    | {"addcdiv", "atan2", "copysign"}
)


def elementwise(function: Callable[..., Any]) -> Rule:
    """Return the rule of a function of one or more operands, position by position, with broadcasting."""

    def rule(tracer: Tracer, output: Any, *arguments: Any, **options: Any) -> None:
        operands = list(tensors_in((arguments, options)))
        results = list(tensors_in(output))
        for operand in operands:
            tracer.axes(operand)
        axes: TensorLabels = {}
        for axis in range(results[0].ndim):
            if met := meet(tracer, operands, results[0], axis):
                rest = _rest(function, arguments, options, operands, met)
                if rest is not None and not math.isfinite(rest):
                    for side in met.values():
                        tracer.fix(side, f"`{_shown(function)}` may not be finite where a channel is zero")
                    rest = None
                axes[axis] = AxisLabels(labels_of(met), rest)
        for result in results:
            put(tracer, result, axes)

    return rule


def same(tracer: Tracer, output: Tensor, input: Tensor, *options: Any, **named_options: Any) -> None:
    """The same numbers, of another type or in another place."""
    tracer.note_view(output, input)  # detach() and to() may share memory
    tracer.put(output, tracer.axes(input))


def like(tracer: Tracer, output: Tensor, input: Tensor, *options: Any, **named_options: Any) -> None:
    """A new tensor of the same shape with numbers that nobody knows."""
    put_unknown(tracer, output, tracer.axes(input))


def copied(tracer: Tracer, output: Tensor, input: Tensor, src: Tensor, *options: Any, **named_options: Any) -> None:
    """``input.copy_(src)``: both lose the same channels, and hold the same."""
    axes: TensorLabels = {}
    for axis in range(input.ndim):
        if met := meet(tracer, [input, src], input, axis):
            axes[axis] = AxisLabels(labels_of(met), met[1].rest if 1 in met else None)
    put(tracer, output, axes)


def dropout(tracer: Tracer, output: Tensor, input: Tensor, *options: Any, **named_options: Any) -> None:
    """Positions may be set to zero, the others scaled: 0 stays 0."""
    axes = tracer.axes(input)
    put(tracer, output, {axis: side.mixed() for axis, side in axes.items()})


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


def prelu(tracer: Tracer, output: Tensor, input: Tensor, weight: Tensor) -> None:
    """PReLU's slopes are a scale for each channel, or one for all of them."""
    if weight.numel() > 1:
        tracer.unite(tracer.axis(input, 1), tracer.axis(weight, 0))
    dropout(tracer, output, input)  # 0 stays 0 here too


def sum_of(tracer: Tracer, output: Tensor, *operands: Tensor) -> None:
    """Put on ``output`` the labels of a sum: for rules of operations that add something at their end."""
    elementwise(torch.add)(tracer, output, *operands)


def meet(tracer: Tracer, operands: list[Tensor], output: Tensor, axis: int) -> dict[int, AxisLabels]:
    """Tie the operands of a broadcast along one axis of its output.

    Returns:
        Position among the operands → labels, of those that have the output's length there and are not spread over
        it; nothing where no channels lie.
    """
    sides: dict[int, int] = {}
    for number, operand in enumerate(operands):
        mine = axis - output.ndim + operand.ndim  # axes are aligned from the right
        if mine >= 0 and operand.shape[mine] == output.shape[axis]:
            sides[number] = mine
        elif mine >= 0 and mine in tracer.known_axes(operand):
            tracer.fix(tracer.axis(operand, mine), "one channel that is spread over many")
    if not any(mine in tracer.known_axes(operands[number]) for number, mine in sides.items()):
        return {}
    met = {number: tracer.axis(operands[number], mine) for number, mine in sides.items()}
    first = next(iter(met.values()))
    for other in met.values():
        if other is not first:
            tracer.unite(first, other)
    return met


def labels_of(met: dict[int, AxisLabels]) -> Vector:
    """Return the labels along an axis where operands met: they are all tied to each other."""
    return next(iter(met.values())).labels


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
    put(tracer, output, {axis: AxisLabels(side.labels, None) for axis, side in axes.items()})


def _rest(
    function: Callable[..., Any], arguments: Any, options: Any, operands: list[Tensor], met: dict[int, AxisLabels]
) -> float | None:
    """Return f of the operands' rests: None for an unknown finite number, NaN where it may be infinite."""
    rests = {id(operands[number]): side.rest for number, side in met.items()}
    spread = [operand for number, operand in enumerate(operands) if number not in met]
    if not spread and None not in rests.values():
        return _tried(function, arguments, options, rests)
    name = _name(function).strip("_")
    if name in PRODUCTS and 0.0 in rests.values():
        return 0.0
    if name in QUOTIENTS and len(operands) == 2 and 1 not in met:  # a divisor without channels is the network's own
        return 0.0 if met[0].zero else None
    if name in QUOTIENTS and len(operands) == 2:
        divisor = met[1].rest
        return math.nan if divisor in (None, 0.0) else 0.0 if 0 in met and met[0].zero else None
    harmless_power = name == "pow" and len(operands) == 1 and _is_natural(arguments[1:], options)
    return math.nan if name in MAYBE_INFINITE or (name == "pow" and not harmless_power) else None


def _tried(function: Callable[..., Any], arguments: Any, options: Any, rests: dict[int, float | None]) -> float | None:
    def single(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.tensor(rests[id(value)], dtype=torch.float64 if value.is_floating_point() else value.dtype)
        if type(value) in (tuple, list):
            return type(value)(single(item) for item in value)
        return value

    answer = next(tensors_in(function(*single(arguments), **{key: single(value) for key, value in options.items()})))
    if answer.is_complex():
        return 0.0 if answer == 0 else None if bool(answer.isfinite()) else math.nan
    return float(answer)


def _is_natural(arguments: Any, options: Any) -> bool:
    exponent = next(iter((*arguments, *options.values())), None)
    return isinstance(exponent, int | float) and exponent > 0 and exponent == int(exponent)


def _name(function: Callable[..., Any]) -> str:
    return function.__name__


def _shown(function: Callable[..., Any]) -> str:
    name = _name(function).strip("_")
    return "/" if name in QUOTIENTS or name in ("rdiv", "rtruediv") else name


def _each(names: str) -> dict[Callable[..., Any], Rule]:
    return {function: elementwise(function) for function in functions_named(names)}


RULES: dict[Callable[..., Any], Rule] = {
    **_each(
        "abs absolute add __add__ __radd__ __iadd__ addcdiv addcmul asin asinh atan atan2 bitwise_and"
        " bitwise_not bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min clip copysign cos cosh div divide"
        " __truediv__ __itruediv__ __rtruediv__ __rdiv__ elu eq __eq__ erf erfc"
        " exp exp2 expm1 floor floor_divide __floordiv__ fmod frac full_like ge __ge__ gelu gt"
        " __gt__ hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan le __le__ leaky_relu lerp log log10"
        " log1p log2 logical_and logical_not logical_or logical_xor logit logsigmoid lt __lt__ masked_fill maximum"
        " minimum mish mul multiply __mul__ __rmul__ __imul__ nan_to_num ne __ne__ neg negative __neg__ ones_like"
        " positive pow __pow__ __rpow__ reciprocal relu relu6 remainder round rsqrt rsub __rsub__ selu sgn sigmoid"
        " sign silu sin sinh softplus softshrink softsign sqrt square sub subtract __sub__ __isub__ tan tanh"
        " tanhshrink threshold true_divide trunc where zero_ fill_ zeros_like"
    ),
    **named(
        "bfloat16 bool clone contiguous cpu cuda detach double float half int long requires_grad_ to type type_as", same
    ),
    **named("empty_like rand_like randn_like bernoulli normal_ uniform_ exponential_ random_", like),
    **named("dropout dropout1d dropout2d dropout3d feature_dropout rrelu", dropout),
    **named("alpha_dropout feature_alpha_dropout", alpha_dropout),
    **named("prelu", prelu),
    Tensor.copy_: copied,
}
