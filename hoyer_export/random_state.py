"""torch's global generators: kept for the caller, and seeded for one device; and generators of one's own.

``torch.manual_seed`` reaches the generator of every GPU, and ``torch.random.fork_rng`` keeps those that it is told to.
What runs in between must neither change what the caller draws next, on whatever device, nor depend on it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Give the generators of the CPU and of every GPU the state back that they had."""
    # A GPU that nobody has used yet has no state that could be lost, and asking for it would take its memory.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=gpus):
        yield


def _generators(device: torch.device) -> list[torch.Generator]:
    """Return the CPU's generator and that of ``device``, and no other GPU's."""
    gpus = [torch.cuda.default_generators[device.index or 0]] if device.type == "cuda" else []
    return [torch.default_generator, *gpus]


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and that of ``device``, and no other GPU's."""
    for generator in _generators(device):
        generator.manual_seed(seed)


def generator_states(device: torch.device) -> tuple[str, ...]:
    """Return the states of these generators, in hexadecimal digits."""
    return tuple(generator.get_state().numpy().tobytes().hex() for generator in _generators(device))


def set_generator_states(states: Sequence[str], device: torch.device) -> None:
    """Go on with what ``generator_states`` returned."""
    for generator, state in zip(_generators(device), states, strict=False):  # it may have been another device
        generator.set_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))


def mixed_seed(*key: int) -> int:
    """Return a seed of 32 bits that depends on ``key`` alone, and is unrelated for neighbouring keys.

    torch's CPU generator looks at 32 bits of its seed only, so the whole key is mixed into them. A trailing 0 changes
    nothing in a key.
    """
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def seeded_generator(*key: int) -> torch.Generator:
    """Return a CPU generator seeded with ``mixed_seed(*key)``."""
    return torch.Generator().manual_seed(mixed_seed(*key))
