"""What training says about itself: one record an epoch, one a step."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from hoyer_export.record import Record

PhaseName = Literal["dense", "sparse", "finetune"]
NotNegative = Annotated[float, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]


class EpochRecord(Record):
    """One epoch: a line of metrics.jsonl, and of a checkpoint's history; None is what its phase or data does not have.

    Args:
        phase: "dense", "sparse" or "finetune".
        epoch: 0 is the first.
        seconds: wall time of training, evaluation and what the record needs; without the checkpoint.
        learning_rate: of the epoch's first step.
        loss: the task's, mean over the epoch's images, in training mode.
        penalty: the regulariser's, mean over the epoch's steps.
        train_accuracy: %, measured on the fly, in training mode.
        validation_accuracy: %.
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
    validation_accuracy: Percent | None = None
    effective_macs: NotNegative | None = None
    alive_macs: NotNegative | None = None


@dataclass(frozen=True)
class StepProgress:
    """How far a phase is.

    Args:
        phase: "dense", "sparse" or "finetune".
        epoch: 0 is the first of ``epochs``.
        epochs: of the phase.
        step: how many of the epoch's ``steps`` are done.
        steps: of the epoch.
        loss: the task's, mean over the epoch's images so far.
        learning_rate: of this step.
    """

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    learning_rate: float
