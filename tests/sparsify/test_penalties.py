import math

import pytest
import torch
from torch import Tensor

from hoyer_export.sparsify.penalties import (
    EPSILON,
    effective_width,
    group_hs_rate,
    natural_threshold,
    smooth,
)


def group_hs_derivative(norms: torch.Tensor) -> torch.Tensor:
    """∂G_H/∂n_k: the package needs the rate ∂G_H/∂n_k / n_k only."""
    return group_hs_rate(norms) * norms


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_norms(seed: int, width: int = 7) -> Tensor:
    return torch.rand(width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.01


# (Σn)²/Σn² and Σn²/Σn by hand.
HAND = [
    ([3.0, 4.0], 49 / 25, 25 / 7),
    ([1.0, 2.0, 3.0], 36 / 14, 14 / 6),
    ([5.0, 5.0, 5.0, 5.0], 4.0, 5.0),
    ([0.0, 0.0, 2.0], 1.0, 2.0),
    ([0.0, 1.0, 1.0], 2.0, 1.0),
    ([7.0], 1.0, 7.0),
    ([0.0, 0.0], 0.0, 0.0),
]


@pytest.mark.parametrize(("norms", "value", "threshold"), HAND)
def test_value_and_threshold_equal_hand_numbers(norms, value, threshold):
    assert effective_width(tensor(*norms)).item() == pytest.approx(value, rel=1e-9)
    assert natural_threshold(tensor(*norms)).item() == pytest.approx(threshold, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_value_lies_between_one_and_the_number_of_channels(seed):
    assert 1 <= effective_width(random_norms(seed) ** 3) <= 7


@pytest.mark.parametrize("factor", [1e-20, 1e-3, 1e3, 1e20])
def test_the_value_is_invariant_to_scale_and_the_threshold_scales(factor):
    norms = random_norms(0)
    torch.testing.assert_close(effective_width(factor * norms), effective_width(norms), rtol=1e-12, atol=0)
    torch.testing.assert_close(natural_threshold(factor * norms), factor * natural_threshold(norms), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        group_hs_derivative(factor * norms) * factor, group_hs_derivative(norms), rtol=1e-9, atol=1e-12
    )


def test_the_derivative_equals_a_hand_number():
    # 2 (Σn/Σn²)(1 − n Σn/Σn²) at (3, 4): 2 · 7/25 · (1 − 21/25) and 2 · 7/25 · (1 − 28/25).
    torch.testing.assert_close(group_hs_derivative(tensor(3, 4)), tensor(0.0896, -0.0672), rtol=1e-9, atol=0)
    torch.testing.assert_close(group_hs_rate(tensor(3, 4)), tensor(0.0896 / 3, -0.0672 / 4), rtol=1e-9, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_the_derivative_equals_autograd_and_finite_differences(seed):
    norms = random_norms(seed).requires_grad_()
    (by_autograd,) = torch.autograd.grad(effective_width(norms), norms)
    torch.testing.assert_close(group_hs_derivative(norms.detach()), by_autograd, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(effective_width, norms)


def test_the_derivative_equals_autograd_just_above_epsilon():
    norms = tensor(1, 1, 3e-6, 1.5e-6).requires_grad_()
    (by_autograd,) = torch.autograd.grad(effective_width(norms), norms)
    torch.testing.assert_close(group_hs_derivative(norms.detach()), by_autograd, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_channel_shrinks_iff_it_is_below_the_natural_threshold(seed):
    norms = random_norms(seed)
    shrinks = group_hs_derivative(norms) > 0
    assert torch.equal(shrinks, norms < natural_threshold(norms))
    assert shrinks.any()
    assert not shrinks.all()


def test_the_gradient_is_orthogonal_to_the_norms():
    """Scale invariance (Euler): Σ n ∂G/∂n = 0."""
    norms = random_norms(3)
    assert (norms * group_hs_derivative(norms)).sum().abs() < 1e-9


@pytest.mark.parametrize("norms", [tensor(0, 0), tensor(0, 3), tensor(2, 2), tensor(5), tensor(0), tensor(0, 1e-9, 1)])
def test_dead_channels_and_equal_ones_have_no_derivative(norms):
    derivative = group_hs_derivative(norms)
    assert derivative.isfinite().all()
    assert (derivative.abs() < 1e-9).all()
    norms = norms.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(effective_width(norms), norms)
    torch.testing.assert_close(by_autograd, derivative, rtol=0, atol=1e-9)


def test_a_channel_is_dead_up_to_epsilon_and_smoothed_above():
    rms = math.sqrt(2 / 3)
    below, above = 0.999 * EPSILON * rms, 1.001 * EPSILON * rms
    assert smooth(tensor(1, 1, below))[2] == 0
    expected = math.hypot(above, EPSILON * rms)
    assert smooth(tensor(1, 1, above))[2].item() == pytest.approx(expected, rel=1e-9)


def test_padding_with_zeros_changes_nothing_if_the_widths_are_told():
    rows = [random_norms(1, width=5), tensor(0, 2e-6, 1), tensor(4)]
    padded = torch.stack([torch.cat([row, row.new_zeros(6 - len(row))]) for row in rows])
    widths = torch.tensor([len(row) for row in rows])
    torch.testing.assert_close(
        effective_width(padded, widths), torch.stack([effective_width(row) for row in rows]), rtol=1e-12, atol=0
    )
    rates = group_hs_rate(padded, widths)
    for row, rate in zip(rows, rates, strict=True):
        torch.testing.assert_close(rate[: len(row)], group_hs_rate(row), rtol=1e-12, atol=0)
        assert (rate[len(row) :] == 0).all()
