"""The network from input to output: a column a group, and in it the share of its channels that is left.

Heights grow with the square root of the dense width, so that 20 channels are seen beside 2,048; the share inside a
column is to scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from hoyer_export.report.stage_records import GroupWidth

HEIGHT = 150
MOST_NUMBERED = 24
"""Columns that have room for their numbers, on a wide screen."""


@dataclass(frozen=True)
class Column:
    """One group: ``x`` and ``width`` in per cent of its stage, heights in pixels."""

    group: GroupWidth
    x: float
    width: float
    dense: float
    slim: float


@dataclass(frozen=True)
class Stage:
    """Groups that follow each other and whose names begin alike.

    Args:
        name: of all of them.
        columns: one a group.
        labelled: on how narrow a screen there is room for the name: "always", "wide" or "never".
    """

    name: str
    columns: tuple[Column, ...]
    labelled: str


@dataclass(frozen=True)
class NetworkPicture:
    """The stages in the network's order; ``numbered``: whether there is room for the widths themselves."""

    stages: tuple[Stage, ...]
    numbered: bool
    height: int = HEIGHT


def network_picture(widths: Sequence[GroupWidth]) -> NetworkPicture:
    """Return the picture of all groups."""
    tallest = max((group.dense for group in widths), default=1)
    names = _stage_names([group.group for group in widths])
    stages = []
    for name, members in groupby(zip(names, widths, strict=True), lambda it: it[0]):
        groups = [group for _, group in members]
        part = len(groups) / len(widths)
        labelled = "always" if part >= 0.2 else "wide" if part >= 0.06 else "never"
        stages.append(Stage(name, _columns(groups, tallest), labelled))
    return NetworkPicture(tuple(stages), len(widths) <= MOST_NUMBERED)


def _columns(groups: Sequence[GroupWidth], tallest: int) -> tuple[Column, ...]:
    room = 100 / len(groups)

    def column(index: int, group: GroupWidth) -> Column:
        dense = HEIGHT * math.sqrt(group.dense / tallest)
        slim = max(dense * group.slim / group.dense, 1.0)
        return Column(
            group, round((index + 0.12) * room, 2), round(0.76 * room, 2), dense=round(dense, 1), slim=round(slim, 1)
        )

    return tuple(column(index, group) for index, group in enumerate(groups))


def _stage_names(names: Sequence[str]) -> list[str]:
    """Return what each name begins with, e.g. ``layer1``, ``features.3``, once what all of them share is gone."""
    parts = [name.split(".") for name in names]
    while len(parts) > 1 and all(len(it) > 1 and it[0] == parts[0][0] and not it[1].isdigit() for it in parts):
        parts = [it[1:] for it in parts]
    return [".".join(it[:2] if len(it) > 2 and it[1].isdigit() and _numbered(parts, it[0]) else it[:1]) for it in parts]


def _numbered(parts: Sequence[Sequence[str]], first: str) -> bool:
    """Whether numbers alone follow ``first``, in next to all names: blocks.0, blocks.1, ..."""
    after = [it[1] for it in parts if it[0] == first and len(it) > 1]
    return len(after) > 0.8 * len(parts) and all(it.isdigit() for it in after)
