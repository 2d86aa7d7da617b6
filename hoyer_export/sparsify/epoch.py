"""One epoch of training: batches → mean loss, accuracy and penalty; every loss is looked at.

A loss that is not finite ends the training with the step at which it came. On a CPU every step is looked at; a look at
a GPU waits for it, so losses are read in bundles there.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.errors import DataError, NetworkError, TrainingError
from hoyer_export.sparsify.group_hs import GroupHS

Batches = Iterable[tuple[Tensor, Tensor]]

GPU_BUNDLE_STEPS = 20
"""On a GPU the losses of so many steps are read, and progress is told, at once."""

TINY = 1e-20
"""Nothing that is added to an ordinary activation in float32 (eps 1e-7), and its products are still normal numbers."""


@dataclass(frozen=True)
class StepProgress:
    """How far a training is.

    Args:
        phase: "dense", "sparse" or "finetune".
        epoch: 0 is the first of ``epochs``.
        epochs: of the phase.
        step: how many of the epoch's ``steps`` are done.
        steps: of the epoch.
        loss: the task's, mean of the epoch's steps so far.
        learning_rate: of this step.
    """

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Loop:
    """What all steps of a phase share.

    Args:
        fabric: where and in which precision the network runs.
        network: as Fabric wraps it.
        solver: as Fabric wraps it.
        phase: "dense", "sparse" or "finetune".
        epochs: of the phase.
        steps: of one epoch.
        schedule: step of the phase → learning rate.
        label_smoothing: share of the target that is spread over all classes.
        regulariser: Group-HS, whose gradient every step adds.
        progress: told how far the training is.
    """

    fabric: Fabric
    network: nn.Module
    solver: torch.optim.Optimizer
    phase: str
    epochs: int
    steps: int
    schedule: Callable[[int], float]
    label_smoothing: float
    regulariser: GroupHS | None
    progress: Callable[[StepProgress], None] | None


@dataclass(frozen=True)
class Totals:
    """One epoch.

    Args:
        loss: mean over its images.
        accuracy: %.
        penalty: mean over its steps; 0 without a regulariser.
    """

    loss: float
    accuracy: float
    penalty: float


def train_epoch(loop: Loop, epoch: int, batches: Batches) -> Totals:
    """Make one optimizer step a batch.

    Raises:
        TrainingError: a loss is not finite.
        DataError: not ``loop.steps`` batches, or a label beyond the network's outputs.
        NetworkError: the network does not return logits.
    """
    bundle = 1 if loop.fabric.device.type == "cpu" else GPU_BUNDLE_STEPS
    unread: list[Tensor] = []
    read = 0
    images_seen = 0
    loss_sum = correct = penalty_sum = weighted_loss = 0.0
    sizes: list[int] = []
    for step, (images, labels) in enumerate(batches):
        if step == loop.steps:
            raise DataError(f"{loop.phase}: expected {loop.steps} batches an epoch, got more")
        rate = loop.schedule(epoch * loop.steps + step)
        images, labels = loop.fabric.to_device((images, labels))
        unread.append(_train_step(loop, images, labels, rate, check=step == 0))
        sizes.append(len(labels))
        if len(unread) == bundle or step + 1 == loop.steps:
            for row in torch.stack(unread).tolist():
                if not math.isfinite(row[0]):
                    raise _diverged(f"the loss is {row[0]} at step {read + 1} of {loop.steps} of", loop, epoch)
                loss_sum += row[0]
                weighted_loss += row[0] * sizes[read]
                correct += row[1]
                penalty_sum += row[2]
                images_seen += sizes[read]
                read += 1
            unread.clear()
            if loop.progress is not None:
                loop.progress(StepProgress(loop.phase, epoch, loop.epochs, read, loop.steps, loss_sum / read, rate))
    if read != loop.steps:
        raise DataError(f"{loop.phase}: expected {loop.steps} batches an epoch, got {len(sizes)}")
    return Totals(weighted_loss / images_seen, 100 * correct / images_seen, penalty_sum / read)


def check_weights(model: nn.Module, loop: Loop, epoch: int) -> None:
    """Raise TrainingError unless all weights are finite: after a phase's last step no loss would tell."""
    finite = [tensor.isfinite().all() for tensor in model.state_dict().values()]
    if finite and not bool(torch.stack(finite).all()):
        raise _diverged("the weights are not finite after", loop, epoch)


def _train_step(loop: Loop, images: Tensor, labels: Tensor, rate: float, *, check: bool) -> Tensor:
    """Make one step and return loss, number of correct answers and penalty, [3], without waiting for the device."""
    for group in loop.solver.param_groups:
        group["lr"] = rate
    logits = loop.network(images)
    if check:
        _check_logits(logits, labels)
    loss = F.cross_entropy(logits, labels, label_smoothing=loop.label_smoothing)
    loop.solver.zero_grad(set_to_none=True)
    loop.fabric.backward(loss)
    penalty = loss.new_zeros(()) if loop.regulariser is None else loop.regulariser.add_gradient_()
    loop.solver.step()
    if loop.regulariser is not None and loss.device.type == "cpu":
        _drop_tiny_(loop.solver)
    correct = (logits.detach().argmax(1) == labels).sum()
    return torch.stack([loss.detach().float(), correct.float(), penalty.float()])


@torch.no_grad()
def _drop_tiny_(solver: torch.optim.Optimizer) -> None:
    """Set weights and momenta too small to change anything to zero, before they become subnormal.

    An element of two dying channels shrinks by a factor a step. Below 1.2e-38 it is subnormal, and a CPU takes some
    hundred times as long for each product with it: a LeNet-5 epoch went from 15 to more than 130 seconds.
    (``torch.set_flush_denormal`` reaches the calling thread only.)
    """
    for group in solver.param_groups:
        for weight in group["params"]:
            momenta = (value for value in solver.state[weight].values() if isinstance(value, Tensor) and value.ndim)
            for tensor in (weight, *momenta):
                tensor.masked_fill_(tensor.abs() < TINY, 0)


def _check_logits(logits: object, labels: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise NetworkError(f"expected a network that returns logits [images, classes], got {got}")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= logits.shape[1]:
        raise DataError(
            f"the network has {logits.shape[1]} outputs, the data has labels {lowest} to {highest}; "
            "set the network's number of classes"
        )


def _diverged(what: str, loop: Loop, epoch: int) -> TrainingError:
    strength = f" or the strength ({loop.regulariser.strength:g})" if loop.regulariser is not None else ""
    return TrainingError(
        f"{loop.phase}: {what} epoch {epoch + 1} of {loop.epochs}; lower the learning rate "
        f"({loop.schedule(epoch * loop.steps):g} here){strength}, or warm up"
    )
