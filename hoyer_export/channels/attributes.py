"""Sizes that modules keep in attributes: ``self.num_heads``, ``self.split[1]``.

A literal in the code cannot follow a cut, but an attribute can be rewritten, if nothing else reads it: while tracing
every int in an attribute of the user's own modules is replaced by one that notes what it is used for. Where all
that it does is give axes their lengths, the cut writes the new length into the attribute.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from hoyer_export.channels.union_find import Components, UnionFind, Vector

Sides = tuple[list[Vector], list[Vector]]
"""The labels along the axes of what a module was given, and of what it returned."""

_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


@dataclass(eq=False)
class Attribute:
    """One size in one attribute, and what it was used for while the model ran.

    Args:
        module: name of the module.
        name: of the attribute.
        index: position in it, where it is a list or tuple.
        dense: the size.
        uses: (labels of an axis, times, over): the axis has ``dense · times // over`` positions.
        is_fixed: something depends on the number that the cut cannot see to.
        passed_over: labels of axes that could have followed the attribute, but another length follows the cut instead.
        is_preferred: those axes are to follow the attribute.
        divided: labels of axes whose length the code divides by it: whole parts of them were to go.
    """

    module: str
    name: str
    index: int | None
    dense: int
    uses: list[tuple[Vector, int, int]] = field(default_factory=list)
    is_fixed: bool = False
    passed_over: list[Vector] = field(default_factory=list)
    is_preferred: bool = False
    divided: list[Vector] = field(default_factory=list)

    @property
    def axis(self) -> tuple[Vector, int] | None:
        """The labels of an axis, and of how many such axes the attribute is the length, where it may change."""
        exact = sorted((over, number) for number, (_, times, over) in enumerate(self.uses) if times == 1)
        if self.is_fixed or self.passed_over or not exact:
            return None
        over, number = exact[0]
        return self.uses[number][0], over

    def declare(self, labels: UnionFind) -> None:
        """Tie all axes that follow the attribute to each other, or fix them where it cannot change."""
        followed = self.axis
        for axis, times, over in self.uses:
            if followed is None:
                labels.fix(axis, f"its size is fixed by `{self.shown}`, which the code also uses otherwise")
            elif axis is not followed[0]:
                labels.tie(followed[0], axis, times * followed[1], over)

    @property
    def shown(self) -> str:
        """The attribute as the code would write it."""
        name = f"{self.module}.{self.name}".lstrip(".")
        return name if self.index is None else f"{name}[{self.index}]"


# Words of a name that make it one of channels.
_OF_CHANNELS = {
    *("in", "out", "inp", "oup", "c", "c1", "c2", "cin", "cout", "ch", "chs", "channel", "channels", "planes"),
    *("inplanes", "dim", "dims", "features", "filters", "width", "groups", "hidden"),
}


def follow_unread(attribute: Attribute, seen: Mapping[str, Sides], labels: UnionFind, components: Components) -> None:
    """Let a size that no forward reads follow what it is named after: other methods read it (``reparameterize``).

    ``in_...`` follows what the module is given, ``out_...`` what it returns, if that has this length; any other name of
    channels whatever in the module has it, if all of that shrinks together.
    """
    words = attribute.name.strip("_").lower().split("_")
    if attribute.uses or attribute.is_fixed or attribute.passed_over or _OF_CHANNELS.isdisjoint(words):
        return
    inputs, outputs = seen.get(attribute.module, ([], []))
    inside = [
        np.arange(s.start, s.start + s.size) for s in labels.slots if s.parameter.startswith(f"{attribute.module}.")
    ]
    named = inputs if words[0].startswith("in") else outputs if words[0].startswith("o") else []
    kinds = [axis for axis in named if len(axis) == attribute.dense] or inputs + outputs + inside
    axes = [axis for axis in kinds if len(axis) == attribute.dense]
    channels = [np.sort(components.of_label[axis]) for axis in axes]
    if axes and all(np.array_equal(one, channels[0]) for one in channels):
        attribute.uses.append((axes[0], 1, 1))


def watch_attributes(model: nn.Module, make: Callable[[Attribute], int]) -> Iterator[Attribute]:
    """Replace every size in an attribute of a module of ``model`` by what ``make`` returns for it.

    Of torch's own modules normalisations compute with theirs; the others hold no sizes of which ``surgery`` does not
    know. 1 is no size that could shrink.
    """
    for name, module in model.named_modules():
        of_torch = type(module).__module__.startswith("torch.") and not isinstance(module, _NORMALISATIONS)
        if of_torch or isinstance(module, torch.jit.ScriptModule):
            continue
        for key, value in list(vars(module).items()):
            sizes = value if type(value) in (list, tuple) else [value]
            if not all(type(item) is int for item in sizes):
                continue
            found = [Attribute(name, key, None if type(value) is int else at, size) for at, size in enumerate(sizes)]
            watched = [make(attribute) if attribute.dense > 1 else attribute.dense for attribute in found]
            vars(module)[key] = watched[0] if type(value) is int else type(value)(watched)
            yield from found
