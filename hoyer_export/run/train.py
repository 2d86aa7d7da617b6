"""The stages that train: dense, sparse, and the slim network's fine-tuning; each goes on from its checkpoint."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from hoyer_export import parallel
from hoyer_export.data.own_batches import shared_rows
from hoyer_export.data.splits import batch_indices
from hoyer_export.errors import FileError
from hoyer_export.metric import ACCURACY
from hoyer_export.metric import evaluate as measured
from hoyer_export.recipe.tables import Phase, Recipe
from hoyer_export.report.making import LITTLE_EFFECT, little_effect_words
from hoyer_export.report.metrics import read_metrics
from hoyer_export.report.stage_records import PhaseRecord
from hoyer_export.run.cut import cut_weights, write_slim
from hoyer_export.run.job import Job
from hoyer_export.run.stage import Stage
from hoyer_export.run.tracking import track, trackers
from hoyer_export.run_folder import RunFolder, write_whole
from hoyer_export.select.budget import COSTS, Budget
from hoyer_export.sparsify.checkpoint import load_momenta
from hoyer_export.sparsify.phase import PHASES, EpochRecord, PhaseName, TrainSettings
from hoyer_export.sparsify.regulariser import Regulariser, Setting, make_regulariser
from hoyer_export.sparsify.state import macs_shares
from hoyer_export.sparsify.training import Hooks, make_optimizer, train
from hoyer_export.sparsify.weight_penalty import hold_zeros_
from hoyer_export.surgery.optimizer_state import slice_optimizer
from hoyer_export.surgery.step import SlimModel
from hoyer_export.tensors_file import write_tensors

EVALUATION_BATCH = 500


def train_dense(job: Job) -> PhaseRecord:
    """Train the dense network, and write dense.safetensors."""
    table = job.recipe.dense
    network, seconds = job.given()[0], 0.0
    _forget_lines(job, "dense")
    if table.epochs:
        job.progress.headline(f"dense: {_epochs(table)}" + (f" from {table.file}" if table.file else ""))
        seconds = _train(job, network, table, "dense")
    save_weights(network, job.folder.dense_weights, job)
    return PhaseRecord(seconds=seconds)


def train_sparse(job: Job) -> PhaseRecord:
    """Train the network with a regulariser, and write sparse.safetensors; without epochs it stays the dense one."""
    table = job.recipe.sparse
    if not table.epochs:
        _forget_lines(job, "sparse")
        return PhaseRecord(seconds=0.0, effective_macs=macs_shares(job.channels, job.dense()).effective)
    network = job.dense()
    regulariser = _regulariser(job, network)
    job.progress.headline(f"sparse: {_epochs(table)}, {regulariser.describe()}")
    seconds = _train(job, network, table, "sparse", regulariser)
    save_weights(network, job.folder.sparse_weights, job)
    if regulariser.channels is None:
        return PhaseRecord(seconds=seconds)
    effective = macs_shares(job.channels, network, norms=regulariser.norms()).effective
    if table.strength and effective > LITTLE_EFFECT:
        job.progress.note(f"Group-HS changed little: {little_effect_words(effective)}")
    return PhaseRecord(seconds=seconds, effective_macs=effective)


def finetune(job: Job) -> PhaseRecord:
    """Train the slim network, or take the weights that were trained elsewhere, and write slim.safetensors."""
    table = job.recipe.finetune
    (slim, weights), seconds = job.finetuned(cut_weights(job.folder)), 0.0
    _forget_lines(job, "finetune")
    if table.weights:
        job.progress.headline("fine-tune: done elsewhere")
        if weights is not None:
            job.progress.note(weights.describe())
    elif table.epochs:
        job.progress.headline(f"fine-tune: {_epochs(table)} of the slim network")
        seconds = _train(job, slim.model, table, "finetune", optimizer=lambda _, how: _going_on(job, slim, how))
    write_slim(slim, job.folder.slim_weights, job)
    return PhaseRecord(seconds=seconds)


def _regulariser(job: Job, network: nn.Module) -> Regulariser:
    table, cut = job.recipe.sparse, job.recipe.cut
    name: str = table.regulariser
    options: dict[str, Setting | Budget] = {**table.options()}
    whole = job.recipe.train  # a schedule's share of cut_at may end inside an epoch
    steps = max(1, round((whole.cut_at * whole.epochs if whole else table.epochs) * _steps(job, table)))
    if table.to_budget:
        ((key, asked),) = cut.asked().items()
        name += "-function"
        options |= {"budget": Budget(COSTS[key], float(asked)), "steps": steps, "align": cut.alignment}
    elif table.ramps:
        options |= {"share": cut.weights, "steps": table.epochs * _steps(job, table)}  # the cut comes after the last
    elif table.grouping == "layer":
        name += "-layer"
    return make_regulariser(name, job.channels, network, options)


def _steps(job: Job, table: Phase) -> int:
    """Return how many steps an epoch has."""
    return job.data.train.steps(table.batch_size)


def _forget_lines(job: Job, phase: PhaseName) -> None:
    """Take the lines of an earlier training of this phase, and of those after it, out of metrics.jsonl."""
    if job.folder.metrics.exists() and not phase_checkpoint(job.folder, phase).exists():
        lines = [it for it in read_metrics(job.folder.path) if PHASES.index(it.phase) < PHASES.index(phase)]
        write_whole(job.folder.metrics, "".join(line.model_dump_json() + "\n" for line in lines))


def save_weights(model: nn.Module, path: Path, job: Job) -> None:
    """Write a network's weights, with what is needed to build it in the metadata."""
    built = {"name": job.recipe.network.name, "in_channels": job.in_channels, "classes": job.classes}
    write_tensors(path, model.state_dict(), json.dumps(built), "hoyer_export.network")


def _going_on(job: Job, slim: SlimModel, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the slim network's optimizer: it goes on where the sparse phase's stood, if they are one schedule."""
    make = _with_momenta if goes_on(job.recipe) else lambda *_: make_optimizer(slim.model, settings)
    optimizer = make(job, slim, settings)
    if job.recipe.cut.of_elements:
        hold_zeros_(slim.model, optimizer)
    return optimizer


def _with_momenta(job: Job, slim: SlimModel, settings: TrainSettings) -> torch.optim.Optimizer:
    checkpoint = phase_checkpoint(job.folder, "sparse")
    if not checkpoint.exists():
        raise FileError(f"{checkpoint} is gone, and with it the momenta; put it back, or add --redo-from sparse")
    network = job.sparse()
    optimizer = make_optimizer(network, settings)
    load_momenta(checkpoint, optimizer)
    return slice_optimizer(optimizer, network, slim)


def goes_on(recipe: Recipe) -> bool:
    """Return whether fine-tuning goes on with the momenta of the sparse phase."""
    return recipe.train is not None and recipe.sparse.epochs > 0


def _settings(job: Job, table: Phase, phase: PhaseName) -> TrainSettings:
    recipe, whole = job.recipe, None if phase == "dense" else job.recipe.train
    distills = phase != "dense" and recipe.distill.weight > 0
    return TrainSettings(
        phase=phase,
        steps_per_epoch=_steps(job, table),
        epochs=table.epochs,
        first_epoch=recipe.sparse.epochs if whole and phase == "finetune" else 0,
        schedule_epochs=whole.epochs if whole else None,
        lr=table.lr,
        optimizer=table.optimizer,
        momentum=table.momentum,
        weight_decay=table.weight_decay,
        warmup_epochs=whole.warmup if whole else table.warmup,
        label_smoothing=table.label_smoothing,
        class_weights=recipe.data.class_weights if recipe.data else None,
        distill_weight=recipe.distill.weight if distills else 0.0,
        temperature=recipe.distill.temperature,
        precision=table.precision,
        compile=table.compile,
        sync_batch_norm=table.sync_batch_norm,
        seed=recipe.seed,
    )


def _train(
    job: Job,
    model: nn.Module,
    table: Phase,
    phase: PhaseName,
    regulariser: Regulariser | None = None,
    optimizer: Callable[[nn.Module, TrainSettings], torch.optim.Optimizer] = make_optimizer,
) -> float:
    """Train one phase in place, from its checkpoint if there is one, and return its wall seconds."""
    recipe, data, device = job.recipe, job.data, job.device
    # The order of the images is a function of (seed, epoch): every phase continues the count.
    first = {"dense": 0, "sparse": recipe.dense.epochs, "finetune": recipe.dense.epochs + recipe.sparse.epochs}[phase]
    earlier = [line for line in read_metrics(job.folder.path) if PHASES.index(line.phase) < PHASES.index(phase)]

    def batches(epoch: int, skip: int = 0) -> Iterable[tuple[Tensor, Tensor]]:
        made = data.train.batches(
            table.batch_size, epoch=first + epoch, device=device, shuffle=True, augment=True, shared=True, skip=skip
        )
        return shared_rows(made) if data.own else made

    def on_epochs(history: tuple[EpochRecord, ...] = ()) -> None:
        # The whole history of the phase: lines of epochs after the checkpoint go with the rest.
        write_whole(job.folder.metrics, "".join(line.model_dump_json() + "\n" for line in (*earlier, *history)))

    def on_epoch(history: tuple[EpochRecord, ...]) -> None:
        on_epochs(history)
        job.progress.epoch(history[-1], table.epochs)
        track(tracking, history[-1], first + history[-1].epoch)

    def evaluate(network: nn.Module) -> float:
        # A mean over the images can be shared; of another metric each process sees all of them.
        if parallel.size() == 1 or data.own or job.metric is not ACCURACY:
            return measured(network, data.validation.batches(EVALUATION_BATCH, device=device), job.metric)
        sizes = [len(batch) for batch in batch_indices(len(data.validation), EVALUATION_BATCH, None)]
        images = sum(sizes[parallel.rank() :: parallel.size()])
        batches = data.validation.batches(EVALUATION_BATCH, device=device, shared=True)
        right = measured(network, batches) * images if images else 0.0
        both = parallel.summed(torch.tensor([right, images], dtype=torch.float64))
        return float(both[0] / both[1])

    settings = _settings(job, table, phase)
    job.folder.checkpoint.mkdir(exist_ok=True)
    with trackers(recipe.track, job.folder) as tracking:
        record = train(
            model,
            batches,
            settings,
            device=device,
            channels_last=True,
            regulariser=regulariser,
            channels=None if phase == "finetune" else regulariser.channels if regulariser else job.channels,
            teacher=job.dense() if settings.distill_weight else None,
            hooks=Hooks(
                optimizer=optimizer,
                loss=job.loss,
                evaluate=evaluate,
                metric=None if job.metric is ACCURACY else job.metric.name,
                on_epoch=on_epoch,
                progress=job.progress.step,
                rest=None if data.own else batches,
            ),
            checkpoint=phase_checkpoint(job.folder, phase),
        )
    # What comes next must not depend on whether the weights come from here or from a file.
    model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return record.seconds


def phase_checkpoint(folder: RunFolder, phase: str) -> Path:
    """Return where a phase keeps its last whole epoch."""
    return folder.checkpoint / f"{phase}.safetensors"


def _epochs(table: Phase) -> str:
    return f"{table.epochs} epoch{'' if table.epochs == 1 else 's'}"


DENSE = Stage(
    name="dense",
    record=PhaseRecord,
    run=train_dense,
    reads=("dense",),
    needs=("inputs",),
    leaves=lambda job: (job.folder.dense_weights,),
    trains=True,
)
SPARSE = Stage(
    name="sparse",
    record=PhaseRecord,
    run=train_sparse,
    reads=("sparse", "train", "distill"),
    also_reads=lambda recipe: (
        ("cut.macs", "cut.params", "cut.weights", "cut.align") if recipe.sparse.to_budget or recipe.sparse.ramps else ()
    ),
    needs=("dense",),
    leaves=lambda job: (job.folder.sparse_weights,) if job.recipe.sparse.epochs else (),
    trains=True,
)
FINETUNE = Stage(
    name="finetune",
    record=PhaseRecord,
    run=finetune,
    reads=("finetune", "train", "distill"),
    needs=("cut", "dense"),
    leaves=lambda job: (job.folder.slim_weights,),
    trains=True,
)
