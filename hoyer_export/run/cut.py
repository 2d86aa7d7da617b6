"""The stage that cuts: select, fold, zero, take out, and prove."""

import copy
import json
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap
from hoyer_export.channels.cost import dense_macs, macs_of_keep
from hoyer_export.channels.norms import channel_norms
from hoyer_export.errors import CutRefused, FileError, one_line
from hoyer_export.metric import outputs_of
from hoyer_export.report.number_format import share
from hoyer_export.report.sparsity import weights_words
from hoyer_export.report.stage_records import CutRecord, GroupWidth, Moved
from hoyer_export.run.calibration_images import calibration_images
from hoyer_export.run.cut_to_budget import Found, cut_in_steps, cut_to_budget
from hoyer_export.run.elements import layer_weights, zero_elements
from hoyer_export.run.inputs import proved_channels
from hoyer_export.run.job import Job
from hoyer_export.run.own import widened
from hoyer_export.run.stage import Stage
from hoyer_export.run.timing import TIMED_WITH
from hoyer_export.run_folder import RunFolder, write_whole
from hoyer_export.select.align import Keep
from hoyer_export.select.choose import select_channels
from hoyer_export.sparsify.penalties import alive_channels
from hoyer_export.store.slim_file import save_slim
from hoyer_export.surgery.decisions import TOLERANCE
from hoyer_export.surgery.extras.dead_blocks import remove_dead_blocks
from hoyer_export.surgery.plan import PruningPlan
from hoyer_export.surgery.proof import prove_equal
from hoyer_export.surgery.step import SlimModel, as_slim
from hoyer_export.tensors import examples_in, named_tensors, tensors_in


def cut_channels(job: Job) -> CutRecord:
    """Select, zero and cut, and write the slim network, which is not trained yet, and widths.json."""
    if job.own is not None and job.own.slim is not None:
        return _was_cut(job, job.own.slim)
    table, started, network = job.recipe.cut, time.perf_counter(), job.sparse()
    asked = " ".join(f"{key} = {value}" for key, value in table.asked().items())
    refit = ", refit" if table.refit else ""
    method = "what has faded" if job.recipe.sparse.to_budget else table.method
    aligned = "" if table.of_elements else f"align = {'auto' if table.by_time else table.alignment}"
    job.progress.headline(f"cut: {method}{refit}, {', '.join(filter(None, [asked, aligned]))}")
    start = remove_dead_blocks(network, job.example) if table.dead_blocks else as_slim(network)
    blocks = tuple(edit.module for edit in start.plan.edits)
    channels = job.channels
    if blocks:
        channels = job.with_gathered(proved_channels(job, start.model))
    shows = job.has_data and (table.looks_at_images or not job.recipe.finetune.epochs)
    images = calibration_images(job, job.data.train, shuffle=True) if shows else []
    way = cut_in_steps if table.in_steps else zero_elements if table.of_elements else cut_to_budget
    found = way(job, network, start, channels, images)
    steps, slim, keep = found.steps, found.slim, found.keep
    _say(job, channels, found)
    _write(job, slim, keep)
    return CutRecord(
        dtype="float64",
        max_rel_error=max(step.max_rel_error or 0.0 for step in steps),
        delivered_rel_error=max(step.delivered_rel_error or 0.0 for step in steps),
        tolerance=TOLERANCE,
        align=None if table.of_elements else table.alignment,
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


def _say(job: Job, channels: ChannelMap, found: Found) -> None:
    if found.warning:
        job.progress.note(found.warning)
    if job.recipe.cut.of_elements:
        job.progress.note(f"{weights_words(layer_weights(found.slim.model))}, and all channels stay")
        return
    stay = share(macs_of_keep(channels, found.keep) / max(dense_macs(job.channels), 1))
    error = max(step.max_rel_error or 0.0 for step in found.steps)
    job.progress.note(f"{stay} of the MACs stay; zeroed and slim agree to {error:.1e}")
    if found.refit is not None:
        left = "".join(f"; {weight} stays: {why}" for weight, why in found.refit.left.items())
        weights = f"{found.refit.refitted} weight{'' if found.refit.refitted == 1 else 's'}"
        job.progress.note(f"{weights} refitted on {found.refit.images:,} images{left}")


def _features(model: nn.Module, layer: str) -> int:
    """Return how many input features a linear layer reads."""
    return model.get_parameter(f"{layer}.weight").shape[1]


def _moved(job: Job, dense: nn.Module, zeroed: nn.Module, calibration: list[Tensor]) -> tuple[Moved, ...]:
    if not job.has_data:
        return (_difference("noise", dense, zeroed, [job.example]),)
    held_out = calibration_images(job, job.data.validation)
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
