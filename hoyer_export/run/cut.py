"""The stage that cuts: select, zero, take out, and prove."""

import copy
import json
import time
from pathlib import Path

from torch import Tensor, nn

from hoyer_export.channels.norms import channel_norms
from hoyer_export.report.number_format import share
from hoyer_export.report.sections import GroupWidth
from hoyer_export.run.inputs import macs_in_torch
from hoyer_export.run.job import Job
from hoyer_export.run.records import CutRecord
from hoyer_export.run.stage import Stage
from hoyer_export.run_folder import RunFolder, write_whole
from hoyer_export.select.choose import Selection, select_channels
from hoyer_export.sparsify.penalties import alive_channels
from hoyer_export.store.slim_file import save_slim
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.step import SlimModel
from hoyer_export.surgery.zero import zero_
from hoyer_export.tensors import named_tensors

TRIES = 8
"""Selections before a budget counts as missed: each comes closer by what the one before was off."""


def cut_sparse(job: Job) -> CutRecord:
    """Select, zero and cut, and write the slim network, which is not trained yet, and widths.json."""
    recipe, started, network = job.recipe, time.perf_counter(), job.sparse()
    asked = " ".join(f"{key} = {value}" for key, value in recipe.cut.asked().items())
    job.progress.headline(f"cut: {asked}, align = {recipe.cut.align}")
    norms = channel_norms(job.channels, named_tensors(network))
    macs = recipe.cut.macs
    for _ in range(TRIES):
        chosen = select_channels(
            job.channels,
            network,
            macs=macs,
            params=recipe.cut.params,
            threshold=recipe.cut.threshold,
            align=recipe.cut.align,
        )
        zeroed = copy.deepcopy(network)
        zero_(zeroed, job.channels, chosen.keep)
        slim = cut(zeroed, job.channels, chosen.keep, job.example)
        macs = stricter_macs(chosen, recipe.cut.macs, network, slim.model, job.example)
        if macs is None:
            break
    if chosen.warning:
        job.progress.note(chosen.warning)
    assert slim.max_rel_error is not None
    stay, alive = (share(macs / chosen.dense_macs) for macs in (chosen.macs, chosen.unaligned_macs))
    agreement = f"zeroed and slim agree to {slim.max_rel_error:.1e}"
    job.progress.note(f"{stay} of the MACs stay, {alive} before alignment; {agreement}")
    job.folder.checkpoint.mkdir(exist_ok=True)
    write_slim(slim, cut_weights(job.folder), job)
    write_whole(job.folder.widths, widths_text(chosen))
    return CutRecord(
        seconds=time.perf_counter() - started,
        dtype="float64",
        max_rel_error=slim.max_rel_error,
        widths=tuple(
            GroupWidth(
                group=group.name,
                dense=group.width,
                alive=int(alive_channels(norms[group.name]).sum()),
                slim=len(chosen.keep[group.name]),
            )
            for group in job.channels.groups
        ),
    )


def stricter_macs(
    chosen: Selection, asked: float | None, dense: nn.Module, slim: nn.Module, example: Tensor
) -> float | None:
    """Return the share to select by next, where the slim file would have more MACs than asked for; None where not.

    A selection meets a share of what torch runs. The file has once what the network computes twice, so that its share
    may be another.
    """
    if asked is None:
        return None
    whole = macs_in_torch(dense, example)
    if whole.distinct == whole.macs:  # nothing is computed twice
        return None
    reached = macs_in_torch(slim, example).distinct / whole.distinct
    return None if reached <= asked else chosen.macs / chosen.dense_macs * asked / reached


def cut_weights(folder: RunFolder) -> Path:
    """Return where the slim network stands until it is fine-tuned."""
    return folder.checkpoint / "cut.safetensors"


def write_slim(slim: SlimModel, path: Path, job: Job) -> None:
    """Write the slim network with its plan, and what is needed to build it."""
    name = job.recipe.network.name
    save_slim(slim, path, network=name, in_channels=job.in_channels, classes=job.classes)


def widths_text(chosen: Selection) -> str:
    """Return what widths.json holds: group → kept indices."""
    return json.dumps({name: indices.tolist() for name, indices in sorted(chosen.keep.items())}) + "\n"


CUT = Stage(
    name="cut",
    record=CutRecord,
    run=cut_sparse,
    reads=("cut",),
    needs=("sparse",),
    leaves=lambda folder: (cut_weights(folder), folder.widths),
)
