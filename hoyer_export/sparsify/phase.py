"""A phase of training: how it is done, and what it says about each step and epoch."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field

from hoyer_export.errors import TrainingError
from hoyer_export.record import Record

PhaseName = Literal["dense", "sparse", "finetune"]
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
OptimizerName = Literal["sgd", "adam", "adamw"]
PrecisionName = Literal["float32", "bfloat16"]
NotNegative = Annotated[float, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a phase is done: all of it must be the same for a training to go on from a checkpoint.

    Args:
        phase: "dense", "sparse" or "finetune".
        steps_per_epoch: how many batches an epoch has.
        epochs: 0 trains nothing.
        first_epoch: of the schedule that this phase is a part of.
        schedule_epochs: how many epochs that schedule has in all; None: the phase is a schedule of its own.
        lr: the largest learning rate.
        optimizer: "sgd" or "adam", each with the weight decay added to the gradient, or "adamw".
        momentum: of SGD.
        weight_decay: on all parameters.
        warmup_epochs: for how long the learning rate rises linearly, before the cosine.
        label_smoothing: share of the target that is spread over all classes.
        class_weights: of the classes in the cross-entropy; None: all alike.
        distill_weight: w of ``epoch.task_loss``, 0 to 1; above 0 there is a teacher.
        temperature: T of ``epoch.task_loss``.
        precision: "float32", or "bfloat16" autocast of the forward pass.
        compile: whether ``torch.compile`` makes its kernels.
        sync_batch_norm: whether batch norms see the images of all processes that train together.
        seed: of what is random inside the model.

    Raises:
        TrainingError: a value that makes no sense.
    """

    phase: PhaseName
    steps_per_epoch: int
    epochs: int
    first_epoch: int = 0
    schedule_epochs: int | None = None
    lr: float
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    distill_weight: float = 0.0
    temperature: float = 4.0
    precision: PrecisionName = "float32"
    compile: bool = False
    sync_batch_norm: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("phase", PhaseName), ("optimizer", OptimizerName), ("precision", PrecisionName)):
            if (given := getattr(self, name)) not in get_args(known):
                listed = " or ".join(f'"{value}"' for value in get_args(known))
                raise TrainingError(f"{self.phase}: expected the {name} {listed}, got {given!r}")
        for name in ("lr", "momentum", "weight_decay", "warmup_epochs", "label_smoothing", "distill_weight"):
            if not 0 <= (given := getattr(self, name)) < math.inf:
                raise TrainingError(f"{self.phase}: expected {name} of 0 or more, got {given}")
        if self.distill_weight > 1 or not 0 < self.temperature < math.inf:
            got = f"{self.distill_weight} and {self.temperature}"
            raise TrainingError(f"{self.phase}: expected distill_weight of 0 to 1 and temperature above 0, got {got}")
        if self.epochs < 0 or (self.epochs > 0 and self.steps_per_epoch < 1):
            got = f"{self.epochs} epochs of {self.steps_per_epoch} batches"
            raise TrainingError(f"{self.phase}: expected epochs and batches, got {got}")
        if not 0 <= self.first_epoch <= (self.schedule_epochs or self.epochs) - self.epochs:
            got = f"{self.epochs} epochs from {self.first_epoch} on of {self.schedule_epochs}"
            raise TrainingError(f"{self.phase}: expected a part of a schedule, got {got}")
        if self.warmup_epochs >= (whole := self.schedule_epochs or self.epochs) and self.epochs > 0:
            expected = f"a warm-up shorter than the {whole} epochs in all"
            raise TrainingError(f"{self.phase}: expected {expected}, got {self.warmup_epochs:g} epochs")

    def learning_rate(self, step: int) -> float:
        """Compute the learning rate of a step of the phase: lr · (step + 1) / warm-up, then lr · ½ (1 + cos(π · done)).

        Both count in the schedule that the phase is a part of.

        Source: Loshchilov, Hutter, "SGDR", 2017, equation 5, one period down to 0, https://arxiv.org/abs/1608.03983.
        """
        step += self.first_epoch * self.steps_per_epoch
        warmup = self.warmup_epochs * self.steps_per_epoch
        if step + 1 < warmup:
            return self.lr * (step + 1) / warmup
        done = max(0.0, step - warmup) / max(1.0, (self.schedule_epochs or self.epochs) * self.steps_per_epoch - warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


class EpochPart(Record):
    """What is known of an epoch that is not over: steps, wall seconds, sums over images, torch's generators."""

    steps: int = 0
    seconds: float = 0.0
    images: float = 0.0
    loss: float = 0.0
    correct: float = 0.0
    penalty: float = 0.0
    generators: tuple[str, ...] = ()


class EpochRecord(Record):
    """One epoch: a line of metrics.jsonl, and of a checkpoint's history; None is what its phase or data does not have.

    Args:
        phase: "dense", "sparse" or "finetune".
        epoch: 0 is the first.
        seconds: wall time of training, evaluation and what the record needs; without the checkpoint.
        learning_rate: of the epoch's first step.
        loss: the task's, mean over the epoch's images, in training mode.
        penalty: the regulariser's, mean over the epoch's steps.
        train_accuracy: %, measured on the fly, in training mode; None where the loss is somebody's own.
        validation_accuracy: %, or what ``metric`` names.
        metric: what validation is judged by; None: accuracy in %.
        effective_macs: at the effective widths, share of dense.
        alive_macs: at the channels that are alive, share of dense.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    phase: PhaseName
    epoch: Annotated[int, Field(ge=0)]
    seconds: NotNegative | None = None
    learning_rate: NotNegative | None = None
    loss: float
    penalty: float | None = None
    train_accuracy: Percent | None = None
    validation_accuracy: float | None = None
    metric: str | None = None
    effective_macs: NotNegative | None = None
    alive_macs: NotNegative | None = None


@dataclass(frozen=True)
class StepProgress:
    """How far a phase is: in ``epoch``, 0 is the first of ``epochs``, ``step`` of ``steps`` are done.

    ``loss`` is the task's, mean over the epoch's images so far.
    """

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
