"""Sizes that remember where they came from.

``x.shape[1]`` of a labelled axis is an int that knows the axis' labels and keeps them through ``*`` and ``//`` with
plain numbers. Only so can ``view(b, g, c // g)``, which adapts to a cut, be told from ``view(b, 2, 12)``, which does
not. Any other use of the number (``/``, ``+``, a comparison, ``float()``) could make the computation depend on the
width in a way that nobody sees: it makes the channels unprunable.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoyer_export.channels.labels import NOBODY
from hoyer_export.channels.tracer import AxisLabels, Tracer


class SourcedSize(int):
    """The length of a labelled axis, times ``times``, divided by ``over``."""

    tracer: Tracer
    source: AxisLabels
    times: int
    over: int

    @staticmethod
    def make(tracer: Tracer, source: AxisLabels, times: int = 1, over: int = 1) -> "SourcedSize":
        """Return the size ``len(source) · times // over``."""
        size = SourcedSize(len(source) * times // over)
        size.tracer, size.source, size.times, size.over = tracer, source, times, over
        return size

    def __mul__(self, other: Any) -> Any:
        if type(other) is int and self.over == 1:
            return SourcedSize.make(self.tracer, self.source, self.times * other)
        return self._lost("*") * other

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        if type(other) is int and other > 0 and self.times == 1 and int.__mod__(self, other) == 0:
            return SourcedSize.make(self.tracer, self.source, 1, self.over * other)
        return self._lost("//") // other

    def _lost(self, use: str) -> int:
        """Return the plain number, after making its channels unprunable."""
        self.tracer.fix(self.source, f"the code computes with the number of channels (`{use}`)")
        return int.__index__(self)


def _losing(name: str, shown: str) -> Any:
    def operator(self: SourcedSize, *others: Any) -> Any:
        return getattr(self._lost(shown), name)(*others)

    return operator


_LOSING = {
    "__add__": "+", "__radd__": "+", "__sub__": "-", "__rsub__": "-", "__truediv__": "/", "__rtruediv__": "/",
    "__rfloordiv__": "//", "__mod__": "%", "__rmod__": "%", "__divmod__": "divmod", "__rdivmod__": "divmod",
    "__pow__": "**", "__rpow__": "**", "__neg__": "-", "__pos__": "+", "__invert__": "~", "__abs__": "abs",
    "__int__": "int", "__float__": "float", "__round__": "round", "__floor__": "floor", "__ceil__": "ceil",
    "__trunc__": "trunc", "__bool__": "if", "__eq__": "==", "__ne__": "!=", "__lt__": "<", "__le__": "<=",
    "__gt__": ">", "__ge__": ">=", "__and__": "&", "__or__": "|", "__xor__": "^", "__lshift__": "<<",
    "__rshift__": ">>", "__str__": "str", "__format__": "format",
}  # fmt: skip
for _name, _shown in _LOSING.items():
    setattr(SourcedSize, _name, _losing(_name, _shown))
SourcedSize.__hash__ = int.__hash__  # type: ignore[method-assign]  # a class that defines __eq__ loses it


def plain(value: Any) -> Any:
    """Return an argument with every sourced size in it as a plain int."""
    if isinstance(value, SourcedSize):
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


def sizes_in(value: Any) -> list[SourcedSize]:
    """Return every sourced size in an argument."""
    if isinstance(value, SourcedSize):
        return [value]
    if isinstance(value, slice):
        return sizes_in((value.start, value.stop, value.step))
    if isinstance(value, tuple | list):
        return [size for item in value for size in sizes_in(item)]
    if isinstance(value, dict):
        return sizes_in(list(value.values()))
    return []


def tie_to_size(tracer: Tracer, axis: AxisLabels, size: SourcedSize) -> None:
    """Tie an axis that was given the length ``size`` to the axis that the size came from: they shrink together."""
    tracer.labels.same_length(size.source.labels, axis.labels, size.times, size.over)


def sourced_shape(tracer: Tracer, tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of ``tensor`` with a sourced size for every axis along which channels lie."""
    axes = tracer.axes(tensor)
    return tuple(
        SourcedSize.make(tracer, axes[axis]) if axis in axes and np.any(axes[axis].labels != NOBODY) else size
        for axis, size in enumerate(tensor.shape)
    )
