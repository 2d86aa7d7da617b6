"""Choose which channels stay: by threshold or to meet a budget, at widths that the runtime runs fast.

Channels whose score (``scores.py``) is at or above the threshold stay; widths are then rounded *up* to aligned sizes by
keeping the strongest of the weak channels, and a budget is met with the rounding inside the search. Or widths are
chosen, up or down, by measured time (``knapsack.py``): the weakest channels for most time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap, nothing_prunable
from hoyer_export.channels.cost import dense_macs, macs_of_keep
from hoyer_export.choices import BY_FUNCTION, METHODS, WITHOUT_BUDGET
from hoyer_export.errors import HoyerExportError
from hoyer_export.select.align import Keep, aligned_keep
from hoyer_export.select.budget import MACS, PARAMS, Budget
from hoyer_export.select.function import channel_prices
from hoyer_export.select.knapsack import Knapsack, energy
from hoyer_export.select.latency import Latency
from hoyer_export.select.scores import Scores, channel_scores
from hoyer_export.surgery.extras.calibration import CalibrationInputs
from hoyer_export.tensors import TensorRecord

_SHOWN = 20
"""Groups in the table that a notebook shows."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Selection(TensorRecord):
    """Which channels stay, and what that costs.

    Args:
        keep: group name → sorted int64 indices of the channels that stay.
        unaligned: the same before alignment: the channels at or above the threshold.
        threshold: on the method's scores; where widths were chosen by time, the least score that stays.
        align: multiple that widths were rounded up to, or chosen in.
        macs: MACs at ``keep``.
        dense_macs: MACs of the uncut network.
        unaligned_macs: MACs at ``unaligned``: what alignment cost is ``macs - unaligned_macs``.
        warning: what to be careful about, if anything.
    """

    keep: Keep
    unaligned: Keep
    threshold: float
    align: int
    macs: int
    dense_macs: int
    unaligned_macs: int
    warning: str | None = None

    def __repr__(self) -> str:
        """Return a table of the widths."""
        rows = [f"  {name:<40} {len(kept):>6} {len(self.unaligned[name]):>9}" for name, kept in self.keep.items()]
        more = [f"  ... and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
        share = self.macs / max(self.dense_macs, 1)
        return "\n".join(
            [
                f"Selection: {self.macs:,} of {self.dense_macs:,} MACs ({share:.1%}), align = {self.align},"
                f" threshold {self.threshold:.3g}",
                f"  {'group':<40} {'width':>6} {'unaligned':>9}",
                *rows[:_SHOWN],
                *more,
            ]
        )


def select_channels(
    channels: ChannelMap,
    model: nn.Module,
    *,
    macs: float | None = None,
    params: float | None = None,
    threshold: float | str | None = None,
    budget: Budget | None = None,
    align: int | Latency | None = None,
    method: str = "group-hs",
    inputs: CalibrationInputs | None = None,
) -> Selection:
    """Choose the channels that stay, by a budget or a threshold; dead ones by neither.

    Args:
        channels: the channel map.
        model: the network whose channels are scored.
        macs: share of the dense MACs that the aligned network may have, above 0, at most 1: ``Budget(MACS, macs)``.
        params: share of the dense parameters, likewise: ``Budget(PARAMS, params)``.
        threshold: keep what scores at least this much; ``"natural"`` is 1, for ``group-hs`` alone.
        budget: of any other cost, or an absolute number.
        align: widths are rounded up to a multiple of it, counted on the tensor's axis; 16 also allows 8. It suits
            onnxruntime's blocked convolutions (``nchwc_transformer.cc``: blocks of 16 with AVX-512, 8 with AVX2).
            None: 16, or for ``dead`` and ``zero`` 1. A ``measured_latency``, which is what None means in a budget of
            it: widths are chosen by what is fast on this machine; without a budget they are rounded up to its blocks.
        method: one of ``METHODS`` (``scores.py``). After ``zero_`` of what is dead, its norms are 0, and it goes first
            by any other method.
        inputs: one or more batches. ``dead`` and ``function`` look at all of them, ``magnitude`` lets
            torch-pruning trace the network on the first image; ``group-hs`` and ``zero`` need none.

    Returns:
        The selection. A budget is met by the smallest threshold that meets it.

    Raises:
        HoyerExportError: none or several of the four were given, one is out of range, or the budget cannot be met;
            the method is unknown or lacks its inputs; torch-pruning cannot score this network.
    """
    given = {"macs": macs, "params": params, "threshold": threshold, "budget": budget}
    _check_request(method, [name for name, value in given.items() if value is not None])
    if threshold is not None:
        _number(threshold, method)
    if not isinstance(budget, Budget | None):
        raise HoyerExportError(f"budget must be a Budget, e.g. Budget(MACS, 0.5), got {budget!r:.60}")
    if macs is not None:
        budget = Budget(MACS, macs)
    elif params is not None:
        budget = Budget(PARAMS, params)
    widths = _widths(align, budget, method)
    scores = channel_scores(channels, model, method, inputs)
    return choose_by(scores, channels, budget=budget, threshold=threshold, align=widths)


def choose_by(
    scores: Scores,
    channels: ChannelMap,
    *,
    budget: Budget | None,
    threshold: float | str | None,
    align: int | Latency,
) -> Selection:
    """Choose by scores that are there already; otherwise as ``select_channels``."""
    method, of = scores.method, scores.of
    limit = 1.0 if threshold is None else _number(threshold, method)
    if isinstance(align, Latency) and budget is not None:
        keep = unaligned = keep_within(channels, of, align, budget, method)
        limit = min((float(of[name][kept].min()) for name, kept in keep.items()), default=0.0)
    else:
        if budget is not None:
            limit = meet(channels, of, _multiple(align), budget)
        keep, unaligned = (aligned_keep(channels, of, limit, it) for it in (_multiple(align), 1))
    return Selection(
        keep=keep,
        unaligned=unaligned,
        threshold=limit,
        align=_multiple(align),
        macs=macs_of_keep(channels, keep),
        dense_macs=dense_macs(channels),
        unaligned_macs=macs_of_keep(channels, unaligned),
        warning=_warning(of) if threshold == "natural" else scores.warning,
    )


def _check_request(method: str, given: list[str]) -> None:
    if method not in METHODS:
        raise HoyerExportError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method in WITHOUT_BUDGET and given:
        raise HoyerExportError(
            f"method = {method!r} removes {WITHOUT_BUDGET[method]} and nothing else, so it takes no {given[0]};"
            " leave it out"
        )
    if method not in WITHOUT_BUDGET and len(given) != 1:
        raise HoyerExportError(
            f"give a budget or exactly one of macs, params and threshold, got {' and '.join(given) or 'none'}"
        )


def _widths(align: int | Latency | None, budget: Budget | None, method: str) -> int | Latency:
    """Return what widths are chosen by."""
    if isinstance(align, Latency):
        return align
    if align is None and budget is not None and isinstance(budget.cost, Latency):
        return budget.cost
    if align is None:
        return 1 if method in WITHOUT_BUDGET else 16
    if type(align) is not int or align < 1:
        raise HoyerExportError(f"align must be a whole number of at least 1 or a measured latency, got {align!r:.60}")
    return align


def _multiple(widths: int | Latency) -> int:
    return widths.table.block if isinstance(widths, Latency) else widths


def _number(threshold: float | str, method: str) -> float:
    if threshold == "natural" and method == "group-hs":
        return 1.0
    if threshold == "natural":
        raise HoyerExportError(f'threshold = "natural" belongs to the norms of group-hs; give {method} a number')
    if isinstance(threshold, bool | str) or not threshold >= 0:
        raise HoyerExportError(f'threshold must be "natural" or a number of at least 0, got {threshold!r}')
    return float(threshold)


def keep_within(
    channels: ChannelMap, scores: Mapping[str, Tensor], align: int | Latency, budget: Budget, method: str
) -> Keep:
    """Return what stays within a budget: at aligned widths, or at those that a measured latency says are fast.

    Raises:
        HoyerExportError: the budget cannot be met.
    """
    if not isinstance(align, Latency):
        return aligned_keep(channels, scores, meet(channels, scores, align, budget), align)
    # A score by function is over the channel's MACs; what is lost is not.
    prices = channel_prices(channels) if method in BY_FUNCTION else {}
    worth = {name: score * prices[name] for name, score in scores.items()} if prices else energy(scores)
    knapsack = Knapsack.of(channels, scores, worth, align)
    keep = knapsack.within(budget)
    if keep is None:
        least = budget.cost.of_keep(channels, knapsack.keep(knapsack.narrowest))
        raise _beyond(channels, budget, least, "widths in blocks of " + str(align.table.block))
    return keep


def meet(channels: ChannelMap, scores: Mapping[str, Tensor], align: int, budget: Budget) -> float:
    """Return the smallest threshold at which the aligned network meets the budget."""
    cost = budget.cost
    dense = cost.of_keep(channels, {})

    def cost_at(threshold: float) -> float:
        return cost.of_keep(channels, aligned_keep(channels, scores, threshold, align))

    candidates = sorted({0.0, float("inf"), *torch.cat(list(scores.values()) or [torch.zeros(0)]).tolist()})
    if not budget.is_met_by(least := cost_at(float("inf")), dense):
        raise _beyond(channels, budget, least, f"align = {align}")
    low, high = 0, len(candidates) - 1
    while low < high:  # the cost falls with the threshold, so bisect
        middle = (low + high) // 2
        if budget.is_met_by(cost_at(candidates[middle]), dense):
            high = middle
        else:
            low = middle + 1
    return float(candidates[low])


def _beyond(channels: ChannelMap, budget: Budget, least: float, how: str) -> HoyerExportError:
    """Return that a budget cannot be met, and what can."""
    if not channels.groups:
        return HoyerExportError(f"{budget} cannot be met: {nothing_prunable(channels)}")
    dense = budget.cost.of_keep(channels, {})
    reachable = f"{least / dense:.4f}" if budget.share is not None else budget.cost.describe(least)
    return HoyerExportError(
        f"{budget} cannot be met: with {how} the least that can be reached is {reachable}; ask for more, or lower align"
    )


def _warning(scores: Mapping[str, Tensor]) -> str | None:
    everything = torch.cat([torch.zeros(0, dtype=torch.float64), *scores.values()])
    between = float(((everything > 0.3) & (everything < 1.2)).double().mean()) if len(everything) else 0.0
    if between <= 0.25:
        return None
    return (
        f"{100 * between:.0f} % of the norms lie near the natural threshold: it parts weak from strong only after"
        " sparse training; on a dense network it removes about half of the channels"
    )
