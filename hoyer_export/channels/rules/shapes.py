"""Questions about a tensor: its sizes remember where they came from, its type and place say nothing of channels."""

from typing import Any

import torch
from torch import Tensor

from hoyer_export.channels.rules.names import getters, named
from hoyer_export.channels.sizes import AxisSize, Size, sourced_shape
from hoyer_export.channels.tracer import AxisLabels, Rule, TensorLabels, Tracer


def shape(tracer: Tracer, output: torch.Size, input: Tensor) -> torch.Size:
    """``x.shape``."""
    return torch.Size(sourced_shape(tracer, input))


def size(tracer: Tracer, output: torch.Size | int, input: Tensor, dim: int | None = None) -> torch.Size | int:
    """``x.size()`` and ``x.size(1)``."""
    sizes = sourced_shape(tracer, input)
    return torch.Size(sizes) if dim is None else sizes[dim]


def numel(tracer: Tracer, output: int, input: Tensor) -> int:
    """``x.numel()``: the product of the sizes."""
    product = 1
    for length in sorted(sourced_shape(tracer, input), key=lambda length: isinstance(length, Size)):
        product = product * length
    return product


def length(tracer: Tracer, output: int, input: Tensor) -> int:
    """``len(x)``: Python insists on a plain int, so nobody can see what is done with it."""
    for first in sourced_shape(tracer, input)[:1]:
        if isinstance(first, Size):
            first.lose("`len` of a tensor along its channels")
    return output


def filled(rest: float | None) -> Rule:
    """Return the rule of a new tensor as large as another one's axes, of one number or unknown ones: it shrinks too."""

    def rule(tracer: Tracer, output: Tensor, *arguments: Any, **options: Any) -> None:
        wanted = options.get("size", next((a for a in arguments if isinstance(a, tuple | list)), None))
        if wanted is None:
            wanted = [a for a in arguments if isinstance(a, int)]
        axes: TensorLabels = {}
        for axis, length in enumerate(wanted):
            if isinstance(length, AxisSize) and length.times == length.over == 1:
                axes[axis] = AxisLabels(length.source.labels, rest)
                length.tie(axes[axis])
        tracer.put(output, axes)

    return rule


def nothing(tracer: Tracer, output: object, *arguments: object, **named_arguments: object) -> None:
    """The type, device or number of axes: the same before and after a cut."""


RULES = {
    **getters("shape", shape),
    **named("size", size),
    **named("numel nelement", numel),
    Tensor.__len__: length,
    **named("dim is_floating_point is_complex is_contiguous get_device stride element_size ndimension", nothing),
    **getters(
        "dtype device layout ndim is_cuda is_cpu is_meta is_sparse is_quantized requires_grad is_mkldnn", nothing
    ),
    **getters("is_mps is_xla is_xpu is_leaf grad_fn is_nested", nothing),
}
_FILLED = {
    **named("zeros new_zeros", filled(0.0), in_place=False),
    **named("ones new_ones", filled(1.0), in_place=False),
    **named("empty rand randn new_empty full new_full", filled(None), in_place=False),
}
RULES |= _FILLED
TAKES_SIZES = frozenset(_FILLED)
READS_SHAPE = frozenset(
    {Tensor.to, Tensor.type_as, *named("new_zeros new_ones new_empty new_full new_tensor", nothing, in_place=False)}
)
