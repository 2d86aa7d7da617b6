"""How many images a second does training take in, beside the plain loop, and beside an earlier version of this package?

    python scripts/benchmarks/loop.py [--case small mobile resnet18] [--before CHECKOUT] [--compile]
                                      [--threads 1] [--workers 0] [--rounds 5]

*plain*: NCHW, float32, torch's DataLoader with torchvision's transforms image by image, and the penalty of every
convolution through autograd. *before*: the loop of the checkout named, same precision as *now*. Small data is 32×32
bytes in memory and ResNet-20; the other cases read JPEGs of 500×375 (made here) for networks at 224×224. Every way is a
process of its own that waits for its turn; they go round after round. The minimum of all rounds is what counts, of wall
and of CPU time (workers' too); quartiles say how noisy the machine is. *data*: the batches alone.
"""

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

import hoyer_export as hx
from hoyer_export.data import ImageOptions, load_data
from hoyer_export.data.splits import Split
from hoyer_export.data.tensor_split import TensorSplit
from hoyer_export.environment import environment_record
from hoyer_export.networks import build_network
from hoyer_export.sparsify.phase import TrainSettings
from hoyer_export.sparsify.training import Hooks, train

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 10


@dataclass(frozen=True)
class Case:
    """A network, its batches, and how many of them are an epoch here."""

    network: str
    side: int
    batch: int
    steps: int


CASES = {
    "small": Case("cifar_resnet20", 32, 128, 6),
    "mobile": Case("torchvision:mobilenet_v3_small", 224, 32, 6),
    "resnet18": Case("torchvision:resnet18", 224, 16, 4),
}


class Pictures(Dataset[Any]):
    """Small pictures in memory, transformed one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = [Image.fromarray(it) for it in images.permute(0, 2, 3, 1).numpy()]
        self.labels = labels.tolist()
        crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.made = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.made(self.images[index]), self.labels[index]


def small_pictures(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8), labels


def write_jpegs(root: Path, count: int) -> None:
    """Write pictures of noise at several scales, about as large as photographs of that size are."""
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / "train" / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((375, 500, 3), 128.0)
        for scale, strength in ((4, 40), (16, 30), (64, 20), (250, 12)):
            noise = rng.normal(size=(3, scale * 3 // 4, scale)).astype(np.float32) * strength
            layers = [np.asarray(Image.fromarray(it).resize((500, 375), Image.Resampling.BICUBIC)) for it in noise]
            pixels += np.stack(layers, -1)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)


def plain_penalty(model: nn.Module, strength: float) -> Tensor:
    """Group-HS of every convolution's filters and input slices, as DeepHoyer's code has it."""
    total = torch.zeros(())
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            for dims in ((1, 2, 3), (0, 2, 3)):
                squares = (module.weight**2).sum(dims)
                total = total + (squares + 1e-12).sqrt().sum() ** 2 / squares.sum()
    return strength * total


def plain_way(case: Case, root: Path, workers: int) -> dict[str, Callable[[], None]]:
    if case.side == 32:
        data: Dataset[Any] = Pictures(*small_pictures(case.batch * case.steps))
    else:
        crop = [transforms.RandomResizedCrop(case.side), transforms.RandomHorizontalFlip()]
        normalised = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        data = ImageFolder(str(root / "train"), transforms.Compose([*crop, *normalised]))
    loader = DataLoader(data, case.batch, shuffle=True, num_workers=workers, drop_last=True)
    model = build_network(case.network, classes=CLASSES).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def loop() -> None:
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels) + plain_penalty(model, 1e-5)
            loss.backward()
            optimizer.step()
            loss.item()

    return {"loop": loop, "data": lambda: [None for _ in loader] and None}


def own_way(case: Case, root: Path, workers: int, options: list[str]) -> dict[str, Callable[[], None]]:
    if case.side == 32:
        images, labels = small_pictures(case.batch * case.steps)
        split: Split = TensorSplit(images, labels, mean=MEAN, std=STD, crop_padding=4, flip=True)
    else:
        how = ImageOptions(**({"fast_decode": True} if "fast_decode" in options else {}))
        split = load_data("imagefolder", root=root, image_size=case.side, workers=workers, options=how).train
    model = build_network(case.network, classes=CLASSES)
    channels = hx.trace_channels(model, torch.randn(2, 3, case.side, case.side))
    penalty = hx.GroupHS(channels, model, 1e-3)
    precision = "bfloat16" if "bfloat16" in options else "float32"
    how_trained = TrainSettings(
        phase="sparse", steps_per_epoch=split.steps(case.batch), epochs=1, lr=0.05, precision=precision,
        **({"compile": True} if "compile" in options else {}),
    )  # fmt: skip

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return split.batches(case.batch, epoch=epoch, shuffle=True, augment=True)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    model.to(memory_format=torch.channels_last)

    def loop() -> None:
        train(
            model, batches, how_trained, regulariser=penalty, hooks=Hooks(optimizer=lambda model, settings: optimizer)
        )

    return {"loop": loop, "data": lambda: [None for _ in batches(0)] and None}


def serve(way: str, case: Case, root: Path, threads: int, workers: int) -> None:
    """Make one epoch a line of stdin, of the part that it names, and answer with wall and CPU seconds."""
    torch.set_num_threads(threads)
    name, *options = way.split("+")
    parts = plain_way(case, root, workers) if name == "plain" else own_way(case, root, workers, options)
    print("ready", flush=True)
    for line in sys.stdin:
        before, started = _cpu_seconds(), time.perf_counter()
        parts[line.strip()]()
        print(time.perf_counter() - started, _cpu_seconds() - before, flush=True)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(it.ru_utime + it.ru_stime for it in used)


def compare(name: str, ways: list[str], root: Path, arguments: argparse.Namespace) -> None:
    case = CASES[name]
    images = case.batch * case.steps
    print(f"\n{name}: {case.network}, {case.steps} batches of {case.batch} × {case.side} × {case.side} a round")
    with contextlib.ExitStack() as stack:
        asking, answers = {}, {}
        for way in ways:
            source = arguments.before if way.startswith("before") else Path(__file__).parents[2]
            asked = [f"--serve={way}", f"--case={name}", f"--root={root}"]
            asked += [f"--threads={arguments.threads}", f"--workers={arguments.workers}"]
            process = subprocess.Popen(
                [sys.executable, __file__, *asked], env=os.environ | {"PYTHONPATH": str(source)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(process.kill)
            asking[way], answers[way] = process.stdin, process.stdout
            assert process.stdout.readline().strip() == "ready", way
        for part in ("data", "loop"):
            seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for number in range(arguments.rounds + 1):
                for way in ways:
                    print(part, file=asking[way], flush=True)
                    wall, cpu = map(float, answers[way].readline().split())
                    if number > 0:  # the first one warms up, and compiles
                        seconds[way].append((wall, cpu))
            show(part, seconds, images)


def show(part: str, seconds: dict[str, list[tuple[float, float]]], images: int) -> None:
    least = {way: [min(it[i] for it in times) for i in (0, 1)] for way, times in seconds.items()}
    against = [way for way in seconds if way.startswith(("plain", "before"))]
    print(f"  {part}, n = {len(next(iter(seconds.values())))}; images a second; ratios of least wall (CPU) times")
    for way, times in seconds.items():
        low, middle, high = (images / it for it in reversed(statistics.quantiles([wall for wall, _ in times], n=4)))
        ratios = ", ".join(
            f"{least[other][0] / least[way][0]:.2f}× ({least[other][1] / least[way][1]:.2f}×) of {other}"
            for other in against
            if other != way and way != "plain"
        )
        print(f"    {way:30} {images / least[way][0]:7.0f}  (quartiles {low:.0f}, {middle:.0f}, {high:.0f})  {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, CASES[arguments.case[0]], arguments.root, arguments.threads, arguments.workers)
        return
    print(environment_record())
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.case:
            fast = "" if name == "small" else "+fast_decode"
            ways = ["plain", *(["before", "before+bfloat16"] if arguments.before else [])]
            ways += ["now", *([f"now{fast}"] if fast else []), f"now{fast}+bfloat16"]
            ways += [f"now{fast}+compile", f"now{fast}+bfloat16+compile"] if arguments.compile else []
            root = Path(folder) / name
            if name != "small":  # every class needs images on both sides
                write_jpegs(root, CASES[name].batch * CASES[name].steps * 20 // 17 // CLASSES * CLASSES + CLASSES)
            compare(name, ways, root, arguments)


if __name__ == "__main__":
    main()
