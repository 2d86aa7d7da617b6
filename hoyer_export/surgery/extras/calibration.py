"""Calibration images: what may be given as such, and a network that runs on them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hoyer_export.call import Call
from hoyer_export.errors import DataError, NetworkError, one_line

CalibrationInputs = Any
"""One batch, or several: each a tensor, a tuple or list of arguments, a dict of arguments by name, or a ``Call``."""


_NAMED = 3
"""Bad images that an error names."""


def run_each(model: nn.Module, inputs: CalibrationInputs, watched_by: TorchFunctionMode | None = None) -> Iterator[Any]:
    """Yield what a model returns, as it is and without gradients, on every batch, moved to its device.

    Raises:
        DataError: as ``as_batches``.
        NetworkError: the model does not run on a batch.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    for batch in as_batches(model, inputs):
        call = batch.map(lambda tensor: tensor.to(device))
        try:
            with torch.no_grad(), watched_by or nullcontext():
                outputs = model(*call.args, **call.kwargs)
        except Exception as error:
            raise NetworkError(
                f"the network does not run on a calibration batch of shape {call.shapes} ({one_line(error)}); give"
                " batches of what it is called with, without labels"
            ) from error
        yield outputs


def watch_each(model: nn.Module, inputs: CalibrationInputs, watched_by: TorchFunctionMode) -> None:
    """Run a model on every batch inside a mode that watches; errors as ``run_each``."""
    for _ in run_each(model, inputs, watched_by):
        pass


def as_batches(model: nn.Module, inputs: CalibrationInputs) -> Iterator[Call]:
    """Yield every batch as the call of a network.

    Raises:
        DataError: there is no batch, one holds no images, or a number in it is not finite.
    """
    expected = "expected calibration images without labels, a batch [N, ...] or several"
    if not isinstance(inputs, Iterable | Call) or isinstance(inputs, str):
        raise DataError(f"{expected}, got {type(inputs).__name__}")
    number = -1
    for number, given in enumerate([inputs] if isinstance(inputs, Tensor | Mapping | Call) else inputs):
        batch = Call.of(model, given, collated=True)
        if not batch.tensors or batch.batch_size == 0 or batch.tensors[0].ndim == 0:
            got = f"a tensor {list(batch.tensors[0].shape)}" if batch.tensors else type(given).__name__
            raise DataError(f"{expected}; batch {number} holds {got}")
        for images in filter(batch.is_batched, batch.tensors):
            finite = images.flatten().isfinite().view(len(images), -1).all(1)
            if not bool(finite.all()):
                which = ", ".join(map(str, (~finite).nonzero().flatten()[:_NAMED].tolist()))
                raise DataError(f"calibration images must be finite: batch {number}, counted from 0, image {which}")
        yield batch
    if number < 0:
        raise DataError("expected calibration images, got no batch; give [images, ...]")
