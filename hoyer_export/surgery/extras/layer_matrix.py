"""A convolution or linear layer as a matrix: its weight [G, O / G, I / G · kernel] times patches of its input.

Any dimension, stride, padding and dilation, groups, and transposed ones. Patches are made only for the outputs that
are asked for.
"""

from typing import Any

import torch
from torch import Tensor

from hoyer_export.channels.reading import LayerCall
from hoyer_export.surgery.plan import PruningPlan


def matrix(call: LayerCall) -> Tensor:
    """Return the weight as [G, O / G, I / G · kernel], float64."""
    weight = torch.unflatten(call.weight.detach().double(), 0, (call.groups, -1))
    return (weight.transpose(1, 2) if call.transposed else weight).flatten(2)


def set_matrix_(call: LayerCall, matrix: Tensor) -> None:
    """Write the weight from [G, O / G, I / G · kernel]."""
    inputs = call.weight.shape[0] // call.groups if call.transposed else call.weight.shape[1]
    weight = torch.unflatten(matrix, 2, (inputs, *call.weight.shape[2:]))
    call.weight.data.copy_((weight.transpose(1, 2) if call.transposed else weight).flatten(0, 1))


def patches(call: LayerCall, x: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return what some outputs of the layer read.

    Args:
        call: the layer.
        x: inputs [N, I, *S].
        places: which outputs, flat int64 [N, P].
        shape: of all outputs, without N and O.

    Returns:
        [N · P, G, I / G · kernel].
    """
    dims = len(shape)
    sizes, kernel = x.shape[2:], call.weight.shape[2:] or (1,)
    stride, dilation, padding = (_each(v, dims) for v in (call.stride, call.dilation, call.padding))
    if padding[0] in ("same", "valid"):
        same = padding[0] == "same"
        padding = tuple(d * (k - 1) // 2 * same for d, k in zip(dilation, kernel, strict=True))
    index = places.new_zeros(*places.shape, 1)
    inside = torch.ones_like(index, dtype=torch.bool)
    for dim, where in enumerate(torch.unravel_index(places, shape)):
        taps = torch.arange(kernel[dim], device=x.device) * dilation[dim]
        if call.transposed:
            at = where[..., None] + padding[dim] - taps
            valid, at = at % stride[dim] == 0, at.div(stride[dim], rounding_mode="floor")
        else:
            at = where[..., None] * stride[dim] - padding[dim] + taps
            valid = torch.ones_like(at, dtype=torch.bool)
        valid &= (at >= 0) & (at < sizes[dim])
        index = (index[..., None] * sizes[dim] + at.clamp(0, sizes[dim] - 1)[:, :, None]).flatten(2)
        inside = (inside[..., None] & valid[:, :, None]).flatten(2)
    read = at_places(x, index.flatten(1)).view(len(x), -1, *index.shape[1:]) * inside[:, None]  # [N, I, P, kernel]
    return read.transpose(1, 2).reshape(places.numel(), call.groups, -1)


def _each(value: Any, dims: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, tuple | list | torch.Size) else (value,)
    return values * dims if len(values) == 1 else values


def at_places(x: Tensor, places: Tensor) -> Tensor:
    """Return [N, C, P]: [N, C, *S] at the flat places [N, P]."""
    return x.flatten(2).gather(2, places[:, None].expand(-1, x.shape[1], -1))


def kept_rows(call: LayerCall, plan: PruningPlan, name: str, outputs: int) -> Tensor:
    """Return which of the dense layer's ``outputs`` the slim one has."""
    kept = plan.kept.get(name, {})
    if not call.transposed:
        return kept.get(0, torch.arange(outputs))
    slices, inputs = call.weight.shape[1], plan.shapes.get(name, call.weight.shape)
    groups = outputs // (inputs[1] if kept else slices)
    per_group = kept.get(1, torch.arange(outputs // groups))
    stay = torch.unique(kept.get(0, torch.arange(inputs[0])) // (inputs[0] // groups))  # whole groups may be gone
    return torch.flatten(stay[:, None] * (outputs // groups) + per_group)
