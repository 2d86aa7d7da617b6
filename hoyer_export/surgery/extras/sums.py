"""Sums of a layer's output and what was there before it, as at the end of a residual block.

The slim network's stream differs from the dense one's when it comes to a block. The block's last layer may be fitted so
that the *sum* is right, and not its own part alone: its target is then y + (s_dense - s_slim) / g, s what it is added
to, g the gain γ / √(σ² + eps) of the batch norm between. Where g is small, a layer would need large weights to make up
for anything, so 1 / g is g / (g² + c²), c a tenth of the root mean square of g.

The same idea: He et al. 2017 (arXiv 1707.06168), section 3.2, for the first layer after a stream and the last before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from hoyer_export.channels.reading import Key
from hoyer_export.tensors import tensors_in

_ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
_SMALL = 0.1
"""c over the root mean square of g."""


@dataclass(frozen=True, eq=False)
class Sum:
    """The number of the tensor that a layer's output is added to, and g, [O]; None: 1."""

    number: int
    gain: Tensor | None

    def through(self, difference: Tensor) -> Tensor:
        """Return what the layer has to give more, [..., O], so that the sum grows by ``difference``."""
        if self.gain is None:
            return difference
        square = self.gain.square()
        return difference * (self.gain / (square + _SMALL**2 * square.mean()).clamp(min=1e-30))


class Sums:
    """Finds them while a network runs: is told every layer and every other operation, in order."""

    def __init__(self) -> None:
        self._found: dict[Key, tuple[Sum, tuple[Tensor, ...]]] = {}
        self._count = 0
        self._uses: Any = WeakIdKeyDictionary()  # tensor → by how many operations
        self._numbers: Any = WeakIdKeyDictionary()  # tensor → its number, as ``Made`` counts
        self._layers: Any = WeakIdKeyDictionary()  # output of a layer, or of the batch norm behind → key, number, gain

    @property
    def found(self) -> dict[Key, Sum]:
        """Layers whose output goes to a sum, and nowhere else."""
        return {key: it for key, (it, tensors) in self._found.items() if all(self._uses[t] == 1 for t in tensors)}

    def use(self, what: Any) -> None:
        """Count what uses tensors: an operation's arguments, or those that are returned."""
        for tensor in tensors_in(what):
            self._uses[tensor] = self._uses.get(tensor, 0) + 1

    def layer(self, key: Key, input: Tensor, output: Tensor) -> None:
        """Count a layer's output."""
        self.use(input)
        self._layers[output] = key, self._count, None, (output,)
        self._note(output)

    def other(self, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """Count what another operation returned, and look whether it is a sum."""
        tensors = list(tensors_in((args, kwargs)))
        if any(True for _ in tensors_in(output)):  # asking for a shape uses nothing
            self.use(tensors)
        if func in _ADDITIONS and len(tensors) == 2 and tensors[0].shape == tensors[1].shape and not kwargs:
            self._sum(tensors[0], tensors[1], output)
        made = self._layers.get(tensors[0]) if func is F.batch_norm else None
        for tensor in tensors_in(output):  # also where it is another's place that was written to
            self._layers.pop(tensor, None)
        if made is not None and made[2] is None and (gain := _gain(*args, **kwargs)) is not None:
            self._layers[output] = *made[:2], gain, (*made[3], output)
        self._note(output)

    def _note(self, output: Any) -> None:
        for tensor in tensors_in(output):
            self._numbers[tensor] = self._count
            self._count += 1

    def _sum(self, one: Tensor, other: Tensor, output: Tensor) -> None:
        for summand, beside in ((one, other), (other, one)):
            key, number, gain, tensors = self._layers.get(summand, (None, 0, None, ()))
            before = beside in self._numbers and self._numbers[beside] < number
            if key is not None and before and all(self._uses[it] == 1 for it in tensors):
                # What is written over by the sum is used further as that.
                self._found[key] = Sum(self._numbers[beside], gain), tuple(it for it in tensors if it is not output)


def _gain(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Return g of a call of batch norm, [O]; None where it measures the batch."""
    if training or running_var is None:
        return None
    scale = (running_var + eps).rsqrt()
    return scale if weight is None else weight.detach() * scale
