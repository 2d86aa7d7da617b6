"""torch's global generators: kept for the caller, and seeded for one device.

``torch.manual_seed`` reaches the generator of every GPU, and ``torch.random.fork_rng`` keeps those that it is told to.
What runs in between must neither change what the caller draws next, on whatever device, nor depend on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Give the generators of the CPU and of every GPU the state back that they had."""
    # A GPU that nobody has used yet has no state that could be lost, and asking for it would take its memory.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=gpus):
        yield


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and that of ``device``, and no other GPU's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
