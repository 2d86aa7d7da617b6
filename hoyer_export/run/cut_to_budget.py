"""From a network and a budget to what is cut: chosen, folded, zeroed and taken out, until the file meets it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil

from torch import Tensor, nn

from hoyer_export.call import ExampleInputs
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import dense_macs
from hoyer_export.channels.trace import trace_channels
from hoyer_export.choices import BY_FUNCTION
from hoyer_export.report.number_format import points, share
from hoyer_export.report.stage_records import RefitRecord, StepRecord
from hoyer_export.run.calibration_images import calibration_batch, calibration_images
from hoyer_export.run.inputs import macs_in_torch
from hoyer_export.run.job import Job
from hoyer_export.run.time_budget import measured_beside, meet_in_time
from hoyer_export.run.timing import job_latency
from hoyer_export.select.align import Keep
from hoyer_export.select.budget import COSTS, Budget
from hoyer_export.select.choose import Selection, choose_by, select_channels
from hoyer_export.select.cut_and_refit import Point, cut_and_refit
from hoyer_export.select.latency import Latency
from hoyer_export.select.loss import accuracy_drop, output_change
from hoyer_export.select.scores import channel_scores
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.extras.dense_outputs import DenseOutputs
from hoyer_export.surgery.extras.folding import Folding, fold_constants
from hoyer_export.surgery.extras.refit import Refit, refit_
from hoyer_export.surgery.plan import compose
from hoyer_export.surgery.self_test import without_groups
from hoyer_export.surgery.step import SlimModel
from hoyer_export.surgery.zero import zero_

TRIES = 8
"""Selections before a budget counts as missed: each comes closer by what the one before was off."""
LABELLED = 5000
"""Validation images on which a drop in accuracy is measured, at most."""


@dataclass(frozen=True)
class Found:
    """What was chosen, and what came of it.

    Args:
        keep: group name → channels that stay.
        zeroed: the network whose outputs are compared with the dense one's: before the channels were taken out or,
            after a refit, the slim one.
        steps: what was proved one by one; the last is the cut.
        slim: the network after it.
        warning: of the selection.
        refit: what became of the weights that are left.
    """

    keep: Keep
    zeroed: nn.Module
    steps: tuple[SlimModel | Folding, ...]
    slim: SlimModel
    warning: str | None = None
    refit: RefitRecord | None = None


def cut_to_budget(job: Job, network: nn.Module, start: SlimModel, channels: ChannelMap, images: list[Tensor]) -> Found:
    """Select and cut until the slim file meets the recipe's budget, which is a share of ``network``."""
    table, scored = job.recipe.cut, start.model
    method = "zero" if job.recipe.sparse.to_budget else table.method  # the sparse phase has decided
    if table.dead_first:
        scored = copy.deepcopy(scored)
        zero_(scored, channels, select_channels(channels, scored, method="dead", inputs=images).keep)
    latency = job_latency(job) if table.by_time or table.of_time else None
    inputs = images if method in ("dead", *BY_FUNCTION) else [job.example]
    scores = channel_scores(channels, scored, method, inputs)
    align = latency if table.by_time and latency is not None else table.alignment

    def carried_out(budget: Budget | None) -> Found:
        chosen = choose_by(scores, channels, budget=budget, threshold=table.threshold, align=align)
        return _carried_out(job, start, channels, chosen)

    if latency is not None and table.of_time:
        found = _cut_to_time(job, network, channels, latency, carried_out)
    else:
        found = _cut_to_share(
            job, network, channels, {} if method == "zero" else _shares(job, start, channels), carried_out
        )
    if table.refit:
        refit = refit_(found.slim, start.model, images, seed=job.recipe.seed)
        found = replace(found, slim=refit.slim, zeroed=refit.slim.model, refit=_refit_record(refit))
    return found


def _cut_to_share(
    job: Job,
    network: nn.Module,
    channels: ChannelMap,
    shares: dict[str, float],
    carried_out: Callable[[Budget | None], Found],
) -> Found:
    for _ in range(TRIES):
        budget = next((Budget(COSTS[key], share) for key, share in shares.items()), None)
        found = carried_out(budget)
        stricter = _stricter(job, network, channels, found)
        if not (shares and stricter):
            break
        shares |= stricter
    return found


def _cut_to_time(
    job: Job, network: nn.Module, channels: ChannelMap, latency: Latency, carried_out: Callable[[Budget | None], Found]
) -> Found:
    ((key, asked),) = job.recipe.cut.asked().items()
    measure = measured_beside(job, network, key)
    whole = latency.of_keep(channels, {}) if key == "latency" else 1.0
    return meet_in_time(
        float(asked),
        choose=lambda aim: carried_out(Budget(latency, at_most=aim * whole)),
        expected=lambda found: latency.of_keep(channels, found.keep) / whole,
        measure=lambda found: measure(found.slim.model),
    )


def _shares(job: Job, start: SlimModel, channels: ChannelMap) -> dict[str, float]:
    """Return the shares of MACs or parameters that are asked for, as shares of ``start``."""
    table = job.recipe.cut
    shares = {key: asked for key, asked in (("macs", table.macs), ("params", table.params)) if asked is not None}
    if start.plan.edits:  # shares of the network that came, not of what is left of it
        for key, cost in ((key, COSTS[key]) for key in shares):
            shares[key] = min(1.0, shares[key] * cost.of_keep(job.channels, {}) / cost.of_keep(channels, {}))
    return shares


def cut_in_steps(job: Job, network: nn.Module, start: SlimModel, channels: ChannelMap, images: list[Tensor]) -> Found:
    """Cut by function and refit, again and again, down to the share of the MACs or as far as the loss allows."""
    table = job.recipe.cut
    held_out = job.data.validation
    if table.max_drop is None:
        measured, loss = "outputs", output_change(start.model, calibration_images(job, held_out))
    else:
        measured = "accuracy"
        if job.recipe.dense.file is not None:
            job.progress.note("validation images are training images: given weights may have seen them in training")
        size = calibration_batch(job)
        loss = accuracy_drop(start.model, islice(held_out.batches(size), ceil(LABELLED / size)))
    dense, proved = dense_macs(job.channels), {group.name for group in channels.groups}

    def trace(model: nn.Module, example: ExampleInputs) -> ChannelMap:
        traced = job.with_gathered(trace_channels(model, example, rules=job.rules))
        refuted = [group.name for group in traced.groups if group.name not in proved]
        return without_groups(traced, dict.fromkeys(refuted, "refuted by the self-test"))

    def told(point: Point) -> None:
        lost = points(-(point.loss or 0.0)) if measured == "accuracy" else f"outputs change by {point.loss:.4f}"
        job.progress.note(f"{share(point.macs / dense)} of the MACs: {lost}{'' if point.within else ', too much'}")

    found = cut_and_refit(  # what is dead brings nothing to any reader, so it goes first without being asked
        start.model,
        DenseOutputs(start.model, images, seed=job.recipe.seed),
        macs=_shares(job, start, channels).get("macs"),
        loss=loss,
        at_most=table.max_change if table.max_drop is None else table.max_drop,
        align=job_latency(job) if table.by_time else table.alignment,
        step=table.step,
        method=table.method,
        on_point=told,
        trace=trace,
    )
    slim = replace(found.slim, plan=compose(start.plan, found.slim.plan))
    steps = tuple(StepRecord(macs=it.macs / dense, lost=it.loss, within=it.within) for it in found.curve)
    refit = None if found.refit is None else _refit_record(found.refit, measured, steps)
    return Found(found.keep, slim.model, (start, slim), slim, refit=refit)


def _refit_record(refit: Refit, measured: str | None = None, steps: tuple[StepRecord, ...] = ()) -> RefitRecord:
    return RefitRecord(
        refitted=len(refit.refitted),
        left=dict(refit.left),
        images=refit.images,
        wanted=refit.wanted,
        lost_by=measured,
        steps=steps,
    )


def _carried_out(job: Job, start: SlimModel, channels: ChannelMap, chosen: Selection) -> Found:
    """Fold, zero and take out what was not chosen to stay."""
    steps: tuple[SlimModel | Folding, ...] = (start,)
    model, plan = start.model, start.plan
    if job.recipe.cut.fold:
        # What is a constant moves into the layers that read it; zeroing it would change what they compute.
        folding = fold_constants(model, channels, chosen.keep, job.example)
        model, channels, plan = folding.model, folding.channels, compose(plan, folding.plan)
        steps = (start, folding)
    zeroed = copy.deepcopy(model)
    zero_(zeroed, channels, chosen.keep)
    slim = cut(SlimModel(zeroed, plan), channels, chosen.keep, job.example)
    return Found(chosen.keep, zeroed, (*steps, slim), slim, chosen.warning)


def _stricter(job: Job, network: nn.Module, channels: ChannelMap, found: Found) -> dict[str, float]:
    """Return the share to select by next, where the slim network costs more than is asked; nothing where not.

    A selection meets a share of what torch runs. The file has once what the network computes twice, so that its share
    of the MACs may be another; and layers that gained a bias have parameters that the selection could not know of.
    """
    table = job.recipe.cut
    costs: dict[str, tuple[float, float]] = {}
    if table.params is not None:
        costs["params"] = (_params(found.slim.model), _params(network))
    if table.macs is not None and (whole := macs_in_torch(network, job.example)).distinct != whole.macs:
        costs["macs"] = (macs_in_torch(found.slim.model, job.example).distinct, whole.distinct)
    stricter = {}
    for key, (left, dense) in costs.items():
        asked: float = getattr(table, key)
        if not Budget(COSTS[key], asked).is_met_by(left, dense):
            selected = COSTS[key].of_keep(channels, found.keep) / COSTS[key].of_keep(channels, {})
            stricter[key] = selected * asked * dense / left
    return stricter


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
