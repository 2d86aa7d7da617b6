"""From solved labels to channels and channel groups.

A class of labels that is not fixed is a channel; channels that touch the same members form a group. Everything is
done on whole arrays: a network has 10⁵ labels and more.
"""

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

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


def channel_map(tracer: Tracer, model: nn.Module) -> ChannelMap:
    """Return the channel map of a finished trace of ``model``."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    shapes = {name: tuple(tensor.shape) for name, tensor in {**parameters, **buffers}.items()}
    labels = tracer.labels
    for attribute in tracer.attributes:
        attribute.settle(labels)
    classes = labels.solve()
    weights = _weights(tracer, shapes)
    readers, summed = _slots_of(tracer.readers, labels), _classes_of(tracer.summed, classes)
    group_of, channel_of, names = _group(labels, classes, weights)
    groups = tuple(
        ChannelGroup(
            name,
            width=int(channel_of[group_of == number].max()) + 1,
            members=tuple(
                Member(
                    slot.parameter,
                    slot.dim,
                    owner=torch.from_numpy(_owner(slot, group_of, channel_of, number)),
                    is_weight=slot.parameter in weights,
                    reads=at in readers,
                )
                for at, slot in enumerate(labels.slots)
                if (group_of[slot.start : slot.start + slot.size] == number).any()
            ),
            only_read=not np.isin(classes.of_label[group_of == number], summed).any(),
        )
        for number, name in enumerate(names)
    )
    contractions = tuple(
        Contraction(found.name, found.constant, tuple(_axis(axis, group_of, channel_of, groups) for axis in found.axes))
        for found in tracer.contractions
    )
    attributes = tuple(
        SizeAttribute(found.module, found.name, found.index, found.dense, _axis(axis, group_of, channel_of, groups))
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
    return {number for vector in vectors for number in np.unique(slot_of[vector]).tolist()} - {-1}


def _classes_of(vectors: list[Vector], classes: Classes) -> Vector:
    return np.unique(np.concatenate([np.zeros(0, np.int64), *(classes.of_label[vector] for vector in vectors)]))


def _slot_of(labels: Labels) -> Vector:
    """Return the number of the slot that each label lies in, -1 for nobody's."""
    slot_of = np.full(labels.count, -1)
    for number, slot in enumerate(labels.slots):
        slot_of[slot.start : slot.start + slot.size] = number
    return slot_of


def _group(labels: Labels, classes: Classes, weights: set[str]) -> tuple[Vector, Vector, list[str]]:
    """Return each label's group (-1 for none) and channel in it, and the groups' names."""
    slot_of = _slot_of(labels)
    fixed = np.isin(classes.of_label, list(classes.reasons))
    live = np.flatnonzero((slot_of >= 0) & ~fixed)
    # A class' signature is the set of slots that it touches: the sum of one random 64-bit number a slot (2⁻⁶⁴ that
    # two different sets agree, and a fixed seed so that it is the same on every run).
    numbers = np.random.default_rng(0).integers(0, 2**63, len(labels.slots), dtype=np.uint64)
    pairs = np.unique(np.stack([classes.of_label[live], slot_of[live]]), axis=1)
    signature = np.zeros(classes.of_label.max() + 1, np.uint64)
    np.add.at(signature, pairs[0], numbers[pairs[1]])
    group_of, channel_of = np.full(labels.count, -1), np.full(labels.count, -1)
    names: list[str] = []
    _, first, which = np.unique(signature[classes.of_label[live]], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # groups in the order in which the network meets them
    which = rank[which]
    for number in range(len(first)):
        members = live[which == number]
        _, start, channel = np.unique(classes.of_label[members], return_index=True, return_inverse=True)
        touched = {labels.slots[slot].parameter for slot in set(slot_of[members].tolist())}
        if len(start) == 1 or not touched & weights:
            reason = ONLY_CHANNEL if len(start) == 1 else NO_WEIGHT
            classes.reasons.update(dict.fromkeys(classes.of_label[members].tolist(), reason))
            continue
        channel_of[members] = np.argsort(np.argsort(start))[channel]
        group_of[members] = len(names)
        names.append(_name(labels.slots[slot_of[members[0]]], names))
    return group_of, channel_of, names


def _name(slot: Slot, taken: list[str]) -> str:
    """Return the first module whose output the channels are; the parameter's name where that is taken."""
    module = slot.parameter.rpartition(".")[0] or slot.parameter
    name = module if module not in taken else slot.parameter
    number = 2
    while name in taken:
        name = f"{slot.parameter}#{number}"
        number += 1
    return name


def _owner(slot: Slot, group_of: Vector, channel_of: Vector, group: int) -> Vector:
    span = slice(slot.start, slot.start + slot.size)
    return np.where(group_of[span] == group, channel_of[span], -1)


def _axis(axis: Vector | int, group_of: Vector, channel_of: Vector, groups: tuple[ChannelGroup, ...]) -> Axis:
    if isinstance(axis, int):
        return Axis(fixed=axis)
    found = group_of[axis]
    counts = {
        groups[number].name: torch.from_numpy(
            np.bincount(channel_of[axis][found == number], minlength=groups[number].width)
        )
        for number in np.unique(found[found >= 0]).tolist()
    }
    return Axis(fixed=int((found < 0).sum()), counts=counts)


def _unprunable(labels: Labels, classes: Classes, group_of: NDArray[np.int64]) -> list[Unprunable]:
    found: list[Unprunable] = []
    for slot in labels.slots:
        by_reason: defaultdict[str, list[int]] = defaultdict(list)
        span = slice(slot.start, slot.start + slot.size)
        for index in np.flatnonzero(group_of[span] < 0).tolist():
            by_reason[classes.reason(slot.start + index)].append(index)
        found += [Unprunable(slot.parameter, slot.dim, torch.tensor(i), reason) for reason, i in by_reason.items()]
    return found
