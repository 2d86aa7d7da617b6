"""One operation has several names: ``torch.relu``, ``Tensor.relu``, ``Tensor.relu_``, ``functional.relu``."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hoyer_export.channels.tracer import Rule

_NAMESPACES = (torch, Tensor, F, torch._C._nn)


def named(names: str, rule: Rule, in_place: bool = True) -> dict[Callable[..., Any], Rule]:
    """Return ``rule`` for every function and method that goes by one of the space-separated names.

    With ``in_place`` also for the form with an underscore; a rule that reads the input's old shape cannot serve it.

    Raises:
        ValueError: torch has nothing of that name, so that the rule could never be used.
    """
    return dict.fromkeys(functions_named(names, in_place), rule)


def functions_named(names: str, in_place: bool = True) -> list[Callable[..., Any]]:
    """Return every function and method that goes by one of the space-separated names; arguments as for ``named``."""
    functions: dict[Callable[..., Any], None] = {}
    for name in names.split():
        found = [
            getattr(space, form)
            for space in _NAMESPACES
            for form in [name, f"{name}_"][: 1 + in_place]
            if hasattr(space, form)
        ]
        if not found:
            raise ValueError(f"torch has no operation {name!r}")
        functions |= dict.fromkeys(found)
    return list(functions)


def getters(names: str, rule: Rule) -> dict[Callable[..., Any], Rule]:
    """Return ``rule`` for properties of a tensor, e.g. ``Tensor.shape``."""
    return {getattr(Tensor, name).__get__: rule for name in names.split()}
