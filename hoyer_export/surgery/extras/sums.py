"""Sums of a layer's output and what was there before it, as at the end of a residual block.

The slim network's stream differs from the dense one's when it comes to a block. The block's last layer may be fitted so
that the *sum* is right, and not its own part alone: its target is then y + (s_dense - s_slim) / g, s what it is added
to, g the gain γ / √(σ² + eps) of the batch norm between. Where g is small, a layer would need large weights to make up
for anything, so 1 / g is g / (g² + c²), c a tenth of the root mean square of g.

The same idea: He et al. 2017 (arXiv 1707.06168), section 3.2, for the first layer after a stream and the last before.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from hoyer_export.channels.reading import Key, LayerCall
from hoyer_export.tensors import tensors_in

_ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
_SMALL = 0.1
"""c over the root mean square of g."""
_AFTER_A_LAYER = 2**20
"""Numbers begin anew at a multiple of it after each layer: how many operations run between may hang on the batch."""


def next_number(count: int) -> int:
    """Return the number of the first tensor from the next layer on."""
    return (count // _AFTER_A_LAYER + 1) * _AFTER_A_LAYER


@dataclass(frozen=True, eq=False)
class Sum:
    """The number of the tensor that a layer's output is added to, and g, [O]; None: 1."""

    number: int
    gain: Tensor | None

    def through(self, difference: Tensor) -> Tensor:
        """Return what the layer has to give more, [..., O], so that the sum grows by ``difference``."""
        if self.gain is None:
            return difference
        gain = self.gain.float()  # the square of a small one is 0 in float16
        square = gain.square()
        return difference * (gain / (square + _SMALL**2 * square.mean()).clamp(min=1e-30))


class Sums:
    """Finds them while a network runs: is told every layer and every other operation, in order."""

    def __init__(self) -> None:
        self._found: dict[Key, tuple[Sum, tuple[Tensor, ...]]] = {}
        self._count = 0
        self._ran: list[Key] = []
        self._unnormed: set[Key] = set()
        self._uses: Any = WeakIdKeyDictionary()  # tensor → by how many operations
        self._numbers: Any = WeakIdKeyDictionary()  # tensor → its number, as ``Made`` counts
        self._layers: Any = WeakIdKeyDictionary()  # output of a layer, or of the batch norm behind → key, number, gain

    def found(self) -> dict[Key, Sum]:
        """Return the layers that run once and whose output goes to a sum, and nowhere else.

        One that runs again has one fit for all its places, and makes nothing up: what it would make up for at a later
        place is no longer lacking there.
        """
        runs = Counter(name for name, _ in self._ran)
        only = {key: tensors for key, (_, tensors) in self._found.items() if runs[key[0]] == 1}
        alone = [key for key, tensors in only.items() if all(self._uses[it] == 1 for it in tensors)]
        return {key: self._found[key][0] for key in alone}

    def use(self, what: Any) -> None:
        """Count what uses tensors: an operation's arguments, or those that are returned."""
        for tensor in tensors_in(what):
            self._uses[tensor] = self._uses.get(tensor, 0) + 1

    def layer(self, key: Key, call: LayerCall, output: Tensor) -> None:
        """Count a layer's output."""
        self.use(call.input)
        self._count = next_number(self._count)
        self._ran.append(key)
        self._layers[output] = key, self._count, None, (output,)
        if call.weight.ndim == 2 and output.ndim > 2:  # a batch norm behind would be of another axis
            self._unnormed.add(key)
        self._note(output)

    def other(self, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """Count what another operation returned, and look whether it is a sum."""
        tensors = list(tensors_in((args, kwargs)))
        if any(True for _ in tensors_in(output)):  # asking for a shape uses nothing
            self.use(tensors)
        plain = len(args) == len(tensors) == 2 and not kwargs  # alpha is no tensor
        if func in _ADDITIONS and plain and tensors[0].shape == tensors[1].shape:
            self._sum(tensors[0], tensors[1], output)
        made = self._layers.get(tensors[0]) if func is F.batch_norm else None
        for tensor in tensors_in(output):  # also where it is another's place that was written to
            self._layers.pop(tensor, None)
        if made is not None and made[0] not in self._unnormed and made[2] is None:
            gain = _gain(*args, **kwargs)
            if gain is not None:
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
