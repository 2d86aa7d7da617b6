"""What a trained network keeps when it is cut without training: public CIFAR-10 ResNets, and relative output changes.

    python scripts/benchmarks/without_training.py cifar10 --data DATA --weights resnet20.safetensors [--seeds 0 1 2]
        [--methods magnitude function sensitivity steps]
    python scripts/benchmarks/without_training.py imagenet [--network torchvision:resnet50 ...] [--images 64]

``cifar10``: weights that ``scripts/convert_cifar_resnet.py`` wrote, cut to shares of the MACs by group magnitude (as it
is, and with batch norms re-estimated), by function (as it is, refitted, and refitted in steps) and by sensitivity,
refitted. Calibration images are drawn
from the training images by the seed and their labels are not looked at; test accuracy on the half of the test images
that choices were made on, on the other half, and on all 10,000.

``imagenet``: random weights cannot show accuracy. Filters are scaled by exp(0.5 z), batch norms measured on noise, 20 %
of the MACs are taken out by function, and the mean over other images of |y - y_dense| / |y_dense| is printed before
and after the refit.
"""

import argparse
import copy
import resource
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import hoyer_export as hx
from hoyer_export.data.load import load_data
from hoyer_export.environment import environment_record
from hoyer_export.networks import build_network
from hoyer_export.select.align import aligned_keep
from hoyer_export.select.choose import meet
from hoyer_export.select.function import function_scores
from hoyer_export.select.sensitivity import sensitivities
from hoyer_export.surgery.extras.dense_outputs import DenseOutputs

SHARES = (0.85, 0.7, 0.6, 0.5)
METHODS = ("magnitude", "function", "sensitivity", "steps")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NETWORKS = "resnet18 resnet50 mobilenet_v2 efficientnet_b0 convnext_tiny vit_b_16 densenet121"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    cifar = verbs.add_parser("cifar10")
    cifar.add_argument("--data", type=Path, required=True)
    cifar.add_argument("--weights", type=Path, nargs="+", required=True)
    cifar.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    cifar.add_argument("--images", type=int, default=2048)
    cifar.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    imagenet = verbs.add_parser("imagenet")
    imagenet.add_argument("--network", nargs="+", default=[f"torchvision:{name}" for name in NETWORKS.split()])
    imagenet.add_argument("--images", type=int, default=64)
    imagenet.add_argument("--macs", type=float, default=0.8)
    arguments = parser.parse_args()
    print(environment_record())
    if arguments.verb == "cifar10":
        data = load_data("cifar10", root=arguments.data, mean=MEAN, std=STD)
        test = list(data.test.batches(500))
        train = torch.cat([images for images, _ in data.train.batches(1000)])
        for weights in arguments.weights:
            compare(weights, train, test, arguments.seeds, arguments.images, arguments.methods)
    else:
        for name in arguments.network:
            change(name, arguments.images, arguments.macs)


def compare(
    weights: Path,
    train: Tensor,
    test: list[tuple[Tensor, Tensor]],
    seeds: list[int],
    images: int,
    methods: Sequence[str],
) -> None:
    """Print one line for each share and method: mean and deviation over the seeds."""
    with safe_open(weights, "pt") as file:
        name = file.metadata()["network"]
    dense = build_network(name, in_channels=3, classes=10).eval()
    dense.load_state_dict(load_file(weights))
    found: dict[tuple[float, str], list[Tensor]] = {(1.0, "dense"): [accuracies(dense, test)]}
    for seed in seeds:
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:images]
        start = time.monotonic()
        for key, model in cuts(dense, [train[chosen]], seed, methods):
            found.setdefault(key, []).append(accuracies(model, test))
            print(seed, *key, *(f"{value:.2f}" for value in found[key][-1]), f"{time.monotonic() - start:.0f} s")
    for (share, method), rows in found.items():
        mean, spread = torch.stack(rows).mean(0), torch.stack(rows).std(0, correction=min(1, len(rows) - 1))
        cells = (f"{value:.2f} ± {deviation:.2f}" for value, deviation in zip(mean, spread, strict=True))
        print(f"| {name} | {share:.0%} | {method} |", " | ".join(cells), f"| n = {len(rows)} |")


def cuts(
    dense: nn.Module, batches: list[Tensor], seed: int, methods: Sequence[str]
) -> Iterator[tuple[tuple[float, str], nn.Module]]:
    """Yield a network for every share and method."""
    channels, targets = hx.trace_channels(dense, batches[0][:2]), DenseOutputs(dense, batches, seed=seed)

    def slim(keep: dict[str, Tensor]) -> hx.SlimModel:
        zeroed = copy.deepcopy(dense)
        hx.zero_(zeroed, channels, keep)
        return hx.cut(zeroed, channels, keep, batches[0][:2])

    for share, method in product(SHARES, (it for it in ("magnitude", "function") if it in methods)):
        keep = hx.select_channels(channels, dense, macs=share, align=1, method=method, inputs=batches).keep
        found = slim(keep)
        yield (share, method), found.model
        if method == "magnitude":
            again = reestimated(found.model, list(batches[0].split(256)))
            yield (share, "magnitude, batch norms re-estimated"), again
        else:
            yield (share, "function, refitted"), hx.refit_(found, targets).slim.model
    if "sensitivity" in methods:  # measured once for all shares
        energies, _ = function_scores(channels, dense, batches)
        factors = sensitivities(channels, dense, batches, seed)
        scores = {name: energy * factors[name] for name, energy in energies.items()}
        for share in SHARES:
            keep = aligned_keep(channels, scores, meet(channels, scores, 1, hx.Budget(hx.MACS, share)), 1)
            yield (share, "sensitivity, refitted"), hx.refit_(slim(keep), targets).slim.model
    if "steps" in methods:
        seen: list[nn.Module] = []
        walked = hx.cut_and_refit(dense, targets, macs=SHARES[-1], loss=lambda m: seen.append(m) or 0.0, align=1)
        for share in SHARES:
            at = next(i for i, point in enumerate(walked.curve) if point.macs <= share * walked.curve[0].macs)
            yield (share, "function, refitted in steps"), seen[at - 1]


def reestimated(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """Return a copy whose batch norms have the calibration images' statistics."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        for images in batches:
            model(images)
    return model.eval()


def accuracies(model: nn.Module, test: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return top-1 in % on the test images that choices may be made on, on the others, and on all."""
    with torch.no_grad():
        right = torch.cat([model(images).argmax(1) == targets for images, targets in test]).double()
    half = len(right) // 2
    return 100 * torch.stack([right[:half].mean(), right[half:].mean(), right.mean()])


def change(name: str, images: int, macs: float) -> None:
    """Print the relative change of a network's outputs, before and after the refit."""
    torch.manual_seed(0)
    model = build_network(name)
    x = smooth(2 * images)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(torch.exp(0.5 * torch.randn(len(module.weight), *[1] * (module.weight.ndim - 1))))
    model = reestimated(model, list(x[:images].split(16)))
    batches, held = list(x[:images].split(64)), list(x[images:].split(16))
    loss = hx.output_change(model, held)
    channels = hx.trace_channels(model, x[:2])
    keep = hx.select_channels(channels, model, macs=macs, align=1, method="function", inputs=batches).keep
    zeroed = copy.deepcopy(model)
    hx.zero_(zeroed, channels, keep)
    slim = hx.cut(zeroed, channels, keep, x[:2])
    before, start = loss(slim.model), time.monotonic()
    refit = hx.refit_(slim, model, batches)
    seconds, peak = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"| {name} | {macs:.0%} | {before:.3f} | {loss(slim.model):.3f} | {len(refit.refitted)} | {len(refit.left)} |"
        f" {images} ({refit.wanted}) | {seconds:.0f} s | {peak:.1f} GiB |"
    )


def smooth(count: int) -> Tensor:
    """Return noise at four scales, [count, 3, 224, 224]."""
    generator = torch.Generator().manual_seed(0)
    scales = (torch.randn(count, 3, size, size, generator=generator) for size in (7, 28, 112, 224))
    return sum((F.interpolate(noise, size=224) for noise in scales), torch.zeros(())) / 2


if __name__ == "__main__":
    main()
