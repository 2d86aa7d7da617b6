"""Does a cut that halves the MACs halve the latency? Speed-up ÷ MACs reduction, beside torch-pruning's default.

    python scripts/benchmarks/speedup.py [--network torchvision:resnet18 ...] [--rounds 3] [--min-seconds 8]

For every network: the dense file, ours (macs = 0.5, align = 16) and torch-pruning's (its MagnitudePruner as its README
shows it, ragged widths, the uniform ratio that comes closest to half the MACs), all exported by the same exporter and
timed interleaved in one process on one thread. Latency does not depend on what a network has learned, so the weights
are random; each filter is scaled by exp(0.5 z), z normal, so that norms spread as a trained network's do.

1.0 would mean that every MAC removed is time saved; 0.7 that almost a third of the saving is lost in the runtime.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import torch
import torch_pruning
from torch import nn

import hoyer_export as hx
from hoyer_export.deploy.explain import blocked_convolutions
from hoyer_export.environment import environment_record
from hoyer_export.networks import build_network

IMAGE = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=["torchvision:resnet18", "torchvision:resnet50"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--min-seconds", type=float, default=8.0, help="timed seconds a file in each round")
    arguments = parser.parse_args()
    print(environment_record())
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.network:
            compare(name, Path(folder), arguments.rounds, arguments.min_seconds)


def compare(name: str, folder: Path, rounds: int, min_seconds: float) -> None:
    """Print one line a cut and round: MACs, latency, speed-up, and speed-up ÷ MACs reduction."""
    torch.manual_seed(0)
    model = build_network(name).eval()
    spread_norms(model)
    files = {"dense": folder / "dense.onnx", "ours": folder / "ours.onnx", "torch-pruning": folder / "theirs.onnx"}
    hx.export_onnx(model, IMAGE, files["dense"])
    hx.export_onnx(ours(model), IMAGE, files["ours"])
    hx.export_onnx(theirs(model), IMAGE, files["torch-pruning"])
    macs = {cut: hx.count_macs(file).macs for cut, file in files.items()}
    for cut, file in files.items():
        blocked = blocked_convolutions(file)
        print(f"{name} {cut}: {macs[cut] / 1e6:.1f} MMACs, blocked convolutions {blocked.blocked} of {blocked.total}")
    for number in range(rounds):
        record = hx.benchmark(list(files.values()), threads=1, min_seconds=min_seconds)
        for cut, latency, speedup in zip(list(files)[1:], record.files[1:], record.speedups, strict=True):
            reduction = macs["dense"] / macs[cut]
            interval = "too noisy" if speedup.ci95 is None else "{:.3f}, {:.3f}".format(*speedup.ci95)
            print(
                f"{name} round {number + 1} {cut}: p50 {latency.p50_ms:.2f} ms (dense {record.files[0].p50_ms:.2f}),"
                f" speed-up {speedup.median:.3f} [{interval}], MACs ÷ {reduction:.3f},"
                f" speed-up ÷ MACs reduction {speedup.median / reduction:.3f}"
            )


def spread_norms(model: nn.Module) -> None:
    """Scale every filter by exp(0.5 z)."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(torch.exp(0.5 * torch.randn(module.out_channels, 1, 1, 1)))


def ours(dense: nn.Module) -> nn.Module:
    """Half the MACs at widths that the runtime likes."""
    model = copy.deepcopy(dense)
    channels = hx.trace_channels(model, IMAGE)
    keep = hx.select_channels(channels, model, macs=0.5, align=16).keep
    hx.zero_(model, channels, keep)
    return hx.cut(model, channels, keep, IMAGE).model


def theirs(dense: nn.Module) -> nn.Module:
    """torch-pruning's default pruner at the uniform ratio that comes closest to half the MACs."""
    target = torch_pruning.utils.count_ops_and_params(dense, IMAGE[:1])[0] / 2
    low, high = 0.0, 0.9
    for _ in range(12):
        ratio = (low + high) / 2
        model = copy.deepcopy(dense)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            IMAGE[:1],
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[module for module in model.modules() if isinstance(module, nn.Linear)],
        )
        pruner.step()
        if torch_pruning.utils.count_ops_and_params(model, IMAGE[:1])[0] > target:
            low = ratio
        else:
            high = ratio
    return model


if __name__ == "__main__":
    main()
