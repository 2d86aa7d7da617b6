"""One phase of training: a model and batches → the same model, trained, and one record an epoch.

SGD with momentum (or Adam), half a cosine of learning rate over all steps, cross-entropy, and in the sparse phase the
closed-form gradient of Group-HS added after ``backward``. Lightning Fabric's part is where and in which precision the
model runs: device placement, bfloat16 autocast, ``backward``. Schedule, checkpoints and random numbers are here.

A training that was broken goes on from the checkpoint of its last whole epoch. What is random in an epoch depends on
(seed, phase, epoch) only: the batches that the caller makes, and torch's generators of the CPU and of the device,
which are seeded anew for each epoch (dropout). So the result is the unbroken run's: on one CPU thread of the same
machine, with the same versions, to the last bit.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.errors import DataError, FileError, TrainingError
from hoyer_export.modes import kept_modes
from hoyer_export.random_state import kept_random_state, seed_generators
from hoyer_export.sparsify.checkpoint import load_checkpoint, save_checkpoint
from hoyer_export.sparsify.epoch import Batches, Loop, StepProgress, check_weights, train_epoch
from hoyer_export.sparsify.group_hs import GroupHS, macs_shares

OptimizerName = Literal["sgd", "adam"]
PrecisionName = Literal["float32", "bfloat16"]

__all__ = ["EpochRecord", "StepProgress", "TrainingRecord", "evaluate_accuracy", "learning_rate", "train"]


@dataclass(frozen=True)
class EpochRecord:
    """One line of metrics.jsonl.

    Args:
        phase: "dense", "sparse" or "finetune".
        epoch: 0 is the first.
        seconds: wall time of training, evaluation and what the record needs; without the checkpoint.
        learning_rate: of the epoch's first step.
        loss: the task's, mean over the epoch's images, in training mode.
        penalty: strength · Σ cost · scale · G_H, mean over the epoch's steps; None without a regulariser.
        train_accuracy: %, measured on the fly, in training mode.
        validation_accuracy: %, or None.
        effective_macs: at the effective widths, share of dense; None without channels.
        alive_macs: at the channels above a tenth of the natural threshold, share of dense; None without channels.
    """

    phase: str
    epoch: int
    seconds: float
    learning_rate: float
    loss: float
    penalty: float | None
    train_accuracy: float
    validation_accuracy: float | None
    effective_macs: float | None
    alive_macs: float | None


@dataclass(frozen=True)
class TrainingRecord:
    """One phase of training.

    Args:
        phase: "dense", "sparse" or "finetune".
        epochs: all of them, also those that were trained before a break.
        seconds: their wall time.
    """

    phase: str
    epochs: tuple[EpochRecord, ...]
    seconds: float


def train(
    model: nn.Module,
    batches: Callable[[int], Batches],
    *,
    phase: str,
    steps_per_epoch: int,
    epochs: int,
    lr: float,
    optimizer: OptimizerName = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup_epochs: float = 0.0,
    label_smoothing: float = 0.0,
    precision: PrecisionName = "float32",
    channels_last: bool = False,
    device: torch.device | str = "cpu",
    seed: int = 0,
    regulariser: GroupHS | None = None,
    channels: ChannelMap | None = None,
    evaluate: Callable[[nn.Module], float | None] | None = None,
    on_epoch: Callable[[tuple[EpochRecord, ...]], None] | None = None,
    progress: Callable[[StepProgress], None] | None = None,
    checkpoint: Path | None = None,
) -> TrainingRecord:
    """Train ``model`` in place for one phase, all of it in training mode.

    Args:
        model: takes images, returns logits [N, classes]. Its parameters stay the same objects; afterwards it is on
            ``device``, its modules in the modes (train, eval) that they had.
        batches: epoch → (images [N, ...], int64 labels [N]), on any device; what it yields depends on the epoch only.
            With ``channels_last`` the first batch of epoch 0 is asked for once more, to try the network on.
        phase: "dense", "sparse" or "finetune".
        steps_per_epoch: how many batches an epoch has.
        epochs: 0 trains nothing.
        lr: the largest learning rate.
        optimizer: "sgd" or "adam", each with the weight decay added to the gradient.
        momentum: of SGD.
        weight_decay: on all parameters.
        warmup_epochs: for how long the learning rate rises linearly, before the cosine.
        label_smoothing: share of the target that is spread over all classes.
        precision: "float32", or "bfloat16" autocast of the forward pass.
        channels_last: use this memory format where the network has 4-d weights and accepts it.
        device: where to train.
        seed: of what is random inside the model; the states of torch's global generators, the CPU's and every GPU's,
            are kept.
        regulariser: Group-HS on this very ``model``.
        channels: for the MACs in the records; None: the regulariser's, if there is one.
        evaluate: called after each epoch for the validation accuracy in %.
        on_epoch: called after each epoch with all records of the phase, the newest last; also once, with those of the
            checkpoint, when a training goes on.
        progress: called after every step on a CPU, every 20th on a GPU.
        checkpoint: written after each epoch, in a folder that exists. If the file is there already, training goes on
            from it; at the last epoch it only loads.

    Raises:
        TrainingError: the loss or a weight is not a finite number (the checkpoint of the epoch before is intact), or
            an argument makes no sense.
        FileError: the checkpoint is damaged, of another training, or cannot be written.
        DataError: another number of batches than ``steps_per_epoch``, or a label beyond the network's outputs.
    """
    device = torch.device(device)
    settings = _settings(
        phase=phase,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        lr=lr,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        label_smoothing=label_smoothing,
        precision=precision,
        seed=seed,
        regulariser=regulariser,
    )
    if epochs == 0:
        return TrainingRecord(phase, (), 0.0)
    if channels is None and regulariser is not None:
        channels = regulariser.channels
    _check_device(device, precision)
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # so that its generator has a state to be kept
    history: list[EpochRecord] = []
    with kept_modes(model), kept_random_state():
        model.to(device)
        if channels_last:
            _to_channels_last(model, batches(0))
        raw_solver = _solver(model, optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay)
        fabric = _fabric(device, precision)
        network, solver = fabric.setup(model, raw_solver)
        if checkpoint is not None and checkpoint.exists():
            history = _load(checkpoint, model, raw_solver, settings)
            if on_epoch is not None and history:
                on_epoch(tuple(history))
        loop = Loop(
            fabric=fabric,
            network=network,
            solver=solver,
            phase=phase,
            epochs=epochs,
            steps=steps_per_epoch,
            schedule=partial(
                learning_rate, lr, steps=epochs * steps_per_epoch, warmup_steps=warmup_epochs * steps_per_epoch
            ),
            label_smoothing=label_smoothing,
            regulariser=regulariser,
            progress=progress,
        )
        for epoch in range(len(history), epochs):
            started = time.perf_counter()
            seed_generators(_epoch_seed(seed, phase, epoch), device)
            model.train()
            totals = train_epoch(loop, epoch, batches(epoch))
            check_weights(model, loop, epoch)
            validation_accuracy = evaluate(model) if evaluate is not None else None
            shares = macs_shares(channels, model) if channels is not None else None
            record = EpochRecord(
                phase=phase,
                epoch=epoch,
                seconds=time.perf_counter() - started,
                learning_rate=loop.schedule(epoch * steps_per_epoch),
                loss=totals.loss,
                penalty=totals.penalty if regulariser is not None else None,
                train_accuracy=totals.accuracy,
                validation_accuracy=validation_accuracy,
                effective_macs=shares.effective if shares else None,
                alive_macs=shares.alive if shares else None,
            )
            history.append(record)
            if checkpoint is not None:
                records = [asdict(record) for record in history]
                save_checkpoint(checkpoint, model, raw_solver, settings=settings, history=records)
            if on_epoch is not None:
                on_epoch(tuple(history))
    return TrainingRecord(phase, tuple(history), sum(record.seconds for record in history))


def learning_rate(lr: float, step: int, *, steps: int, warmup_steps: float = 0.0) -> float:
    """Compute the learning rate of a step: lr · (step + 1) / warmup_steps, then lr · ½ (1 + cos(π · share done)).

    Args:
        lr: the largest learning rate.
        step: 0 is the first.
        steps: of the whole phase, warm-up included.
        warmup_steps: how many of them rise linearly.

    Source: Loshchilov, Hutter, "SGDR", 2017, equation 5, one period down to 0, https://arxiv.org/abs/1608.03983.
    """
    if step + 1 < warmup_steps:
        return lr * (step + 1) / warmup_steps
    done = max(0.0, step - warmup_steps) / max(1.0, steps - warmup_steps)
    return lr * 0.5 * (1 + math.cos(math.pi * done))


def evaluate_accuracy(model: nn.Module, batches: Batches) -> float:
    """Measure top-1 accuracy in %, in eval mode and the model's own precision.

    Args:
        model: images → logits [N, classes]; its modules' modes (train, eval) are as before afterwards.
        batches: (images [N, ...], int64 labels [N]), on any device.

    Raises:
        DataError: there is no image.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    correct = torch.zeros((), dtype=torch.int64, device=device)
    seen = 0
    with kept_modes(model), torch.inference_mode():
        model.eval()
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            correct += (model(images).argmax(1) == labels).sum()
            seen += len(labels)
    if seen == 0:
        raise DataError("expected at least one image to measure the accuracy on, got none")
    return 100 * int(correct) / seen


def _settings(
    *,
    phase: str,
    epochs: int,
    steps_per_epoch: int,
    lr: float,
    optimizer: str,
    momentum: float,
    weight_decay: float,
    warmup_epochs: float,
    label_smoothing: float,
    precision: str,
    seed: int,
    regulariser: GroupHS | None,
) -> dict[str, str | float | None]:
    """Check what makes no sense, and return what must be the same for a training to go on from a checkpoint."""
    if epochs < 0 or (epochs > 0 and steps_per_epoch < 1):
        raise TrainingError(f"{phase}: expected epochs and batches, got {epochs} epochs of {steps_per_epoch} batches")
    if warmup_epochs >= epochs > 0:
        raise TrainingError(
            f"{phase}: expected a warm-up shorter than the {epochs} epochs in all, got {warmup_epochs:g} epochs"
        )
    if optimizer not in get_args(OptimizerName):
        raise TrainingError(f'{phase}: expected the optimizer "sgd" or "adam", got {optimizer!r}')
    if precision not in get_args(PrecisionName):
        raise TrainingError(f'{phase}: expected the precision "float32" or "bfloat16", got {precision!r}')
    return {
        "phase": phase,
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        "lr": lr,
        "optimizer": optimizer,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "warmup_epochs": warmup_epochs,
        "label_smoothing": label_smoothing,
        "precision": precision,
        "seed": seed,
        "strength": regulariser.strength if regulariser is not None else None,
        "scale": regulariser.scale if regulariser is not None else None,
        "max_rate": regulariser.max_rate if regulariser is not None else None,
    }


def _check_device(device: torch.device, precision: PrecisionName) -> None:
    if device.type != "cuda":
        return  # every CPU computes bfloat16, those without the instructions slowly
    if not torch.cuda.is_available():
        raise TrainingError(f'expected a GPU for the device "{device}", torch sees none; use the device "cpu"')
    if precision == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TrainingError('this GPU does not compute in bfloat16; use the precision "float32"')


def _solver(
    model: nn.Module, name: OptimizerName, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)


def _fabric(device: torch.device, precision: PrecisionName) -> Fabric:
    """Make a Fabric for one device. Plugins instead of names: it then neither looks for a cluster nor says hello."""
    mixed = MixedPrecision("bf16-mixed", device.type) if precision == "bfloat16" else Precision()
    devices = 1 if device.type == "cpu" else [device.index or 0]
    return Fabric(accelerator=device.type, devices=devices, plugins=[mixed, LightningEnvironment()])


def _to_channels_last(model: nn.Module, batches: Batches) -> None:
    """Use the memory format that convolutions are faster in, unless the network refuses it (``view`` may)."""
    images = next((images for images, _ in batches), None)
    if images is None or images.ndim != 4 or not any(tensor.ndim == 4 for tensor in model.parameters()):
        return
    model.to(memory_format=torch.channels_last)
    device = next(model.parameters()).device
    with kept_modes(model), torch.no_grad():
        model.eval()
        try:
            # The weights decide the format of the activations: the images may come in any.
            model(images[:2].to(device))
        except RuntimeError:
            model.to(memory_format=torch.contiguous_format)


def _load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, str | float | None]
) -> list[EpochRecord]:
    history = load_checkpoint(path, model, optimizer, settings=settings)
    try:
        return [EpochRecord(**record) for record in history]
    except TypeError as error:
        raise FileError(f"{path} is no whole checkpoint ({error}); delete it to train this phase anew") from error


def _epoch_seed(seed: int, phase: str, epoch: int) -> int:
    """Return 63 bits that differ for every epoch of every phase: torch's generator is seeded with them."""
    digest = hashlib.sha256(f"{seed}/{phase}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
