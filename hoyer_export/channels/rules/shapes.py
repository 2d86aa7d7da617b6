"""Questions about a tensor, and new tensors of its size: its sizes remember where they came from."""

from typing import Any

import torch
from torch import Tensor

from hoyer_export.channels.labels import Tracer
from hoyer_export.channels.rule import rule
from hoyer_export.channels.rules.reshaping import axis_of_length
from hoyer_export.channels.sizes import AxisSize, Size, sourced_shape


@rule("shape", spaces=(Tensor,), asks=True)
def shape(tracer: Tracer, output: torch.Size, input: Tensor) -> torch.Size:
    """``x.shape``."""
    return torch.Size(sourced_shape(tracer, input))


@rule("size", asks=True)
def size(tracer: Tracer, output: torch.Size | int, input: Tensor, dim: int | None = None) -> torch.Size | int:
    """``x.size()`` and ``x.size(1)``."""
    sizes = sourced_shape(tracer, input)
    return torch.Size(sizes) if dim is None else sizes[dim]


@rule("numel nelement")
def numel(tracer: Tracer, output: int, input: Tensor) -> int:
    """``x.numel()``: the product of the sizes."""
    product = 1
    for length in sorted(sourced_shape(tracer, input), key=lambda length: isinstance(length, Size)):
        product = product * length
    return product


@rule("__len__", spaces=(Tensor,))
def length(tracer: Tracer, output: int, input: Tensor) -> int:
    """``len(x)``: Python insists on a plain int, so nobody can see what is done with it."""
    for first in sourced_shape(tracer, input)[:1]:
        if isinstance(first, Size):
            first.fix("`len` of a tensor along its channels")
    return output


@rule(
    "dim is_floating_point is_complex is_contiguous get_device stride element_size ndimension dtype device layout ndim"
    " is_cuda is_cpu is_meta is_sparse is_quantized requires_grad is_mkldnn is_mps is_xla is_xpu is_leaf grad_fn"
    " is_nested",
    in_place=False, keeps_spread=True, asks=True,
)  # fmt: skip
def nothing(tracer: Tracer, output: object, *_: object, **__: object) -> None:
    """The type, device or number of axes: the same before and after a cut."""


@rule(
    "zeros new_zeros ones new_ones empty new_empty full new_full rand randn",
    in_place=False, takes_sizes=True, reads_shape=True, makes_rows=True,
)  # fmt: skip
def filled(tracer: Tracer, output: Tensor, *arguments: Any, **options: Any) -> None:
    """A new tensor as large as another one's axes shrinks with them."""
    wanted = options.get("size", next((a for a in arguments if isinstance(a, tuple | list)), None))
    if wanted is None:
        wanted = [a for a in arguments if isinstance(a, int)]
    rest = {"zeros": 0.0, "ones": 1.0}.get(tracer.operation.__name__.removeprefix("new_"))
    axes = ((axis, length) for axis, length in enumerate(wanted) if isinstance(length, AxisSize))
    sides = ((axis, axis_of_length(length, rest)) for axis, length in axes)
    tracer.put(output, {axis: side for axis, side in sides if side is not None})
