"""How long each convolution and linear layer takes on this machine, at any width: measured on a grid, interpolated.

A layer is measured at no more than five widths on either side, multiples of the blocks of channels that the runtime
computes in, and between them its time is taken as linear in either, after rounding up to whole blocks.
``layer_times.py`` measures.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import lcm
from statistics import median

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hoyer_export.deploy.layers import DEPTHWISE, Layer

HELD_OUT = 20
"""Pairs of widths off the grid that are measured to say how far interpolation is off."""
_TRIES = 50
"""Of each layer, to find them: a narrow one has no others."""
BLOCK = 8
"""Channels a block where a runtime has none."""
_SHARES = (1 / 4, 1 / 2)
"""Of the width: points of the grid, besides a single block (and 8 channels, where they are many) and all of it."""


@dataclass(frozen=True)
class Interpolation:
    """How far interpolated times are off where they were measured too.

    Args:
        pairs: of widths.
        median: of |interpolated / measured − 1|.
        largest: likewise.
    """

    pairs: int
    median: float
    largest: float


@dataclass(frozen=True)
class TimeTable:
    """Milliseconds of layers at measured widths, and between them.

    Args:
        runtime: that ran them.
        version: of it; "" where it has none.
        threads: that one run used.
        block: channels that the runtime computes together.
        entries: layer → milliseconds.
    """

    runtime: str
    version: str
    threads: int
    block: int
    entries: dict[Layer, float] = field(default_factory=dict, repr=False)
    _surfaces: dict[Layer, "_Surface"] = field(default_factory=dict, repr=False, init=False)

    def ms(self, layer: Layer, inputs: ArrayLike, outputs: ArrayLike) -> NDArray[np.float64]:
        """Return milliseconds at other widths: never more where a width is less.

        Args:
            layer: as wide as it is, all its ``grid`` measured.
            inputs: channels, [n] or one.
            outputs: likewise, of the same shape.
        """
        surface = self._surface(layer)
        (i, s), (j, t) = (
            _between(self.whole(width, points[-1]), points)
            for width, points in zip((inputs, outputs), (surface.inputs, surface.outputs), strict=True)
        )
        heights, right, below = (
            surface.ms,
            np.minimum(i + 1, len(surface.ms) - 1),
            np.minimum(j + 1, surface.ms.shape[1] - 1),
        )
        first = heights[i, j] * (1 - t) + heights[i, below] * t
        second = heights[right, j] * (1 - t) + heights[right, below] * t
        found: NDArray[np.float64] = first * (1 - s) + second * s
        return found

    def _surface(self, layer: Layer) -> "_Surface":
        if layer not in self._surfaces:
            self._surfaces[layer] = _Surface.of(layer, self)
        return self._surfaces[layer]

    def whole(self, width: ArrayLike, dense: int) -> NDArray[np.float64]:
        """Return widths rounded up to what the runtime computes, never above the dense one."""
        asked = np.asarray(width, dtype=np.float64)
        blocks = self.block * np.ceil(asked / self.block)
        return np.minimum(np.where(asked <= BLOCK, np.minimum(blocks, BLOCK), blocks), dense)


@dataclass(frozen=True, eq=False)
class _Surface:
    """Milliseconds [inputs, outputs] at the points of a layer's grid."""

    inputs: NDArray[np.float64]
    outputs: NDArray[np.float64]
    ms: NDArray[np.float64]

    @staticmethod
    def of(layer: Layer, table: TimeTable) -> "_Surface":
        inputs, outputs = grid_points(layer, table.block)
        if layer.groups == DEPTHWISE:
            outputs = outputs[-1:]
            rows = [[table.entries[layer.at(width, width)]] for width in inputs]
        else:
            rows = [[table.entries[layer.at(i, o)] for o in outputs] for i in inputs]
        # Noise must not make a narrower layer look slower: the search for a budget goes one way.
        ms = np.maximum.accumulate(np.maximum.accumulate(np.array(rows, np.float64), 0), 1)
        return _Surface(np.array(inputs, np.float64), np.array(outputs, np.float64), ms)


def _between(width: NDArray[np.float64], points: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the place of the point at or below each width, and how far it is towards the next."""
    low = np.clip(np.searchsorted(points, width, side="right") - 1, 0, max(len(points) - 2, 0))
    step = points[np.minimum(low + 1, len(points) - 1)] - points[low]
    return low, np.clip(np.divide(width - points[low], step, out=np.zeros_like(width), where=step > 0), 0, 1)


def grid_points(layer: Layer, block: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the widths at which a layer is measured, of its inputs and outputs."""
    step = lcm(block, layer.groups or 1)

    def points(width: int) -> tuple[int, ...]:
        least = {8, block} if step == block and width < 8 * block else {step}
        on = least | {step * round(share * width / step) for share in _SHARES}
        return (*sorted(it for it in on if 0 < it < width), width)

    return points(layer.inputs), points(layer.outputs)


def grid(layer: Layer, block: int) -> Iterator[Layer]:
    """Yield the layer at every pair of widths at which it is measured."""
    inputs, outputs = grid_points(layer, block)
    if layer.groups == DEPTHWISE:
        yield from (layer.at(width, width) for width in inputs)
    else:
        yield from (layer.at(i, o) for i in inputs for o in outputs)


def interpolation_error(layers: Iterable[Layer], table: TimeTable) -> Interpolation | None:
    """Return how far interpolation is off on the pairs that were held out; None where no layer has room for one."""
    off = [
        abs(float(table.ms(layer, held.inputs, held.outputs)) / table.entries[held] - 1)
        for layer, held in held_out(tuple(dict.fromkeys(layers)), table.block)
    ]
    return Interpolation(len(off), median(off), max(off)) if off else None


def held_out(layers: Sequence[Layer], block: int) -> list[tuple[Layer, Layer]]:
    """Return layers in turn, each beside itself at widths off its grid: ``HELD_OUT`` pairs, the same each time."""
    draw, found = random.Random(0), dict[Layer, Layer]()
    for layer in (layers[turn % len(layers)] for turn in range(_TRIES * len(layers)) if len(found) < HELD_OUT):
        step = lcm(block, layer.groups or 1)
        inputs, outputs = (step * draw.randint(1, max(width // step, 1)) for width in (layer.inputs, layer.outputs))
        held = layer.at(inputs, inputs if layer.groups == DEPTHWISE else outputs)
        if held not in set(grid(layer, block)) and held.inputs < layer.inputs and held.outputs < layer.outputs:
            found.setdefault(held, layer)
    return [(layer, held) for held, layer in list(found.items())[:HELD_OUT]]
