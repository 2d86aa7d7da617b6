"""Hugging Face's ``Trainer``: a callback of a few lines makes the network sparse, a second Trainer fine-tunes it.

pip install transformers accelerate
python examples/07_hugging_face_trainer.py OUT
"""

import copy
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

import hoyer_export as hx


class ForClassification(nn.Module):
    """What a Trainer wants: named arguments, and a loss among the results. What is cut is ``backbone``."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.backbone(pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Sparsify(TrainerCallback):
    """Calls the penalty on whole gradients, before each step of the optimizer."""

    def __init__(self, penalty: hx.GroupHS) -> None:
        self.penalty = penalty

    def on_pre_optimizer_step(self, args: TrainingArguments, state: object, control: object, **_: object) -> None:
        self.penalty.add_gradient_()


def fit(backbone: nn.Module, data: list, epochs: int, out: Path, *callbacks: TrainerCallback) -> None:
    how = TrainingArguments(
        output_dir=str(out), num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=5e-3,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    Trainer(ForClassification(backbone), how, train_dataset=data, callbacks=list(callbacks)).train()


def block(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]


def main(out: Path) -> None:
    torch.manual_seed(0)
    images, classes = load_digits(return_X_y=True)
    images, classes = torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(classes)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train = [{"pixel_values": images[i], "labels": classes[i]} for i in order[360:].tolist()]
    test = [(images[part], classes[part]) for part in order[:360].split(60)]
    network = nn.Sequential(*block(1, 32), *block(32, 64), nn.Flatten(), nn.Linear(64 * 4, 10))
    fit(network, train, 4, out / "trainer")
    dense = copy.deepcopy(network)

    channels = hx.trace_channels(network, test[0][0])
    fit(network, train, 4, out / "trainer", Sparsify(hx.GroupHS(channels, network, strength=0.05)))
    keep = hx.select_channels(channels, network, macs=0.5, align=8).keep
    hx.zero_(network, channels, keep)
    slim = hx.cut(network, channels, keep, test[0][0])
    fit(slim.model, train, 3, out / "trainer")
    report = hx.ship(dense=dense, slim=slim, inputs=test[0][0], labelled=test, out=out / "shipped")
    print(f"{report.dense.accuracy:.1f} % -> {report.slim.accuracy:.1f} %, verified: {report.passed}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
