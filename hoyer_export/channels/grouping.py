"""From solved labels to channels and channel groups.

A class of labels that is not fixed is a channel; channels that touch the same members form a group. Everything is
done on whole arrays: a network has 10⁵ labels and more.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from hoyer_export.channels.channel_map import (
    Axis,
    ChannelGroup,
    ChannelMap,
    Contraction,
    Member,
    SizeAttribute,
    Unprunable,
)
from hoyer_export.channels.labels import Classes, Labels, Slot, Vector
from hoyer_export.channels.tracer import Tracer

ONLY_CHANNEL = "the only channel of its group"
NO_WEIGHT = "no convolution, linear layer or matrix product reads or writes it"


def channel_map(
    tracer: Tracer, classes: Classes, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> ChannelMap:
    """Return the channel map of a finished trace of a model with these parameters and buffers."""
    shapes = {name: tuple(tensor.shape) for name, tensor in {**parameters, **buffers}.items()}
    labels = tracer.labels
    weights = _weights(tracer, shapes)
    readers = _slots_of(tracer.readers, labels)
    group_of, channel_of, names, widths = _group(labels, classes, weights)
    summed = set(group_of[np.isin(classes.of_label, _classes_of(tracer.summed, classes))].tolist())
    members: list[list[Member]] = [[] for _ in names]
    for at, slot in enumerate(labels.slots):
        span = slice(slot.start, slot.start + slot.size)
        groups_here, channels_here = group_of[span], channel_of[span]
        for number in sorted(set(groups_here.tolist()) - {-1}):
            owner = torch.from_numpy(np.where(groups_here == number, channels_here, -1))
            members[number].append(Member(slot.parameter, slot.dim, owner, slot.parameter in weights, at in readers))
    groups = tuple(
        ChannelGroup(name, width, tuple(owned), only_read=number not in summed)
        for number, (name, width, owned) in enumerate(zip(names, widths, members, strict=True))
    )
    # Every channel of the network at a place of its own, so that one count serves all groups.
    starts = np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])
    place_of = np.where(group_of >= 0, starts[group_of] + channel_of, -1)

    def axis_of(axis: Vector | int) -> Axis:
        return Axis(axis) if isinstance(axis, int) else _axis(place_of[axis], starts, names)

    contractions = tuple(
        Contraction(found.name, found.constant, tuple(map(axis_of, found.axes))) for found in tracer.contractions
    )
    attributes = tuple(
        SizeAttribute(found.module, found.name, found.index, found.dense, axis_of(axis[0]), axis[1])
        for found in tracer.attributes
        if (axis := found.axis) is not None
    )
    unprunable = tuple(_unprunable(labels, classes, group_of))
    return ChannelMap(groups, unprunable, contractions, shapes, frozenset(buffers), attributes)


def _weights(tracer: Tracer, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    """Return the parameters that are contracted, as they are or after some computation; vectors are no weights."""
    slots = tracer.labels.slots
    used = {slots[number].parameter for number in _slots_of(tracer.weights, tracer.labels)}
    return {name for name in used if len(shapes[name]) >= 2}


def _slots_of(vectors: list[Vector], labels: Labels) -> set[int]:
    """Return the numbers of all slots that some of the labels lie in."""
    slot_of = _slot_of(labels)
    return {number for vector in vectors for number in slot_of[vector].tolist()} - {-1}


def _classes_of(vectors: list[Vector], classes: Classes) -> Vector:
    return _distinct(np.concatenate([np.zeros(0, np.int64), *(classes.of_label[vector] for vector in vectors)]))


def _slot_of(labels: Labels) -> Vector:
    """Return the number of the slot that each label lies in, -1 for nobody's."""
    slot_of = np.full(labels.count, -1)
    for number, slot in enumerate(labels.slots):
        slot_of[slot.start : slot.start + slot.size] = number
    return slot_of


def _group(labels: Labels, classes: Classes, weights: set[str]) -> tuple[Vector, Vector, list[str], list[int]]:
    """Return each label's group (-1 for none) and channel in it, and the groups' names and widths."""
    slot_of, of_label = _slot_of(labels), classes.of_label
    live = np.flatnonzero((slot_of >= 0) & (classes.reason_of_class[of_label] < 0))
    # A class' signature is the set of slots that it touches: the sum of one random 64-bit number a slot (2⁻⁶⁴ that
    # two different sets agree, and a fixed seed so that it is the same on every run).
    numbers = np.random.default_rng(0).integers(0, 2**63, len(labels.slots), dtype=np.uint64)
    touches = _distinct(of_label[live] * len(labels.slots) + slot_of[live])
    signature = np.zeros(len(classes.reason_of_class), np.uint64)
    np.add.at(signature, touches // len(labels.slots), numbers[touches % len(labels.slots)])
    # Groups, and channels within one, in the order in which the network meets them.
    found, first = np.unique(of_label[live], return_index=True)
    met = np.argsort(first)
    _, earliest, kind = np.unique(signature[found[met]], return_index=True, return_inverse=True)
    kind = np.argsort(np.argsort(earliest))[kind]
    channel_of_class, group_of_class = np.full((2, len(signature)), -1)
    names: list[str] = []
    widths: list[int] = []
    is_weight = np.array([slot.parameter in weights for slot in labels.slots], dtype=bool)
    weighty = set((touches[is_weight[touches % max(len(labels.slots), 1)]] // max(len(labels.slots), 1)).tolist())
    ends = np.cumsum(np.bincount(kind))
    for members in np.split(found[met][np.argsort(kind, kind="stable")], ends[:-1]) if len(ends) else []:
        if len(members) == 1 or members[0] not in weighty:
            classes.refuse(members, ONLY_CHANNEL if len(members) == 1 else NO_WEIGHT)
            continue
        group_of_class[members] = len(names)
        channel_of_class[members] = np.arange(len(members))
        widths.append(len(members))
        start = live[first[np.searchsorted(found, members[0])]]
        names.append(_name(labels.slots[slot_of[start]], names))
    nobody = slot_of < 0
    group_of, channel_of = group_of_class[of_label], channel_of_class[of_label]
    group_of[nobody] = channel_of[nobody] = -1
    return group_of, channel_of, names, widths


def _distinct(numbers: Vector) -> Vector:
    """Return the sorted distinct numbers; ``np.unique`` hashes, which is ten times as slow on numbers like these."""
    numbers = np.sort(numbers)
    return numbers[np.append(True, numbers[1:] != numbers[:-1])] if len(numbers) else numbers


def _name(slot: Slot, taken: list[str]) -> str:
    """Return the first module whose output the channels are; the parameter's name where that is taken."""
    module = slot.parameter.rpartition(".")[0] or slot.parameter
    name = module if module not in taken else slot.parameter
    number = 2
    while name in taken:
        name = f"{slot.parameter}#{number}"
        number += 1
    return name


def _axis(places: Vector, starts: Vector, names: list[str]) -> Axis:
    """Count the positions of an axis that are nobody's, -1, and those at each channel's place."""
    counts = np.bincount(places[places >= 0], minlength=starts[-1])
    present = np.unique(np.searchsorted(starts, np.flatnonzero(counts), side="right") - 1).tolist()
    of_group = {
        names[number]: torch.from_numpy(counts[starts[number] : starts[number + 1]].copy()) for number in present
    }
    return Axis(fixed=int((places < 0).sum()), counts=of_group)


def _unprunable(labels: Labels, classes: Classes, group_of: Vector) -> Iterator[Unprunable]:
    for slot in labels.slots:
        indices = np.flatnonzero(group_of[slot.start : slot.start + slot.size] < 0)
        why = classes.reason_of(slot.start + indices)
        for number in dict.fromkeys(why.tolist()):
            which = torch.from_numpy(indices[why == number])
            yield Unprunable(slot.parameter, slot.dim, which, classes.reasons[number])
