"""One operation has several names: ``torch.relu``, ``Tensor.relu``, ``Tensor.relu_``, ``functional.relu``.

A name that this version of torch does not have, no network can call: its rule waits in vain and does no harm. A test
says which names those are, for they may as well be misspelt.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hoyer_export.channels.tracer import Rule

_NAMESPACES = (torch, Tensor, F, getattr(torch._C, "_nn", None))

ABSENT: set[str] = set()
"""Names that were asked for here, and that torch does not have."""


def named(
    names: str, rule: Rule, in_place: bool = True, spaces: tuple[Any, ...] = _NAMESPACES
) -> dict[Callable[..., Any], Rule]:
    """Return ``rule`` for every function and method of ``spaces`` that goes by one of the space-separated names.

    With ``in_place`` also for the form with an underscore; a rule that reads the input's old shape cannot serve it.
    """
    return dict.fromkeys(functions_named(names, in_place, spaces), rule)


def functions_named(
    names: str, in_place: bool = True, spaces: tuple[Any, ...] = _NAMESPACES
) -> list[Callable[..., Any]]:
    """Return every function and method that goes by one of the space-separated names; arguments as for ``named``."""
    functions: dict[Callable[..., Any], None] = {}
    for name in names.split():
        found = [
            getattr(space, form)
            for space in spaces
            for form in [name, f"{name}_"][: 1 + in_place]
            if hasattr(space, form)
        ]
        if not found:
            ABSENT.add(name)
        functions |= dict.fromkeys(found)
    return list(functions)


def getters(names: str, rule: Rule) -> dict[Callable[..., Any], Rule]:
    """Return ``rule`` for properties of a tensor, e.g. ``Tensor.shape``."""
    found = {name: getattr(Tensor, name, None) for name in names.split()}
    ABSENT.update(name for name, descriptor in found.items() if descriptor is None)
    return {descriptor.__get__: rule for descriptor in found.values() if descriptor is not None}
