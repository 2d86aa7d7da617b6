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
from hoyer_export.tensors import named_tensors, tensors_in


class FarEnough(BaseException):
    """Ends a run that has come to the layer that it was made for; no network catches it."""


@dataclass(frozen=True)
class Stop:
    """Where a run waits: the layer that is next, and the bytes that the network holds meanwhile."""

    key: Key
    call: LayerCall
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
    made: list[ref[Tensor]] = []
    device = torch.get_default_device()  # every thread has its own

    def note(output: Any) -> None:
        made.extend(ref(tensor) for tensor in tensors_in(output))

    def wait(key: Key, call: LayerCall) -> None:
        made[:] = [it for it in made if it() is not None]
        came.put(Stop(key, call, _bytes(it() for it in made)))
        if not goes_on.get():
            raise FarEnough

    def run() -> None:
        watch = Watch(
            twin, before=wait, after=lambda key, call, output: note(output), other=lambda *called: note(called[-1])
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
