"""What the layers of the dense network give at random places: what any slim network may be refitted to."""

import copy
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.channels.reading import Key, LayerCall, Watch
from hoyer_export.errors import HoyerExportError
from hoyer_export.random_state import seeded_generator
from hoyer_export.surgery.extras.calibration import CalibrationInputs, as_batches, watch_each
from hoyer_export.surgery.extras.layer_matrix import at_places
from hoyer_export.surgery.extras.scout import Scout
from hoyer_export.surgery.extras.waiting_run import FarEnough, Made
from hoyer_export.tensors import named_tensors

_HELD = 2**28
"""Numbers of dense outputs that are held, of as many layers as that are; the dense network runs again for the next."""


@dataclass(frozen=True)
class Sample:
    """What a layer gives on a batch: at flat ``places`` [N, P] of its outputs' ``shape``, [N, P, O].

    ``beside``: likewise, what the outputs are added to; None where they are not.
    """

    places: Tensor
    outputs: Tensor
    shape: tuple[int, ...]
    beside: Tensor | None


class DenseOutputs:
    """What the layers of the dense network give at random places, to which any slim network may be refitted.

    Args:
        dense: the network before the cut.
        inputs: calibration images, a batch or several.
        positions: places an image and layer; all of them where there are no more.
        seed: of the places.

    Raises:
        HoyerExportError: ``positions`` or ``seed`` is out of range.
        DataError: there is no batch, or one holds something else than finite numbers.
        NetworkError: the network does not run on a batch.
    """

    def __init__(self, dense: nn.Module, inputs: CalibrationInputs, positions: int = 16, seed: int = 0) -> None:
        for name, value, least in (("positions", positions, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise HoyerExportError(f"{name} must be a whole number of at least {least}, got {value!r}")
        self._network = copy.deepcopy(dense).eval()
        self.batches = [batch.map(Tensor.cpu) for batch in as_batches(dense, inputs)]
        self._positions, self._seed = positions, seed
        self._found: dict[tuple[Key, int], Sample] = {}
        self.tensors = named_tensors(self._network)
        scout = Scout(self._network, self.example)
        self.calls, self._sums = scout.calls, scout.sums

    @property
    def example(self) -> Call:
        """The first two images, as the network's arguments."""
        return self.batches[0].rows(slice(2))

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(batch.batch_size for batch in self.batches)

    def at(self, key: Key, batch: int) -> Sample | None:
        """Return the sample of a layer on a batch; None where it does not run there."""
        if (key, batch) not in self._found:
            self._look_from(key)
        return self._found.get((key, batch))

    def _look_from(self, first: Key) -> None:
        """Hold the outputs of a layer, and of those after it for which there is room."""
        keys = list(self.calls)
        wanted: dict[Key, None] = {}
        held = 0
        for key in keys[keys.index(first) :]:
            rows, outputs, *shape = self.calls[key]
            numbers = rows * self.images // self.example.batch_size * min(prod(shape), self._positions) * outputs
            held += numbers * (1 + (key in self._sums))
            if wanted and held > _HELD:
                break
            wanted[key] = None
        self._found.clear()
        for number, batch in enumerate(self.batches):
            made = Made()

            def after(key: Key, call: LayerCall, output: Tensor, number: int = number, made: Made = made) -> None:
                made.layer(output)
                if key in wanted:
                    beside = made.get(self._sums[key].number) if key in self._sums else None
                    spread = None
                    if beside is not None and beside.shape == output.shape:
                        spread = call.spread(beside)
                    self._found[key, number] = self._sample(call.spread(output), spread, number, keys.index(key))
                    if key == list(wanted)[-1]:
                        raise FarEnough

            def other(*called: Any, made: Made = made) -> None:
                made.note(called[-1])

            with suppress(FarEnough):
                watch_each(self._network, [batch], Watch(self._network, after=after, other=other))

    def _sample(self, output: Tensor, beside: Tensor | None, *seed: int) -> Sample:
        shape = tuple(output.shape[2:])
        size = prod(shape)
        if size <= self._positions:
            places = torch.arange(size).expand(len(output), size)
        else:
            generator = seeded_generator(self._seed, *seed, 1)  # a 0 at the end would say nothing
            places = torch.randint(size, (len(output), self._positions), generator=generator)
        places = places.to(output.device)
        there = None if beside is None else at_places(beside, places).transpose(1, 2)
        return Sample(places, at_places(output, places).transpose(1, 2), shape, there)
