"""Random numbers: what runs in between changes nothing that the caller draws next, on the CPU or on any GPU.

No GPU is needed: generators of the CPU stand for those of two.
"""

import pytest
import torch
from torch import Tensor, nn

from hoyer_export.channels.trace import trace_channels
from hoyer_export.random_state import kept_random_state, seed_generators
from hoyer_export.sparsify.phase import TrainSettings
from hoyer_export.sparsify.training import train


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.Generator]:
    """Return the generators of two GPUs that torch believes in, each seeded by the caller."""
    generators = [torch.Generator().manual_seed(seed) for seed in (21, 22)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for module in (torch.cuda, torch.cuda.random):
        monkeypatch.setattr(module, "device_count", lambda: len(generators))
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generators[device].get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: generators[device].set_state(state))
    return generators


def states(gpus: list[torch.Generator]) -> list[Tensor]:
    return [torch.get_rng_state(), *(generator.get_state() for generator in gpus)]


def assert_kept(before: list[Tensor], gpus: list[torch.Generator]) -> None:
    assert [torch.equal(*pair) for pair in zip(before, states(gpus), strict=True)] == [True, True, True]


class Draws(nn.Module):
    """Draws from the CPU's generator and, as dropout on a GPU does, from that of a GPU."""

    gpu: torch.Generator  # of the class: a copy of the network draws from the same

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1)
        torch.rand(1, generator=self.gpu)
        return self.last(self.first(x))


def test_the_stand_ins_are_reached_by_torchs_own_seed(gpus: list[torch.Generator]) -> None:
    torch.manual_seed(5)
    assert [generator.initial_seed() for generator in gpus] == [5, 5]


def test_every_generator_has_its_state_back(gpus: list[torch.Generator]) -> None:
    before = states(gpus)
    with kept_random_state():
        torch.manual_seed(7)
        torch.rand(3, generator=gpus[1])
    assert_kept(before, gpus)


@pytest.mark.parametrize(("device", "seeded"), [("cpu", [21, 22]), ("cuda", [9, 22]), ("cuda:1", [21, 9])])
def test_only_the_generators_in_use_are_seeded(device: str, seeded: list[int], gpus: list[torch.Generator]) -> None:
    with kept_random_state():
        torch.manual_seed(9)
        expected = torch.rand(4)
    for generator, seed in zip(gpus, (21, 22), strict=True):
        generator.manual_seed(seed)
    with kept_random_state():
        seed_generators(9, torch.device(device))
        assert torch.equal(torch.rand(4), expected)
        assert [generator.initial_seed() for generator in gpus] == seeded


def test_a_gpu_that_nobody_has_used_is_not_asked_for_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: pytest.fail("asked"))
    with kept_random_state():
        torch.rand(1)


def test_training_keeps_the_state_of_every_gpu(gpus: list[torch.Generator], monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3
    monkeypatch.setattr(Draws, "gpu", gpus[0], raising=False)
    model = Draws()
    before = states(gpus)
    settings = TrainSettings(phase="dense", steps_per_epoch=1, epochs=2, lr=0.1)
    train(model, lambda epoch: [(images, labels)], settings)
    assert_kept(before, gpus)


def test_tracing_keeps_the_state_of_every_gpu(gpus: list[torch.Generator], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draws, "gpu", gpus[1], raising=False)
    model = Draws()
    before = states(gpus)
    trace_channels(model, torch.randn(2, 6, generator=torch.Generator().manual_seed(1)))
    assert_kept(before, gpus)
