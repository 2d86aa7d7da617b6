"""One of the processes of ``test_parallel.py``: trains its part of small networks, and leaves what came out.

    python tests/parallel_worker.py FOLDER

with torchrun's variables; without them it trains alone.
"""

import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

import hoyer_export as hx
from hoyer_export import parallel
from hoyer_export.data.own_batches import OwnBatches, shared_rows
from hoyer_export.data.tensor_split import TensorSplit
from hoyer_export.select.budget import MACS, Budget
from hoyer_export.sparsify.function_hs import FunctionHS
from hoyer_export.sparsify.phase import TrainSettings
from hoyer_export.sparsify.regulariser import Regulariser
from hoyer_export.sparsify.training import train

IMAGES, BATCH, EPOCHS = 45, 8, 3
STEPS = 6  # the last batch has five images, which two cannot halve


def network(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))


def split() -> TensorSplit:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(IMAGES) % 3
    images = torch.randint(0, 150, (IMAGES, 1, 6, 6), generator=generator) + 50 * labels.view(-1, 1, 1, 1)
    return TensorSplit(images.byte(), labels, mean=[0.5], std=[0.25], crop_padding=1, flip=True)


class Broken(Exception):
    """Whatever ends a training."""


def trained(
    kind: str, folder: Path | None = None, broken_in: int | None = None
) -> tuple[dict[str, Tensor], list[float], Regulariser]:
    model, data = network(norm=kind == "norm"), split()
    channels = hx.trace_channels(model, torch.randn(2, 1, 6, 6))
    regulariser: Regulariser = hx.GroupHS(channels, model, 5e-3)
    if kind == "function":
        regulariser = FunctionHS(channels, model, Budget(MACS, 0.5), 2 * STEPS, align=1, every=2)
    settings = TrainSettings(
        phase="sparse", steps_per_epoch=STEPS, epochs=EPOCHS, lr=0.05, label_smoothing=0.1,
        class_weights=(1.0, 2.0, 3.0), distill_weight=0.3 if kind == "function" else 0.0,
    )  # fmt: skip

    def batches(epoch: int):
        if epoch == broken_in:
            raise Broken
        return data.batches(BATCH, epoch=epoch, shuffle=True, augment=True, shared=True)

    record = train(
        model, batches, settings, regulariser=regulariser, teacher=network() if kind == "function" else None,
        checkpoint=None if folder is None else folder / f"{kind}.safetensors",
    )  # fmt: skip
    losses = [value for epoch in record.epochs for value in (epoch.loss, epoch.train_accuracy, epoch.penalty)]
    return model.state_dict(), losses, regulariser


def rows_of_own_loader() -> list[int]:
    """Return which examples of a shuffling loader of somebody's own this process trains on."""
    torch.manual_seed(parallel.rank())  # what is drawn before differs
    data = torch.utils.data.TensorDataset(torch.arange(12), torch.zeros(12))
    loader = OwnBatches(torch.utils.data.DataLoader(data, batch_size=6, shuffle=True), "train")
    return [row for inputs, _ in shared_rows(loader.batches(6)) for row in inputs.tolist()]


def main(folder: Path) -> None:
    with parallel.together():
        with suppress(Broken):
            trained("weights", folder, broken_in=2)
        found: dict[str, Tensor] = {}
        for kind in ("weights", "function", "norm"):
            weights, losses, regulariser = trained(kind)
            found |= {f"{kind}/{name}": tensor for name, tensor in weights.items()}
            found[f"{kind}/losses"] = torch.tensor(losses, dtype=torch.float64)
            found |= {f"{kind}/norms/{name}": norms for name, norms in regulariser.norms().items()}
            if isinstance(regulariser, FunctionHS):
                found |= {f"{kind}/dead/{name}": dead for name, dead in regulariser.dead().items()}
        found["own"] = torch.tensor(rows_of_own_loader())
        torch.save(found, folder / f"of_{parallel.rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
