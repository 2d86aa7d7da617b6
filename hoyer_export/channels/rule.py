"""A rule: what one kind of operation does to the labels, with everything that is to know about it, as one object.

One operation has several names, ``torch.relu``, ``Tensor.relu``, ``Tensor.relu_``, ``functional.relu``, and a rule is
asked for by name. A name that this version of torch does not have, no network can call: the rule waits in vain and
does no harm. A test says which names those are, for they may as well be misspelt.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Any]
_NAMESPACES = (torch, Tensor, F, getattr(torch._C, "_nn", None), torch.fft)


@dataclass(frozen=True, eq=False)
class Rule:
    """How the labels pass one kind of operation.

    Args:
        function: called as ``function(tracer, output, *the operation's arguments)`` after the operation has run; what
            it returns, unless None, takes the place of the operation's output.
        operations: the functions, methods and getters that it is for; operations of another library by their names,
            ``torchvision::roi_align``, as it may be loaded later.
        absent: names of operations that torch does not have.
        takes_sizes: it reads sizes that remember where they came from; to other rules they are plain numbers that
            must stay.
        reads_shape: of further tensors among the arguments only shape, type or place are asked.
        counts: the operation costs MACs, also where no channel can go.
        makes_rows: its result holds a row for every example where its first size is the batch.
        keeps_spread: it hands on positions that are spread over two axes (``positions.py``), or asks nothing of them.
        asks: of its tensors only shape, type or place are asked.
    """

    function: Function
    operations: tuple[Function | str, ...] = ()
    absent: tuple[str, ...] = ()
    takes_sizes: bool = False
    reads_shape: bool = False
    counts: bool = False
    makes_rows: bool = False
    keeps_spread: bool = False
    asks: bool = False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)

    def fits(self, positional: int, names: tuple[str, ...]) -> bool:
        """Return whether the rule knows this form of the call: torch has overloads that it may not."""
        return _binds(self.function, positional, names)


def rule(
    *operations: str | Function,
    in_place: bool = True,
    spaces: tuple[Any, ...] = _NAMESPACES,
    takes_sizes: bool = False,
    reads_shape: bool = False,
    counts: bool = False,
    makes_rows: bool = False,
    keeps_spread: bool = False,
    asks: bool = False,
) -> Callable[[Function], Rule]:
    """Make a rule of the decorated function.

    Args:
        operations: what it is the rule of: functions and methods themselves, or names, one or more a string, that stand
            for every function, method and property of ``spaces`` that goes by them; ``library::name`` for an
            operation that another library registers.
        in_place: a name stands also for the form with an underscore; a rule that reads its input's old shape cannot
            serve that.
        spaces: where names are looked up: torch, its tensors, ``torch.nn.functional`` and ``torch.fft``.
        takes_sizes, reads_shape, counts, makes_rows, keeps_spread, asks: see ``Rule``.
    """
    found: list[Function | str] = []
    absent = []
    for operation in operations:
        for name in operation.split() if isinstance(operation, str) else ():
            if "::" in name:
                found.append(name)
                continue
            forms = [name, f"{name}_"][: 1 + in_place]
            values = [getattr(space, form, None) for space in spaces for form in forms]
            called = [value if callable(value) else getattr(value, "__get__", None) for value in values]  # a property
            known = [function for function in called if function is not None]
            found += known
            absent += [] if known else [name]
        if not isinstance(operation, str):
            found.append(operation)

    def decorated(function: Function) -> Rule:
        function = function.function if isinstance(function, Rule) else function
        names = tuple(dict.fromkeys(found)), tuple(absent)
        return Rule(function, *names, takes_sizes, reads_shape, counts, makes_rows, keeps_spread, asks)

    return decorated


@cache
def _binds(function: Function, positional: int, names: tuple[str, ...]) -> bool:
    try:
        inspect.signature(function).bind(None, None, *[None] * positional, **dict.fromkeys(names))
    except TypeError:
        return False
    return True
