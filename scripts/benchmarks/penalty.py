"""What does Group-HS cost a training step? Closed form, autograd and the form on function beside forward and backward.

    python scripts/benchmarks/penalty.py [--threads 1] [--rounds 15] [--device cpu]

A step without a penalty, the closed-form gradient alone, and the penalty through autograd (forward and backward of the
penalty alone) are timed in turn, round after round; medians, and the spread between the quartiles. Of Group-HS on
function: a step while half of the channels fade; and a step that measures energies and draws the line, of which a
training has one in ``every``, so that its share of the mean step is printed: what it takes more than one without, over
``every``, and the fading.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from hoyer_export.channels.trace import trace_channels
from hoyer_export.environment import environment_record
from hoyer_export.networks import build_network
from hoyer_export.select.budget import MACS, Budget
from hoyer_export.sparsify.function_hs import FunctionHS
from hoyer_export.sparsify.group_hs import GroupHS

# network, images of a batch, height and width
CASES = [("cifar_resnet20", 128, 32), ("torchvision:resnet50", 16, 224)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(environment_record())
    for name, images, size in CASES:
        compare(name, images, size, arguments.rounds, torch.device(arguments.device))


def compare(name: str, images: int, size: int, rounds: int, device: torch.device) -> None:
    """Print the milliseconds of a step and of both forms of the penalty."""
    torch.manual_seed(0)
    model = build_network(name)
    channels = trace_channels(model, torch.randn(2, 3, size, size))
    model.to(device).to(memory_format=torch.channels_last)
    group_hs = GroupHS(channels, model)
    batch, labels = torch.randn(images, 3, size, size, device=device), torch.randint(0, 10, (images,), device=device)

    def step() -> None:
        F.cross_entropy(model(batch), labels).backward()

    def autograd() -> None:
        group_hs.penalty().backward()

    fading = FunctionHS(channels, model, Budget(MACS, 0.5), steps=10**6, ramp=0.999)
    with fading.observe(model):  # the first step measures, at a line that is drawn as if half the way were done
        fading._step = 500_000
        step()
        fading.after_step_(0.1)

    def measuring() -> None:
        fading._step = 500_000
        with fading.observe(model):
            step()
            fading.after_step_(0.1)

    def fade() -> None:
        fading._step = 500_001
        fading.after_step_(0.1)

    ways: dict[str, Callable[[], object]] = {
        f"forward and backward, {images} × {size} × {size}": step,
        "add_gradient_": group_hs.add_gradient_,
        "penalty().backward()": autograd,
        "fading on function": fade,
        "forward and backward, measured": measuring,
    }
    milliseconds: dict[str, list[float]] = {way: [] for way in ways}
    for round_number in range(rounds + 1):
        for way, call in ways.items():
            _wait(device)
            started = time.perf_counter()
            call()
            _wait(device)
            if round_number > 0:  # the first one warms up
                milliseconds[way].append(1e3 * (time.perf_counter() - started))
    whole = statistics.median(next(iter(milliseconds.values())))
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{name}: {weights / 1e6:.2f} M weights, {len(channels.groups)} groups, {device}")
    for way, times in milliseconds.items():
        low, median, high = statistics.quantiles(times, n=4)
        print(f"  {way:38} {median:9.2f} ms ({low:.2f} to {high:.2f}), {100 * median / whole:6.2f} % of a step")
    fades, measures = (statistics.median(milliseconds[way]) for way in list(ways)[-2:])
    mean = fades + max(0.0, measures - whole - fades) / fading.every
    print(f"  on function, a mean step: {mean:.2f} ms, {100 * mean / whole:.2f} % of a step")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
