"""Choose which channels stay: by threshold or to meet a budget, at widths that the runtime runs fast.

Every method gives each channel a score that is comparable between groups, so that one threshold serves them all:

    group-hs     its norm over its group's natural threshold, n_k / (Σn² / Σn)
    magnitude    torch-pruning's group importance over the group's mean (the rival)
    dead         1 if it ever fires on the calibration images, else 0; the threshold is 1

Channels at or above the threshold are alive; widths are then rounded *up* to aligned sizes by keeping the strongest of
the weak channels, and the budget is met with the rounding inside the search.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap, weight_members
from hoyer_export.channels.cost import dense_macs, macs_of_keep, params_of_keep
from hoyer_export.channels.norms import channel_norms
from hoyer_export.errors import HoyerExportError
from hoyer_export.surgery.dead_channels import Batches, as_batches, firing_channels
from hoyer_export.tensors import named_tensors

Keep = dict[str, Tensor]
METHODS = ("group-hs", "magnitude", "dead")


@dataclass(frozen=True)
class Selection:
    """Which channels stay, and what that costs.

    Args:
        keep: group name → sorted int64 indices of the channels that stay.
        alive: the same before alignment: the channels at or above the threshold.
        threshold: on the method's scores (above).
        align: multiple that widths were rounded up to.
        macs: MACs at ``keep``.
        dense_macs: MACs of the uncut network.
        alive_macs: MACs at ``alive``: what alignment cost is ``macs - alive_macs``.
        warning: what to be careful about, if anything.
    """

    keep: Keep
    alive: Keep
    threshold: float
    align: int
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
    align: int | None = None,
    method: str = "group-hs",
    inputs: Batches | None = None,
) -> Selection:
    """Choose the channels that stay, by exactly one of ``macs``, ``params`` and ``threshold``; dead ones by none.

    Args:
        channels: the channel map.
        model: the network whose channels are scored.
        macs: share of the dense MACs that the aligned network may have, above 0, at most 1.
        params: share of the dense parameters, likewise.
        threshold: keep what scores at least this much; ``"natural"`` is 1, for ``group-hs`` alone.
        align: widths are rounded up to a multiple of it, counted on the tensor's axis; 16 also allows 8. It suits
            onnxruntime's blocked convolutions (``nchwc_transformer.cc``: blocks of 16 with AVX-512, 8 with AVX2).
            None: 16, or for ``dead`` 1.
        method: ``group-hs``, ``magnitude`` or ``dead`` (above). After ``zero_`` of what is dead, its norms are 0, and
            it goes first by any other method.
        inputs: one or more batches. ``dead`` looks at all of them, ``magnitude`` lets torch-pruning trace the network
            on the first image; ``group-hs`` needs none.

    Returns:
        The selection. The budget is met by the smallest threshold that meets it.

    Raises:
        HoyerExportError: none or several of the three were given, one is out of range, or the budget cannot be met;
            the method is unknown or lacks its inputs; torch-pruning cannot score this network.
    """
    if method not in METHODS:
        raise HoyerExportError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    given = {"macs": macs, "params": params, "threshold": threshold}
    chosen = [name for name, value in given.items() if value is not None]
    if method == "dead" and chosen:
        raise HoyerExportError(
            f"method = 'dead' removes what never fires and nothing else, so it takes no {chosen[0]}; leave it out"
        )
    if method != "dead" and len(chosen) != 1:
        raise HoyerExportError(f"give exactly one of macs, params and threshold, got {' and '.join(chosen) or 'none'}")
    if align is None:
        align = 1 if method == "dead" else 16
    if type(align) is not int or align < 1:
        raise HoyerExportError(f"align must be a whole number of at least 1, got {align!r}")
    if threshold is not None:
        threshold = _number(threshold, method)
    share = macs if macs is not None else params
    if share is not None and (isinstance(share, bool | str) or not 0 < share <= 1):
        raise HoyerExportError(f"{chosen[0]} is a share of the dense network, above 0 and at most 1, got {share!r}")
    scores = _scores(channels, model, method, inputs)
    if share is not None:
        cost = macs_of_keep if macs is not None else params_of_keep
        threshold = _meet(channels, scores, align, share, chosen[0], cost)
    return _select(channels, scores, 1.0 if threshold is None else threshold, align, given["threshold"] == "natural")


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


def _scores(channels: ChannelMap, model: nn.Module, method: str, inputs: Batches | None) -> dict[str, Tensor]:
    """Return group name → float64 [width] on the CPU."""
    if method == "group-hs":
        scores = _relative_norms(channels, model)
    elif inputs is None:
        raise HoyerExportError(
            f"method = {method!r} needs inputs: one or more batches of what the network is called with"
        )
    elif method == "dead":
        scores = {name: fires.double() for name, fires in firing_channels(model, channels, inputs).items()}
    else:
        # A second to import, and only this method needs it.
        from hoyer_export.surgery.torch_pruning_baseline import group_importance

        scores = group_importance(model, _first_image(inputs), channels)
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise HoyerExportError(f"the weights of channel group {name!r} are not finite: train the network again")
    return scores


def _relative_norms(channels: ChannelMap, model: nn.Module) -> dict[str, Tensor]:
    """Return n_k · Σn / Σn²; 0 where all norms are."""
    scores = {}
    with torch.no_grad():
        for name, norms in channel_norms(channels, named_tensors(model)).items():
            squares, total = norms.double().square().sum(), norms.double().sum()
            scores[name] = (norms.double() if squares == 0 else norms.double() * total / squares).cpu()
    return scores


def _first_image(inputs: Batches) -> tuple[Tensor, ...]:
    for batch in as_batches(inputs):
        return tuple(tensor[:1] for tensor in batch)
    raise HoyerExportError("expected at least one batch of inputs, got none")


def _number(threshold: float | str, method: str) -> float:
    if threshold == "natural" and method == "group-hs":
        return 1.0
    if threshold == "natural":
        raise HoyerExportError(f'threshold = "natural" belongs to the norms of group-hs; give {method} a number')
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
        align,
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
