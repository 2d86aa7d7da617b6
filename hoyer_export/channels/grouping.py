"""From the solved union-find to channels and channel groups.

A component that is not fixed is a channel; channels that touch the same members form a group. Everything is done on
whole arrays: a network has 10⁵ labels and more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
import torch
from torch import Tensor, nn

from hoyer_export.channels.attributes import Attribute
from hoyer_export.channels.channel_map import (
    Axis,
    ChannelGroup,
    ChannelMap,
    Contraction,
    Lending,
    Member,
    Shuffle,
    SizeAttribute,
    Unprunable,
)
from hoyer_export.channels.labels import Tracer
from hoyer_export.channels.union_find import Components, Slot, Vector
from hoyer_export.tensors import named_tensors

ONLY_CHANNEL = "the only channel of its group"
NO_WEIGHT = "no convolution, linear layer or matrix product reads or writes it"


@dataclass(frozen=True, eq=False)
class _Grouping:
    """Every label's group, -1 for none, and channel in it, int64 [labels]; the groups' names and widths."""

    names: list[str]
    widths: list[int]
    group: Vector
    channel: Vector

    def axis(self, labels: Vector | int) -> Axis:
        """Count the positions of an axis that are no channel's, and those of each channel."""
        if isinstance(labels, int):
            return Axis(labels)
        groups, channels = self.group[labels], self.channel[labels]
        counts = {
            self.names[at]: torch.from_numpy(np.bincount(channels[groups == at], minlength=self.widths[at]))
            for at in np.unique(groups[groups >= 0]).tolist()
        }
        return Axis(int((groups < 0).sum()), counts)

    def owner(self, labels: Vector) -> dict[str, Tensor]:
        """Return for every group that has channels along an axis whose each position is, -1 for none of the group's."""
        groups, channels = self.group[labels], self.channel[labels]
        return {
            self.names[at]: torch.from_numpy(np.where(groups == at, channels, -1))
            for at in sorted(set(groups.tolist()) - {-1})
        }


def channel_map(
    tracer: Tracer, attributes: Sequence[Attribute], components: Components, model: nn.Module
) -> ChannelMap:
    """Return the channel map of a finished trace of a model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    slots = tracer.union_find.slots
    slot_of = np.full(tracer.union_find.count, -1)
    for number, slot in enumerate(slots):
        slot_of[slot.span] = number
    # Contracted, as they are or after some computation; vectors are no weights.
    weights = {slots[at].parameter for at in _touched(slot_of, tracer.weights)}
    weights = {name for name in weights if len(shapes[name]) >= 2}
    readers = _touched(slot_of, tracer.readers)
    found = _group(slots, slot_of, components, weights)
    summed = set(found.group[np.isin(components.of_label, _touched(components.of_label, tracer.summed))].tolist())
    number_of = {name: number for number, name in enumerate(found.names)}
    members: list[list[Member]] = [[] for _ in found.names]
    for at, slot in enumerate(slots):
        for name, owner in found.owner(np.arange(slot.start, slot.start + slot.size)).items():
            is_weight = slot.parameter in weights
            member = Member(slot.parameter, slot.dim, owner, is_weight=is_weight, reads=at in readers)
            members[number_of[name]].append(member)
    return ChannelMap(
        groups=tuple(
            ChannelGroup(name, width, tuple(owned), only_read=number not in summed)
            for number, (name, width, owned) in enumerate(zip(found.names, found.widths, members, strict=True))
        ),
        unprunable=tuple(_unprunable(slots, components, found)),
        contractions=tuple(
            Contraction(traced.name, traced.constant, tuple(map(found.axis, traced.axes)))
            for traced in tracer.contractions
        ),
        shapes=shapes,
        buffers=frozenset(name for name, _ in model.named_buffers()),
        attributes=tuple(
            SizeAttribute(
                module=it.module, attribute=it.name, index=it.index, dense=it.dense,
                axis=found.axis(it.axis[0]), times=it.axis[1],
            )
            for it in attributes
            if it.axis is not None
        ),
        shuffles=tuple(
            Shuffle(it.module, it.dim, it.shape, torch.from_numpy(it.order.copy()), found.owner(it.side.labels))
            for it in tracer.shuffles.values()
        ),
        lendings=tuple(
            Lending(name, tuple(sorted(set[str]().union(*(it.layers for it in loans)))), axis)
            for name, loans in tracer.loans.items()
            if loans and (axis := found.axis(loans[0].side.labels)).counts
        ),
    )  # fmt: skip


def _touched(number_of: Vector, vectors: list[Vector]) -> list[int]:
    """Return the distinct numbers that some labels have, but for -1."""
    numbers = _distinct(number_of[np.concatenate([np.zeros(0, np.int64), *vectors])])
    return [int(number) for number in numbers if number >= 0]


def _group(slots: list[Slot], slot_of: Vector, components: Components, weights: set[str]) -> _Grouping:
    of_label = components.of_label
    live = np.flatnonzero((slot_of >= 0) & (components.reason_of_component[of_label] < 0))
    # A component's signature is the set of slots that it touches: the sum of one random 64-bit number a slot (2⁻⁶⁴ that
    # two different sets agree, and a fixed seed so that it is the same on every run).
    numbers = np.random.default_rng(0).integers(0, 2**63, len(slots), dtype=np.uint64)
    touching, touched = np.divmod(_distinct(of_label[live] * len(slots) + slot_of[live]), max(len(slots), 1))
    signature = np.zeros(len(components.reason_of_component), np.uint64)
    np.add.at(signature, touching, numbers[touched])
    # Groups, and channels within one, in the order in which the network comes to them.
    found, first = np.unique(of_label[live], return_index=True)
    order = np.argsort(first)
    _, earliest, kind = np.unique(signature[found[order]], return_index=True, return_inverse=True)
    kind = np.argsort(np.argsort(earliest))[kind]
    is_weight = np.array([slot.parameter in weights for slot in slots], dtype=bool)
    with_weight = set(touching[is_weight[touched]].tolist())
    channel_of, group_of = np.full((2, len(signature)), -1)
    names: list[str] = []
    widths: list[int] = []
    ends = np.cumsum(np.bincount(kind))
    for members in np.split(found[order][np.argsort(kind, kind="stable")], ends[:-1]) if len(ends) else []:
        if len(members) == 1 or members[0] not in with_weight:
            components.fix(members, ONLY_CHANNEL if len(members) == 1 else NO_WEIGHT)
            continue
        group_of[members] = len(names)
        channel_of[members] = np.arange(len(members))
        widths.append(len(members))
        start = live[first[np.searchsorted(found, members[0])]]
        names.append(_name(slots[slot_of[start]], names))
    return _Grouping(names, widths, group_of[of_label], channel_of[of_label])


def _distinct(numbers: Vector) -> Vector:
    """Return the sorted distinct numbers; ``np.unique`` hashes, which is ten times as slow on numbers like these."""
    numbers = np.sort(numbers)
    return numbers[np.append(True, numbers[1:] != numbers[:-1])] if len(numbers) else numbers


def _name(slot: Slot, taken: list[str]) -> str:
    """Return the first module whose output the channels are; the parameter's name where that is taken."""
    parameter = (
        slot.parameter.partition(".parametrizations.")[0] + "."
        if ".parametrizations." in slot.parameter
        else slot.parameter
    )
    module = parameter.rpartition(".")[0] or slot.parameter
    names = chain((module, slot.parameter), (f"{slot.parameter}#{number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def _unprunable(slots: list[Slot], components: Components, found: _Grouping) -> Iterator[Unprunable]:
    for slot in slots:
        indices = np.flatnonzero(found.group[slot.span] < 0)
        why = components.reason_of(slot.start + indices)
        for number in dict.fromkeys(why.tolist()):
            which = torch.from_numpy(indices[why == number])
            yield Unprunable(slot.parameter, slot.dim, which, components.reasons[number])
