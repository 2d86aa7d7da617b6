"""Convolutions, linear layers and matrix products: Σ over channels of (consumer slice · activation).

They unite the channels of the input with the weight's input slices and hand on the weight's output channels. A
removed channel leaves no trace, because its consumer slice is zero and its activation finite.
"""

from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn

from hoyer_export.channels.rules.names import named
from hoyer_export.channels.rules.pointwise import labels_of, meet, sum_of
from hoyer_export.channels.tracer import AxisLabels, TensorLabels, Tracer, tensors_in

KERNEL = "positions that a convolution slides over"


def convolution(
    tracer: Tracer,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    """y[o] = Σᵢ w[o, i] ∗ x[i] + b[o], weight [O, I / groups, kernel]."""
    channel_axis = input.ndim - weight.ndim + 1
    inputs, outputs = tracer.axis(input, channel_axis), tracer.axis(weight, 0)
    constant = _images(tracer, output, channel_axis) * prod(output.shape[channel_axis + 1 :]) * prod(weight.shape[2:])
    if groups == 1:
        slices = tracer.axis(weight, 1)
        tracer.unite(inputs, slices)
        _fix_unless_silent(tracer, inputs, slices)
        _note_reader(tracer, weight, inputs, slices)
        tracer.contraction("convolution", constant, weight, outputs, slices)
    elif weight.shape[1] == 1:  # depthwise: filter o reads input o // multiplier alone
        tracer.unite(AxisLabels(inputs.labels.repeat(len(outputs) // groups)), outputs)
        _fix_unless_groups_can_shrink(tracer, weight, outputs)
        tracer.contraction("convolution", constant, weight, outputs)
    else:  # every group must keep the same number of inputs and of outputs
        slices = tracer.axis(weight, 1)
        tracer.unite(tracer.tie_blocks(inputs, groups), slices)
        tracer.tie_blocks(outputs, groups)
        _fix_unless_silent(tracer, inputs, slices)
        _note_reader(tracer, weight, inputs, slices)
        tracer.contraction("convolution", constant, weight, outputs, slices)
    _finish(tracer, output, input, channel_axis, weight, bias, outputs)


def transposed_convolution(
    tracer: Tracer,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> None:
    """The adjoint of a convolution, weight [I, O / groups, kernel]; MACs are counted at the input's positions."""
    channel_axis = input.ndim - weight.ndim + 1
    inputs, slices = tracer.axis(input, channel_axis), tracer.axis(weight, 0)
    constant = _images(tracer, input, channel_axis) * prod(input.shape[channel_axis + 1 :]) * prod(weight.shape[2:])
    tracer.unite(inputs, slices)
    _fix_unless_silent(tracer, inputs, slices)
    if len(slices) != groups:  # a depthwise filter is a channel's own, it reads and writes it
        _note_reader(tracer, weight, inputs, slices)
    if groups == 1:
        outputs = tracer.axis(weight, 1)
        tracer.contraction("transposed convolution", constant, weight, slices, outputs)
    elif len(slices) == groups:  # depthwise: input i alone makes outputs i · multiplier ...
        outputs = AxisLabels(slices.labels.repeat(weight.shape[1]), slices.rest)
        _fix_unless_groups_can_shrink(tracer, weight, slices)
        tracer.contraction("transposed convolution", constant, weight, slices, weight.shape[1])
    else:
        tracer.tie_blocks(slices, groups)
        per_group = tracer.axis(weight, 1)
        outputs = AxisLabels(np.tile(per_group.labels, groups), per_group.rest)
        tracer.contraction("transposed convolution", constant, weight, slices, per_group)
    _finish(tracer, output, input, channel_axis, weight, bias, outputs)


def linear(tracer: Tracer, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """y = x Wᵀ + b over the last axis, weight [O, I]."""
    if weight.ndim == 1:
        tracer.fix_tensor(input, "a linear layer whose weight is a vector")
        tracer.fix_tensor(weight, "a linear layer whose weight is a vector")
        return
    outputs, slices = tracer.axis(weight, 0), tracer.axis(weight, 1)
    tracer.unite(tracer.axis(input, -1), slices)
    _fix_unless_silent(tracer, tracer.axis(input, -1), slices)
    _note_reader(tracer, weight, tracer.axis(input, -1), slices)
    axes = {axis: side for axis, side in tracer.axes(input).items() if axis != input.ndim - 1}
    constant = output.numel() // tracer.examples_in(output) // len(outputs) // prod(len(side) for side in axes.values())
    tracer.contraction("linear", constant, weight, outputs, slices, *axes.values())
    others = {axis: AxisLabels(side.labels, 0.0 if side.zero and bias is None else None) for axis, side in axes.items()}
    tracer.put(output, {**others, output.ndim - 1: _with_bias(tracer, outputs, bias)})


def matrix_product(tracer: Tracer, output: Tensor, input: Tensor, other: Tensor, **options: Any) -> None:
    """[..., n, k] · [..., k, m]: unites the k of both sides; n and m pass on, and so do matching batch axes.

    A vector is a matrix of one row on the left, of one column on the right, which the product lacks.
    """
    row, column = input.ndim == 1, other.ndim == 1
    left = tracer.axes(input)
    right = tracer.axes(other)
    k_left, k_right = input.ndim - 1, 0 if column else other.ndim - 2
    axes: TensorLabels = {}
    if not row and input.ndim - 2 in left:
        axes[output.ndim - 2 + column] = left[input.ndim - 2]
    if not column and other.ndim - 1 in right:
        axes[output.ndim - 1] = right[other.ndim - 1]
    axes = {axis: side.mixed() for axis, side in axes.items()}
    if row or column:  # the batch axes are those of the one that is no vector
        matrix, sides_of_matrix = (other, right) if row else (input, left)
        batch = {axis: side for axis, side in sides_of_matrix.items() if axis < matrix.ndim - 2}
        axes |= {axis: side.mixed() for axis, side in batch.items()}
    else:
        for axis in range(output.ndim - 2):
            if sides := meet(tracer, [input, other], output, axis):
                zero = any(side.zero for side in sides.values())
                axes[axis] = AxisLabels(labels_of(sides), 0.0 if zero else None)
    inner: AxisLabels | int = input.shape[-1]
    if k_left in left or k_right in right:
        inner, theirs = tracer.axis(input, k_left), tracer.axis(other, k_right)
        tracer.unite(inner, theirs)
        _fix_unless_silent(tracer, inner, theirs)
        if _is_weight(tracer, input):
            tracer.reads(inner)
        elif _is_weight(tracer, other):
            tracer.reads(theirs)
        else:
            tracer.sums(inner)
    _count(tracer, "matmul", output, [input, other], inner, axes)
    tracer.put(output, axes)


def sum_and_product(
    tracer: Tracer, output: Tensor, input: Tensor, first: Tensor, second: Tensor, **factors: Any
) -> None:
    """β · input + α · first · second."""
    matrix_product(tracer, output, first, second)
    sum_of(tracer, output, output, input)


def einsum(tracer: Tracer, output: Tensor, equation: Any, *operands: Any) -> None:
    """Σ over the letters that the result lacks of the product of all operands; the same letter is the same channel."""
    operands = tuple(operands[0]) if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
    letters = _letters(equation, operands) if isinstance(equation, str) else None
    # More than two are multiplied pair by pair, in an order that is torch's own affair.
    if letters is None or len(operands) > 2 or any(len(set(of)) < len(of) for of in letters):
        for operand in operands:
            tracer.fix_tensor(operand, "an einsum in an unusual form")
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
        for side in sides[1:]:
            tracer.unite(sides[0], side)
        zero = any(side.zero for side in sides)
        if letter in result and labelled:
            axes[result.index(letter)] = AxisLabels(sides[0].labels, 0.0 if zero else None)
        elif letter not in result:
            inner.append(sides[0] if labelled else size)
            if labelled and not zero:
                tracer.fix(sides[0], "summed over the channels where a zeroed one is not zero")
            for (x, _), side in zip(holders, sides, strict=True) if labelled else ():
                (tracer.reads if _is_weight(tracer, x) else tracer.sums)(side)
    if inner and len(operands) > 1:
        _count(tracer, "einsum", output, list(operands), inner[0], axes, *inner[1:])
    tracer.put(output, axes)


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


def attention(
    tracer: Tracer,
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    """softmax(q kᵀ · scale) v: heads go whole; the width of q and k stays, where the scale is made from it."""
    tensors = [query, key, value]
    if enable_gqa:
        for tensor in tensors:
            tracer.fix_tensor(tensor, "attention whose heads share keys")
    q, k = tracer.axis(query, -1), tracer.axis(key, -1)
    if query.ndim - 1 in tracer.axes(query) or key.ndim - 1 in tracer.axes(key):
        tracer.unite(q, k)
        if scale is None:
            tracer.fix(q, "the attention's scale is made from the width of its heads")
        _fix_unless_silent(tracer, q, k)
        tracer.sums(q)
    masks = [] if attn_mask is None else [(attn_mask, -1), (attn_mask, -2)]
    for tensor, axis in ((key, -2), (value, -2), *masks):
        if axis % tensor.ndim in tracer.axes(tensor):
            tracer.fix(tracer.axis(tensor, axis), "softmax over the channels")
    axes: TensorLabels = {}
    for axis in range(output.ndim - 2):
        operands = [*tensors] if attn_mask is None else [*tensors, attn_mask]
        if sides := meet(tracer, operands, output, axis):
            zero = 2 in sides and sides[2].zero
            axes[axis] = AxisLabels(labels_of(sides), 0.0 if zero else None)
    if query.ndim - 2 in tracer.axes(query):
        axes[output.ndim - 2] = AxisLabels(tracer.axis(query, -2).labels, None)
    scores = output.numel() // output.shape[-1] * key.shape[-2]
    _count(tracer, "attention", output, [query, key], q, axes, positions=scores)
    if value.ndim - 1 in tracer.axes(value):
        last = tracer.axis(value, -1)
        axes[output.ndim - 1] = last.mixed()
    _count(tracer, "attention", output, [value], key.shape[-2], axes)
    tracer.put(output, axes)


def multi_head_attention(tracer: Tracer, output: Any, query: Tensor, *arguments: Any, **options: Any) -> None:
    """``nn.MultiheadAttention``: its sizes are checked against each other in too many places to cut any of them."""
    for tensor in (query, *tensors_in((arguments, options))):
        tracer.fix_tensor(tensor, "nn.MultiheadAttention")
    key, embed = arguments[0], arguments[2]
    out_weight = next(x for x in tensors_in((arguments[5:], options)) if x.shape == (query.shape[-1], embed))
    length, source = query.shape[0], key.shape[0]  # [L, N, E], whatever batch_first says
    for rows in (length, source, source):
        tracer.contraction("attention", rows * embed, query, query.shape[-1])
    tracer.contraction("attention", 2 * length * source, query, embed)
    tracer.contraction("attention", length * embed, out_weight, embed)


def embedding(
    tracer: Tracer, output: Tensor, input: Tensor, weight: Tensor, *options: Any, **named_options: Any
) -> None:
    """Rows of a table: its columns are channels, its rows are picked by literal numbers."""
    tracer.fix_later(weight, [0], "picked by number")
    columns = tracer.axis(weight, 1)
    tracer.put(output, {output.ndim - 1: columns})


def recurrent(tracer: Tracer, output: Any, input: Tensor, *arguments: Any, **options: Any) -> None:
    """A recurrent layer's gates are stacked in its weights, and its state lives on between steps.

    Every step multiplies each of its matrices once: [G · H, I] and [G · H, H] of every layer and direction.
    """
    for tensor in tensors_in((input, arguments, options)):
        tracer.fix_tensor(tensor, "a recurrent layer")
    steps = input.numel() // input.shape[-1] // tracer.examples_in(input)
    for weight in tensors_in((arguments, options)):
        if tracer.is_parameter(weight) and weight.ndim == 2:  # a bias has one dimension
            tracer.contraction("recurrent", steps, weight, *weight.shape)


def _note_reader(tracer: Tracer, weight: Tensor, inputs: AxisLabels, slices: AxisLabels) -> None:
    """Zero slices silence a channel only where the parameter itself is the weight: not in w + b, or sigmoid(w)."""
    if _is_weight(tracer, weight) and slices.zero:
        tracer.reads(slices)
    else:
        tracer.sums(inputs)


def _is_weight(tracer: Tracer, tensor: Tensor) -> bool:
    """Return whether a factor is a parameter as it is, or transposed: the other one then is the activation."""
    return tracer.is_parameter(tensor) or (tensor._base is not None and tracer.is_parameter(tensor._base))


def _images(tracer: Tracer, tensor: Tensor, channel_axis: int) -> int:
    """Return how many images of the convolution one example stands for: more than one for frames of a video, say."""
    return max(tensor.shape[0] // tracer.examples_in(tensor), 1) if channel_axis else 1


def _count(
    tracer: Tracer,
    op: str,
    output: Tensor,
    factors: list[Tensor],
    inner: AxisLabels | int,
    axes: TensorLabels,
    *more: AxisLabels | int,
    positions: int | None = None,
) -> None:
    """Count output positions × positions summed over, for one example; ``axes`` are the output's labelled ones.

    Either factor may be the weight; where both are activations their labels are those of weights anyway.
    """
    positions = output.numel() if positions is None else positions
    constant = positions // tracer.examples_in(output) // prod(len(side) for side in axes.values())
    for factor in factors:
        tracer.weights += [side.labels for side in tracer.known_axes(factor).values()]
    tracer.contraction(op, max(constant, 1), output, inner, *more, *axes.values())


def _fix_unless_groups_can_shrink(tracer: Tracer, weight: Tensor, channels: AxisLabels) -> None:
    owner = tracer.module
    if not (isinstance(owner, nn.modules.conv._ConvNd) and owner.weight is weight):
        tracer.fix(channels, "a depthwise convolution whose `groups` no module holds")


def _finish(
    tracer: Tracer,
    output: Tensor,
    input: Tensor,
    channel_axis: int,
    weight: Tensor,
    bias: Tensor | None,
    outputs: AxisLabels,
) -> None:
    tracer.fix_later(weight, range(2, weight.ndim), KERNEL)
    for axis in range(channel_axis + 1, input.ndim):
        if axis in tracer.known_axes(input):
            tracer.fix(tracer.axis(input, axis), KERNEL)
    for axis in range(channel_axis):
        if axis in tracer.known_axes(input):
            tracer.fix(tracer.axis(input, axis), "channels folded into the batch of a convolution")
    tracer.put(output, {channel_axis: _with_bias(tracer, outputs, bias)})


def _with_bias(tracer: Tracer, outputs: AxisLabels, bias: Tensor | None) -> AxisLabels:
    """Return the output's channels: zero where the filter is, and the bias."""
    if bias is None:
        return outputs
    shift = tracer.axis(bias, 0)
    tracer.unite(outputs, shift)
    return AxisLabels(outputs.labels, 0.0 if outputs.zero and shift.zero else None)


def _fix_unless_silent(tracer: Tracer, inputs: AxisLabels, slices: AxisLabels) -> None:
    """A term of a sum is zero only if one factor is; a weight that was computed (a sigmoid of it) may not be."""
    if not (inputs.zero or slices.zero):
        tracer.fix(inputs, "a product of two tensors neither of which is zero on a zeroed channel")


RULES = {
    **named("conv1d conv2d conv3d", convolution),
    **named("conv_transpose1d conv_transpose2d conv_transpose3d", transposed_convolution),
    **named("linear", linear),
    **named("matmul bmm mm mv dot __matmul__", matrix_product),
    **named("addmm addmv baddbmm", sum_and_product),
    **named("einsum", einsum),
    **named("scaled_dot_product_attention", attention),
    **named("multi_head_attention_forward", multi_head_attention),
    **named("embedding", embedding),
    **named("lstm gru rnn_tanh rnn_relu", recurrent),
    **named("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", recurrent),
}
# They count MACs also where no channel can go.
COUNTED = frozenset(function for function, rule in RULES.items() if rule is not embedding)
