"""A run of a network that waits in front of each of its layers, so that several batches may go through it side by side.

The run stands on a thread of its own, which goes on only while the next layer is asked for, so one works at a time.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.channels.reading import Key, LayerCall, Watch
from hoyer_export.surgery.extras.calibration import watch_each
from hoyer_export.surgery.extras.sums import next_number
from hoyer_export.tensors import named_tensors, tensors_in


class FarEnough(BaseException):
    """Ends a run that has come to the layer that it was made for; no network catches it."""


class Made:
    """The tensors that operations of a run returned, as long as the network holds them, by number."""

    def __init__(self) -> None:
        self.count = 0
        self._refs: dict[int, ref[Tensor]] = {}

    def note(self, output: Any) -> None:
        """Count what an operation returned."""
        for tensor in tensors_in(output):
            self._refs[self.count] = ref(tensor)
            self.count += 1

    def layer(self, output: Tensor) -> None:
        """Count what a layer returned, from which on numbers begin anew."""
        self.count = next_number(self.count)
        self.note(output)

    def get(self, number: int) -> Tensor | None:
        """Return a tensor by its number; None where the network has let go of it."""
        return self._refs[number]() if number in self._refs else None

    @property
    def held_bytes(self) -> int:
        """What those weigh that are still held."""
        self._refs = {number: it for number, it in self._refs.items() if it() is not None}
        return _bytes(it() for it in self._refs.values())


@dataclass(frozen=True)
class Stop:
    """Where a run waits: the layer that is next, what was made before, and the bytes that the network holds of it."""

    key: Key
    call: LayerCall
    made: Made
    held_bytes: int


def stops(network: nn.Module, batch: Call) -> Iterator[Stop]:
    """Run a twin of a network on a batch, and wait in front of every layer; closing the iterator ends the run.

    The twin shares the tensors, which may change meanwhile, and nothing that a forward may remember.

    Raises:
        DataError, NetworkError: as ``run_each``.
    """
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in named_tensors(network).values()})
    goes_on: SimpleQueue[bool] = SimpleQueue()
    came: SimpleQueue[Stop | BaseException] = SimpleQueue()
    made = Made()
    device = torch.get_default_device()  # every thread has its own

    def wait(key: Key, call: LayerCall) -> None:
        came.put(Stop(key, call, made, made.held_bytes))
        if not goes_on.get():
            raise FarEnough

    def run() -> None:
        watch = Watch(
            twin,
            before=wait,
            after=lambda key, call, output: made.layer(output),
            other=lambda *called: made.note(called[-1]),
        )
        try:
            with device:
                watch_each(twin, [batch], watch)
            came.put(FarEnough())
        except BaseException as error:
            came.put(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        while not isinstance(stop := came.get(), BaseException):
            yield stop
            del stop  # or its input would outlive the layer
            goes_on.put(True)
        if not isinstance(stop, FarEnough):
            raise stop
    finally:
        goes_on.put(False)
        thread.join()


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    held = [tensor if tensor._base is None else tensor._base for tensor in tensors if tensor is not None]
    return sum({id(tensor): tensor.nbytes for tensor in held}.values())
