"""The surgeon on networks that nobody wrote: random programs, random channels, no disagreement.

A failure is shrunk to a short program and printed as the code that it is. Many more tries, from a seed of their own:
``pytest -m slow tests/surgery/test_random_networks.py --hypothesis-seed=N``.
"""

import copy

import hypothesis
import networks
import pytest
import torch
from hypothesis import strategies as st
from random_networks import Program, programs
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import CutRefused
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.proof import TOLERANCE, proof_cases
from hoyer_export.surgery.self_test import random_keep
from hoyer_export.surgery.zero import zero_
from hoyer_export.tensors import tensors_in

SEEDS = st.integers(0, 999)
checks = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
options = {"deadline": None, "database": None, "suppress_health_check": checks}


def agree(program: Program, seed: int) -> ChannelMap:
    """Trace a program's network, zero and cut random channels of it, and compare (``cut`` does that in float64)."""
    torch.manual_seed(seed)
    model, inputs = program.build()
    networks.perturbed(model, seed)
    channels = trace_channels(model, inputs)
    if channels.groups:
        keep = random_keep(channels, torch.Generator().manual_seed(seed))
        zero_(model, channels, keep)
        try:
            error = cut(model, channels, keep, inputs).max_rel_error
        except CutRefused:
            if not is_constant(model, inputs):  # x - x, one normalised channel, and the like: nothing can be shown
                raise
        else:
            assert error is not None
            assert error <= TOLERANCE
    return channels


@torch.no_grad()
def is_constant(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Return whether a network returns the same for the inputs of the proof, turned round, halved and negated."""
    model = copy.deepcopy(model).double().eval()
    *_, case = proof_cases(Call.of(model, inputs))
    cases = [case, *(case.map(lambda x, f=f: x.flip(0) * f if x.is_floating_point() else x) for f in (0.5, -3.0))]
    first, *others = (list(tensors_in(case.on(model))) for case in cases)
    return all(torch.allclose(a, b, rtol=1e-9) for other in others for a, b in zip(first, other, strict=True))


@hypothesis.settings(max_examples=150, derandomize=True, **options)
@hypothesis.given(programs(), SEEDS)
def test_random_networks_are_cut_exactly(program: Program, seed: int) -> None:
    agree(program, seed)


@pytest.mark.slow
@hypothesis.settings(max_examples=10_000, derandomize=False, **options)
@hypothesis.given(programs(), SEEDS)
def test_ten_thousand_random_networks_are_cut_exactly(program: Program, seed: int) -> None:
    agree(program, seed)


def test_most_random_networks_offer_channels() -> None:
    offer = []

    @hypothesis.settings(max_examples=60, derandomize=True, phases=[hypothesis.Phase.generate], **options)
    @hypothesis.given(programs(), SEEDS)
    def draw(program: Program, seed: int) -> None:
        offer.append(bool(agree(program, seed).groups))

    draw()
    assert sum(offer) >= 0.6 * len(offer)
