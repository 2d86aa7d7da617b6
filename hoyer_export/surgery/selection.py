"""Choose which channels stay: by threshold or to meet a budget, at widths that the runtime runs fast.

A channel's score is its norm over its group's natural threshold, n_k / (Σn² / Σn): scale-free, so that one threshold
serves all groups. Channels at or above the threshold are alive; widths are then rounded *up* to aligned sizes by
keeping the strongest of the weak channels, and the budget is met with the rounding inside the search.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap, weight_members
from hoyer_export.channels.cost import dense_macs, macs_of_keep, params_of_keep
from hoyer_export.channels.norms import channel_norms
from hoyer_export.errors import HoyerExportError

Keep = dict[str, Tensor]


@dataclass(frozen=True)
class Selection:
    """Which channels stay, and what that costs.

    Args:
        keep: group name → sorted int64 indices of the channels that stay.
        alive: the same before alignment: the channels at or above the threshold.
        threshold: relative to each group's natural threshold.
        macs: MACs at ``keep``.
        dense_macs: MACs of the uncut network.
        alive_macs: MACs at ``alive``: what alignment cost is ``macs - alive_macs``.
        warning: what to be careful about, if anything.
    """

    keep: Keep
    alive: Keep
    threshold: float
    macs: int
    dense_macs: int
    alive_macs: int
    warning: str | None = None


def select_channels(
    channels: ChannelMap,
    model: nn.Module,
    *,
    macs: float | None = None,
    params: float | None = None,
    threshold: float | str | None = None,
    align: int = 16,
) -> Selection:
    """Choose the channels that stay, by exactly one of ``macs``, ``params`` and ``threshold``.

    Args:
        channels: the channel map.
        model: the network whose norms decide.
        macs: share of the dense MACs that the aligned network may have, above 0, at most 1.
        params: share of the dense parameters, likewise.
        threshold: keep n_k ≥ threshold · Σn²/Σn; ``"natural"`` is 1.
        align: widths are rounded up to a multiple of it, counted on the tensor's axis; 16 also allows 8. It suits
            onnxruntime's blocked convolutions (``nchwc_transformer.cc``: blocks of 16 with AVX-512, 8 with AVX2).

    Returns:
        The selection. The budget is met by the smallest threshold that meets it.

    Raises:
        HoyerExportError: none or several of the three were given, one is out of range, or the budget cannot be met.
    """
    given = {"macs": macs, "params": params, "threshold": threshold}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise HoyerExportError(f"give exactly one of macs, params and threshold, got {' and '.join(chosen) or 'none'}")
    if type(align) is not int or align < 1:
        raise HoyerExportError(f"align must be a whole number of at least 1, got {align!r}")
    scores = _scores(channels, model)
    if threshold is not None:
        return _select(channels, scores, _number(threshold), align, threshold == "natural")
    share, cost = (macs, macs_of_keep) if macs is not None else (params, params_of_keep)
    assert share is not None
    if isinstance(share, bool | str) or not 0 < share <= 1:
        raise HoyerExportError(f"{chosen[0]} is a share of the dense network, above 0 and at most 1, got {share!r}")
    return _select(channels, scores, _meet(channels, scores, align, share, chosen[0], cost), align, False)


def least_keep(channels: ChannelMap, align: int = 16) -> Keep:
    """Return the narrowest aligned network: what the least reachable cost is counted on."""
    return {group.name: torch.arange(aligned_width(group, 1, align)) for group in channels.groups}


def aligned_width(group: ChannelGroup, alive: int, align: int) -> int:
    """Return the width to which ``alive`` channels are rounded up: never above the dense width, never below 1.

    The tensor's axis counts: a channel of a grouped convolution stands on it once in every group.
    """
    positions = _positions_a_channel(group)
    for width in range(max(alive, 1), group.width):
        length = width * positions
        if length % align == 0 or (align == 16 and length == 8):
            return width
    return group.width


def _positions_a_channel(group: ChannelGroup) -> int:
    producers = [member for member in weight_members(group) if member.dim == 0] or list(group.members)
    owner = producers[0].owner
    return int((owner == 0).sum())


def _scores(channels: ChannelMap, model: nn.Module) -> dict[str, Tensor]:
    scores = {}
    with torch.no_grad():
        for name, norms in channel_norms(channels, dict([*model.named_parameters(), *model.named_buffers()])).items():
            if not bool(norms.isfinite().all()):
                raise HoyerExportError(f"the weights of channel group {name!r} are not finite: train the network again")
            squares, total = norms.double().square().sum(), norms.double().sum()
            scores[name] = (norms.double() * total / squares if squares > 0 else norms.double()).cpu()
    return scores


def _number(threshold: float | str) -> float:
    if threshold == "natural":
        return 1.0
    if isinstance(threshold, bool | str) or not threshold >= 0:
        raise HoyerExportError(f'threshold must be "natural" or a number of at least 0, got {threshold!r}')
    return float(threshold)


def _meet(
    channels: ChannelMap,
    scores: Mapping[str, Tensor],
    align: int,
    share: float,
    what: str,
    cost: Callable[[ChannelMap, Mapping[str, Tensor]], int],
) -> float:
    """Return the smallest threshold at which the aligned network costs at most ``share`` of the dense one."""
    budget = share * cost(channels, {})
    candidates = sorted({0.0, float("inf"), *torch.cat(list(scores.values()) or [torch.zeros(0)]).tolist()})
    if (least := cost(channels, _aligned(channels, scores, float("inf"), align))) > budget:
        reachable = least / cost(channels, {})
        raise HoyerExportError(
            f"{what} = {share} cannot be met: with align = {align} the least that can be reached is {reachable:.4f};"
            " ask for more, or lower align"
        )
    low, high = 0, len(candidates) - 1
    while low < high:  # the cost falls with the threshold, so bisect
        middle = (low + high) // 2
        if cost(channels, _aligned(channels, scores, candidates[middle], align)) <= budget:
            high = middle
        else:
            low = middle + 1
    return float(candidates[low])


def _select(
    channels: ChannelMap, scores: Mapping[str, Tensor], threshold: float, align: int, natural: bool
) -> Selection:
    keep, alive = _aligned(channels, scores, threshold, align), _aligned(channels, scores, threshold, 1)
    warning = None
    everything = torch.cat([torch.zeros(0, dtype=torch.float64), *scores.values()])
    between = float(((everything > 0.3) & (everything < 1.2)).double().mean()) if len(everything) else 0.0
    if natural and between > 0.25:
        warning = (
            f"{100 * between:.0f} % of the norms lie near the natural threshold: it separates dead from alive only"
            " after sparse training; on a dense network it removes about half of the channels"
        )
    return Selection(
        keep,
        alive,
        threshold,
        macs_of_keep(channels, keep),
        dense_macs(channels),
        macs_of_keep(channels, alive),
        warning,
    )


def _aligned(channels: ChannelMap, scores: Mapping[str, Tensor], threshold: float, align: int) -> Keep:
    keep = {}
    for group in channels.groups:
        score = scores[group.name]
        width = aligned_width(group, int((score >= threshold).sum()), align)
        # Stable, so that equal norms give the same choice on every run.
        keep[group.name] = score.argsort(descending=True, stable=True)[:width].sort().values
    return keep
