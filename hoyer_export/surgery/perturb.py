"""Weights that no removal can hide behind.

In an untrained network a head may start at zero, every γ is 1 and every β is 0: there every removal looks exact.
"""

from contextlib import suppress

import torch
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.surgery.proof import in_float64, proof_cases, run


def perturbed(model: nn.Module, call: Call, generator: torch.Generator, size: float = 1.0) -> nn.Module:
    """Return a perturbed copy in float64 whose batch norms measured their statistics; arguments as for ``perturb_``."""
    model = in_float64(model)
    perturb_(model, generator, size, call)
    return model


def perturb_(
    model: nn.Module,
    generator: torch.Generator,
    size: float = 1.0,
    call: Call | None = None,
    *,
    either_sign: bool = False,
) -> None:
    """Change weights in place so that every channel counts: nothing is zero, and no signal dies on its way.

    Args:
        model: any network.
        generator: of the numbers that are drawn, on the CPU.
        size: of the numbers: what is added to a vector or a constant is from 0.2 to 0.7 of it.
        call: what it is called with; its batch norms measure their statistics on them and on noise first.
        either_sign: half of what is added is taken away instead: shifts that all add up cost float32 its last digits.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and _is_constant(parameter):
                shift = _noise(parameter, generator).mul_(0.5).add_(0.2).mul_(size)
                if either_sign:
                    shift.mul_(_noise(parameter, generator).round_().mul_(2).sub_(1))
                parameter.add_(shift)
        if call is not None:
            _measure_statistics_(model, call)
        buffers = dict(model.named_buffers())
        for name, variance in buffers.items():
            if name.endswith("running_var"):
                variance.mul_(_noise(variance, generator).mul_(0.5).add_(1))
                mean = buffers.get(f"{name.removesuffix('var')}mean", variance)
                mean.add_(_noise(mean, generator).mul_(0.5) * variance.sqrt())


def _is_constant(parameter: Tensor) -> bool:
    """Vectors (a bias near zero, a γ near one) and whatever is constant hold nothing of the network's own yet."""
    numbers = parameter.flatten()
    return parameter.ndim < 2 or bool((numbers == numbers[:1]).all())


def _measure_statistics_(model: nn.Module, call: Call) -> None:
    """Let batch norms take their running statistics from one run in training mode.

    With the initial ones (0, 1) the signal of many an untrained network is 10⁻⁸ of its output after ten blocks, and
    whatever is cut there changes nothing.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.momentum = 1.0
    *_, together = proof_cases(call)
    with suppress(Exception):  # code that cannot train has no statistics to measure
        run(model.train(), together)
    model.eval()


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return numbers from 0 to 1; drawn on the CPU, so that they are the same on every device."""
    return torch.rand(like.shape, generator=generator).to(like)
