"""Convolutions, linear and recurrent layers: Σ over channels of (reader slice · activation).

They unite the channels of the input with the weight's input slices and hand on the weight's output channels. A
removed channel leaves no trace, because its reader slice is zero and its activation finite.
"""

from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn

from hoyer_export.channels.labels import AxisLabels, Tracer
from hoyer_export.channels.rule import rule
from hoyer_export.channels.sizes import Size, plain
from hoyer_export.tensors import tensors_in

KERNEL = "positions that a convolution slides over"


@rule("conv1d conv2d conv3d", counts=True, takes_sizes=True)
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
    inputs, outputs = tracer.axis(input, _channel_axis(input, weight)), tracer.axis(weight, 0)
    constant = _positions(tracer, output, weight)
    if plain(groups) > 1 and weight.shape[1] == 1:  # depthwise: filter o reads input o // multiplier alone
        tracer.unite(inputs.repeated(len(outputs) // len(inputs)), outputs)
        _shrink_groups(tracer, weight, groups, inputs)
        tracer.contraction("convolution", constant, weight, outputs)
        outputs = outputs.resting(0.0 if inputs.zero or outputs.zero else None)
    else:  # every group must keep the same number of inputs and of outputs
        slices = tracer.axis(weight, 1)
        tracer.unite(tracer.unite_blocks(inputs, plain(groups)), slices)
        tracer.unite_blocks(outputs, plain(groups))
        fix_unless_silent(tracer, inputs, slices)
        _note_reader(tracer, weight, inputs, slices)
        tracer.contraction("convolution", constant, weight, outputs, slices)
    _finish(tracer, output, input, weight, bias, outputs)


@rule("conv_transpose1d conv_transpose2d conv_transpose3d", counts=True, takes_sizes=True)
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
    channel_axis = _channel_axis(input, weight)
    inputs, slices = tracer.axis(input, channel_axis), tracer.axis(weight, 0)
    constant = _positions(tracer, input, weight)
    tracer.unite(inputs, slices)
    fix_unless_silent(tracer, inputs, slices)
    per_group: AxisLabels | int
    if plain(groups) > 1 and len(slices) == plain(groups):  # depthwise: input i alone makes outputs i · multiplier ...
        outputs, per_group = slices.repeated(weight.shape[1]), weight.shape[1]
        _shrink_groups(tracer, weight, groups, slices)  # a filter is a channel's own, it reads and writes it
    else:
        _note_reader(tracer, weight, inputs, slices)
        tracer.unite_blocks(slices, plain(groups))
        per_group = tracer.axis(weight, 1)
        outputs = per_group[np.tile(np.arange(len(per_group)), plain(groups))]
    tracer.contraction("transposed convolution", constant, weight, slices, per_group)
    _finish(tracer, output, input, weight, bias, outputs)


@rule("torchvision::deform_conv2d", counts=True)
def deformable_convolution(
    tracer: Tracer,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    *more: Any,
) -> None:
    """A convolution that samples its input at computed positions, each block of channels at its own."""
    groups, offset_groups = more[6:8]
    for places in (offset, mask):
        tracer.fix(places, "positions to sample at")
    tracer.unite_blocks(tracer.axis(input, 1), offset_groups)
    convolution.function(tracer, output, input, weight, bias, groups=groups)


def _finish(
    tracer: Tracer, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, outputs: AxisLabels
) -> None:
    channel_axis = _channel_axis(input, weight)
    tracer.fix(weight, KERNEL, dims=range(2, weight.ndim))
    tracer.fix(input, KERNEL, dims=range(channel_axis + 1, input.ndim))
    tracer.fix(input, "channels folded into the batch of a convolution", dims=range(channel_axis))
    tracer.put(output, {channel_axis: with_bias(tracer, outputs, bias)})


@rule("linear", counts=True)
def linear(tracer: Tracer, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """y = x Wᵀ + b over the last axis, weight [O, I]."""
    if weight.ndim == 1:
        for tensor in (input, weight):
            tracer.fix(tensor, "a linear layer whose weight is a vector")
        return
    outputs, slices, inputs = tracer.axis(weight, 0), tracer.axis(weight, 1), tracer.axis(input, -1)
    tracer.unite(inputs, slices)
    fix_unless_silent(tracer, inputs, slices)
    _note_reader(tracer, weight, inputs, slices)
    axes = {axis: side for axis, side in tracer.axes(input).items() if axis != input.ndim - 1}
    constant = output.numel() // tracer.examples_in(output) // len(outputs) // prod(len(side) for side in axes.values())
    tracer.contraction("linear", constant, weight, outputs, slices, *axes.values())
    others = {axis: side.resting(0.0 if side.zero and bias is None else None) for axis, side in axes.items()}
    tracer.put(output, {**others, output.ndim - 1: with_bias(tracer, outputs, bias)})


@rule("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", counts=True)
def recurrent(tracer: Tracer, output: Any, input: Tensor, *arguments: Any, **options: Any) -> None:
    """What a recurrent layer reads can go; its gates are stacked in its weights, and its state lives on between steps.

    Every step multiplies each of its matrices once: [G · H, I] and [G · H, H] of every layer and direction.
    """
    of_first = {"weight_ih", "weight_ih_l0", "weight_ih_l0_reverse"}
    reading = [weight for name, weight in tracer.modules[-1][1].named_parameters(recurse=False) if name in of_first]
    inputs = tracer.axis(input, -1)
    tracer.fix(input, "a recurrent layer", dims=range(input.ndim - bool(reading)))
    steps = input.numel() // input.shape[-1] // tracer.examples_in(input)
    for weight in tensors_in((arguments, options)):
        is_reader = any(weight is other for other in reading)
        if is_reader:
            slices = tracer.axis(weight, 1)
            tracer.unite(inputs, slices)
            fix_unless_silent(tracer, inputs, slices)
            tracer.reads(slices)
        tracer.fix(weight, "a recurrent layer", dims=range(weight.ndim - is_reader))
        if tracer.is_parameter(weight) and weight.ndim == 2:  # a bias has one dimension
            tracer.contraction("recurrent", steps, weight, weight.shape[0], slices if is_reader else weight.shape[1])


def fix_unless_silent(tracer: Tracer, inputs: AxisLabels, slices: AxisLabels) -> None:
    """A term of a sum is zero only if one factor is; a weight that was computed (a sigmoid of it) may not be."""
    if not (inputs.zero or slices.zero):
        tracer.fix(inputs, "a product of two tensors neither of which is zero on a zeroed channel")


def is_weight(tracer: Tracer, tensor: Tensor) -> bool:
    """Return whether a factor is a parameter as it is, or transposed: the other one then is the activation."""
    return tracer.is_parameter(tensor) or (tensor._base is not None and tracer.is_parameter(tensor._base))


def _note_reader(tracer: Tracer, weight: Tensor, inputs: AxisLabels, slices: AxisLabels) -> None:
    """Zero slices silence a channel only where the parameter itself is the weight: not in w + b, or sigmoid(w)."""
    if is_weight(tracer, weight) and slices.zero:
        tracer.reads(slices)
    else:
        tracer.sums(inputs)


def with_bias(tracer: Tracer, outputs: AxisLabels, bias: Tensor | None) -> AxisLabels:
    """Return the output's channels: zero where the filter is, and the bias."""
    if bias is None:
        return outputs
    shift = tracer.axis(bias, 0)
    return tracer.unite(outputs, shift).resting(0.0 if outputs.zero and shift.zero else None)


def _channel_axis(input: Tensor, weight: Tensor) -> int:
    return input.ndim - weight.ndim + 1  # 0 without a batch


def _positions(tracer: Tracer, tensor: Tensor, weight: Tensor) -> int:
    """Return positions × kernel positions of one example; it may be several images: frames of a video, say."""
    axis = _channel_axis(tensor, weight)
    images = max(tensor.shape[0] // tracer.examples_in(tensor), 1) if axis else 1
    return images * prod(tensor.shape[axis + 1 :]) * prod(weight.shape[2:])


def _shrink_groups(tracer: Tracer, weight: Tensor, groups: int, channels: AxisLabels) -> None:
    """Let the number of groups of a depthwise convolution follow its channels, or fix them where it cannot."""
    owner = tracer.modules[-1][1]
    if isinstance(groups, Size):
        groups.tie(channels)
    elif not (isinstance(owner, nn.modules.conv._ConvNd) and owner.weight is weight):
        tracer.fix(channels, "a depthwise convolution with a literal number of `groups`")
