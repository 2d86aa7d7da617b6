"""How much a network depends on a group of channels: what its outputs lose where that group alone is narrower.

Energy (``function.py``) tells which channels of a group matter least. It does not tell how far an error in front of one
reader comes through to the outputs. So each group alone is cut to a few widths, its readers are refitted, and r, the
mean relative change of the outputs on images that were not fitted to, is measured:

    f = Δ(r²) / Σ e

for every channel that goes between one width and the next: Δ(r²) by how much r² rises there, Σ e the energy that goes.
f · e_k is what channel k costs the outputs. Squares, because errors of several groups add up like independent ones.
Towards the strong channels f may not fall, or they would go before weaker ones: isotonic regression, weighted by Σ e.

Sensitivity of layers to pruning: Li et al. 2017 (arXiv 1608.08710), there without a refit, and read by eye.
"""

import copy

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import dense_macs
from hoyer_export.errors import NetworkError
from hoyer_export.select.function import function_scores
from hoyer_export.select.loss import output_change
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.extras.calibration import CalibrationInputs, as_batches
from hoyer_export.surgery.extras.dense_outputs import DenseOutputs
from hoyer_export.surgery.extras.refit import refit_
from hoyer_export.surgery.zero import zero_

_WIDTHS = (0.875, 0.75, 0.5, 0.25)
"""Shares of a group's width at which it is measured."""
_IMAGES = 512
"""How many are looked at, at most: half of them to fit, half to measure."""
_MOST = 1e3
"""A change of the outputs beyond which it is no matter how large it is; NaN counts as this."""
_MACS = 2e11
"""What all images together may cost the dense network, but for the first 16."""


def sensitivities(
    channels: ChannelMap, model: nn.Module, inputs: CalibrationInputs, seed: int = 0
) -> dict[str, Tensor]:
    """Return f of every channel, group name → float64 [width]; the network is cut four times for each group.

    Args:
        channels: the channel map.
        model: the traced network; copies in eval mode run.
        inputs: calibration images, a batch or several.
        seed: of the places that layers are refitted at.

    Raises:
        CutRefused, DataError, NetworkError: as ``cut``, ``refit_`` and ``output_change``.
    """
    batches = list(as_batches(model, inputs))
    fitted, measured = _halves(batches, int(min(_IMAGES, max(16, _MACS / max(dense_macs(channels), 1)))))
    targets = DenseOutputs(model, fitted, seed=seed)
    try:
        loss = output_change(model, measured)
    except NetworkError as error:
        raise NetworkError(f"sensitivity looks at how far outputs move: {error}, or choose by function") from error
    energies, _ = function_scores(channels, model, batches, power=0)
    factors = {}
    for group in channels.groups:
        energy = energies[group.name]
        order = energy.argsort(descending=True)
        widths = sorted({max(1, round(share * group.width)) for share in _WIDTHS} - {group.width}, reverse=True)
        losses, brought, last = [0.0], [], group.width
        for width in widths:
            keep = {group.name: order[:width].sort().values}
            zeroed = copy.deepcopy(model).eval()
            zero_(zeroed, channels, keep)
            slim = cut(zeroed, channels, keep, targets.example)
            refit_(slim, targets, readers_only=True)
            lost = loss(slim.model)
            losses.append(min(lost, _MOST) ** 2 if lost == lost else _MOST**2)
            brought.append(float(energy[order[width:last]].sum()))
            last = width
        factors[group.name] = _spread(order, widths, losses, brought)
    return factors


def _spread(order: Tensor, widths: list[int], losses: list[float], brought: list[float]) -> Tensor:
    """Return f of every channel; those that were never cut have that of the last which were."""
    factors = torch.ones(len(order), dtype=torch.float64)
    if widths:
        brought = [max(it, 1e-12) for it in brought]
        rises = [(after - before) / it for before, after, it in zip(losses, losses[1:], brought, strict=False)]
        fitted = isotonic_regression(rises, weights=brought).x.clip(min=0)
        for first, last, factor in zip([*widths, 0], [len(order), *widths], [*fitted, fitted[-1]], strict=True):
            factors[order[first:last]] = factor
    return factors


def _halves(batches: list[Call], images: int) -> tuple[list[Call], list[Call]]:
    """Return the first half of each batch and the last, until there are so many images; batches of one in turn."""
    fitted: list[Call] = []
    measured: list[Call] = []
    for number, batch in enumerate(batches):
        count = min(batch.batch_size, images)
        if batch.batch_size == count == 1:
            (fitted, measured)[number % 2].append(batch)
        elif count:
            half = max(1, count // 2)
            fitted.append(batch.rows(slice(0, half)))
            measured.append(batch.rows(slice(count - half, count)))
        images -= count
    return fitted or measured, measured or fitted
