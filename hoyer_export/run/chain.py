"""The chain on one screen: a recipe to a report, and one stage of a run again from its files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import JsonValue

from hoyer_export import parallel
from hoyer_export.errors import FileError, RecipeError
from hoyer_export.recipe.reading import dump_recipe, load_recipe, make_recipe, reopened
from hoyer_export.recipe.tables import Recipe
from hoyer_export.record import Record
from hoyer_export.report.files import read_report
from hoyer_export.report.further import withheld
from hoyer_export.report.report import Report
from hoyer_export.report.stage_records import ExportsRecord, ReportRecord, VerifiedRecord
from hoyer_export.run.artifacts import artifacts_of
from hoyer_export.run.cut import CUT, cut_weights
from hoyer_export.run.inputs import CHECK, INPUTS
from hoyer_export.run.job import Job
from hoyer_export.run.log import read_log, write_log
from hoyer_export.run.own import Own
from hoyer_export.run.progress import Progress, Silent
from hoyer_export.run.reporting import write_run_report
from hoyer_export.run.ship import BENCH, EXPORT, VERIFY
from hoyer_export.run.stage import Stage, do, do_all, drop, forget, has_files, is_done, record_of
from hoyer_export.run.train import DENSE, FINETUNE, SPARSE, goes_on, phase_checkpoint
from hoyer_export.run_folder import RunFolder, claimed, opened, whole_folder, write_whole
from hoyer_export.sparsify.checkpoint import epochs_done


def _report(job: Job) -> ReportRecord:
    report = write_run_report(job.recipe, job.folder)
    kept_back = withheld(report)
    for name, artifact in artifacts_of(job.recipe).items():
        if report.artifact(name).verified.passed:
            deserved = artifact.rejected if name in kept_back else artifact.path
            artifact.found(job.folder).replace(deserved(job.folder))
    return ReportRecord()


REPORT = Stage(
    name="report",
    record=ReportRecord,
    run=_report,
    reads=("gate",),
    needs=("verify", "bench"),
    leaves=lambda job: (job.folder.report,),
)
STAGES: tuple[Stage[Record], ...] = (INPUTS, CHECK, DENSE, SPARSE, CUT, FINETUNE, EXPORT, VERIFY, BENCH, REPORT)


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    redo_from: str | None = None,
    allow_import: Sequence[str] = (),
    progress: Progress,
    own: Own | None = None,
) -> Report:
    """Run the whole chain into the folder ``out``; every stage that is already done is taken from its files.

    Args:
        recipe: as given; what it leaves open is settled by machine and data, and written into the folder's recipe.toml.
        out: absent or empty; with ``resume`` also the folder of an earlier run.
        resume: go on from the last whole epoch; what hangs on a key that changed is done again, a finished run of the
            same recipe is left untouched.
        redo_from: name of the stage from which on all is done again; without it nothing is trained twice.
        allow_import: packages that may be imported for a network ``package.module:function``.
        progress: is told what happens.
        own: what was passed in Python in the place of names.

    Returns:
        What report.json holds; whether verification passed and the budget was met is in it.

    Raises:
        HoyerExportError: an input is wrong (nothing has been written then), or training diverged, or a file is damaged.
    """
    with parallel.together():
        if parallel.rank():
            return _assist(out, allow_import, own)
        report = _run(recipe, out, resume, redo_from, allow_import, progress, own)
        parallel.call_others("", [RunFolder(out).report], out)
    return report


def _assist(out: Path, allow_import: Sequence[str], own: Own | None) -> Report:
    """Train along with the first process, which does all else, and return what it found."""
    stages = {stage.name: stage for stage in STAGES}
    while True:
        with parallel.called() as (name, place):
            if name not in stages:
                return read_report(place)
            folder = RunFolder(place)
            job = Job(load_recipe(folder.recipe), folder, Silent(), allow_import, own=own)
            with torch_threads(job.recipe.threads):
                stages[name].run(job)


def _run(
    recipe: Recipe,
    out: Path,
    resume: bool,
    redo_from: str | None,
    allow_import: Sequence[str],
    progress: Progress,
    own: Own | None,
) -> Report:
    if redo_from is not None and redo_from not in (names := [stage.name for stage in STAGES]):
        raise RecipeError(f"--redo-from {redo_from}: expected one of {', '.join(names)}")
    job = Job(recipe, RunFolder(out), progress, allow_import, own=own)
    _go_on(job, STAGES, resume=resume or redo_from is not None, redo_from=redo_from)
    return read_report(out)


def train_dense(recipe: Recipe, out: Path, *, allow_import: Sequence[str] = (), progress: Progress) -> None:
    """Do the chain as ``run_recipe`` does, with ``resume``, no further than the dense network is trained."""
    _go_on(Job(recipe, RunFolder(out), progress, allow_import), STAGES[: STAGES.index(DENSE) + 1], resume=True)


def begin_from(dense: Path, out: Path) -> None:
    """Copy what ``train_dense`` found into a folder where no run has begun; one goes on from there to the same bits.

    Args:
        dense: the folder that ``train_dense`` made of a recipe in which all that its stages read is the same.
        out: as for ``run_recipe``, with ``resume``.
    """
    source, folder = RunFolder(dense), RunFolder(out)
    with claimed(out, resume=True):
        if not folder.stages.exists():
            if not source.dense_weights.exists():
                raise FileError(
                    f"{source.dense_weights} is gone; put it back, or remove {dense}: it is trained again then"
                )
            for file in (source.recipe, source.channels, source.metrics, source.dense_weights):
                write_whole(out / file.name, file.read_bytes())
            log = read_log(source)
            write_log(folder, {stage.name: log[stage.name] for stage in (INPUTS, DENSE)})


def hangs_on(recipe: Recipe) -> dict[str, JsonValue]:
    """Return what ``train_dense`` reads of a recipe: where that is the same, so is what it finds."""
    job = Job(recipe, RunFolder(Path()), Silent())
    return INPUTS.values(job) | DENSE.values(job)


def _go_on(job: Job, stages: Sequence[Stage[Record]], *, resume: bool, redo_from: str | None = None) -> None:
    """Do what is not done of the first ``stages``."""
    folder, recipe, out, progress = job.folder, job.recipe, job.folder.path, job.progress
    with claimed(out, resume=resume) as begun:
        before = {file: file.read_bytes() for file in _head(folder) if file.is_file()}
        if begun and is_done(INPUTS, folder):
            job.recipe = reopened(recipe, load_recipe(folder.recipe), record_of(INPUTS, folder).settled)
            forget(STAGES, job, redo_from)
            if not is_done(INPUTS, folder):  # what it leaves open is settled anew
                job.recipe = recipe
            for stage in (EXPORT, REPORT):  # what is shipped is made again where it is gone
                if is_done(stage, folder) and not has_files(stage, job):
                    drop(STAGES[STAGES.index(stage) :], folder)
            if all(is_done(stage, folder) for stage in stages):
                progress.note(f"{out} is finished; nothing to do")
                return
            progress.headline(f"going on with {standing(folder, job.recipe)}")
        elif any(file.exists() for file in (folder.dense_weights, folder.slim_onnx, folder.report)):
            raise FileError(
                f"{folder.stages} is missing, which says what {out} holds; put it back, or give another folder:"
                " here all would be trained again"
            )
        with torch_threads(job.recipe.threads):
            _begin(job, before)
            do_all(stages, job)
        _clear_checkpoints(folder, job.recipe)


def cut_network(recipe: Recipe, out: Path, *, allow_import: Sequence[str] = (), progress: Progress) -> Report:
    """Do the chain for a recipe that trains nothing; the files are made aside, and appear in ``out`` all together.

    Args:
        recipe: with epochs = 0 in every phase.
        out: absent or empty.
        allow_import: as for ``run_recipe``.
        progress: is told what happens.

    Raises:
        HoyerExportError: an input is wrong, or the network cannot be cut, exported or verified; nothing was written.
    """
    with claimed(out), whole_folder(out) as folder:
        return _made_at_once(Job(recipe, folder, progress, allow_import))


def _made_at_once(job: Job) -> Report:
    with torch_threads(job.recipe.threads):
        _begin(job, {})
        do_all(STAGES, job)
    _clear_checkpoints(job.folder, job.recipe)
    return read_report(job.folder.path)


def ship_network(recipe: Recipe, out: Path, own: Own, *, progress: Progress) -> Report:
    """Do the chain for a slim network that was cut and trained in Python; as ``cut_network`` in all else."""
    with claimed(out), whole_folder(out) as folder:
        return _made_at_once(Job(recipe, folder, progress, own=own))


def ship_weights(
    path: Path,
    weights: Path,
    *,
    weights_key: str | None = None,
    data: Mapping[str, JsonValue] | None = None,
    allow_import: Sequence[str] = (),
    progress: Progress,
) -> Report:
    """Go on in the folder of a cut, or of a run, with weights that its slim network got in a loop of the user's own.

    Args:
        path: of the folder.
        weights: of the slim network: a checkpoint as for ``load_weights``, or what ``save_slim`` wrote.
        weights_key: where in the checkpoint they are, as for ``load_weights``.
        data: table [data] of a recipe, to be judged on; the folder's own where None.
        allow_import: as for ``run_recipe``.
        progress: is told what happens.

    Raises:
        HoyerExportError: there is no cut, the weights are not of its slim network, or the data does not fit; nothing
            was changed then.
    """
    with opened(path) as folder:
        record_of(CUT, folder)
        tables = load_recipe(folder.recipe).model_dump(exclude_none=True)
        tables["finetune"] |= {"weights": str(weights), "weights_key": weights_key}
        if data is not None:
            sized = data["name"] in ("imagefolder", "images") and "input" in tables["network"]
            tables["data"] = {**data, "image_size": tables["network"]["input"][1] if sized else None}
        job = Job(make_recipe(tables), folder, progress, allow_import)
        job.finetuned(folder.slim_weights)
        before = {file: file.read_bytes() for file in _head(folder) if file.is_file()}
        drop([*([] if data is None else [INPUTS]), *STAGES[STAGES.index(FINETUNE) :]], folder)
        with torch_threads(job.recipe.threads):
            _begin(job, before)
            if not cut_weights(folder).exists():  # its plan is what counts
                folder.checkpoint.mkdir(exist_ok=True)
                write_whole(cut_weights(folder), folder.slim_weights.read_bytes())
            do_all(STAGES, job)
        _clear_checkpoints(folder, job.recipe)
    return read_report(path)


def _clear_checkpoints(folder: RunFolder, recipe: Recipe) -> None:
    """Remove what only an unfinished run needs; the momenta at the cut stay, for ``--redo-from cut``."""
    momenta = phase_checkpoint(folder, "sparse") if goes_on(recipe) else None
    for file in folder.checkpoint.glob("*"):
        if file != momenta:
            file.unlink()
    if folder.checkpoint.is_dir() and momenta is None:
        folder.checkpoint.rmdir()


def _head(folder: RunFolder) -> tuple[Path, ...]:
    """Return the files that say what a run is."""
    return folder.recipe, folder.stages, folder.channels


def _begin(job: Job, before: Mapping[Path, bytes]) -> None:
    """Look at everything that can be looked at before training; where that is wrong, all is as it was ``before``."""
    folder = job.folder
    try:
        write_whole(folder.recipe, dump_recipe(job.recipe))
        if not is_done(INPUTS, folder):
            on = f" on {job.recipe.data.name}" if job.recipe.data else ""
            job.progress.headline(f"{job.recipe.network.name}{on}: build, trace, self-test")
            do(INPUTS, job)
            write_whole(folder.recipe, dump_recipe(job.recipe))
        elif job.has_data and not is_done(FINETUNE, folder):
            job.data.check_readable()
        if not is_done(CHECK, folder):
            do(CHECK, job)
    except BaseException:
        for file in _head(folder):
            if file in before:
                write_whole(file, before[file])
            else:
                file.unlink(missing_ok=True)
        raise


def standing(folder: RunFolder, recipe: Recipe | None = None) -> str:
    """Return what a run goes on with, e.g. ``sparse, epoch 13 of 30``; by the folder's recipe unless one is given.

    Raises:
        FileError: a file of the run is damaged.
    """
    stage = next((stage for stage in STAGES if not is_done(stage, folder)), REPORT).name
    epochs = getattr(getattr(recipe or load_recipe(folder.recipe), stage, None), "epochs", 0)
    if not epochs:
        return stage
    whole = epochs_done(phase_checkpoint(folder, stage))
    return f"{stage}, epoch {whole + 1} of {epochs}" if whole < epochs else f"{stage}, after its {epochs} epochs"


def export_run(path: Path, *, allow_import: Sequence[str] = (), progress: Progress) -> ExportsRecord:
    """Write the ONNX files of the run in ``path`` again.

    The same network gives the same bytes. Where they differ (another version of torch), what was verified and measured
    holds no longer and is forgotten.
    """
    with _opened(path, FINETUNE, allow_import, progress) as job:
        before = record_of(EXPORT, job.folder) if is_done(EXPORT, job.folder) else None
        after = do(EXPORT, job)
        if before is not None and before.artifacts != after.artifacts:
            drop((VERIFY, BENCH, REPORT), folder=job.folder)
            progress.note(
                f"the files have changed; verify and measure them: hoyer-export run RECIPE --out {path} --resume"
            )
    return after


def verify_run(path: Path, *, allow_import: Sequence[str] = (), progress: Progress) -> VerifiedRecord:
    """Verify slim.onnx of the run in ``path`` again; a finished run's report follows."""
    with _opened(path, EXPORT, allow_import, progress) as job:
        finished = is_done(REPORT, job.folder)
        job.trusts_files = False
        found = do(VERIFY, job)
        if finished:
            do(REPORT, job)
    return found


@contextmanager
def _opened(path: Path, needed: Stage[Record], allow_import: Sequence[str], progress: Progress) -> Iterator[Job]:
    """Yield the job of a run that has come so far."""
    with opened(path) as folder:
        record_of(needed, folder)
        job = Job(load_recipe(folder.recipe), folder, progress, allow_import)
        with torch_threads(job.recipe.threads):
            yield job


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Give torch so many CPU threads for a while; None leaves its own choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
