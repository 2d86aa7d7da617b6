"""What convolutions and linear layers read while a network runs on the example inputs and on noise, in float64.

For every input channel of a layer: is it one constant, at all positions, in all examples and inputs?
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.surgery.proof import proof_cases, run
from hoyer_export.tensors import TensorRecord

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# A constant that went through sums of different lengths (pooling at a border) differs in its last bits.
_ROUNDING = 1e-12

_LARGE = 1e6
"""Of the noise: what sleeps behind a large shift is no constant, and wakes up."""


@dataclass(frozen=True, eq=False, repr=False)
class InputRange(TensorRecord):
    """What one layer read.

    Args:
        low: the least value of each of its input channels, float64 [I].
        high: the largest.
        batch_norm: the one that takes this layer's output, and nothing else, as it is; None if there is none.
    """

    low: Tensor
    high: Tensor
    batch_norm: str | None = None

    @property
    def constant(self) -> Tensor:
        """c of each input channel, [I]; not a number where it varies."""
        is_constant = self.high - self.low <= _ROUNDING * torch.maximum(self.high.abs(), self.low.abs())
        return torch.where(is_constant, self.low, torch.nan)


def input_ranges(model: nn.Module, call: Call) -> Mapping[str, InputRange]:
    """Run a float64 network in eval mode and return what its convolutions and linear layers read, by name.

    Layers of other classes, derived ones too, are left out: what they do with their weight is their own affair.
    """
    ranges: dict[str, InputRange] = {}
    outputs: dict[str, Tensor] = {}
    sources: dict[str, set[str | None]] = {}  # batch norm → the layers whose outputs it took

    def after_layer(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        values = args[0].movedim(_channel_axis(module, args[0]), 0).flatten(1)  # [I, everything else]
        low, high = values.amin(1), values.amax(1)
        if name in ranges:
            low, high = torch.minimum(low, ranges[name].low), torch.maximum(high, ranges[name].high)
        ranges[name] = InputRange(low, high)
        outputs[name] = output

    def before_batch_norm(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        layers = (layer for layer, output in outputs.items() if args and output is args[0])
        sources.setdefault(name, set()).add(next(layers, None))

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if type(module) in _LAYERS:
                hooks.callback(module.register_forward_hook(partial(after_layer, name)).remove)
            elif type(module) in _BATCH_NORMS and module.running_mean is not None:
                hooks.callback(module.register_forward_pre_hook(partial(before_batch_norm, name)).remove)
        real, noise, together = proof_cases(call)  # noise is in both that follow
        large = noise.map(lambda x: _LARGE * x if x.is_floating_point() else x)
        for case in (real, together, large):
            outputs.clear()
            try:
                run(model, case)
            except Exception:  # the proof, which comes later, tells what does not run
                continue
    for batch_norm, layers in sources.items():
        (first, *others) = layers
        if first is not None and not others:
            # A layer whose output goes to two batch norms has to keep its constant for both.
            ranges[first] = replace(ranges[first], batch_norm=None if ranges[first].batch_norm else batch_norm)
    return ranges


def _channel_axis(module: nn.Module, x: Tensor) -> int:
    return -1 if isinstance(module, nn.Linear) else x.ndim - module.get_parameter("weight").ndim + 1
