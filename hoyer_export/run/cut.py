"""The stage that cuts: select, fold, zero, take out, and prove."""

import copy
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil, prod
from pathlib import Path

import torch
from torch import Tensor, nn

from hoyer_export.call import Call, ExampleInputs
from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap
from hoyer_export.channels.cost import dense_macs, macs_of_keep
from hoyer_export.channels.norms import channel_norms
from hoyer_export.channels.trace import trace_channels
from hoyer_export.choices import BY_FUNCTION
from hoyer_export.data.splits import Split
from hoyer_export.errors import CutRefused, FileError, one_line
from hoyer_export.metric import outputs_of
from hoyer_export.report.number_format import points, share
from hoyer_export.report.stage_records import CutRecord, GroupWidth, Moved, RefitRecord, StepRecord
from hoyer_export.run.inputs import macs_in_torch, proved_channels
from hoyer_export.run.job import Job
from hoyer_export.run.own import widened
from hoyer_export.run.stage import Stage
from hoyer_export.run.time_budget import measured_beside, meet_in_time
from hoyer_export.run.timing import TIMED_WITH, job_latency
from hoyer_export.run_folder import RunFolder, write_whole
from hoyer_export.select.align import Keep
from hoyer_export.select.budget import COSTS, Budget
from hoyer_export.select.choose import Selection, choose_by, select_channels
from hoyer_export.select.cut_and_refit import Point, cut_and_refit
from hoyer_export.select.latency import Latency
from hoyer_export.select.loss import accuracy_drop, output_change
from hoyer_export.select.scores import channel_scores
from hoyer_export.sparsify.penalties import alive_channels
from hoyer_export.store.slim_file import save_slim
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.decisions import TOLERANCE
from hoyer_export.surgery.extras.dead_blocks import remove_dead_blocks
from hoyer_export.surgery.extras.dense_outputs import DenseOutputs
from hoyer_export.surgery.extras.folding import Folding, fold_constants
from hoyer_export.surgery.extras.gather import gather_inputs
from hoyer_export.surgery.extras.refit import Refit, refit_
from hoyer_export.surgery.plan import PruningPlan, compose
from hoyer_export.surgery.proof import prove_equal
from hoyer_export.surgery.self_test import without_groups
from hoyer_export.surgery.step import SlimModel, as_slim
from hoyer_export.surgery.zero import zero_
from hoyer_export.tensors import examples_in, named_tensors, rows_of, tensors_in

TRIES = 8
"""Selections before a budget counts as missed: each comes closer by what the one before was off."""
LABELLED = 5000
"""Validation images on which a drop in accuracy is measured, at most."""
NUMBERS = 2**23
"""Of the calibration images that the network works on at a time: 2,730 of 3×32×32, 55 of 3×224×224."""


@dataclass(frozen=True)
class _Cut:
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


def cut_channels(job: Job) -> CutRecord:
    """Select, zero and cut, and write the slim network, which is not trained yet, and widths.json."""
    if job.own is not None and job.own.slim is not None:
        return _was_cut(job, job.own.slim)
    table, started, network = job.recipe.cut, time.perf_counter(), job.sparse()
    asked = " ".join(f"{key} = {value}" for key, value in table.asked().items())
    refit = ", refit" if table.refit else ""
    method = "what has faded" if job.recipe.sparse.to_budget else table.method
    job.progress.headline(
        f"cut: {method}{refit}, {asked}{', ' if asked else ''}align = {'auto' if table.by_time else table.alignment}"
    )
    start = remove_dead_blocks(network, job.example) if table.dead_blocks else as_slim(network)
    blocks = tuple(edit.module for edit in start.plan.edits)
    channels = job.channels
    if blocks:
        channels = proved_channels(job, start.model)
    shows = job.has_data and (table.looks_at_images or not job.recipe.finetune.epochs)
    images = _images(job, job.data.train, shuffle=True) if shows else []
    way = cut_in_steps if table.in_steps else _cut_to_budget
    found = way(job, network, start, channels, images)
    steps, slim, keep = found.steps, found.slim, found.keep
    if table.gather:
        slim = gather_inputs(slim, table.gather, job.example)
        steps = (*steps, slim)
    _say(job, channels, found)
    _write(job, slim, keep)
    return CutRecord(
        dtype="float64",
        max_rel_error=max(step.max_rel_error or 0.0 for step in steps),
        delivered_rel_error=max(step.delivered_rel_error or 0.0 for step in steps),
        tolerance=TOLERANCE,
        align=table.alignment,
        widths=_widths(job, channels, start.model, keep),
        dead_blocks=blocks,
        gathered={layer: (_features(network, layer), _features(slim.model, layer)) for layer in table.gather},
        moved=() if job.recipe.finetune.epochs else _moved(job, network, found.zeroed, images),
        refit=found.refit,
        warning=found.warning,
        seconds=time.perf_counter() - started,
    )


def _was_cut(job: Job, slim: SlimModel) -> CutRecord:
    """Prove a slim network that was cut before, with its weights of today, against a dense one with zeros for the rest.

    Raises:
        CutRefused: it computes something else, or its plan is not of this dense network.
    """
    job.progress.headline("cut: as given; prove it with the weights of today")
    started, dense = time.perf_counter(), job.dense()
    try:
        wide = widened(dense, slim)
    except (FileError, IndexError, KeyError, RuntimeError) as error:
        raise CutRefused(
            f"the slim network was not cut from this dense one ({one_line(error)}); pass both of one cut"
        ) from error
    compared = prove_equal(
        wide,
        slim.model,
        Call.of(wide, job.example),
        cause="the slim network was not cut from this dense one by its plan",
    )
    keep = {group.name: _kept(group, slim.plan) for group in job.channels.groups}
    _write(job, slim, keep)
    return CutRecord(
        dtype="float64",
        max_rel_error=compared.error,
        tolerance=TOLERANCE,
        align=None,
        widths=_widths(job, job.channels, dense, keep),
        seconds=time.perf_counter() - started,
    )


def _kept(group: ChannelGroup, plan: PruningPlan) -> Tensor:
    """Return the channels that are left in some member: a layer that gathers its inputs lacks some that others have."""
    left = torch.zeros(group.width + 1, dtype=torch.bool)  # the last is nobody's: owner -1
    for member in group.members:
        kept = plan.kept.get(member.parameter, {}).get(member.dim)
        left[member.owner if kept is None else member.owner[kept]] = True
    return left[:-1].nonzero().flatten()


def _write(job: Job, slim: SlimModel, keep: Keep) -> None:
    """Write the slim network as it is after the cut, and widths.json."""
    job.folder.checkpoint.mkdir(exist_ok=True)
    write_slim(slim, cut_weights(job.folder), job)
    write_whole(job.folder.widths, json.dumps({name: keep[name].tolist() for name in sorted(keep)}) + "\n")


def _widths(job: Job, channels: ChannelMap, model: nn.Module, keep: Keep) -> tuple[GroupWidth, ...]:
    alive = _alive(job, channels, model)
    return tuple(
        GroupWidth(group=group.name, dense=group.width, alive=alive[group.name], slim=len(keep[group.name]))
        for group in channels.groups
    )


def _alive(job: Job, channels: ChannelMap, model: nn.Module) -> dict[str, int]:
    """Return how many channels of each group are alive: not faded to zero, where the sparse phase decided by that."""
    if job.recipe.sparse.to_budget:
        return {name: len(it) for name, it in select_channels(channels, model, method="zero").keep.items()}
    norms = channel_norms(channels, named_tensors(model))
    return {name: int(alive_channels(it).sum()) for name, it in norms.items()}


def _cut_to_budget(job: Job, network: nn.Module, start: SlimModel, channels: ChannelMap, images: list[Tensor]) -> _Cut:
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

    def carried_out(budget: Budget | None) -> _Cut:
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
    carried_out: Callable[[Budget | None], _Cut],
) -> _Cut:
    for _ in range(TRIES):
        budget = next((Budget(COSTS[key], share) for key, share in shares.items()), None)
        found = carried_out(budget)
        stricter = _stricter(job, network, channels, found)
        if not (shares and stricter):
            break
        shares |= stricter
    return found


def _cut_to_time(
    job: Job, network: nn.Module, channels: ChannelMap, latency: Latency, carried_out: Callable[[Budget | None], _Cut]
) -> _Cut:
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


def cut_in_steps(job: Job, network: nn.Module, start: SlimModel, channels: ChannelMap, images: list[Tensor]) -> _Cut:
    """Cut by function and refit, again and again, down to the share of the MACs or as far as the loss allows."""
    table = job.recipe.cut
    held_out = job.data.validation
    if table.max_drop is None:
        measured, loss = "outputs", output_change(start.model, _images(job, held_out))
    else:
        measured = "accuracy"
        if job.recipe.dense.file is not None:
            job.progress.note("validation images are training images: given weights may have seen them in training")
        size = _batch_size(job)
        loss = accuracy_drop(start.model, islice(held_out.batches(size), ceil(LABELLED / size)))
    dense, proved = dense_macs(job.channels), {group.name for group in channels.groups}

    def trace(model: nn.Module, example: ExampleInputs) -> ChannelMap:
        traced = trace_channels(model, example, rules=job.rules)
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
    return _Cut(found.keep, slim.model, (start, slim), slim, refit=refit)


def _refit_record(refit: Refit, measured: str | None = None, steps: tuple[StepRecord, ...] = ()) -> RefitRecord:
    return RefitRecord(
        refitted=len(refit.refitted),
        left=dict(refit.left),
        images=refit.images,
        wanted=refit.wanted,
        lost_by=measured,
        steps=steps,
    )


def _carried_out(job: Job, start: SlimModel, channels: ChannelMap, chosen: Selection) -> _Cut:
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
    return _Cut(chosen.keep, zeroed, (*steps, slim), slim, chosen.warning)


def _stricter(job: Job, network: nn.Module, channels: ChannelMap, found: _Cut) -> dict[str, float]:
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


def _say(job: Job, channels: ChannelMap, found: _Cut) -> None:
    if found.warning:
        job.progress.note(found.warning)
    stay = share(macs_of_keep(channels, found.keep) / max(dense_macs(job.channels), 1))
    error = max(step.max_rel_error or 0.0 for step in found.steps)
    job.progress.note(f"{stay} of the MACs stay; zeroed and slim agree to {error:.1e}")
    if found.refit is not None:
        left = "".join(f"; {weight} stays: {why}" for weight, why in found.refit.left.items())
        job.progress.note(f"{found.refit.refitted} weights refitted on {found.refit.images:,} images{left}")


def _features(model: nn.Module, layer: str) -> int:
    """Return how many input features a linear layer reads."""
    return model.get_parameter(f"{layer}.weight").shape[1]


def _batch_size(job: Job) -> int:
    """Return how many calibration images go at a time."""
    return max(2, NUMBERS // prod(job.shape))


def _images(job: Job, split: Split, *, shuffle: bool = False) -> list[Tensor]:
    """Return as many images as calibrate, or all there are, in batches and without augmentation."""
    found, left = [], job.recipe.cut.images
    for images, _ in split.batches(_batch_size(job), shuffle=shuffle):
        found.append(rows_of(images, min(left, examples_in(images))))
        left -= examples_in(found[-1])
        if left == 0:
            break
    return found


def _moved(job: Job, dense: nn.Module, zeroed: nn.Module, calibration: list[Tensor]) -> tuple[Moved, ...]:
    if not job.has_data:
        return (_difference("noise", dense, zeroed, [job.example]),)
    held_out = _images(job, job.data.validation)
    return _difference("calibration", dense, zeroed, calibration), _difference("held-out", dense, zeroed, held_out)


def _difference(images: str, dense: nn.Module, zeroed: nn.Module, batches: Iterable[Tensor]) -> Moved:
    first, second = (copy.deepcopy(model).eval() for model in (dense, zeroed))
    count, change, largest, finite = 0, 0.0, 0.0, True
    with torch.no_grad():
        for batch in batches:
            outputs = (tensors_in(outputs_of(model, batch)) for model in (first, second))
            for before, after in zip(*outputs, strict=True):
                if not (before.is_floating_point() or before.is_complex()):  # a mask or a label: no difference as it is
                    before, after = before.double(), after.double()
                finite &= bool(before.isfinite().all()) and bool(after.isfinite().all())
                if finite and before.numel():  # NaN is larger than nothing
                    change = max(change, float((after - before).abs().max()))
                    largest = max(largest, float(before.abs().max()))
            count += examples_in(batch)
    found = {"max_change": change, "max_output": largest} if finite else {"max_change": None, "max_output": None}
    return Moved(images=images, count=count, **found)


def cut_weights(folder: RunFolder) -> Path:
    """Return where the slim network stands until it is fine-tuned."""
    return folder.checkpoint / "cut.safetensors"


def write_slim(slim: SlimModel, path: Path, job: Job) -> None:
    """Write the slim network with its plan, and what is needed to build it."""
    name = job.recipe.network.name
    save_slim(slim, path, network=name, in_channels=job.in_channels, classes=job.classes)


CUT = Stage(
    name="cut",
    record=CutRecord,
    run=cut_channels,
    reads=("cut",),
    also_reads=lambda recipe: TIMED_WITH if recipe.cut.by_time or recipe.cut.of_time else (),
    needs=("sparse",),
    leaves=lambda job: (cut_weights(job.folder), job.folder.widths),
)
