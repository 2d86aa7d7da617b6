"""Scores by function: what a channel brings to its readers, over the MACs that go with it."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import marginal_macs
from hoyer_export.channels.energy import InputMoments, Moments, energy_shares
from hoyer_export.channels.norms import channel_norms
from hoyer_export.surgery.extras.calibration import CalibrationInputs, watch_each
from hoyer_export.tensors import named_tensors

MACS_POWER = 1.0
"""p in e_k / MACs_k^p."""


def function_scores(
    channels: ChannelMap, model: nn.Module, inputs: CalibrationInputs, power: float = MACS_POWER
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Score channels by e_k / MACs_k^p, MACs_k those that go with channel k alone, as a share of the network's.

    A group that no reader reads whose input could be measured gets n_k² / Σn² in the place of e_k: as if one reader
    read it alone, and from white inputs.

    Args:
        channels: the channel map.
        model: the traced network; a copy in eval mode runs.
        inputs: calibration images, a batch or several.
        power: p; 0 for e_k itself.

    Returns:
        Group name → float64 [width] on the CPU, and the names of the groups that were not measured.

    Raises:
        DataError: there is no batch, or one holds something else than finite numbers.
        NetworkError: the model does not run on a batch.
    """
    network = copy.deepcopy(model).eval()
    moments = InputMoments(channels, network)
    watch_each(network, inputs, moments)
    energies, missing = energies_from(moments.take(), channels, named_tensors(model))
    prices = channel_prices(channels, power)
    return {name: energy / prices[name] for name, energy in energies.items()}, missing


def energies_from(
    moments: Moments, channels: ChannelMap, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return e_k of every channel, group name → float64 [width] on the CPU, and the groups that were not measured."""
    energies = energy_shares(channels, tensors, moments)
    missing = tuple(group.name for group in channels.groups if group.name not in energies)
    if missing:
        norms = channel_norms(channels, tensors)
        energies |= {name: _shares(norms[name].detach().square()) for name in missing}
    return {group.name: energies[group.name].double().cpu() for group in channels.groups}, missing


def channel_prices(channels: ChannelMap, power: float = MACS_POWER) -> dict[str, Tensor]:
    """Return MACs_k^power of every channel, MACs_k as a share of the network's: group name → float64 [width]."""
    dense = max(channels.macs({}), 1.0)
    return {name: (macs / dense).clamp(min=1e-12) ** power for name, macs in marginal_macs(channels).items()}


def _shares(squares: Tensor) -> Tensor:
    return squares / squares.sum().clamp(min=torch.finfo(squares.dtype).tiny)
