"""Sizes that remember where they came from.

``x.shape[1]`` of a labelled axis is an int that knows the axis' labels and keeps them through ``*`` and ``//`` with
plain numbers. Only so can ``view(b, g, c // g)``, which adapts to a cut, be told from ``view(b, 2, 12)``, which does
not. A size that a module keeps in an attribute (``self.num_heads``) is such an int too: it can be rewritten at the cut.
Any other use of the number (``/``, ``+``, a comparison, ``float()``) could make the computation depend on the
width in a way that nobody sees: it makes the channels unprunable, or the attribute a literal.
"""

from math import gcd
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hoyer_export.channels.attributes import Attribute
from hoyer_export.channels.labels import NOBODY
from hoyer_export.channels.tracer import AxisLabels, Tracer


class Size(int):
    """A number of positions that a cut may change: an origin's, times ``times``, divided by ``over``."""

    tracer: Tracer
    times: int
    over: int

    def scaled(self, times: int, over: int) -> Self:
        """Return the size of the same origin at another scale."""
        raise NotImplementedError

    def tie(self, axis: AxisLabels) -> None:
        """Declare that ``axis`` was given this length: it shrinks with the origin."""
        self.tracer.untied.pop(id(self), None)

    def lose(self, reason: str) -> None:
        """Declare that something nobody can follow depends on the number: it must stay."""
        self.tracer.untied.pop(id(self), None)

    def _lost(self, use: str) -> int:
        """Return the plain number, after making sure that it stays."""
        self.lose(f"the code computes with the number of channels (`{use}`)")
        return int.__index__(self)

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Size):
            first, second = _free_first(self, other)
            return first * second._lost("*")
        if type(other) is int and other > 0 and (isinstance(self, AxisSize) or gcd(other, self.over) == 1):
            return self.scaled(self.times * other, self.over)
        return self._lost("*") * other

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        if isinstance(other, AttributeSize):
            return self // other._lost("//")
        if type(other) is int and other > 0 and self.times == 1 and int.__mod__(self, other) == 0:
            return self.scaled(1, self.over * other)
        return self._lost("//") // other

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Size) and other.tracer is not self.tracer:  # of a trace before, out of some cache
            other = plain(other)
        if isinstance(other, Size) and int.__eq__(self, other):
            return self._stays_equal(other)
        if isinstance(other, Size):
            other._lost("==")
        return int.__eq__(self._lost("=="), plain(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _stays_equal(self, other: "Size") -> bool:
        """Keep two sizes equal that the code found equal, as far as both can change."""
        axis, second = (self, other) if isinstance(self, AxisSize) else (other, self)
        if isinstance(axis, AxisSize) and axis.times == axis.over == 1:
            second.tie(axis.source)
        else:
            axis._lost("=="), second._lost("==")
        return True

    def __hash__(self) -> int:
        """A key of a cache may outlive the trace, and what the cache holds was not computed before our eyes."""
        return hash(self._lost("hash"))


class AxisSize(Size):
    """The length of a labelled axis."""

    source: AxisLabels

    @staticmethod
    def make(tracer: Tracer, source: AxisLabels, times: int = 1, over: int = 1) -> "AxisSize":
        """Return the size ``len(source) · times // over``."""
        size = AxisSize(len(source) * times // over)
        size.tracer, size.source, size.times, size.over = tracer, source, times, over
        return size

    def scaled(self, times: int, over: int) -> "AxisSize":
        return AxisSize.make(self.tracer, self.source, times, over)

    def tie(self, axis: AxisLabels) -> None:
        super().tie(axis)
        if gcd(self.times, self.over) > 1:  # c // 2 * 2 is c only as long as c is even
            self.tracer.tie_blocks(self.source, self.over)
        self.tracer.labels.same_length(self.source.labels, axis.labels, self.times, self.over)

    def lose(self, reason: str) -> None:
        super().lose(reason)
        self.tracer.fix(self.source, reason)

    def __mod__(self, other: Any) -> Any:
        """A width that the code found divisible stays so: whole blocks go."""
        if isinstance(other, AttributeSize):
            return self % other._lost("%")
        if type(other) is int and other > 0 and self.times == self.over == 1 and int.__mod__(self, other) == 0:
            self.tracer.tie_blocks(self.source, other)
            return 0
        return self._lost("%") % other


class AttributeSize(Size):
    """A size that a module keeps in an attribute."""

    attribute: Attribute

    @staticmethod
    def make(tracer: Tracer, attribute: Attribute, times: int = 1, over: int = 1) -> "AttributeSize":
        """Return the size ``attribute · times // over``."""
        size = AttributeSize(attribute.dense * times // over)
        size.tracer, size.attribute, size.times, size.over = tracer, attribute, times, over
        return size

    def scaled(self, times: int, over: int) -> "AttributeSize":
        return AttributeSize.make(self.tracer, self.attribute, times, over)

    def tie(self, axis: AxisLabels) -> None:
        super().tie(axis)
        self.attribute.uses.append((axis.labels, self.times, self.over))

    def lose(self, reason: str) -> None:
        super().lose(reason)
        self.attribute.is_literal = True

    def decline(self, axis: AxisLabels) -> None:
        """Declare that ``axis`` has this length for good, although it could have followed the attribute."""
        super().tie(axis)
        self.attribute.declined.append(axis.labels)


def _free_first(*factors: Size) -> list[Size]:
    """Return the factor of a product that may change before the one that stays: heads · their width."""

    def rank(factor: Size) -> int:
        return 0 if isinstance(factor, AxisSize) else 2 - bool(factor.attribute.uses)  # type: ignore[attr-defined]

    return sorted(factors, key=rank)


def _losing(name: str, shown: str) -> Any:
    def operator(self: Size, *others: Any) -> Any:
        return getattr(self._lost(shown), name)(*others)

    return operator


_LOSING = {
    "__add__": "+", "__radd__": "+", "__sub__": "-", "__rsub__": "-", "__truediv__": "/", "__rtruediv__": "/",
    "__rfloordiv__": "//", "__mod__": "%", "__rmod__": "%", "__divmod__": "divmod", "__rdivmod__": "divmod",
    "__pow__": "**", "__rpow__": "**", "__neg__": "-", "__pos__": "+", "__invert__": "~", "__abs__": "abs",
    "__int__": "int", "__float__": "float", "__round__": "round", "__floor__": "floor", "__ceil__": "ceil",
    "__trunc__": "trunc", "__bool__": "if", "__lt__": "<", "__le__": "<=",
    "__gt__": ">", "__ge__": ">=", "__and__": "&", "__or__": "|", "__xor__": "^", "__lshift__": "<<",
    "__rshift__": ">>", "__str__": "str", "__format__": "format",
}  # fmt: skip
for _name, _shown in _LOSING.items():
    setattr(Size, _name, _losing(_name, _shown))


def plain(value: Any) -> Any:
    """Return an argument with every size in it as a plain int."""
    if isinstance(value, Size):
        return int.__index__(value)
    if isinstance(value, torch.Size):
        return torch.Size(plain(tuple(value)))
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if type(value) in (tuple, list):
        return type(value)(plain(item) for item in value)
    if type(value) is dict:
        return {key: plain(item) for key, item in value.items()}
    return value


def sizes_in(value: Any) -> list[Size]:
    """Return every size in an argument."""
    if isinstance(value, Size):
        return [value]
    if isinstance(value, slice):
        return sizes_in((value.start, value.stop, value.step))
    if isinstance(value, tuple | list):
        return [size for item in value for size in sizes_in(item)]
    if isinstance(value, dict):
        return sizes_in(list(value.values()))
    return []


def sourced_shape(tracer: Tracer, tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of ``tensor`` with a sourced size for every axis along which channels lie."""
    axes = tracer.axes(tensor)
    return tuple(
        AxisSize.make(tracer, axes[axis]) if axis in axes and np.any(axes[axis].labels != NOBODY) else size
        for axis, size in enumerate(tensor.shape)
    )
