"""What a smaller network has lost: how far its outputs moved, or points of accuracy."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.errors import DataError, NetworkError
from hoyer_export.modes import kept_modes
from hoyer_export.surgery.extras.calibration import CalibrationInputs, as_batches, run_each
from hoyer_export.tensors import tensors_in

Loss = Callable[[nn.Module], float]
"""What a smaller network has lost, e.g. ``accuracy_drop`` or ``output_change``; less is better."""


def output_change(dense: nn.Module, batches: CalibrationInputs) -> Loss:
    """Return the loss of a network that is the mean over images of ‖y − y_dense‖ / ‖y_dense‖, without labels.

    y: all outputs of an image. Where those of the dense network are all 0, an image counts as 0 if they still are, else
    as 1.

    Args:
        dense: the network before the cut.
        batches: images that did not calibrate.

    Raises:
        DataError, NetworkError: there is no batch, or the network does not run on one; when the loss is asked for, too.
    """
    held = list(as_batches(dense, batches))
    expected = list(_rows(dense, held))

    def loss(model: nn.Module) -> float:
        changes = []
        for y, before in zip(_rows(model, held), expected, strict=True):
            same = (y == before) | (y.isnan() & before.isnan())  # a masked output stays at -inf
            change = torch.where(same, 0, y - before).norm(dim=1)
            size = torch.where(before.isfinite(), before, 0).norm(dim=1)
            changes.append(torch.where(size > 0, change / size, (change != 0).double()))
        return float(torch.cat(changes).mean())

    return loss


def accuracy_drop(dense: nn.Module, labelled: Iterable[tuple[Tensor, Tensor]]) -> Loss:
    """Return the loss of a network that is the points of top-1 accuracy which it lost against the dense one.

    Args:
        dense: the network before the cut, which returns logits [N, classes].
        labelled: batches of images and classes [N], which neither calibrated nor trained the dense network.

    Raises:
        DataError, NetworkError: there is no batch, or it is none of images and classes; the network does not run on
            one, or returns something else than logits. When the loss is asked for, too.
    """
    held = list(labelled)
    for batch in held:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(it, Tensor) for it in batch):
            raise DataError("accuracy_drop needs batches (images [N, ...], classes [N]), got something else")
        if batch[1].shape != batch[0].shape[:1]:
            got = f"labels {list(batch[1].shape)} of images {list(batch[0].shape)}"
            raise DataError(f"top-1 needs one class an image, got {got}; give output_change, which needs no labels")

    def accuracy(model: nn.Module) -> float:
        right = 0
        for outputs, (_, targets) in zip(_returned(model, [images for images, _ in held]), held, strict=True):
            if not isinstance(outputs, Tensor) or outputs.ndim != 2:
                got = list(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
                raise NetworkError(
                    f"top-1 needs logits [N, classes], the network returns {got}; give output_change, which takes all"
                    " outputs, or a loss of your own"
                )
            right += int((outputs.argmax(1).cpu() == targets.cpu()).sum())
        return 100 * right / sum(len(targets) for _, targets in held)

    before = accuracy(dense)
    return lambda model: before - accuracy(model)


def _returned(model: nn.Module, batches: CalibrationInputs) -> Iterator[Any]:
    """Yield what a model returns in eval mode."""
    with kept_modes(model):
        yield from run_each(model.eval(), batches)


def _rows(model: nn.Module, batches: list[Call]) -> Iterator[Tensor]:
    """Yield all outputs of a model in eval mode, one row an image, float64."""
    for images, outputs in zip((call.batch_size for call in batches), _returned(model, batches), strict=True):
        tensors = [tensor.cpu().double() for tensor in tensors_in(outputs)]
        if not tensors or any(tensor.shape[:1] != (images,) for tensor in tensors):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors) or "none"
            raise NetworkError(
                f"output_change compares outputs [{images}, ...] of {images} images, the network returns"
                f" {shapes}; give a loss of your own"
            )
        yield torch.cat([tensor.reshape(images, -1) for tensor in tensors], 1)
