"""See which weights a network really multiplies with, whatever its modules are called."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
# Operator → the positions of the two operands that it contracts.
_OPERANDS = {
    _aten.convolution.default: (0, 1),
    _aten.mm.default: (0, 1),
    _aten.bmm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.baddbmm.default: (1, 2),
    _aten.mv.default: (0, 1),
    _aten.addmv.default: (1, 2),
    _aten.dot.default: (0, 1),
}


def contraction_weights(network: nn.Module, inputs: tuple[Tensor, ...]) -> set[tuple[int, ...]]:
    """Return the sorted sizes of the weights of all convolutions and matrix products that ``network`` runs.

    A weight is the operand that does not depend on the inputs; products of two activations have none, and layers that
    are not run (auxiliary heads) or compute constants do not count, as they are not in an exported file either. Give a
    batch of two or more: with one image a weight that is repeated for each image cannot be told from one that is not.
    """
    inputs = tuple(x.clone() for x in inputs)  # a network may write into them
    seen = _Contractions(inputs)
    # The fused attention of eval mode would hide its products.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), seen:
            network(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return seen.weights


def plain_sizes(sizes: Iterable[int]) -> tuple[int, ...]:
    """Return the sizes that say something, sorted: the exporter transposes matrices and adds axes of 1 at will."""
    return tuple(sorted(size for size in sizes if size != 1))


class _Contractions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows what depends on the inputs, and notes the other operand where it is contracted."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights: set[tuple[int, ...]] = set()
        self._fed = {id(x): x for x in inputs}  # kept alive, so that no id is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _OPERANDS:
            operands = [args[position] for position in _OPERANDS[func]]
            constant = [x for x in operands if id(x) not in self._fed]
            if len(constant) == 1:
                weight = constant[0]  # repeated for every image (stride 0) where the product is a batched one
                self.weights.add(
                    plain_sizes(s for s, stride in zip(weight.shape, weight.stride(), strict=True) if stride)
                )
        if any(id(x) in self._fed for x in tree_leaves((args, kwargs))):
            self._fed |= {id(x): x for x in tree_leaves(output) if isinstance(x, Tensor)}
        return output
