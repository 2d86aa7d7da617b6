"""What convolutions and linear layers meet while a network runs on the example inputs and on noise, in float64.

For every input channel of a layer: is it one constant, at all positions, in all examples and inputs?
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hoyer_export.surgery.proof import ExampleInputs, proof_cases, run

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# A constant that went through sums of different lengths (pooling at a border) differs in its last bits.
_ROUNDING = 1e-12

_LOUD = 1e6
"""Of the noise: what sleeps behind a large shift is no constant, and wakes up."""


@dataclass(frozen=True)
class Met:
    """What one layer met.

    Args:
        low: the least value of each of its input channels, float64 [I].
        high: the largest.
        norm: the batch norm that takes this layer's output, and nothing else, as it is; None if there is none.
    """

    low: Tensor
    high: Tensor
    norm: str | None = None

    @property
    def constant(self) -> Tensor:
        """c of each input channel, [I]; not a number where it varies."""
        is_constant = self.high - self.low <= _ROUNDING * torch.maximum(self.high.abs(), self.low.abs())
        return torch.where(is_constant, self.low, torch.nan)


def observe(model: nn.Module, example_inputs: ExampleInputs) -> Mapping[str, Met]:
    """Run a float64 network in eval mode and return what its convolutions and linear layers met, by name.

    Layers of other classes, derived ones too, are left out: what they do with their weight is their own affair.
    """
    met: dict[str, Met] = {}
    outputs: dict[str, Tensor] = {}
    sources: dict[str, set[str | None]] = {}  # batch norm → the layers whose outputs it took

    def after_layer(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        values = args[0].movedim(_channel_axis(module, args[0]), 0).flatten(1)  # [I, everything else]
        low, high = values.amin(1), values.amax(1)
        if name in met:
            low, high = torch.minimum(low, met[name].low), torch.maximum(high, met[name].high)
        met[name] = Met(low, high)
        outputs[name] = output

    def before_norm(name: str, args: Any) -> None:
        found = (layer for layer, output in outputs.items() if args and output is args[0])
        sources.setdefault(name, set()).add(next(found, None))

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if type(module) in (nn.Linear, *CONVOLUTIONS, *TRANSPOSED):
                layer = module.register_forward_hook(lambda m, args, out, name=name: after_layer(name, m, args, out))
                hooks.callback(layer.remove)
            elif type(module) in _NORMS and module.running_mean is not None:
                norm = module.register_forward_pre_hook(lambda m, args, name=name: before_norm(name, args))
                hooks.callback(norm.remove)
        real, noise, together = proof_cases(example_inputs)  # noise is in both that follow
        loud = tuple(_LOUD * x if x.is_floating_point() else x for x in noise)
        for case in (real, together, loud):
            outputs.clear()
            try:
                run(model, case)
            except Exception:  # the proof, which comes later, tells what does not run
                continue
    for norm_name, layers in sources.items():
        (first, *others) = layers
        if first is not None and not others:
            # A layer whose output goes to two norms has to keep its constant for both.
            met[first] = replace(met[first], norm=None if met[first].norm else norm_name)
    return met


def _channel_axis(module: nn.Module, x: Tensor) -> int:
    return -1 if isinstance(module, nn.Linear) else x.ndim - module.get_parameter("weight").ndim + 1
