"""Widths by what is fast: from the dense network down, always the step that saves most time for the importance lost.

A step takes the weakest channels of one group, down to any narrower width that the runtime computes whole; its worth is

    Δms / Σ importance                    in a budget of time
    Δms / Σ importance · Δms / ΔMACs      in any other: of two networks at the same MACs, the faster one

Where a short step saves nothing, a longer one is taken. Once a budget is met, what the last step took too much is given
back, the most important first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.select.align import Keep, aligned_width
from hoyer_export.select.budget import Budget
from hoyer_export.select.latency import Latency, Term

Widths = dict[str, int]
Floats = NDArray[np.float64]

_TINY = 1e-9
"""Of a group's importance: what is worth nothing goes for the least time first."""
_SLOPE = 1e-3
"""Of a layer's time, that falls with its MACs whatever was measured: so that a step which saves no time comes last."""


@dataclass(frozen=True, eq=False)
class _Axis:
    """Positions of an axis: those of nobody, and group → of its w strongest channels, [width + 1]."""

    fixed: float
    positions: dict[str, Floats]

    def size(self, widths: Widths, group: str = "", instead: NDArray[np.int64] | int = 0) -> Floats:
        """Return the positions at these widths, of ``group`` at those ``instead``."""
        sizes = (at[instead if name == group else widths[name]] for name, at in self.positions.items())
        return np.asarray(self.fixed + sum(sizes))


@dataclass(frozen=True, eq=False)
class _Layer:
    term: Term
    axes: tuple[_Axis, ...]
    dense: tuple[float, ...]

    def costs(self, widths: Widths, group: str = "", instead: NDArray[np.int64] | int = 0) -> Floats:
        """Return milliseconds and MACs, [2] or [2, n]."""
        sizes = [axis.size(widths, group, instead) for axis in self.axes]
        positions = prod(sizes, start=np.ones(()))
        sloping = _SLOPE * self.term.ms(*self.dense) / max(prod(self.dense), 1)
        return np.stack(np.broadcast_arrays(self.term.ms(*sizes) + sloping * positions, self.term.constant * positions))


@dataclass(frozen=True, eq=False)
class Knapsack:
    """A network on the way down.

    Args:
        channels: its channel map.
        order: group name → its channels, the strongest first.
        lost: group name → importance that is lost at a width, [width + 1].
        choices: group name → the widths that may be chosen, ascending.
        layers: what takes time.
    """

    channels: ChannelMap
    order: dict[str, Tensor]
    lost: dict[str, Floats]
    choices: dict[str, NDArray[np.int64]]
    layers: tuple[_Layer, ...]

    @staticmethod
    def of(
        channels: ChannelMap, scores: Mapping[str, Tensor], importance: Mapping[str, Tensor], latency: Latency
    ) -> "Knapsack":
        """Return the dense network.

        Args:
            channels: its channel map.
            scores: group name → [width]: the order in which its channels go.
            importance: group name → [width], comparable between groups: what is lost with a channel.
            latency: that is to be saved.
        """
        order = {it.name: scores[it.name].argsort(descending=True, stable=True) for it in channels.groups}
        worth = {name: importance[name][at].double().numpy() for name, at in order.items()}
        lost = {
            name: np.concatenate([np.cumsum(it[::-1])[::-1], [0.0]]) + _TINY * it.sum() * np.arange(len(it), -1, -1)
            for name, it in worth.items()
        }
        choices = {
            it.name: np.unique([aligned_width(it, count, latency.table.block) for count in range(1, it.width + 1)])
            for it in channels.groups
        }

        def axis(of: Term, number: int) -> _Axis:
            counts = of.axes[number].counts
            at = {name: np.cumsum(np.concatenate([[0], it[order[name]].numpy()])) for name, it in counts.items()}
            return _Axis(of.axes[number].fixed, {name: it.astype(np.float64) for name, it in at.items()})

        layers = [
            _Layer(it, tuple(axis(it, at) for at in range(len(it.axes))), tuple(axis_.size({}) for axis_ in it.axes))
            for it in latency.terms(channels)
        ]
        return Knapsack(channels, order, lost, choices, tuple(layers))

    @property
    def dense(self) -> Widths:
        """The widths that they all begin with."""
        return {group.name: group.width for group in self.channels.groups}

    @property
    def narrowest(self) -> Widths:
        """The least that may be chosen."""
        return {name: int(widths[0]) for name, widths in self.choices.items()}

    def keep(self, widths: Widths) -> Keep:
        """Return the strongest channels."""
        return {name: self.order[name][:width].sort().values for name, width in widths.items()}

    def steps(self, *, of_time: bool) -> Iterator[Widths]:
        """Yield all widths on the way down, the dense ones first; ``of_time``: as in a budget of time."""
        touching = {
            name: [layer for layer in self.layers if any(name in axis.positions for axis in layer.axes)]
            for name in self.order
        }
        near = {
            name: {other for layer in layers for axis in layer.axes for other in axis.positions}
            for name, layers in touching.items()
        }
        widths = self.dense
        yield dict(widths)
        best = {name: self._best(name, widths, touching[name], of_time) for name in widths}
        while best and max(worth for worth, _ in best.values()) > 0:
            name = max(best, key=lambda it: best[it][0])
            widths[name] = best[name][1]
            yield dict(widths)
            for other in near[name] | {name}:
                best[other] = self._best(other, widths, touching[other], of_time)

    def _best(self, name: str, widths: Widths, layers: list[_Layer], of_time: bool) -> tuple[float, int]:
        """Return the worth of a group's best step, and the width it leads to; 0 where there is none."""
        narrower = self.choices[name][self.choices[name] < widths[name]]
        if not len(narrower) or not layers:
            return 0.0, widths[name]
        whole = sum((layer.costs(widths) for layer in layers), np.zeros(2))
        ms, macs = whole[:, None] - sum(
            (it.costs(widths, name, narrower) for it in layers), np.zeros((2, len(narrower)))
        )
        lost = np.maximum(self.lost[name][narrower] - self.lost[name][widths[name]], np.finfo(float).tiny)
        worth = ms / lost if of_time else ms / lost * ms / macs
        at = len(worth) - 1 - int(np.argmax(worth[::-1]))  # of equals the shortest
        return float(worth[at]), int(narrower[at])

    def within(self, budget: Budget) -> Keep | None:
        """Return what stays within a budget; None where even the narrowest network does not meet it."""
        dense = budget.cost.of_keep(self.channels, {})

        def meets(widths: Widths) -> bool:
            return budget.is_met_by(budget.cost.of_keep(self.channels, self.keep(widths)), dense)

        steps = [*self.steps(of_time=isinstance(budget.cost, Latency)), self.narrowest]
        low, high = 0, len(steps) - 1
        if not meets(steps[high]):
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if meets(steps[middle]) else (middle + 1, high)
        widths = steps[low]
        wider = True
        while wider:  # give back, the most important first
            wider = False
            ups = {name: int(at[at > widths[name]][0]) for name, at in self.choices.items() if widths[name] < at[-1]}
            for name in sorted(ups, key=lambda it: self.lost[it][ups[it]] - self.lost[it][widths[it]]):
                if meets(widths | {name: ups[name]}):
                    widths, wider = widths | {name: ups[name]}, True
                    break
        return self.keep(widths)


def energy(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what each channel holds of its group: s² / Σ s², for scores that are norms."""
    squares = {name: it.double().square() for name, it in scores.items()}
    return {name: it / it.sum().clamp(min=torch.finfo(it.dtype).tiny) for name, it in squares.items()}
