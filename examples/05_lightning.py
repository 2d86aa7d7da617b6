"""PyTorch Lightning: a callback makes the network sparse, a second Trainer fine-tunes what is left of it.

pip install 'hoyer-export[lightning]'
python examples/05_lightning.py OUT
"""

import copy
import sys

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import hoyer_export as hx
from hoyer_export.lightning import Sparsify


class Classifier(LightningModule):
    """What you have already."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def trainer(epochs: int, *callbacks: Sparsify) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), **quiet)


def block(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]


def main(out: str) -> None:
    torch.manual_seed(0)
    images, classes = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(classes))
    parts = random_split(data, [1437, 360])
    train, test = DataLoader(parts[0], 64, shuffle=True), DataLoader(parts[1], 64)
    net = nn.Sequential(*block(1, 32), *block(32, 64), nn.Flatten(), nn.Linear(64 * 4, 10))
    trainer(6).fit(Classifier(net), train)
    dense = copy.deepcopy(net)

    inputs, _ = next(iter(test))
    channels = hx.trace_channels(net, inputs)
    epochs = 6
    fading = hx.FunctionHS(channels, net, hx.Budget(hx.MACS, 0.5), steps=epochs * len(train), align=8)
    sparse = trainer(epochs, Sparsify(fading, net))
    sparse.fit(Classifier(net), train)
    print(f"effective MACs {float(sparse.callback_metrics['effective_macs']):.0%}")

    keep = hx.select_channels(channels, net, method="zero").keep
    slim = hx.cut(net, channels, keep, inputs)
    trainer(4).fit(Classifier(slim.model), train)
    report = hx.ship(dense=dense, slim=slim, inputs=inputs, labelled=test, out=out)
    print(f"{report.dense.accuracy:.1f} % -> {report.slim.accuracy:.1f} %, verified: {report.passed}")


if __name__ == "__main__":
    main(sys.argv[1])
