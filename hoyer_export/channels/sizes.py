"""Sizes that remember where they came from.

``x.shape[1]`` of a labelled axis is an int that knows the axis' labels and keeps them through ``*`` and ``//`` with
plain numbers. Only so can ``view(b, g, c // g)``, which adapts to a cut, be told from ``view(b, 2, 12)``, which does
not. A size that a module keeps in an attribute (``self.num_heads``) is such an int too: it can be rewritten at the cut.
Any other use of the number (``/``, ``+``, a comparison with what it may become, ``float()``) could make the
computation depend on the width in a way that nobody sees: it makes the channels unprunable, or fixes the attribute.
"""

import sys
from math import gcd
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from hoyer_export.channels.attributes import Attribute
from hoyer_export.channels.labels import AxisLabels, Tracer
from hoyer_export.channels.layer_sizes import LayerSize
from hoyer_export.channels.union_find import NO_CHANNEL

_LIBRARIES = ("torch", "torchvision", "timm", "einops")


def _who() -> tuple[str, str]:
    """Return whose code uses a size, and how to call it: a library's class or function, or just the code."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    assert frame is not None
    module = str(frame.f_globals.get("__name__"))
    library = module.partition(".")[0]
    if library not in _LIBRARIES:
        return "", "the code"
    while frame.f_back is not None and frame.f_back.f_globals.get("__name__") == module:  # out to what was called
        frame = frame.f_back
    owner = frame.f_locals.get("self")
    return library, f"`{type(owner).__name__ if isinstance(owner, nn.Module) else f'{module}.{frame.f_code.co_name}'}`"


class Size(int):
    """A number of positions that a cut may change: an origin's, times ``times``, divided by ``over``."""

    tracer: Tracer
    origin: Any
    times: int
    over: int

    @classmethod
    def make(cls, tracer: Tracer, origin: Any, times: int = 1, over: int = 1) -> Self:
        """Return the size of an axis or attribute · times // over."""
        size = cls((origin.dense if isinstance(origin, Attribute) else len(origin)) * times // over)
        size.tracer, size.origin, size.times, size.over = tracer, origin, times, over
        return size

    @property
    def is_whole(self) -> bool:
        """Whether it is the length of its origin."""
        return self.times == self.over == 1

    def scaled(self, times: int, over: int) -> "Size":
        """Return the size of the same origin at another scale."""
        return self.make(self.tracer, self.origin, times, over)

    def tie(self, axis: AxisLabels) -> None:
        """Declare that ``axis`` was given this length: it shrinks with the origin."""
        self.tracer.untied.pop(id(self), None)

    def fix(self, reason: str) -> None:
        """Declare that something nobody can follow depends on the number: it must stay."""
        self.tracer.untied.pop(id(self), None)

    def _fixed(self, use: str) -> int:
        """Return the plain number, after making sure that it stays."""
        self.fix(f"{_who()[1]} computes with the number of channels (`{use}`)")
        return int.__index__(self)

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Size):
            first, second = sorted((self, other), key=_rank)
            return first * second._fixed("*")
        if type(other) is int and other > 0 and (isinstance(self, AxisSize) or gcd(other, self.over) == 1):
            return self.scaled(self.times * other, self.over)
        return self._fixed("*") * other

    __rmul__ = __mul__

    def _ratio(self, other: Any) -> int | None:
        """Return how often the length of another axis goes into this one, which stays so; None where it does not."""
        if isinstance(self, AxisSize) and isinstance(other, AxisSize) and self.is_whole:
            times, rest = divmod(int.__index__(self), int.__index__(other))
            if rest == 0 and other.tracer is self.tracer:
                other.scaled(other.times * times, other.over).tie(self.origin)
                return times
        return None

    def __floordiv__(self, other: Any) -> Any:
        if (times := self._ratio(other)) is not None:
            return times
        if isinstance(other, AttributeSize):
            if isinstance(self, AxisSize) and self.is_whole and other.is_whole and int.__mod__(self, other) == 0:
                width = int.__floordiv__(self, other)  # of a head, as long as heads go whole
                other.origin.divided.append(self.origin.labels)
                self.tracer.unite_runs(self.origin, width)
                other.scaled(width, 1).tie(self.origin)
                return width
            return self // other._fixed("//")
        if type(other) is int and other > 0 and self.times == 1 and int.__mod__(self, other) == 0:
            return self.scaled(1, self.over * other)
        return self._fixed("//") // other

    def __eq__(self, other: object) -> bool:
        if _is_sure("__eq__", other):
            return False
        if isinstance(other, Size) and other.tracer is not self.tracer:  # of a trace before, out of some cache
            other = plain(other)
        if isinstance(other, Size):
            first, second = sorted((self, other), key=lambda size: isinstance(size, AttributeSize))
            if int.__eq__(self, other) and isinstance(first, AxisSize) and first.is_whole:
                second.tie(first.origin)  # two sizes that the code found equal are kept equal
                return True
            other._fixed("==")
        return int.__eq__(self._fixed("=="), plain(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        """A key of a cache may outlive the trace, and what the cache holds was not computed before our eyes."""
        if _who()[0] == "einops":  # where it is told that a size is no key it computes anew
            raise TypeError("a size that is followed is unhashable")
        return hash(self._fixed("hash"))


class AxisSize(Size):
    """The length of a labelled axis."""

    origin: AxisLabels

    def tie(self, axis: AxisLabels) -> None:
        super().tie(axis)
        if gcd(self.times, self.over) > 1:  # c // 2 * 2 is c only as long as c is even
            self.tracer.keep_divisible(self.origin, self.over)
        self.tracer.union_find.tie(self.origin.labels, axis.labels, self.times, self.over)

    def fix(self, reason: str) -> None:
        super().fix(reason)
        self.tracer.fix(self.origin, reason)

    def __mod__(self, other: Any) -> Any:
        """A width that the code found divisible stays so."""
        if self._ratio(other) is not None:
            return 0
        if isinstance(other, AttributeSize):
            return self % other._fixed("%")
        if type(other) is int and other > 0 and self.is_whole and int.__mod__(self, other) == 0:
            self.tracer.keep_divisible(self.origin, other)
            return 0
        return self._fixed("%") % other


class WeightSize(AxisSize):
    """A size that a layer states of its weight, which gets labels only once somebody asks: ``conv.in_channels``."""

    stated: LayerSize

    @classmethod
    def of(cls, tracer: Tracer, stated: LayerSize) -> Self:
        """Return a layer's size."""
        size = cls(int(stated))
        size.tracer, size.stated, size.times, size.over = tracer, stated, stated.times, stated.over
        return size

    def __getattr__(self, name: str) -> Any:
        if name != "origin":
            raise AttributeError(name)
        with torch._C.DisableTorchFunction():  # the network's code runs, under the mode that watches it
            self.origin = self.tracer.axis(self.stated.tensor, self.stated.dim)
        return self.origin

    def scaled(self, times: int, over: int) -> AxisSize:
        """Return the size of the same origin at another scale."""
        return AxisSize.make(self.tracer, self.origin, times, over)


class AttributeSize(Size):
    """A size that a module keeps in an attribute."""

    origin: Attribute

    def tie(self, axis: AxisLabels) -> None:
        super().tie(axis)
        self.origin.uses.append((axis.labels, self.times, self.over))

    def fix(self, reason: str) -> None:
        super().fix(reason)
        self.origin.is_fixed = True

    def pass_over(self, axis: AxisLabels) -> None:
        """Declare that ``axis`` has this length for good, although it could have followed the attribute."""
        super().tie(axis)
        self.origin.passed_over.append(axis.labels)


def _rank(factor: Size) -> int:
    """Order the factors of a product: first the one that may change, heads before their width."""
    return 0 if isinstance(factor, AxisSize) else 2 - bool(factor.origin.uses)


_SURE = {"__eq__": 0, "__gt__": 0, "__le__": 0, "__ge__": 1, "__lt__": 1}
"""Comparisons whose outcome is the same for every width where the other number is at most this: one channel stays."""


def _is_sure(name: str, *others: Any) -> bool:
    return name == "__bool__" or (name in _SURE and type(others[0]) is int and others[0] <= _SURE[name])


def _fixing(name: str, shown: str) -> Any:
    def operator(self: Size, *others: Any) -> Any:
        if _is_sure(name, *others):
            return getattr(int.__index__(self), name)(*others)
        return getattr(self._fixed(shown), name)(*others)

    return operator


_FIXING = {
    "__add__": "+", "__radd__": "+", "__sub__": "-", "__rsub__": "-", "__truediv__": "/", "__rtruediv__": "/",
    "__rfloordiv__": "//", "__mod__": "%", "__rmod__": "%", "__divmod__": "divmod", "__rdivmod__": "divmod",
    "__pow__": "**", "__rpow__": "**", "__neg__": "-", "__pos__": "+", "__invert__": "~", "__abs__": "abs",
    "__int__": "int", "__float__": "float", "__round__": "round", "__floor__": "floor", "__ceil__": "ceil",
    "__trunc__": "trunc", "__bool__": "if", "__lt__": "<", "__le__": "<=",
    "__gt__": ">", "__ge__": ">=", "__and__": "&", "__or__": "|", "__xor__": "^", "__lshift__": "<<",
    "__rshift__": ">>", "__str__": "str", "__format__": "format",
}  # fmt: skip
for _name, _use in _FIXING.items():
    setattr(Size, _name, _fixing(_name, _use))


def plain(value: Any, found: list[Size] | None = None) -> Any:
    """Return an argument with every size in it as a plain int; the sizes themselves are added to ``found``."""
    if isinstance(value, Size):
        if found is not None:
            found.append(value)
        return int.__index__(value)
    if isinstance(value, torch.Size):
        return torch.Size([plain(item, found) for item in value])
    if isinstance(value, slice):
        return slice(plain(value.start, found), plain(value.stop, found), plain(value.step, found))
    if type(value) in (tuple, list):
        return type(value)([plain(item, found) for item in value])
    if type(value) is dict:
        return {key: plain(item, found) for key, item in value.items()}
    return value


def sourced_shape(tracer: Tracer, tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of ``tensor`` with a sourced size for every axis along which channels lie."""
    axes = tracer.axes(tensor)
    return tuple(
        AxisSize.make(tracer, axes[axis]) if axis in axes and np.any(axes[axis].labels != NO_CHANNEL) else size
        for axis, size in enumerate(tensor.shape)
    )
