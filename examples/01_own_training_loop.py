"""Your own network and loop: train with Group-HS, select, cut, fine-tune, export, verify and compare.

    python examples/01_own_training_loop.py OUT

Runs in a minute on a CPU, on the handwritten digits inside scikit-learn. Everything but the five ``hx`` calls is what
you have already.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import hoyer_export as hx


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images [N, 1, 8, 8] in 0..1 and classes [N], for training and for testing."""
    images, classes = load_digits(return_X_y=True)
    parts = train_test_split(images.reshape(-1, 1, 8, 8) / 16, classes, test_size=360, stratify=classes, random_state=0)
    train_x, test_x, train_y, test_y = (torch.tensor(part) for part in parts)
    return train_x.float(), train_y, test_x.float(), test_y


class Network(nn.Module):
    """Two convolutions, a residual sum and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 3, padding=1)
        )
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.max_pool2d(F.relu(x + self.body(x)), 2).flatten(1))


def fit(model: nn.Module, x: Tensor, y: Tensor, epochs: int, penalty: hx.GroupHS | None = None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            if penalty is not None:
                penalty.add_gradient_()  # or add penalty.penalty() to the loss
            optimizer.step()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        found = float((model(x).argmax(1) == y).float().mean())
    model.train()
    return 100 * found


def main(out: Path) -> None:
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    train_x, train_y, test_x, test_y = digits()
    model = Network()
    fit(model, train_x, train_y, epochs=10)
    print(f"dense   {accuracy(model, test_x, test_y):.1f} %")
    hx.export_onnx(model, train_x[:2], out / "dense.onnx")

    channels = hx.trace_channels(model, train_x[:2])
    fit(model, train_x, train_y, epochs=10, penalty=hx.GroupHS(channels, model, strength=2e-3))
    chosen = hx.select_channels(channels, model, macs=0.5, align=8)
    hx.zero_(model, channels, chosen.keep)
    slim = hx.cut(model, channels, chosen.keep, train_x[:2])
    fit(slim.model, train_x, train_y, epochs=5)
    print(f"slim    {accuracy(slim.model, test_x, test_y):.1f} % at {chosen.macs / chosen.dense_macs:.0%} of the MACs")
    print("widths ", {name: len(kept) for name, kept in chosen.keep.items()})

    hx.save_slim(slim, out / "slim.safetensors")
    hx.export_onnx(slim.model, train_x[:2], out / "slim.onnx")
    print("verified", hx.verify_onnx(out / "slim.onnx", slim.model, test_x[:64]).passed)
    speedup = hx.benchmark([out / "dense.onnx", out / "slim.onnx"]).speedups[0]
    interval = "too noisy for an interval" if speedup.ci95 is None else "95 %: {:.2f} to {:.2f}".format(*speedup.ci95)
    print(f"speed-up {speedup.median:.2f} ({interval}), one thread")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-loop"))
