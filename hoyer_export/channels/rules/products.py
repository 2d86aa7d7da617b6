"""Products of tensors either of which may be the weight, or neither: matrix products, einsum, attention."""

from math import prod
from typing import Any

from torch import Tensor

from hoyer_export.channels.labels import AxisLabels, TensorLabels, Tracer
from hoyer_export.channels.rule import rule
from hoyer_export.channels.rules.contraction import fix_unless_silent, is_weight, with_bias
from hoyer_export.channels.rules.pointwise import first_of, pointwise, unite_operands
from hoyer_export.tensors import tensors_in


@rule("matmul bmm mm mv dot vdot __matmul__", counts=True)
def matrix_product(tracer: Tracer, output: Tensor, input: Tensor, other: Tensor, **_: Any) -> None:
    """[..., n, k] · [..., k, m]: unites the k of both sides; n and m pass on, and so do matching batch axes.

    A vector is a matrix of one row on the left, of one column on the right, which the product lacks.
    """
    row, column = input.ndim == 1, other.ndim == 1
    left, right = tracer.axes(input), tracer.axes(other)
    k_left, k_right = input.ndim - 1, 0 if column else other.ndim - 2
    axes: TensorLabels = {}
    if not row and input.ndim - 2 in left:
        axes[output.ndim - 2 + column] = left[input.ndim - 2]
    if not column and other.ndim - 1 in right:
        axes[output.ndim - 1] = right[other.ndim - 1]
    if row or column:  # the batch axes are those of the one that is no vector
        matrix, sides_of_matrix = (other, right) if row else (input, left)
        axes |= {axis: side for axis, side in sides_of_matrix.items() if axis < matrix.ndim - 2}
    axes = {axis: side.mixed() for axis, side in axes.items()}
    for axis in range(0 if row or column else output.ndim - 2):
        if sides := unite_operands(tracer, [input, other], output, axis):
            axes[axis] = first_of(sides).resting(0.0 if any(side.zero for side in sides.values()) else None)
    inner: AxisLabels | int = input.shape[-1]
    if k_left in left or k_right in right:
        inner, theirs = tracer.axis(input, k_left), tracer.axis(other, k_right)
        tracer.unite(inner, theirs)
        fix_unless_silent(tracer, inner, theirs)
        if is_weight(tracer, input):
            tracer.reads(inner)
        elif is_weight(tracer, other):
            tracer.reads(theirs)
        else:
            tracer.sums(inner)
    _count(tracer, "matmul", output, [input, other], [inner], axes)
    tracer.put(output, axes)


@rule("addmm addmv baddbmm", counts=True)
def sum_and_product(tracer: Tracer, output: Tensor, input: Tensor, first: Tensor, second: Tensor, **_: Any) -> None:
    """β · input + α · first · second."""
    matrix_product(tracer, output, first, second)
    pointwise(tracer, output, (output, input), {}, operation=Tensor.add)


@rule("einsum", counts=True)
def einsum(tracer: Tracer, output: Tensor, equation: Any, *operands: Any) -> None:
    """Σ over the letters that the result lacks of the product of all operands; the same letter is the same channel."""
    operands = tuple(operands[0]) if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
    letters = _letters(equation, operands) if isinstance(equation, str) else None
    # More than two are multiplied pair by pair, in an order that is torch's own affair.
    if letters is None or len(operands) > 2 or any(len(set(of)) < len(of) for of in letters):
        for operand in operands:
            tracer.fix(operand, "an einsum in an unusual form")
        return
    *inputs, result = letters
    axes: TensorLabels = {}
    inner: list[AxisLabels | int] = []
    for letter in dict.fromkeys("".join(inputs)):
        holders = [(x, of.index(letter)) for x, of in zip(operands, inputs, strict=True) if letter in of]
        size = max(x.shape[axis] for x, axis in holders)
        for x, axis in holders:
            if x.shape[axis] < size and axis in tracer.axes(x):
                tracer.fix(tracer.axis(x, axis), "one channel that is spread over many")
        holders = [(x, axis) for x, axis in holders if x.shape[axis] == size]
        labelled = any(axis in tracer.axes(x) for x, axis in holders)
        sides = [tracer.axis(x, axis) for x, axis in holders] if labelled else []
        zero = any(side.zero for side in sides)
        if labelled:
            tracer.unite(*sides)
        if letter in result and labelled:
            axes[result.index(letter)] = sides[0].resting(0.0 if zero else None)
        elif letter not in result:
            inner.append(sides[0] if labelled else size)
            if labelled and not zero:
                tracer.fix(sides[0], "summed over the channels where a zeroed one is not zero")
            for (x, _), side in zip(holders, sides, strict=True) if labelled else ():
                (tracer.reads if is_weight(tracer, x) else tracer.sums)(side)
    if inner and len(operands) > 1:
        _count(tracer, "einsum", output, list(operands), inner, axes)
    tracer.put(output, axes)


@rule("tensordot", counts=True)
def tensordot(tracer: Tracer, output: Tensor, a: Tensor, b: Tensor, dims: Any = 2, **_: Any) -> None:
    """Σ over some axes of the one and as many of the other: an einsum."""
    if isinstance(dims, int):
        dims = range(a.ndim - dims, a.ndim), range(dims)
    ours, theirs = ([axis % x.ndim for axis in axes] for x, axes in zip((a, b), dims, strict=True))
    letters = "abcdefghijklmnopqrstuvwxyz"
    left, right = letters[: a.ndim], list(letters[a.ndim : a.ndim + b.ndim])
    for one, other in zip(ours, theirs, strict=True):
        right[other] = left[one]
    free = [letter for letter in (*left, *right) if (*left, *right).count(letter) == 1]
    einsum.function(tracer, output, f"{left},{''.join(right)}->{''.join(free)}", a, b)


@rule("bilinear", counts=True)
def bilinear(
    tracer: Tracer, output: Tensor, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> None:
    """y[o] = Σᵢⱼ x₁[i] w[o, i, j] x₂[j] + b[o], weight [O, I, J]: a term is zero where its slice of the weight is."""
    sides = tracer.axis(weight, 0), tracer.axis(weight, 1), tracer.axis(weight, 2)
    for x, slices in ((input1, sides[1]), (input2, sides[2])):
        tracer.unite(tracer.axis(x, -1), slices)
        fix_unless_silent(tracer, tracer.axis(x, -1), slices)
        (tracer.reads if is_weight(tracer, weight) else tracer.sums)(slices)
        tracer.fix(x, "channels folded into the batch of a bilinear layer", dims=range(x.ndim - 1))
    tracer.contraction("bilinear", output.numel() // len(sides[0]) // tracer.examples_in(output), weight, *sides)
    tracer.put(output, {output.ndim - 1: with_bias(tracer, sides[0], bias)})


@rule("cosine_similarity cdist pairwise_distance")
def comparison(tracer: Tracer, output: Tensor, x1: Tensor, x2: Tensor, *arguments: Any, **options: Any) -> None:
    """Two sets of vectors compared: a channel that is zero in both adds nothing to |a − b|ᵖ, a · b, |a|² and |b|²."""
    name = tracer.operation.__name__
    dim = options.get("dim", arguments[0] if arguments else 1) if name == "cosine_similarity" else -1
    one, other = tracer.axis(x1, dim), tracer.axis(x2, dim)
    if dim % x1.ndim in tracer.axes(x1) or dim % x2.ndim in tracer.axes(x2):
        tracer.unite(one, other)
        for side in (one, other):
            tracer.sums(side)
        if not (one.zero and other.zero):
            tracer.fix(one, "vectors are compared over channels of which a zeroed one is not zero")
        if name == "pairwise_distance":
            tracer.fix(
                one, "`pairwise_distance` adds its eps in every channel: compute torch.linalg.vector_norm(a - b)"
            )
    for x in (x1, x2):
        tracer.fix(x, f"several kinds of channels in `{name}`", dims={*tracer.axes(x)} - {dim % x.ndim})


def _letters(equation: str, operands: Any) -> list[str] | None:
    """Return the letters of each operand's axes and of the result's; an ellipsis stands for capital letters."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    named_axes = {letter for letter in left if letter.isalpha()}
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in named_axes]
    expanded, longest = [], 0
    for operand, letters in zip(operands, inputs, strict=True):
        hidden = operand.ndim - len(letters.replace("...", "")) if "..." in letters else 0
        longest = max(longest, hidden)
        expanded.append(letters.replace("...", "".join(free[:hidden][::-1])))
    if not arrow:
        once = sorted(letter for letter in named_axes if left.count(letter) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    return [*expanded, right.replace("...", "".join(free[:longest][::-1]))]


@rule("scaled_dot_product_attention", counts=True)
def attention(
    tracer: Tracer,
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *_: Any,
    scale: float | None = None,
    enable_gqa: bool = False,
    **__: Any,
) -> None:
    """softmax(q kᵀ · scale) v: heads go whole; the width of q and k stays, where the scale is made from it."""
    tensors = [query, key, value]
    masks = [] if attn_mask is None else [attn_mask]
    if enable_gqa:
        for tensor in tensors:
            tracer.fix(tensor, "attention whose heads share keys")
    q, k = tracer.axis(query, -1), tracer.axis(key, -1)
    if query.ndim - 1 in tracer.axes(query) or key.ndim - 1 in tracer.axes(key):
        tracer.unite(q, k)
        if scale is None:
            tracer.fix(q, "the attention's scale is made from the width of its heads")
        fix_unless_silent(tracer, q, k)
        tracer.sums(q)
    for tensor, dims in ((key, [-2]), (value, [-2]), *((mask, [-1, -2]) for mask in masks)):
        tracer.axes(tensor)
        tracer.fix(tensor, "softmax over the channels", dims)
    axes: TensorLabels = {}
    for axis in range(output.ndim - 2):
        if sides := unite_operands(tracer, tensors + masks, output, axis):
            axes[axis] = first_of(sides).resting(0.0 if 2 in sides and sides[2].zero else None)
    if query.ndim - 2 in tracer.axes(query):
        axes[output.ndim - 2] = tracer.axis(query, -2).resting(None)
    scores = output.numel() // output.shape[-1] * key.shape[-2]
    _count(tracer, "attention", output, [query, key], [q], axes, positions=scores)
    if value.ndim - 1 in tracer.axes(value):
        axes[output.ndim - 1] = tracer.axis(value, -1).mixed()
    _count(tracer, "attention", output, [value], [key.shape[-2]], axes)
    tracer.put(output, axes)


@rule("multi_head_attention_forward", counts=True)
def multi_head_attention(tracer: Tracer, output: Any, query: Tensor, *arguments: Any, **options: Any) -> None:
    """A class derived from ``nn.MultiheadAttention``: its sizes are checked in too many places to cut any of them."""
    for tensor in (query, *tensors_in((arguments, options))):
        tracer.fix(tensor, "nn.MultiheadAttention")
    key, value, embed = arguments[:3]
    out_weight = next(x for x in tensors_in((arguments[5:], options)) if x.shape == (query.shape[-1], embed))
    length, source = query.shape[0], key.shape[0]  # [L, N, E], whatever batch_first says
    for rows, x in ((length, query), (source, key), (source, value)):
        tracer.contraction("attention", rows * embed, x, x.shape[-1])
    tracer.contraction("attention", 2 * length * source, query, embed)
    tracer.contraction("attention", length * embed, out_weight, embed)


def _count(
    tracer: Tracer,
    op: str,
    output: Tensor,
    factors: list[Tensor],
    inner: list[AxisLabels | int],
    axes: TensorLabels,
    positions: int | None = None,
) -> None:
    """Count output positions × positions summed over, for one example; ``axes`` are the output's labelled ones.

    Either factor may be the weight; where both are activations their labels are those of weights anyway.
    """
    positions = output.numel() if positions is None else positions
    constant = positions // tracer.examples_in(output) // prod(len(side) for side in axes.values())
    tracer.contraction(op, max(constant, 1), factors, *inner, *axes.values())
