"""How one phase of training is done: what has to be the same for it to go on from a checkpoint."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from hoyer_export.errors import TrainingError
from hoyer_export.sparsify.records import PhaseName

OptimizerName = Literal["sgd", "adam"]
PrecisionName = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How one phase of training is done.

    Args:
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
        seed: of what is random inside the model.

    Raises:
        TrainingError: a value that makes no sense.
    """

    phase: PhaseName
    steps_per_epoch: int
    epochs: int
    lr: float
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    precision: PrecisionName = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("phase", PhaseName), ("optimizer", OptimizerName), ("precision", PrecisionName)):
            if getattr(self, name) not in get_args(known):
                listed = " or ".join(f'"{value}"' for value in get_args(known))
                raise TrainingError(f"{self.phase}: expected the {name} {listed}, got {getattr(self, name)!r}")
        for name in ("lr", "momentum", "weight_decay", "warmup_epochs", "label_smoothing"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise TrainingError(f"{self.phase}: expected {name} of 0 or more, got {getattr(self, name)}")
        if self.epochs < 0 or (self.epochs > 0 and self.steps_per_epoch < 1):
            raise TrainingError(
                f"{self.phase}: expected epochs and batches, got {self.epochs} epochs of {self.steps_per_epoch} batches"
            )
        if self.warmup_epochs >= self.epochs > 0:
            raise TrainingError(
                f"{self.phase}: expected a warm-up shorter than the {self.epochs} epochs in all, "
                f"got {self.warmup_epochs:g} epochs"
            )

    def learning_rate(self, step: int) -> float:
        """Compute the learning rate of a step of the phase: lr · (step + 1) / warm-up, then lr · ½ (1 + cos(π · done)).

        Source: Loshchilov, Hutter, "SGDR", 2017, equation 5, one period down to 0, https://arxiv.org/abs/1608.03983.
        """
        warmup = self.warmup_epochs * self.steps_per_epoch
        if step + 1 < warmup:
            return self.lr * (step + 1) / warmup
        done = max(0.0, step - warmup) / max(1.0, self.epochs * self.steps_per_epoch - warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a new optimizer over all parameters of ``model``."""
        if self.optimizer == "adam":
            return torch.optim.Adam(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
