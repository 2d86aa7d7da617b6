"""Convolutions, linear layers and matrix products: Σ over channels of (consumer slice · activation).

They unite the channels of the input with the weight's input slices and hand on the weight's output channels. A
removed channel leaves no trace, because its consumer slice is zero and its activation finite.
"""

from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn

from hoyer_export.channels.rules.names import named
from hoyer_export.channels.rules.pointwise import meet
from hoyer_export.channels.tracer import AxisLabels, TensorLabels, Tracer

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
        tracer.reads(slices)
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
        tracer.reads(slices)
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
        tracer.reads(slices)
    if groups == 1:
        outputs = tracer.axis(weight, 1)
        tracer.contraction("transposed convolution", constant, weight, slices, outputs)
    elif len(slices) == groups:  # depthwise: input i alone makes outputs i · multiplier ...
        outputs = AxisLabels(slices.labels.repeat(weight.shape[1]), slices.zero)
        _fix_unless_groups_can_shrink(tracer, weight, slices)
        tracer.contraction("transposed convolution", constant, weight, slices, weight.shape[1])
    else:
        tracer.tie_blocks(slices, groups)
        per_group = tracer.axis(weight, 1)
        outputs = AxisLabels(np.tile(per_group.labels, groups), per_group.zero)
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
    tracer.reads(slices)
    axes = {axis: side for axis, side in tracer.axes(input).items() if axis != input.ndim - 1}
    constant = output.numel() // tracer.batch_size // len(outputs) // prod(len(side) for side in axes.values())
    tracer.contraction("linear", constant, weight, outputs, slices, *axes.values())
    others = {axis: AxisLabels(side.labels, zero=False) for axis, side in axes.items()}
    tracer.put(output, {**others, output.ndim - 1: _with_bias(tracer, outputs, bias)})


def matrix_product(tracer: Tracer, output: Tensor, input: Tensor, other: Tensor, **options: Any) -> None:
    """[..., n, k] · [..., k, m]: unites the k of both sides; n and m pass on, and so do matching batch axes."""
    if input.ndim < 2 or other.ndim < 2:
        tracer.fix_tensor(input, "a matrix product with a vector")
        tracer.fix_tensor(other, "a matrix product with a vector")
        return
    left, right = tracer.axes(input), tracer.axes(other)
    n, m = input.ndim - 2, other.ndim - 1
    axes: TensorLabels = {}
    if n in left:
        axes[output.ndim - 2] = left[n]
    if m in right:
        axes[output.ndim - 1] = right[m]
    for axis in range(output.ndim - 2):
        if sides := meet(tracer, [input, other], output, axis):
            axes[axis] = AxisLabels(sides[0].labels, any(side.zero for side in sides))
    inner: AxisLabels | int = input.shape[-1]
    if input.ndim - 1 in left or other.ndim - 2 in right:
        inner, theirs = tracer.axis(input, -1), tracer.axis(other, -2)
        tracer.unite(inner, theirs)
        _fix_unless_silent(tracer, inner, theirs)
        if _is_weight(tracer, input):
            tracer.reads(inner)
        elif _is_weight(tracer, other):
            tracer.reads(theirs)
        else:
            tracer.sums(inner)
    fixed = output.numel() // tracer.batch_size // prod(len(side) for side in axes.values())
    # Either side may be the weight; where both are activations their labels are those of weights anyway.
    tracer.contraction("matmul", max(fixed, 1), other, inner, *axes.values())
    tracer.weights += [side.labels for side in tracer.known_axes(input).values()]
    tracer.put(output, axes)


def _is_weight(tracer: Tracer, tensor: Tensor) -> bool:
    """Return whether a factor is a parameter as it is, or transposed: the other one then is the activation."""
    return tracer.is_parameter(tensor) or (tensor._base is not None and tracer.is_parameter(tensor._base))


def _images(tracer: Tracer, tensor: Tensor, channel_axis: int) -> int:
    """Return how many images of the convolution one example stands for: more than one for frames of a video, say."""
    return max(tensor.shape[0] // tracer.batch_size, 1) if channel_axis else 1


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
    return AxisLabels(outputs.labels, outputs.zero and shift.zero)


def _fix_unless_silent(tracer: Tracer, inputs: AxisLabels, slices: AxisLabels) -> None:
    """A term of a sum is zero only if one factor is; a weight that was computed (a sigmoid of it) may not be."""
    if not (inputs.zero or slices.zero):
        tracer.fix(inputs, "a product of two tensors neither of which is zero on a zeroed channel")


RULES = {
    **named("conv1d conv2d conv3d", convolution),
    **named("conv_transpose1d conv_transpose2d conv_transpose3d", transposed_convolution),
    **named("linear", linear),
    **named("matmul bmm mm __matmul__", matrix_product),
}
