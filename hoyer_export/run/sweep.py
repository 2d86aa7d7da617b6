"""Many runs in one folder: each in a folder of its own, those with one dense network from the same trained one.

DIR/runs/NAME is a run, DIR/runs/NAME.json what was planned for it and why it failed; DIR/dense/HASH is a dense network,
HASH that of all it hangs on; sweep.json and sweep.html are made of these. Several processes may work on one folder:
what one is at, by the lock of that folder, another leaves alone.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hoyer_export import parallel
from hoyer_export.errors import (
    CannotWrite,
    DataError,
    FileError,
    HoyerExportError,
    InUse,
    NetworkError,
    RecipeError,
    cannot_write,
)
from hoyer_export.lock import check_unused, only_writer
from hoyer_export.recipe.reading import dump_recipe, load_recipe
from hoyer_export.recipe.tables import Recipe
from hoyer_export.record import read_record
from hoyer_export.report.files import read_report
from hoyer_export.report.metrics import read_metrics
from hoyer_export.report.report import without_folders
from hoyer_export.report.sweep import SweepRecord, SweepRun, with_report
from hoyer_export.report.sweep_page import render_sweep
from hoyer_export.run.chain import begin_from, hangs_on, run_recipe, standing, train_dense
from hoyer_export.run.grid import Cell, hash_of, short_hash
from hoyer_export.run.log import is_found
from hoyer_export.run.progress import Progress
from hoyer_export.run_folder import RunFolder, write_whole

POLL_SECONDS = 0.3
"""Between two looks at what another process is doing."""


OF_ALL = (CannotWrite, DataError, NetworkError)
"""What is wrong with the disk, the data or the network, is so for every run."""


@dataclass(frozen=True)
class Sweep:
    """A folder of runs, and what all of them need.

    Args:
        out: the folder.
        progress: is told what happens.
        allow_import: as for ``run_recipe``.
    """

    out: Path
    progress: Progress
    allow_import: Sequence[str] = ()

    @property
    def recipe(self) -> Path:
        """What all runs have in common; marks the folder as that of a sweep."""
        return self.out / "sweep.toml"

    def folder(self, name: str) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.out / "runs" / name)

    def begin(self, recipe: Recipe) -> None:
        """Make the folder, or see that it holds a sweep of the same recipe.

        Raises:
            FileError: it holds something else, or cannot be made.
            RecipeError: it holds a sweep of another recipe, or torchrun has started this process.
        """
        if parallel.expected() > 1:
            raise RecipeError(
                "a sweep trains each network in one process; start it without torchrun, as often at once as you like"
            )
        if self.out.exists() and not self.out.is_dir():
            raise FileError(f"`out` {self.out} is a file; give a folder that is absent or empty, or a sweep's")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.out, error) from error
        self._alone(lambda: self._begin(recipe))

    def _begin(self, recipe: Recipe) -> None:
        if self.recipe.is_file():
            if hash_of(load_recipe(self.recipe)) != hash_of(recipe):
                raise RecipeError(
                    f"`out` {self.out} holds a sweep of another recipe (its sweep.toml); give another folder"
                )
            return
        if others := sorted(it.name for it in self.out.iterdir() if it.name != "runs" and it.name[0] != "."):
            raise FileError(
                f"`out` {self.out} holds other files ({others[0]}, ...); give a folder that is absent or empty"
            )
        (self.out / "runs").mkdir(exist_ok=True)
        write_whole(self.recipe, dump_recipe(recipe))

    def plan(self, cell: Cell, error: str | None = None) -> None:
        """Write down what a run is, and why it failed."""
        planned = SweepRun(
            name=cell.name,
            method=cell.method,
            budget=cell.budget,
            seed=cell.recipe.seed,
            settings=cell.settings,
            dense=short_hash(hangs_on(cell.recipe)) if cell.recipe.dense.epochs else None,
            error=error,
        )
        file = self.out / "runs" / f"{cell.name}.json"
        self._alone(lambda: write_whole(file, planned.model_dump_json(indent=1) + "\n"))

    def do(self, cell: Cell, *, wait: bool = False) -> SweepRun:
        """Do a run, or go on with it; what went wrong is in what is returned, and on the page.

        Args:
            cell: the run.
            wait: for a process that is at it already, instead of leaving it to that.

        Raises:
            CannotWrite, DataError, NetworkError: what would keep every run from being done.
        """
        folder = self.folder(cell.name)
        self.plan(cell)
        try:
            if cell.recipe.dense.epochs and not folder.stages.exists():
                dense = self._dense(cell.recipe)
                self._when_free(lambda: begin_from(dense, folder.path), wait)
            self._when_free(
                lambda: run_recipe(
                    cell.recipe, folder.path, resume=True, allow_import=self.allow_import, progress=self.progress
                ),
                wait,
            )
        except OF_ALL:
            raise
        except InUse:
            self.progress.note(f"{cell.name}: another process is at it")
        except HoyerExportError as error:
            self.progress.note(f"{cell.name} failed: {error}")
            self.plan(cell, without_folders(str(error)))
        self.write()
        return look_at(self.out, cell.name)

    def _dense(self, recipe: Recipe) -> Path:
        """Return the folder of the dense network that a recipe begins with, once it is trained."""
        out = self.out / "dense" / short_hash(hangs_on(recipe))
        if is_found(RunFolder(out), "dense"):
            return out
        # Any budget will do: it has to be one that can be met.
        whole = recipe.model_copy(update={"cut": recipe.cut.model_copy(update=dict.fromkeys(recipe.cut.asked(), 1.0))})
        self._when_free(
            lambda: train_dense(whole, out, allow_import=self.allow_import, progress=self.progress), wait=True
        )
        return out

    def _alone(self, work: Callable[[], object]) -> None:
        """Do what takes a moment while no other process does such a thing in this folder."""

        def locked() -> None:
            with only_writer(self.out):
                work()

        self._when_free(locked, wait=True)

    def _when_free(self, work: Callable[[], object], wait: bool) -> None:
        while True:
            try:
                work()
                return
            except InUse:
                if not wait:
                    raise
            time.sleep(POLL_SECONDS)

    def write(self) -> None:
        """Write sweep.json and sweep.html."""

        def written() -> None:
            found = look(self.out)
            write_whole(self.out / "sweep.json", found.model_dump_json(indent=1) + "\n")
            write_whole(self.out / "sweep.html", render_sweep(found))

        self._alone(written)


def do_grid(sweep: Sweep, cells: Iterable[Cell]) -> SweepRecord:
    """Do what is missing of a grid, in its order.

    Raises:
        CannotWrite, DataError, NetworkError: nothing more can be done; what was done stays.
    """
    cells = tuple(cells)
    for cell in cells:
        if not (sweep.out / "runs" / f"{cell.name}.json").exists():
            sweep.plan(cell)
    sweep.write()
    for number, cell in enumerate(cells, start=1):
        sweep.progress.headline(f"run {number} of {len(cells)}: {cell.name}")
        sweep.do(cell)
    return look(sweep.out)


def look(out: Path) -> SweepRecord:
    """Return how far the runs of a sweep are; nothing is written.

    Raises:
        FileError: there is no sweep.
    """
    if not (out / "sweep.toml").is_file():
        raise FileError(f"{out} holds no sweep; give the folder that `hoyer-export sweep RECIPE --out DIR` wrote")
    recipe = load_recipe(out / "sweep.toml")
    runs = [look_at(out, file.stem) for file in (out / "runs").glob("[!.]*.json")]
    runs.sort(key=lambda run: (run.method, -(run.budget or 0), run.seed, run.name))
    return SweepRecord(
        network=recipe.network.name, data=None if recipe.data is None else recipe.data.name, runs=tuple(runs)
    )


def look_at(out: Path, name: str) -> SweepRun:
    """Return how far one run is."""
    file, folder = out / "runs" / f"{name}.json", RunFolder(out / "runs" / name)
    run = read_record(SweepRun, file.read_bytes(), file, "remove it, and begin the sweep again")
    begun = folder.recipe.is_file()
    if begun and _is_used(folder.path):
        return run.model_copy(update={"state": "running", "at": _where(folder), "error": None})
    if run.error is not None:
        return run.model_copy(update={"state": "failed"})
    if folder.report.is_file():
        try:
            epochs = read_metrics(folder.path)
            return with_report(run, read_report(folder.path), epochs[-1].validation_accuracy if epochs else None)
        except FileError as error:
            return run.model_copy(update={"state": "failed", "error": without_folders(str(error))})
    if begun:
        return run.model_copy(update={"state": "stopped", "at": _where(folder)})
    dense = RunFolder(out / "dense" / (run.dense or ""))
    waits_for_it = run.dense and dense.recipe.is_file() and not is_found(dense, "dense")
    return run.model_copy(update={"at": _where(dense)}) if waits_for_it else run


def _is_used(folder: Path) -> bool:
    try:
        check_unused(folder)
    except InUse:
        return True
    return False


def _where(folder: RunFolder) -> str | None:
    with suppress(HoyerExportError, OSError):  # somebody may be changing it just now
        return standing(folder)
    return None
