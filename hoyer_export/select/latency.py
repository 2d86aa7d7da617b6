"""What a network's latency is at given widths: the times of its convolutions and linear layers on this machine, summed.

ms = Σ over layers of t(inputs, outputs), t from the measured table. What multiplies in no such layer (a product of two
activations) counts as long as those do for its MACs; what multiplies nothing counts nothing, so that the whole network
takes a little longer than is said, dense and slim alike.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from hoyer_export.call import ExampleInputs
from hoyer_export.channels.channel_map import Axis, ChannelMap, Contraction
from hoyer_export.channels.cost import shares_of_keep
from hoyer_export.deploy.layer_times import time_table
from hoyer_export.deploy.layers import DEPTHWISE, Layer, layers_of
from hoyer_export.deploy.runtime import DEFAULT
from hoyer_export.deploy.runtime.protocol import Runtime
from hoyer_export.deploy.time_table import TimeTable

Sizes = ArrayLike
Ms = Callable[..., NDArray[np.float64]]


_UNKNOWN = 2e-8
"""Milliseconds a MAC where no layer tells: 50 GMAC/s."""


@dataclass(frozen=True, eq=False)
class Term:
    """What one contraction adds.

    Args:
        axes: of the contraction.
        constant: of the contraction.
        ms: their sizes, numbers or arrays → milliseconds.
    """

    axes: tuple[Axis, ...]
    constant: int
    ms: Ms


@dataclass(frozen=True, eq=False)
class Latency:
    """A cost: milliseconds of a run on this machine, of layers alone.

    Args:
        layers: module → its layer, one for each time that it is called.
        table: with their times.
    """

    layers: Mapping[str, tuple[Layer, ...]]
    table: TimeTable

    name = "latency"

    def of_keep(self, channels: ChannelMap, keep: Mapping[str, Tensor]) -> float:
        """Return milliseconds once only the channels in ``keep`` are left; a group that is not named stays whole."""
        shares = shares_of_keep(channels, keep)
        return sum(float(term.ms(*(axis.size(shares) for axis in term.axes))) for term in self.terms(channels))

    def describe(self, value: float) -> str:
        """Return e.g. ``3.142 ms``."""
        return f"{value:.3f} ms"

    def terms(self, channels: ChannelMap) -> tuple[Term, ...]:
        """Return what each contraction adds, in the map's order."""
        calls = {name: iter(layers) for name, layers in self.layers.items()}
        found = [(it, next(calls.get(it.name, iter(())), None)) for it in channels.contractions]
        timed = [None if layer is None or not _fits(it, layer) else self._timed(it, layer) for it, layer in found]
        known = [(term, it) for term, (it, _) in zip(timed, found, strict=True) if term is not None]
        macs = sum(it.macs({}) for _, it in known)
        slowness = (
            sum(float(term.ms(*(axis.size({}) for axis in it.axes))) for term, it in known) / macs if macs else _UNKNOWN
        )
        return tuple(
            _by_macs(it, slowness) if term is None else term for term, (it, _) in zip(timed, found, strict=True)
        )

    def _timed(self, contraction: Contraction, layer: Layer) -> Term:
        others = [max(axis.size({}), 1.0) for axis in contraction.axes[2:]]  # positions that are channels elsewhere

        def ms(outputs: Sizes, slices: Sizes = 0, *more: Sizes) -> NDArray[np.float64]:
            inputs = outputs if layer.groups == DEPTHWISE else np.multiply(slices, layer.groups)
            left = prod((np.divide(size, dense) for size, dense in zip(more, others, strict=True)), start=np.ones(()))
            found: NDArray[np.float64] = self.table.ms(layer, *np.broadcast_arrays(inputs, outputs)) * left
            return found

        return Term(contraction.axes, contraction.constant, ms)


def _fits(contraction: Contraction, layer: Layer) -> bool:
    """Return whether a contraction is the layer's, and not something else that its module computes."""
    axes = len(contraction.axes)
    return axes == 1 if layer.groups == DEPTHWISE else axes >= 2


def _by_macs(contraction: Contraction, slowness: float) -> Term:
    return Term(
        contraction.axes,
        contraction.constant,
        lambda *sizes: slowness * contraction.constant * prod(map(np.asarray, sizes), start=np.ones(())),
    )


def measured_latency(
    model: nn.Module,
    inputs: ExampleInputs,
    *,
    threads: int = 1,
    batch_size: int = 1,
    runtime: Runtime | str = DEFAULT,
    told: Callable[[int], None] = lambda missing: None,
) -> Latency:
    """Measure what is not known yet of a network's layers on this machine, and return what it costs at any widths.

    Args:
        model: the dense network.
        inputs: an example of what it takes.
        threads: that one run may use.
        batch_size: examples a run.
        runtime: that runs it.
        told: is told how many measurements are missing, before they are made.

    Raises:
        FileError: the runtime does not take a layer.
        CannotWrite: the cache folder cannot be written.
    """
    layers = layers_of(model, inputs, batch_size=batch_size)
    return Latency(layers, time_table(distinct(layers), runtime=runtime, threads=threads, told=told))


def distinct(layers: Mapping[str, Iterable[Layer]]) -> tuple[Layer, ...]:
    """Return the layers that differ, in the network's order."""
    return tuple(dict.fromkeys(layer for calls in layers.values() for layer in calls))
