"""Least squares for the weights of a layer, from samples that come in parts.

    W = (Y Xᵀ + λ W₀)(X Xᵀ + λ I)⁻¹

X: what the layer reads, Y: what it should give; both centred where a constant b = ȳ − W x̄ is taken up elsewhere. W₀:
the weights before; λ: ``ridge`` times the mean ‖x‖² of a sample, so W₀ counts for ``ridge`` samples an unknown. Fixed
as a share of X Xᵀ's diagonal, λ would fit noise where samples are about as few as unknowns. That it should fall with
samples over unknowns: Hoerl, Kennard and Baldwin 1975 (Communications in Statistics 4). In float64, one Gram matrix for
each group.
"""

import torch
from torch import Tensor

_ROUNDING = 1e-9
"""Share of the inputs' energy below which their variation counts as none."""


class LeastSquares:
    """Σ over samples of x xᵀ and y xᵀ, for each group; the samples themselves while they are fewer than unknowns."""

    def __init__(self, centred: bool) -> None:
        self.centred, self.count = centred, 0
        self._held: list[tuple[Tensor, Tensor]] = []
        self._sums: tuple[Tensor, ...] | None = None  # x xᵀ, y xᵀ, x, y

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add samples x [n, G, I] and y [n, G, O]."""
        self._held.append((x, y))
        self.count += len(x)
        if self._sums is not None or self.count > x.shape[2]:
            for held_x, held_y in self._held:
                xs, ys = held_x.double().transpose(0, 1), held_y.double().transpose(0, 1)
                if self._sums is None:
                    (groups, _, inputs), outputs = xs.shape, ys.shape[2]
                    shapes = (groups, inputs, inputs), (groups, outputs, inputs), (groups, inputs), (groups, outputs)
                    self._sums = tuple(xs.new_zeros(shape) for shape in shapes)
                gram, cross, sum_x, sum_y = self._sums
                gram.baddbmm_(xs.mT, xs)
                cross.baddbmm_(ys.mT, xs)
                sum_x.add_(xs.sum(1))
                sum_y.add_(ys.sum(1))
            self._held.clear()

    def solve(self, before: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Return the weights [G, O, I] and the constant ȳ − W x̄, [G, O]."""
        if self._sums is None:
            x, y = (torch.cat(held).double().transpose(0, 1) for held in zip(*self._held, strict=True))
            mean_x, mean_y = x.mean(1, keepdim=True) * self.centred, y.mean(1, keepdim=True) * self.centred
            x, y = x - mean_x, y - mean_y
            gram = x @ x.mT  # [G, n, n]
            penalty = _penalty(gram, ridge / self.count, (x + mean_x).square().sum((1, 2)))
            new = before + (_damped_solve_(gram, penalty, y - x @ before.mT)).mT @ x
            mean_x, mean_y = mean_x[:, 0], mean_y[:, 0]
        else:
            gram, cross, mean_x, mean_y = self._sums
            mean_x, mean_y = mean_x / self.count * self.centred, mean_y / self.count * self.centred
            energy = gram.diagonal(dim1=1, dim2=2).sum(1)
            gram = torch.baddbmm(gram, mean_x[:, :, None], mean_x[:, None], alpha=-self.count)
            cross = torch.baddbmm(cross, mean_y[:, :, None], mean_x[:, None], alpha=-self.count)
            penalty = _penalty(gram, ridge / self.count, energy)
            new = _damped_solve_(gram, penalty, (cross + penalty * before).mT).mT
        return new, mean_y - (new @ mean_x[..., None])[..., 0]


def _penalty(gram: Tensor, share: float, energy: Tensor) -> Tensor:
    """Return λ of each group, [G, 1, 1]: a share of the trace, and enough to keep W₀ where the inputs do not vary.

    What centring leaves of constant inputs is rounding, about 1e-16 of their ``energy`` Σ‖x‖², [G]; a fit to that would
    be noise.
    """
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    return torch.maximum(share * trace, _ROUNDING * energy).clamp(min=1e-200)[:, None, None]


def _damped_solve_(gram: Tensor, penalty: Tensor, right: Tensor) -> Tensor:
    gram.diagonal(dim1=1, dim2=2).add_(penalty[:, 0])  # in place: the matrix may have thousands of rows
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))
