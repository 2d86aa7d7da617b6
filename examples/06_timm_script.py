"""timm's training script, in its shape: AMP and gradient scaling, an average of the weights (EMA), a checkpoint with
``state_dict`` and ``state_dict_ema``. The lines with ``hx`` are what is new; each says where it belongs.

    pip install 'hoyer-export[timm]'
    python examples/06_timm_script.py OUT
"""

import argparse
import copy
from pathlib import Path

import timm
import torch
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import hoyer_export as hx


def train_one_epoch(
    model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, ema: ModelEmaV3, penalty: hx.GroupHS | None
) -> float:
    losses, scaler = AverageMeter(), torch.amp.GradScaler(enabled=torch.cuda.is_available())
    model.train()
    for images, classes in loader:
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), classes, label_smoothing=0.1)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if penalty is not None:
            penalty.add_gradient_()  # hx: on whole, unscaled gradients, before the step
        scaler.step(optimizer)
        scaler.update()
        ema.update(model)
        losses.update(loss.item(), len(images))
    return losses.avg


def validate(model: nn.Module, loader: DataLoader) -> float:
    top1 = AverageMeter()
    model.eval()
    with torch.no_grad():
        for images, classes in loader:
            top1.update(accuracy(model(images), classes)[0].item(), len(images))
    return top1.avg


def fit(model: nn.Module, epochs: int, args: argparse.Namespace, penalty: hx.GroupHS | None = None) -> nn.Module:
    """Train, write last.pth.tar, and return the average of the weights."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=args.lr, weight_decay=0.02)
    ema = ModelEmaV3(model, decay=0.9)
    for epoch in range(epochs):
        loss = train_one_epoch(model, args.train, optimizer, ema, penalty)
        print(f"epoch {epoch}: loss {loss:.3f}, top-1 {validate(ema.module, args.test):.1f} %")
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": ema.module.state_dict()}, args.out / "last.pth.tar")
    return ema.module


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--lr", type=float, default=5e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    images, classes = load_digits(return_X_y=True)
    images = torch.tensor(images).float().view(-1, 1, 8, 8) / 16
    data = TensorDataset(nn.functional.interpolate(images, scale_factor=4), torch.tensor(classes))
    parts = random_split(data, [1437, 360])
    args.train, args.test = DataLoader(parts[0], 64, shuffle=True, drop_last=True), DataLoader(parts[1], 64)
    model = timm.create_model(args.model, in_chans=1, num_classes=10)
    inputs: Tensor = next(iter(args.test))[0]

    dense = copy.deepcopy(fit(model, 4, args))
    channels = hx.trace_channels(model, inputs)  # hx: once, after create_model
    averaged = fit(model, 4, args, hx.GroupHS(channels, model, strength=0.05))
    keep = hx.select_channels(channels, averaged, macs=0.5, align=8).keep
    hx.zero_(averaged, channels, keep)
    slim = hx.cut(averaged.requires_grad_(True), channels, keep, inputs)  # hx: an average has no gradients
    fit(slim.model, 3, args)  # hx: a new optimizer and a new average for the slim network
    hx.load_weights(slim.model, args.out / "last.pth.tar", key="state_dict_ema")
    report = hx.ship(
        dense, slim, inputs, args.out / "shipped", labelled=args.test, recipe={"network": {"name": args.model}}
    )
    print(f"{report.dense.accuracy:.1f} % -> {report.slim.accuracy:.1f} %, verified: {report.passed}")


if __name__ == "__main__":
    main()
