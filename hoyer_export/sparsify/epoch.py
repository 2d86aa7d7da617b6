"""One epoch of training: batches → mean loss, accuracy and penalty; every loss is looked at.

A loss that is not finite ends the training with the step at which it came. On a CPU every step is looked at; a look at
a GPU waits for it, so losses are read in bundles there.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export import parallel
from hoyer_export.errors import DataError, NetworkError, TrainingError
from hoyer_export.metric import outputs_of
from hoyer_export.random_state import generator_states
from hoyer_export.sparsify.compiled import compiled
from hoyer_export.sparsify.phase import EpochPart, EpochRecord, StepProgress, TrainSettings
from hoyer_export.sparsify.state import TrainState
from hoyer_export.stopping import is_asked
from hoyer_export.tensors import examples_in

Batches = Iterable[tuple[Any, Any]]
"""(images [N, ...], int64 targets [N]): the class of every image; or whatever a loss of one's own takes."""

Loss = Callable[[Any, Any], Tensor]
"""(outputs, targets) → mean loss of the batch, 0-d."""

GPU_BUNDLE_STEPS = 20
"""On a GPU the losses of so many steps are read, and progress is told, at once."""

_NOTHING = EpochPart()

TINY = 1e-20
"""Nothing that is added to an ordinary activation in float32 (eps 1e-7), and its products are still normal numbers."""


def train_epoch(
    state: TrainState,
    batches: Batches,
    settings: TrainSettings,
    epoch: int,
    fabric: Fabric,
    progress: Callable[[StepProgress], None],
    teacher: nn.Module | None = None,
    own_loss: Loss | None = None,
    network: nn.Module | None = None,
    part: EpochPart = _NOTHING,
) -> EpochRecord | EpochPart:
    """Make one optimizer step a batch, and return what came of it; the rest of the record is still open.

    Where a signal that asks to stop waits, the step is finished, and the part of the epoch is returned.

    Args:
        state: what is trained, in place.
        batches: those of this epoch that are left.
        settings: of the phase.
        epoch: 0 is the first.
        fabric: where and in which precision the network runs.
        progress: told how far the phase is.
        teacher: in eval mode, on the fabric's device, and set up by Fabric in the same precision.
        own_loss: in the place of ``task_loss``; outputs and targets are then whatever it takes.
        network: the model, where ``fabric`` has set it up already.
        part: of the epoch, that is trained already.

    Raises:
        TrainingError: a loss, a penalty or, after the last step, a weight is not finite.
        DataError: not ``settings.steps_per_epoch`` batches, or a target beyond the network's outputs.
        NetworkError: the network does not return logits.
    """
    steps, bundle = settings.steps_per_epoch, 1 if fabric.device.type == "cpu" else GPU_BUNDLE_STEPS
    network = fabric.setup_module(state.model) if network is None else network
    read, images_seen, loss_sum = part.steps, part.images, part.loss
    correct_sum, penalty_sum, unread = part.correct, part.penalty, list[Tensor]()
    fast = (
        [state.model, *(getattr(it, "module", it) for it in (teacher,) if it is not None)] if settings.compile else []
    )
    observed = nullcontext() if state.regulariser is None else state.regulariser.observe(state.model)
    with compiled(*fast), observed:
        for step, batch in enumerate(batches, part.steps):
            if step == steps:
                raise DataError(f"{settings.phase}: expected {steps} batches an epoch, got more")
            inputs, targets = fabric.to_device(tuple(batch))
            outputs = outputs_of(network, inputs)
            if own_loss is not None:
                loss, correct = own_loss(outputs, targets), torch.zeros(())
                check_loss(loss)
            else:
                if step == part.steps:
                    _check_logits(outputs, targets)
                with torch.no_grad():
                    guidance = None if teacher is None else outputs_of(teacher, inputs)
                loss = task_loss(outputs, targets, guidance, settings)
                correct = (outputs.detach().argmax(1) == targets).sum()
            count = loss.new_full((), examples_in(inputs))
            # The gradient is the mean over processes: with this factor, that over all images of the step.
            factor = count * parallel.size() / parallel.summed(count) if parallel.size() > 1 else None
            lr = settings.learning_rate(epoch * steps + step)
            penalty = _step_(state, fabric, loss if factor is None else loss * factor, lr)
            row = (count, loss.detach(), correct.to(loss.device), penalty)
            unread.append(torch.stack([number.float() for number in row]))
            if len(unread) < bundle and step + 1 < steps and not is_asked():
                continue
            for images, loss_now, correct_now, penalty_now in _of_all(torch.stack(unread)).tolist():
                read += 1
                for name, value in (("loss", loss_now), ("penalty", penalty_now)):
                    if not math.isfinite(value):
                        raise _diverged(f"the {name} is {value} at step {read} of {steps} of", state, settings, epoch)
                images_seen += images
                loss_sum += images * loss_now
                correct_sum += correct_now
                penalty_sum += penalty_now
            unread.clear()
            progress(StepProgress(settings.phase, epoch, settings.epochs, read, steps, loss_sum / images_seen))
            if is_asked():
                sums = {"images": images_seen, "loss": loss_sum, "correct": correct_sum, "penalty": penalty_sum}
                return EpochPart(steps=read, generators=generator_states(fabric.device), **sums)
    if read != steps:
        raise DataError(f"{settings.phase}: expected {steps} batches an epoch, got {read + len(unread)}")
    finite = [tensor.isfinite().all() for tensor in state.model.state_dict().values()]
    if finite and not bool(torch.stack(finite).all()):  # after a phase's last step no loss would tell
        raise _diverged("the weights are not finite after", state, settings, epoch)
    return EpochRecord(
        phase=settings.phase,
        epoch=epoch,
        learning_rate=settings.learning_rate(epoch * steps),
        loss=loss_sum / images_seen,
        penalty=None if state.regulariser is None else penalty_sum / read,
        train_accuracy=None if own_loss is not None else 100 * correct_sum / images_seen,
    )


def task_loss(logits: Tensor, targets: Tensor, guidance: Tensor | None, settings: TrainSettings) -> Tensor:
    """Compute (1 − w) · cross-entropy + w · T² · KL(softmax(guidance / T) ‖ softmax(logits / T)), image mean, 0-d.

    Args:
        logits: of the network, [N, classes].
        targets: int64 [N].
        guidance: the teacher's logits, [N, classes]; None: cross-entropy alone.
        settings: w is ``distill_weight``, T ``temperature``; with ``class_weights`` the cross-entropy is the mean that
            these weigh.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2 (T² keeps the
    gradient's size at every temperature), https://arxiv.org/abs/1503.02531.
    """
    weights = None if settings.class_weights is None else logits.new_tensor(settings.class_weights)
    loss = F.cross_entropy(logits, targets, weights, label_smoothing=settings.label_smoothing)
    if weights is not None and parallel.size() > 1:  # a mean over what the images of all processes weigh
        ours = torch.stack([weights[targets].sum(), weights.new_tensor(len(targets))])
        ratio = ours / parallel.summed(ours)
        loss = loss * ratio[0] / ratio[1]
    if guidance is None:
        return loss
    weight, temperature = settings.distill_weight, settings.temperature
    student, teacher = (F.log_softmax(each / temperature, 1) for each in (logits, guidance))
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (1 - weight) * loss + weight * temperature**2 * divergence


def _of_all(rows: Tensor) -> Tensor:
    """Return images, mean loss, correct and penalty of every step, [steps, 4], over all processes."""
    if parallel.size() == 1:
        return rows
    images, loss, correct, penalty = rows.unbind(1)
    images, loss, correct, penalty = parallel.summed(torch.stack([images, images * loss, correct, penalty]))
    return torch.stack([images, loss / images, correct, penalty / parallel.size()], 1)


def _step_(state: TrainState, fabric: Fabric, loss: Tensor, lr: float) -> Tensor:
    """Make one optimizer step and return the penalty, 0-d; nothing waits for the device."""
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    penalty = loss.new_zeros(()) if state.regulariser is None else state.regulariser.add_gradient_()
    state.optimizer.step()
    if state.regulariser is not None:
        state.regulariser.after_step_(lr)
        if loss.device.type == "cpu":
            _drop_tiny_(state.optimizer)
    return penalty


@torch.no_grad()
def _drop_tiny_(optimizer: torch.optim.Optimizer) -> None:
    """Set weights and momenta too small to change anything to zero, before they become subnormal.

    An element of two dying channels shrinks by a factor a step. Below 1.2e-38 it is subnormal, and a CPU takes some
    hundred times as long for each product with it: a LeNet-5 epoch went from 15 to more than 130 seconds.
    (``torch.set_flush_denormal`` reaches the calling thread only.)
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            momenta = (value for value in optimizer.state[weight].values() if isinstance(value, Tensor) and value.ndim)
            for tensor in (weight, *momenta):
                tensor.copy_(F.hardshrink(tensor, TINY))


def check_loss(loss: object) -> None:
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        got = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        frozen = " without a gradient" if isinstance(loss, Tensor) and not loss.requires_grad else ""
        raise TrainingError(f"loss: expected the batch's mean, one number with a gradient, got {got}{frozen}")


def _check_logits(logits: object, targets: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise NetworkError(f"expected a network that returns logits [images, classes], got {got}")
    lowest, highest = int(targets.min()), int(targets.max())
    if lowest < 0 or highest >= logits.shape[1]:
        raise DataError(
            f"the network has {logits.shape[1]} outputs, the data has labels {lowest} to {highest}; "
            "set the network's number of classes"
        )


def _diverged(what: str, state: TrainState, settings: TrainSettings, epoch: int) -> TrainingError:
    weaker = f", weaken the regulariser ({state.regulariser.describe()})" if state.regulariser is not None else ""
    return TrainingError(
        f"{settings.phase}: {what} epoch {epoch + 1} of {settings.epochs}; lower the learning rate "
        f"({settings.learning_rate(epoch * settings.steps_per_epoch):g} here){weaker}, or warm up"
    )
