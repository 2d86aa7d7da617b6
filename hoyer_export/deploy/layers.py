"""The convolutions and linear layers of a network, at any width, and each as an ONNX model of its own."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from hoyer_export.call import Call, ExampleInputs
from hoyer_export.modes import kept_modes

DEPTHWISE = 0
"""In the place of a number of groups: one a channel, at any width."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OPSET, _IR_VERSION = 18, 8
_NOISE = np.random.default_rng(0).standard_normal(2**16).astype(np.float32)


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer.

    Args:
        inputs: channels, or features, as they are.
        outputs: likewise.
        sizes: of its input without the channels: images, then height and width, or rows of a linear layer.
        kernel: of a convolution; () for a linear layer, as all that follows.
        strides: as ONNX has them.
        pads: as ONNX has them.
        dilations: as ONNX has them.
        groups: of a convolution; ``DEPTHWISE``.
    """

    inputs: int
    outputs: int
    sizes: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1

    def at(self, inputs: int, outputs: int) -> "Layer":
        """Return the layer at other widths."""
        return replace(self, inputs=inputs, outputs=outputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of what it reads."""
        return (self.sizes[0], self.inputs, *self.sizes[1:])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """As ONNX has it; a linear layer's is that of torch."""
        return (self.outputs, self.inputs // (self.groups or self.inputs), *self.kernel)

    @property
    def positions(self) -> tuple[int, ...]:
        """Height and width of what it writes."""
        dims = len(self.kernel)
        return tuple(
            (size + before + after - dilation * (side - 1) - 1) // stride + 1
            for size, before, after, dilation, side, stride in zip(
                self.sizes[1:],
                self.pads[:dims],
                self.pads[dims:],
                self.dilations,
                self.kernel,
                self.strides,
                strict=True,
            )
        )

    @property
    def macs(self) -> int:
        """Of a run."""
        return self.sizes[0] * prod(self.positions) * prod(self.weight_shape)

    def __str__(self) -> str:
        """Return e.g. ``64 → 128, 1×28×28, 3×3 kernel, stride 2``."""
        words = [f"{self.inputs:,} → {self.outputs:,}", _by(self.sizes) if self.kernel else f"{self.sizes[0]} rows"]
        if self.kernel:
            words.append(f"{_by(self.kernel)} kernel")
        for name, values in (("stride", self.strides), ("dilation", self.dilations)):
            words += [f"{name} {_by(values)}"] if set(values) - {1} else []
        if set(self.pads) != {(side - 1) // 2 for side in self.kernel}:
            words += [f"pads {_by(self.pads)}"] if self.kernel else []
        if self.groups != 1:
            words.append("depthwise" if self.groups == DEPTHWISE else f"{self.groups} groups")
        return ", ".join(words)


def _by(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))


def layers_of(model: nn.Module, inputs: ExampleInputs, *, batch_size: int = 1) -> dict[str, tuple[Layer, ...]]:
    """Run a network once and return its layers: module → one for each time that it is called.

    Args:
        model: the network; a module that is neither a convolution nor linear is none.
        inputs: an example of what it takes.
        batch_size: examples in the run that is meant.
    """
    call = Call.of(model, inputs)
    found: dict[str, list[Layer]] = defaultdict(list)

    def note(name: str, module: nn.Module, taken: tuple[Any, ...]) -> None:
        if taken and isinstance(taken[0], Tensor):
            layer = _layer(module, taken[0], call.batch_size, batch_size)
            if min(layer.positions, default=1) > 0:  # else the module pads before it convolves
                found[name].append(layer)

    with kept_modes(model), torch.no_grad(), _hooked(model, note):
        call.on(model.eval())
    return {name: tuple(layers) for name, layers in found.items()}


@contextmanager
def _hooked(model: nn.Module, note: Any) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(lambda module, taken, name=name: note(name, module, taken))
        for name, module in model.named_modules()
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer(module: nn.Module, taken: Tensor, examples: int, batch_size: int) -> Layer:
    if isinstance(module, nn.Linear):
        rows = taken.numel() // module.in_features * batch_size // examples
        return Layer(module.in_features, module.out_features, (max(rows, 1),))
    assert isinstance(module, _CONVOLUTIONS)
    dims = len(module.kernel_size)
    batched = taken if taken.ndim == dims + 2 else taken[None]
    around = module._reversed_padding_repeated_twice  # last size first, before and after; also where it is "same"
    pads = (*reversed(around[::2]), *reversed(around[1::2]))
    depthwise = module.groups > 1 and module.groups == module.in_channels == module.out_channels
    return Layer(
        module.in_channels,
        module.out_channels,
        (max(batched.shape[0] * batch_size // examples, 1), *batched.shape[2:]),
        module.kernel_size,
        module.stride,
        pads,
        module.dilation,
        DEPTHWISE if depthwise else module.groups,
    )


def model_of(layer: Layer, copies: int) -> bytes:
    """Return an ONNX model of copies of a layer side by side, each with weights of its own; of none: what is around.

    Around them stands what a network would have there at hardly any time: a convolution behind each that reads a
    single position, so that a runtime with a layout of its own need not turn it back.
    """
    nodes, tensors, outputs = [], [], []
    for number in range(max(copies, 1)):
        read, width = "images", layer.inputs
        positions = layer.sizes[1:]
        if copies:
            tensors.append(_noise(f"weight{number}", layer.weight_shape, number))
            tensors.append(_noise(f"bias{number}", (layer.outputs,), number))
            nodes.append(_node(layer, read, number))
            read, width, positions = f"wide{number}", layer.outputs, layer.positions
        if layer.kernel:
            ones = [1] * len(layer.kernel)
            tensors.append(_noise(f"glance{number}", (16, width, *ones), number))
            names, seen = [read, f"glance{number}"], f"seen{number}"
            nodes.append(helper.make_node("Conv", names, [seen], kernel_shape=ones, strides=[*positions]))
            read = seen
        outputs.append(helper.make_tensor_value_info(read, TensorProto.FLOAT, None))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, layer.input_shape)
    graph = helper.make_graph(nodes, "layer", [images], outputs, tensors)
    opsets = [helper.make_opsetid("", _OPSET)]
    found: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString()
    return found


def _node(layer: Layer, read: str, number: int) -> onnx.NodeProto:
    names = [read, f"weight{number}", f"bias{number}"]
    if not layer.kernel:
        return helper.make_node("Gemm", names, [f"wide{number}"], transB=1)
    return helper.make_node(
        "Conv",
        names,
        [f"wide{number}"],
        kernel_shape=layer.kernel,
        strides=layer.strides,
        pads=layer.pads,
        dilations=layer.dilations,
        group=layer.groups or layer.inputs,
    )


def noise(shape: tuple[int, ...], start: int = 0) -> NDArray[np.float32]:
    """Return numbers of variance 1, in next to no time."""
    return np.resize(np.roll(_NOISE, start), shape)


def _noise(name: str, shape: tuple[int, ...], start: int) -> TensorProto:
    return numpy_helper.from_array(noise(shape, start), name)
