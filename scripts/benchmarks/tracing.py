"""How long does tracing take, beside torch-pruning's graph and groups, and how much memory?

    python scripts/benchmarks/tracing.py [--network resnet50 ...] [--seconds 20]

Time: CPU seconds of one thread on images of 64×64, ours and theirs in turns in one process, at least three rounds and
then as many as fit into ``--seconds``; median and smallest to largest. Both give the groups of coupled channels:
``trace_channels`` here, ``DependencyGraph().build_dependency`` and ``get_all_groups`` there. For ResNet-50 also a cut
of half the channels of each group, checks in float64 included.

Memory: the largest resident set of a process that traces ResNet-50 at 224×224, less that of one that only builds it,
against the activations of one run (what the leaf modules put out, shared memory counted once).

Prints a JSON line a measurement, then a table.
"""

import argparse
import json
import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch_pruning
import torchvision
from torch import Tensor, nn

import hoyer_export as hx
from hoyer_export.environment import environment_record

NETWORKS = [
    "resnet18", "resnet50", "resnext50_32x4d", "densenet201", "mobilenet_v3_large", "efficientnet_b0", "swin_v2_t",
]  # fmt: skip
LEAST_ROUNDS = 3
LIMIT_SECONDS = 60  # for one of torch-pruning's runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=NETWORKS, help="torchvision's names")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network, once it has had three rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, out_of_time)
    memory = memory_of_tracing()
    show(environment=asdict(environment_record()))
    show(memory=memory)
    rows = [compare(name, arguments.seconds) for name in arguments.network]
    cut = spread(timed(cutting(), rounds=5))
    show(cut_resnet50=cut)
    print("\n| network | n | ours, s | torch-pruning, s | ours ÷ theirs |\n|---|---:|---:|---:|---:|")
    for row in rows:
        ours, theirs = row["ours"], row["theirs"]
        ratio = f"{ours['median'] / theirs['median']:.2f}" if "median" in theirs else ""
        print(f"| {row['network']} | {ours['n']} | {shown(ours)} | {shown(theirs)} | {ratio} |")
    print(f"\nCutting ResNet-50: {shown(cut)} s, n = {cut['n']}.")
    print(
        f"Tracing ResNet-50 at 224×224: {memory['tracing_mib']:.0f} MiB, all included;"
        f" activations {memory['activations_mib']:.0f} MiB."
    )


def compare(name: str, seconds: float) -> dict[str, Any]:
    """Trace one network with both, in turns."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    image = torch.randn(2, 3, 64, 64)
    ours: list[float] = []
    theirs: list[float] = []
    failure = ""
    hx.trace_channels(model, image)  # the first run loads what is loaded late
    end = time.perf_counter() + seconds
    while len(ours) < LEAST_ROUNDS or time.perf_counter() < end:
        ours += timed(lambda: hx.trace_channels(model, image))
        if not failure:
            try:
                signal.alarm(LIMIT_SECONDS)
                theirs += timed(lambda: their_groups(model, image))
            except Exception as error:  # whatever a network does to it
                failure = str(error) if isinstance(error, TimeoutError) else type(error).__name__
            finally:
                signal.alarm(0)
    row = {"network": name, "ours": spread(ours), "theirs": {"failed": failure} if failure else spread(theirs)}
    show(**row)
    return row


def out_of_time(number: int, frame: object) -> None:
    raise TimeoutError(f"more than {LIMIT_SECONDS} s")


def their_groups(model: nn.Module, image: Tensor) -> None:
    """Build torch-pruning's graph and all its groups."""
    graph = torch_pruning.DependencyGraph().build_dependency(model, image)
    for _ in graph.get_all_groups():
        pass


def cutting() -> Callable[[], object]:
    """Return what cuts a ResNet-50 to half its channels."""
    model = torchvision.models.resnet50(weights=None).eval()
    image = torch.randn(1, 3, 64, 64)
    channels = hx.trace_channels(model, image)
    keep = {group.name: torch.arange(group.width // 2) for group in channels.groups}
    hx.zero_(model, channels, keep)
    return lambda: hx.cut(model, channels, keep, image)


def timed(work: Callable[[], object], rounds: int = 1) -> list[float]:
    """Return the CPU seconds of each round."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    return {"n": len(seconds), "median": median(seconds), "least": min(seconds), "most": max(seconds)}


def memory_of_tracing() -> dict[str, float]:
    """Return in MiB what tracing needs at most, all included, and the activations of one run."""
    built, traced = in_own_process(peak_of_building), in_own_process(peak_of_tracing)
    model, image = resnet50_and_image()
    return {"tracing_mib": (traced - built) / 2**20, "activations_mib": activation_bytes(model, image) / 2**20}


def peak_of_building() -> int:
    resnet50_and_image()
    return peak_bytes()


def peak_of_tracing() -> int:
    hx.trace_channels(*resnet50_and_image())
    return peak_bytes()


def peak_bytes() -> int:
    """Return the largest resident set of this process so far (Linux; getrusage would count the parent's too)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def resnet50_and_image() -> tuple[nn.Module, Tensor]:
    """Return what is traced, once what is loaded late has been loaded."""
    hx.trace_channels(torchvision.models.resnet18(weights=None), torch.randn(1, 3, 64, 64))
    return torchvision.models.resnet50(weights=None).eval(), torch.randn(1, 3, 224, 224)


def activation_bytes(model: nn.Module, image: Tensor) -> int:
    """Return the bytes of everything that leaf modules put out in one run."""
    held: dict[int, Tensor] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        held[output.untyped_storage().data_ptr()] = output

    hooks = [m.register_forward_hook(note) for m in model.modules() if next(m.children(), None) is None]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def in_own_process(work: Callable[[], Any]) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work)


def shown(times: dict[str, Any]) -> str:
    if "failed" in times:
        return f"none ({times['failed']})"
    return f"{times['median']:.3f} ({times['least']:.3f} to {times['most']:.3f})"


def show(**record: Any) -> None:
    print(json.dumps(record, default=str), flush=True)


if __name__ == "__main__":
    main()
