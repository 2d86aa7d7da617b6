"""Sizes that modules keep in attributes: ``self.num_heads``, ``self.split[1]``.

A literal in the code cannot follow a cut, but an attribute can be rewritten, if nothing else reads it: while tracing
every int in an attribute of the user's own modules is replaced by one that notes what it is used for. Where all
that it does is give axes their lengths, the cut writes the new length into the attribute.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import torch
from torch import nn

from hoyer_export.channels.labels import Labels, Vector


@dataclass
class Attribute:
    """One size in one attribute, and what it was used for while the model ran.

    Args:
        module: name of the module.
        name: of the attribute.
        index: position in it, where it is a list or tuple.
        dense: the size.
        uses: (labels of an axis, times, over): the axis has ``dense · times // over`` positions.
        is_literal: something depends on the number that the cut cannot see to.
    """

    module: str
    name: str
    index: int | None
    dense: int
    uses: list[tuple[Vector, int, int]] = field(default_factory=list)
    is_literal: bool = False

    @property
    def axis(self) -> Vector | None:
        """The labels of an axis whose length the attribute is, where there is one and it may change."""
        exact = (labels for labels, times, over in self.uses if times == over == 1)
        return None if self.is_literal else next(exact, None)

    def settle(self, labels: Labels) -> None:
        """Tie all axes that follow the attribute to each other, or fix them where it cannot change."""
        for axis, times, over in self.uses:
            if self.axis is None:
                labels.fix(axis, f"its size is fixed by `{self.shown}`, which the code also uses otherwise")
            elif axis is not self.axis:
                shared = gcd(times, over)
                labels.same_length(self.axis, axis, times // shared, over // shared)

    @property
    def shown(self) -> str:
        """The attribute as the code would write it."""
        name = f"{self.module}.{self.name}".lstrip(".")
        return name if self.index is None else f"{name}[{self.index}]"


def watch_attributes(model: nn.Module, make: Callable[[Attribute], int]) -> Iterator[Attribute]:
    """Replace every size in an attribute of a module of ``model`` by what ``make`` returns for it.

    The modules of torch itself hold no sizes of which ``surgery`` does not know. 1 is no size that could shrink.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.") or isinstance(module, torch.jit.ScriptModule):
            continue
        for key, value in list(vars(module).items()):
            if _is_size(value):
                attribute = Attribute(name, key, None, value)
                vars(module)[key] = make(attribute)
                yield attribute
            elif type(value) in (list, tuple) and value and all(type(item) is int for item in value):
                found = [
                    Attribute(name, key, index, item) if _is_size(item) else item for index, item in enumerate(value)
                ]
                vars(module)[key] = type(value)(make(item) if isinstance(item, Attribute) else item for item in found)
                yield from (item for item in found if isinstance(item, Attribute))


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 1
