"""Does a cut that halves the MACs halve the latency? Speed-up ÷ MACs reduction, beside torch-pruning's two modes.

    python scripts/benchmarks/speedup.py [--network torchvision:resnet18 ...] [--macs 0.5 0.25] [--rounds 3]

For every network and budget: the dense file, ours (align = 16, and auto: by the measured table of this machine) and
torch-pruning's (its MagnitudePruner as its README shows it, ragged widths, and with round_to = 16; the uniform ratio
that comes closest to the MACs), all exported by the same exporter and timed interleaved in one process on one thread.
Latency does not depend on what a network has learned, so the weights are random; each filter is scaled by exp(0.5 z),
z normal, so that norms spread as a trained network's do.

Speed-ups are medians of paired ratios of CPU time, one a round. 1.0 would mean that every MAC removed is time saved;
0.7 that almost a third of the saving is lost in the runtime.
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
NETWORKS = (
    *(f"torchvision:{name}" for name in ("resnet18", "resnet34", "resnet50", "mobilenet_v2")),
    *("torchvision:efficientnet_b0", "torchvision:regnet_y_400mf"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=NETWORKS)
    parser.add_argument("--macs", nargs="+", type=float, default=[0.5, 0.25], help="shares of the dense MACs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--min-seconds", type=float, default=20.0, help="of a round, all files together")
    arguments = parser.parse_args()
    print(environment_record())
    print("| network, share of the MACs | cut | MACs | blocked | speed-up | speed-up ÷ MACs reduction |")
    print("|---|---|--:|--:|--:|--:|")
    for name in arguments.network:
        with tempfile.TemporaryDirectory() as folder:
            for share in arguments.macs:
                compare(name, share, Path(folder), arguments.rounds, arguments.min_seconds)


def compare(name: str, share: float, folder: Path, rounds: int, min_seconds: float) -> None:
    """Print one line a cut: MACs, blocked convolutions, and of each round speed-up and speed-up ÷ MACs reduction."""
    torch.manual_seed(0)
    model = build_network(name).eval()
    spread_norms(model)
    cuts = {
        "dense": model,
        "ours, align = 16": ours(model, share, 16),
        "ours, align = auto": ours(model, share, hx.measured_latency(model, IMAGE)),
        "torch-pruning": theirs(model, share, None),
        "torch-pruning, round_to = 16": theirs(model, share, 16),
    }
    files = {cut: folder / f"{number}.onnx" for number, cut in enumerate(cuts)}
    for cut, file in files.items():
        hx.export_onnx(cuts[cut], IMAGE, file)
    macs = {cut: hx.count_macs(file).macs for cut, file in files.items()}
    measured = [hx.benchmark(list(files.values()), threads=1, min_seconds=min_seconds) for _ in range(rounds)]
    for number, cut in enumerate(files):
        convs = blocked_convolutions(files[cut])
        found = [1.0 if number == 0 else record.steady[number - 1].median for record in measured]
        speedups = ", ".join(f"{it:.3f}" for it in found)
        ratios = ", ".join(f"{it * macs[cut] / macs['dense']:.3f}" for it in found)
        print(
            f"| {name}, {share:g} | {cut} | {macs[cut] / macs['dense']:.1%} | {convs.blocked} of {convs.total}"
            f" | {speedups} | {ratios} |",
            flush=True,
        )


def spread_norms(model: nn.Module) -> None:
    """Scale every filter by exp(0.5 z)."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(torch.exp(0.5 * torch.randn(module.out_channels, 1, 1, 1)))


def ours(dense: nn.Module, share: float, align: int | hx.Latency) -> nn.Module:
    """A share of the MACs at widths that the runtime likes."""
    model = copy.deepcopy(dense)
    channels = hx.trace_channels(model, IMAGE)
    keep = hx.select_channels(channels, model, macs=share, align=align).keep
    hx.zero_(model, channels, keep)
    return hx.cut(model, channels, keep, IMAGE).model


def theirs(dense: nn.Module, share: float, round_to: int | None) -> nn.Module:
    """torch-pruning's default pruner at the uniform ratio that comes closest to the share of the MACs."""
    target = torch_pruning.utils.count_ops_and_params(dense, IMAGE[:1])[0] * share
    low, high, closest = 0.0, 0.95, (float("inf"), dense)
    for _ in range(12):
        ratio = (low + high) / 2
        model = copy.deepcopy(dense)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            IMAGE[:1],
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            round_to=round_to,
            ignored_layers=[module for module in model.modules() if isinstance(module, nn.Linear)],
        )
        pruner.step()
        left = torch_pruning.utils.count_ops_and_params(model, IMAGE[:1])[0]
        low, high = (ratio, high) if left > target else (low, ratio)
        if abs(left - target) < closest[0]:
            closest = abs(left - target), model
    return closest[1]


if __name__ == "__main__":
    main()
