"""See what a network really multiplies when torch runs it: how much, and with weights of which sizes.

Whatever its modules are called: what counts is which operators run. This is the second method beside the count on the
ONNX graph, and shares nothing with it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from hoyer_export.call import Call
from hoyer_export.operations import Watched

_aten = torch.ops.aten
# Operator → the positions of the operands that it contracts: the first is what runs through, the others multiply it.
_OPERANDS = {
    _aten.convolution.default: (0, 1),
    _aten.mm.default: (0, 1),
    _aten.bmm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.baddbmm.default: (1, 2),
    _aten.mv.default: (0, 1),
    _aten.addmv.default: (1, 2),
    _aten.dot.default: (0, 1),
    _aten.mkldnn_rnn_layer.default: (0, 1, 2),  # one layer of an LSTM in one direction
}
_BATCHED = (_aten.bmm.default, _aten.baddbmm.default)
_TRANSPOSED = 6  # argument of a convolution
# Namespaces whose operators multiply and accumulate only where the table above says so.
_KNOWN = ("aten", "prim", "prims", "torchvision")


@dataclass(frozen=True)
class TorchMacs:
    """What one image costs in torch.

    Args:
        macs: what one image more costs.
        distinct: likewise, but the same product of the same numbers counts once: the exporter writes it once.
        uncounted: operator → number of calls that may multiply and accumulate and are counted as 0.
    """

    macs: int
    distinct: int
    uncounted: dict[str, int]


def torch_macs(network: nn.Module, call: Call) -> TorchMacs:
    """Count the MACs of one image as torch runs ``network``, on noise in the shape of ``call``.

    MACs(3 images) - MACs(2 images): what is computed from weights alone costs an image nothing.
    """
    generator = torch.Generator().manual_seed(0)
    noise = call.rows(torch.arange(3) % call.batch_size).map(
        lambda x: torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() and x.ndim else x
    )  # zeros or equal images would make products equal that are not
    runs = [_watched(network, noise.rows(slice(count))) for count in (2, 3)]
    macs = [sum(run.macs) for run in runs]
    distinct = [sum(run.distinct.values()) for run in runs]
    return TorchMacs(macs[1] - macs[0], distinct[1] - distinct[0], dict(runs[0].unknown))


def contraction_weights(network: nn.Module, call: Call) -> set[tuple[int, ...]]:
    """Return the sorted sizes of the weights of all convolutions and matrix products that ``network`` runs.

    A weight is the operand that does not depend on the inputs; products of two activations have none, and layers that
    are not run (auxiliary heads) or compute constants do not count, as they are not in an exported file either. Give a
    batch of two or more: with one image a weight that is repeated for each image cannot be told from one that is not.
    """
    return _watched(network, call, contents=False).weights


def plain_sizes(sizes: Iterable[int]) -> tuple[int, ...]:
    """Return the sizes that say something, sorted: the exporter transposes matrices and adds axes of 1 at will."""
    return tuple(sorted(size for size in sizes if size != 1))


def _watched(network: nn.Module, call: Call, *, contents: bool = True) -> "_Contractions":
    copies = call.map(torch.clone)  # a network may write into them
    seen = _Contractions(copies.tensors, contents)
    with unfused(), torch.no_grad(), Watched(seen.see):
        network(*copies.args, **copies.kwargs)
    return seen


@contextmanager
def unfused() -> Iterator[None]:
    """Make torch run attention as the matrix products that it is: kernels of its own would hide them."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Contractions:
    """Follows what depends on the inputs, and notes every contraction with its MACs and its weights.

    Args:
        inputs: of the network.
        contents: whether contractions of equal numbers are told from others; without, ``distinct`` means nothing.
    """

    def __init__(self, inputs: tuple[Tensor, ...], contents: bool) -> None:
        self._contents = contents
        self.weights: set[tuple[int, ...]] = set()
        self.macs: list[int] = []
        self.distinct: dict[bytes, int] = {}
        self.unknown: Counter[str] = Counter()
        self._fed = {id(x): x for x in inputs}  # kept alive, so that no id is used twice

    def see(self, func: Any, args: Any, kwargs: Any) -> Any:
        key = _content(func, args) if func in _OPERANDS and self._contents else b""
        output = func(*args, **kwargs)
        if func in _OPERANDS:
            first, *factors = (args[position] for position in _OPERANDS[func])
            self.macs.append(_macs(func, args, first, factors, output))
            self.distinct[key] = self.macs[-1]
            self._note_weights(func, first, factors)
        elif func.namespace not in _KNOWN or "deform_conv" in str(func):
            self.unknown[str(func)] += 1
        if any(id(x) in self._fed for x in tree_leaves((args, kwargs))):
            self._fed |= {id(x): x for x in tree_leaves(output) if isinstance(x, Tensor)}
        return output

    def _note_weights(self, func: Any, first: Tensor, factors: list[Tensor]) -> None:
        constant = [x for x in (first, *factors) if id(x) not in self._fed]
        if len(constant) != len(factors):
            return
        for weight in constant:
            # A batched product repeats its weight for every image (stride 0).
            repeated = func in _BATCHED and weight.stride(0) == 0
            self.weights.add(plain_sizes(weight.shape[1:] if repeated else weight.shape))


def _macs(func: Any, args: Any, first: Tensor, factors: list[Tensor], output: Any) -> int:
    if func is _aten.convolution.default:  # weight [O, I / groups, *kernel], transposed [I, O / groups, *kernel]
        positions: Tensor = first if args[_TRANSPOSED] else output
        return positions.numel() * prod(factors[0].shape[1:])
    if func is _aten.mkldnn_rnn_layer.default:
        return first.numel() // first.shape[-1] * sum(weight.numel() for weight in factors)
    return int(output.numel()) * first.shape[-1]


def _content(func: Any, args: Any) -> bytes:
    """Return what is the same for the same operator on the same numbers."""
    return repr((str(func), [_digest(x) if isinstance(x, Tensor) else x for x in tree_leaves(args)])).encode()


def _digest(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    once = tensor.detach()[tuple(slice(None if stride else 1) for stride in tensor.stride())]  # repeated: stride 0
    flat = once.clone(memory_format=torch.contiguous_format).reshape(-1)
    return tuple(tensor.shape), hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16).digest()
