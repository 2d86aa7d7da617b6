"""Tensors inside other things: found in an argument or a result, named in a model, compared in a record."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that have no float64: what needs it is done on the CPU, or in float32."""

_SCALARS = (Tensor, int, float, complex, str, bytes, type(None))
_SEQUENCES = (tuple, list, set, frozenset, deque)


def named_leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is in nested containers: mappings, dataclasses, sequences, sets, and what torch's pytree knows.

    Each has a name made of keys, fields and positions on the way to it, e.g. ``boxes_0``; "" for ``value`` itself.
    """
    if isinstance(value, _SCALARS):
        yield name, value
        return
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, _SEQUENCES):
        items = zip(getattr(value, "_fields", count()), value, strict=False)
    elif is_dataclass(value) and not isinstance(value, type):
        items = vars(value).items()
    else:
        leaves = tree_leaves(value)
        if len(leaves) == 1 and leaves[0] is value:
            yield name, value
            return
        items = enumerate(leaves)
    for key, item in items:
        yield from named_leaves(item, f"{name}_{key}" if name else str(key))


def hidden_in(value: Any) -> Any:
    """Return the first thing in nested containers that may hold tensors which nobody can find; None without any."""
    return next((leaf for _, leaf in named_leaves(value) if not isinstance(leaf, _SCALARS)), None)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in the nested containers of an argument or a result."""
    return (leaf for _, leaf in named_leaves(value) if isinstance(leaf, Tensor))


def examples_in(value: Any) -> int:
    """Return how many examples a batch holds: the first size of its first tensor that has one."""
    return next((len(tensor) for tensor in tensors_in(value) if tensor.ndim), 1)


def rows_of(value: Any, count: int) -> Any:
    """Return ``count`` examples of a batch in its containers, from the start again where it has fewer."""
    found = examples_in(value)
    which = torch.arange(count) % found
    return tree_map_only(Tensor, lambda it: it[which.to(it.device)] if it.ndim and len(it) == found else it, value)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by its first name."""
    return dict([*model.named_parameters(), *model.named_buffers()])


class TensorRecord:
    """Base of frozen dataclasses that hold tensors, to be declared with ``eq=False, repr=False``.

    Two of them are equal if they are of one class and hold the same; shown are a tensor's shape, not its numbers.
    """

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _equal(vars(self), vars(other))

    def __repr__(self) -> str:
        shown = (f"{field.name}={_shown(getattr(self, field.name))}" for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(shown)})"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (one.dtype, one.device) == (other.dtype, other.device) and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple | list) and type(one) is type(other):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and bool(one == other)


class _Shape(str):
    """What is shown of a tensor."""

    __repr__ = str.__str__


def _shown(value: Any) -> str:
    def shape(tensor: Tensor) -> _Shape:
        return _Shape(f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}")

    return repr(tree_map_only(Tensor, shape, value))
