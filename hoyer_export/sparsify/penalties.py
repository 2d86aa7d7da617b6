"""Group-HS on norms: n_k of the channels of a group → its effective width, and which channels are alive.

    G_H = (Σ_k n_k)² / Σ_k n_k²        between 1 (one channel stands out) and K (all are equal)

The formulas know norms only; ``group_hs.py`` finds them in a model. The last dimension holds the channels of one
group; it may be padded with zeros if ``width`` says how many channels there are.

Source: Yang, Wen, Li, "DeepHoyer", ICLR 2020, section 3.3, https://arxiv.org/abs/1908.09979. Two deviations: n_k is
smoothed, because the original's gradient is not a number where a channel is exactly zero; and a channel that is dead
counts as 0, so that a group without a live channel has G_H = 0 instead of K.
"""

import torch
from torch import Tensor

EPSILON = 1e-6
"""ε in units of a group's root-mean-square norm: far below any channel that computes something."""

ALIVE = 0.1
"""A channel counts as alive from this share of its group's natural threshold on."""


def smooth(norms: Tensor, width: Tensor | int | None = None) -> Tensor:
    """Smooth norms at zero: sqrt(n² + ε²), and 0 for a channel that is dead (n ≤ ε).

    ε = 1e-6 · sqrt(Σ n² / K), a constant to the gradient.

    Args:
        norms: [..., K], at least 0; float64 unless they are known to be neither huge nor tiny.
        width: K where ``norms`` is padded with zeros, [...]; all of the last dimension where None.
    """
    squares = norms.square()
    count = norms.shape[-1] if width is None else width
    mean_square = (squares.sum(-1) / count).detach().unsqueeze(-1)
    epsilon_square = EPSILON**2 * mean_square
    counts = squares > epsilon_square
    return torch.where(counts, torch.where(counts, squares + epsilon_square, 1).sqrt(), 0)


def effective_width(norms: Tensor, width: Tensor | int | None = None) -> Tensor:
    """Compute G_H = (Σ n)² / Σ n², the effective width; 0 if all are dead.

    Args:
        norms: [..., K].
        width: as for ``smooth``.

    Returns:
        [...], invariant to the scale of ``norms``.
    """
    smoothed = smooth(norms, width)
    return smoothed.sum(-1).square() / _positive(smoothed.square().sum(-1))


def group_hs_rate(norms: Tensor, width: Tensor | int | None = None) -> Tensor:
    """Compute (∂G_H/∂n_k) / n_k, the factor of w in the gradient: ∂G_H/∂w = rate_k · w for an element w of channel k.

    rate_k = 2 (Σn / Σn²) (1 − n_k · Σn/Σn²) / n_k, with smoothed norms n; 0 for a dead channel. It is positive, and
    the channel shrinks, iff n_k < Σn²/Σn.

    Args:
        norms: [..., K].
        width: as for ``smooth``.

    Returns:
        [..., K].
    """
    smoothed = smooth(norms, width)
    ratio = (smoothed.sum(-1) / _positive(smoothed.square().sum(-1))).unsqueeze(-1)
    return torch.where(smoothed > 0, 2 * ratio * (1 - smoothed * ratio) / _positive(smoothed), 0)


def natural_threshold(norms: Tensor) -> Tensor:
    """Compute Σn² / Σn, [...]: under Group-HS a channel shrinks iff its norm is below; 0 if all are dead.

    Args:
        norms: [..., K], padded with zeros or not.
    """
    smoothed = smooth(norms)
    return smoothed.square().sum(-1) / _positive(smoothed.sum(-1))


def alive_channels(norms: Tensor) -> Tensor:
    """Return bool [..., K]: the channel's norm, of ``norms`` [..., K], is at least ``ALIVE`` natural thresholds."""
    return (norms >= ALIVE * natural_threshold(norms).unsqueeze(-1)) & (norms > 0)


def _positive(values: Tensor) -> Tensor:
    """Return ``values`` with 1 in place of 0: a denominator whose numerator is 0 there."""
    return torch.where(values > 0, values, 1)
