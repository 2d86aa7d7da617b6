"""Inputs of which a module only wants the width: ``b, n, c = x.shape``, ``reshape(b, n, 3, heads, c // heads)``.

An attention that is written so takes the width of all its heads for that of the network, whose channels stay. But where
it asks its input for nothing but its size, and linear layers of its own read the rest, it may as well be given a
narrower one, as long as those layers still get the whole. So it is lent a tensor whose last axis has labels of its own:
they follow the heads. As soon as anything else is done with that tensor they are those of the input.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from hoyer_export.channels.labels import AxisLabels, Tracer
from hoyer_export.channels.sizes import AttributeSize, plain
from hoyer_export.modules.narrowed import narrowing_of


@dataclass(eq=False)
class Lent:
    """What a module is lent in the place of its input.

    Args:
        module: its name.
        whole: the input.
        side: the labels of the last axis of what it gets.
        layers: names of its linear layers that read the whole.
        is_given_back: something else is done with it.
    """

    module: str
    whole: Tensor
    side: AxisLabels
    layers: set[str] = field(default_factory=set)
    is_given_back: bool = False


def lend(tracer: Tracer, name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return the arguments that a module is to run on, or None for those that it has."""
    if not args or not isinstance(args[0], Tensor):
        return None
    if (lent := tracer.lent.get(args[0])) is not None:
        owner, _, layer = name.rpartition(".")
        if owner == lent.module and type(module) is nn.Linear:
            lent.layers.add(layer)
            return (lent.whole, *args[1:])
        return None
    whole, last = args[0], args[0].ndim - 1
    if (
        not _may_take_less(module)
        or last < 2
        or any(arg is whole for arg in args[1:])
        or last not in tracer.axes(whole)
    ):
        return None
    side = tracer.axis(whole, last)
    narrowed = narrowing_of(module)
    shape = plain(whole.shape)
    width = shape[-1]
    if narrowed is None:
        part = whole.detach()
    else:  # by an earlier cut
        narrowed.is_off, width = True, narrowed.width
        part = whole.new_zeros((*shape[:-1], width))
    lent = Lent(name, whole, AxisLabels(tracer.union_find.new_apart(width), side.rest))
    tracer.put(part, {**tracer.axes(whole), last: lent.side})
    tracer.lent[part] = lent
    tracer.loans.setdefault(name, []).append(lent)
    tracer.once_used(part, partial(_give_back, tracer, lent))
    return (part, *args[1:])


def _may_take_less(module: nn.Module) -> bool:
    """Whether a module is of the user's own code, with a size in an attribute and a linear layer."""
    of_torch = type(module).__module__.startswith("torch.")
    sized = any(isinstance(value, AttributeSize) for value in vars(module).values())
    return not of_torch and sized and any(type(child) is nn.Linear for child in module.children())


def _give_back(tracer: Tracer, lent: Lent, part: Tensor) -> None:
    lent.is_given_back = True
    tracer.lent.pop(part, None)
    _tie_to_whole(tracer, lent)


def _tie_to_whole(tracer: Tracer, lent: Lent) -> None:
    side = tracer.axis(lent.whole, -1)
    if len(side) == len(lent.side):
        tracer.unite(lent.side, side)
    else:  # an earlier cut has made it narrower
        tracer.fix(lent.side, "a module gets a narrower input, and now reads it")


def settle_loans(tracer: Tracer) -> None:
    """Make sure that a module that was lent something in one call was so in every call, with the same labels."""
    for loans in tracer.loans.values():
        kept = [lent for lent in loans if not lent.is_given_back]
        if len(kept) < len(loans):
            for lent in kept:
                _tie_to_whole(tracer, lent)
            loans.clear()
        elif len({len(lent.side) for lent in loans}) == 1:
            tracer.unite(loans[0].side, *(lent.side for lent in loans[1:]))
        else:
            for lent in loans:
                tracer.fix(lent.side, "the width of one of several inputs of a module")
