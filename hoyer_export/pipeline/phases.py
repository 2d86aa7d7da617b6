"""The stages that train and cut: dense → sparse → cut → fine-tune, each from files if it is already done."""

import copy
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from hoyer_export.channels.norms import channel_norms
from hoyer_export.data.splits import batch_indices
from hoyer_export.pipeline.inputs import TRIES, Inputs, stricter_macs
from hoyer_export.pipeline.progress import Progress
from hoyer_export.recipe import Phase
from hoyer_export.report.making import LITTLE_EFFECT, little_effect_words
from hoyer_export.report.metrics import read_metrics
from hoyer_export.report.number_format import share
from hoyer_export.run_folder import RunFolder, drop_stages, read_stages, write_stage, write_whole
from hoyer_export.select.choose import Selection, select_channels
from hoyer_export.sparsify.group_hs import ALIVE, GroupHS, macs_shares
from hoyer_export.sparsify.penalties import natural_threshold
from hoyer_export.sparsify.training import EpochRecord, evaluate_accuracy, train
from hoyer_export.store.slim_file import load_slim, save_slim
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.step import SlimModel
from hoyer_export.surgery.zero import zero_
from hoyer_export.tensors import named_tensors
from hoyer_export.weights import load_weights

PHASES = ("dense", "sparse", "finetune")
EVALUATION_BATCH = 500


def train_dense(inputs: Inputs, folder: RunFolder, progress: Progress) -> None:
    """Train the dense network in place, and write dense.safetensors."""
    if "dense" in read_stages(folder):
        load_weights(inputs.network, folder.dense_weights)
        return
    table = inputs.recipe.dense
    progress.headline(f"dense: {_epochs(table)}" + (f" from {table.weights}" if table.weights else ""))
    seconds = _train(inputs, inputs.network, table, "dense", folder, progress)
    save_weights(inputs.network, folder.dense_weights, inputs)
    _finish(folder, "dense", {"seconds": seconds})


def train_sparse(inputs: Inputs, folder: RunFolder, progress: Progress) -> None:
    """Train the network with Group-HS in place, and write sparse.safetensors."""
    if "sparse" in read_stages(folder):
        load_weights(inputs.network, folder.sparse_weights)
        return
    table = inputs.recipe.sparse
    group_hs = f"Group-HS, strength {table.strength:g} ({table.scale})" if table.epochs else "no Group-HS"
    progress.headline(f"sparse: {_epochs(table)}, {group_hs}")
    regulariser = GroupHS(inputs.channels, inputs.network, table.strength, scale=table.scale, max_rate=table.max_rate)
    seconds = _train(inputs, inputs.network, table, "sparse", folder, progress, regulariser)
    save_weights(inputs.network, folder.sparse_weights, inputs)
    effective = macs_shares(inputs.channels, inputs.network).effective
    if table.epochs and table.strength and effective > LITTLE_EFFECT:
        progress.note(f"Group-HS changed little: {little_effect_words(effective)}")
    _finish(folder, "sparse", {"seconds": seconds, "effective_width": effective})


def cut_and_finetune(inputs: Inputs, folder: RunFolder, progress: Progress) -> SlimModel:
    """Select, zero and cut, train the slim network, and write slim.safetensors and widths.json."""
    if "finetune" in read_stages(folder):
        return load_slim(folder.slim_weights, into=inputs.network)
    made = _cut(inputs, progress)
    write_stage(folder, "cut", made.record)
    table = inputs.recipe.finetune
    progress.headline(f"fine-tune: {_epochs(table)} of the slim network")
    seconds = _train(inputs, made.slim.model, table, "finetune", folder, progress)
    _write_slim(made, inputs, folder)
    _finish(folder, "finetune", {"seconds": seconds})
    return made.slim


def cut_again(inputs: Inputs, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Select, zero and cut from sparse.safetensors, and return the figures.

    Where the same channels stay as before, nothing is written: slim.safetensors may be fine-tuned already. Where others
    do, it is replaced by the new slim network, not fine-tuned, and every stage after the cut is forgotten.
    """
    load_weights(inputs.network, folder.sparse_weights)
    made = _cut(inputs, progress)
    changed = not folder.widths.is_file() or folder.widths.read_text(encoding="utf-8") != widths_text(made.chosen)
    if changed:
        drop_stages(folder, "finetune", "export", "verify", "bench", "report")
        (folder.checkpoint / "finetune.safetensors").unlink(missing_ok=True)
        write_stage(folder, "cut", made.record)
        _write_slim(made, inputs, folder)
    shares = {"macs": made.chosen.macs, "dense_macs": made.chosen.dense_macs, "alive_macs": made.chosen.unaligned_macs}
    return {"changed": changed, **shares, **made.record}


@dataclass(frozen=True)
class _Cut:
    """What was chosen, the slim network, which has not been trained yet, and the stage's record."""

    chosen: Selection
    slim: SlimModel
    record: dict[str, Any]


def _cut(inputs: Inputs, progress: Progress) -> _Cut:
    recipe, started = inputs.recipe, time.perf_counter()
    asked = " ".join(f"{key} = {value}" for key, value in recipe.cut.asked().items())
    progress.headline(f"cut: {asked}, align = {recipe.cut.align}")
    norms = channel_norms(inputs.channels, named_tensors(inputs.network))
    macs = recipe.cut.macs
    for _ in range(TRIES):
        chosen = select_channels(
            inputs.channels,
            inputs.network,
            macs=macs,
            params=recipe.cut.params,
            threshold=recipe.cut.threshold,
            align=recipe.cut.align,
        )
        zeroed = copy.deepcopy(inputs.network)
        zero_(zeroed, inputs.channels, chosen.keep)
        slim = cut(zeroed, inputs.channels, chosen.keep, inputs.example)
        macs = stricter_macs(chosen, recipe.cut.macs, inputs.network, slim.model, inputs.example)
        if macs is None:
            break
    if chosen.warning:
        progress.note(chosen.warning)
    widths = [
        {
            "group": group.name,
            "dense": group.width,
            "alive": _alive(norms[group.name]),
            "slim": len(chosen.keep[group.name]),
        }
        for group in inputs.channels.groups
    ]
    stay, alive = (share(macs / chosen.dense_macs) for macs in (chosen.macs, chosen.unaligned_macs))
    agreement = f"zeroed and slim agree to {slim.max_rel_error:.1e}"
    progress.note(f"{stay} of the MACs stay, {alive} before alignment; {agreement}")
    record = {
        "seconds": time.perf_counter() - started,
        "dtype": "float64",
        "max_rel_error": slim.max_rel_error,
        "widths": widths,
    }
    return _Cut(chosen, slim, record)


def _write_slim(made: _Cut, inputs: Inputs, folder: RunFolder) -> None:
    save_slim(
        made.slim,
        folder.slim_weights,
        network=inputs.recipe.network.name,
        in_channels=inputs.in_channels,
        classes=inputs.classes,
    )
    write_whole(folder.widths, widths_text(made.chosen))


def widths_text(chosen: Selection) -> str:
    """Return what widths.json holds: group → kept indices."""
    return json.dumps({name: indices.tolist() for name, indices in sorted(chosen.keep.items())}) + "\n"


def _alive(norms: Tensor) -> int:
    """Return how many channels are at least a tenth of their group's natural threshold, whatever the cut is."""
    return int(((norms >= ALIVE * natural_threshold(norms)) & (norms > 0)).sum())


def save_weights(model: nn.Module, path: Path, inputs: Inputs) -> None:
    """Write a network's weights, with what is needed to build it in the metadata."""
    built = {"name": inputs.recipe.network.name, "in_channels": inputs.in_channels, "classes": inputs.classes}
    # One key: safetensors writes several in random order, and the same run must leave the same bytes.
    metadata = {"hoyer_export.network": json.dumps(built)}
    # A copy each: safetensors refuses tensors that share memory, as tied weights do.
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_whole(path, safetensors.torch.save(weights, metadata))


def _train(
    inputs: Inputs,
    model: nn.Module,
    table: Phase,
    phase: str,
    folder: RunFolder,
    progress: Progress,
    regulariser: GroupHS | None = None,
) -> float:
    """Train one phase in place, from its checkpoint if there is one, and return its wall seconds."""
    data, device = inputs.data, inputs.device
    # The order of the images is a function of (seed, epoch): every phase continues the count.
    recipe = inputs.recipe
    first = {"dense": 0, "sparse": recipe.dense.epochs, "finetune": recipe.dense.epochs + recipe.sparse.epochs}[phase]
    earlier = [line for line in read_metrics(folder.path) if PHASES.index(line.phase) < PHASES.index(phase)]
    before = "".join(line.model_dump_json() + "\n" for line in earlier)

    def batches(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        return data.train.batches(table.batch_size, epoch=first + epoch, device=device, shuffle=True, augment=True)

    def on_epoch(history: tuple[EpochRecord, ...]) -> None:
        # The whole history of the phase: lines of epochs after the checkpoint go with the rest.
        write_whole(folder.metrics, before + "".join(json.dumps(asdict(epoch)) + "\n" for epoch in history))
        progress.epoch(history[-1], table.epochs)

    record = train(
        model,
        batches,
        phase=phase,
        steps_per_epoch=len(batch_indices(len(data.train), table.batch_size, torch.Generator())),
        epochs=table.epochs,
        lr=table.lr,
        optimizer=table.optimizer,
        momentum=table.momentum,
        weight_decay=table.weight_decay,
        warmup_epochs=table.warmup,
        label_smoothing=table.label_smoothing,
        precision=table.precision,
        channels_last=True,
        device=device,
        seed=recipe.seed,
        regulariser=regulariser,
        channels=None if phase == "finetune" else inputs.channels,
        evaluate=lambda network: evaluate_accuracy(network, data.validation.batches(EVALUATION_BATCH, device=device)),
        on_epoch=on_epoch,
        progress=progress.step,
        checkpoint=folder.checkpoint / f"{phase}.safetensors",
    )
    # What comes next must not depend on whether the weights come from here or from a file.
    model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return record.seconds


def _finish(folder: RunFolder, phase: str, record: Mapping[str, Any]) -> None:
    """Keep the record of a phase whose weights are written; its checkpoint has served."""
    write_stage(folder, phase, record)
    (folder.checkpoint / f"{phase}.safetensors").unlink(missing_ok=True)


def _epochs(table: Phase) -> str:
    return f"{table.epochs} epoch{'' if table.epochs == 1 else 's'}"
