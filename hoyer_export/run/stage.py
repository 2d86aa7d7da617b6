"""A run is a list of stages, and one loop does them.

A stage says which keys of the recipe it reads and which stages it needs, and everything else follows: what is done is
taken from the folder; where a key changes, the stages that read it are done again, and those that need them; what is
trained already is done again only where that is asked for.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import JsonValue

from hoyer_export import parallel
from hoyer_export.errors import FileError, RecipeError
from hoyer_export.recipe.keys import default_of
from hoyer_export.recipe.tables import Recipe
from hoyer_export.record import Record
from hoyer_export.run.job import Job
from hoyer_export.run.log import Entry, is_found, read_found, read_log, write_log
from hoyer_export.run_folder import RunFolder

_WORKED_FROM = (".toml", ".json", ".jsonl", ".safetensors")
"""What those files of a run are called that a stage which trains works from."""

R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[R_co]):
    """One step from recipe to report.

    Args:
        name: of the stage.
        record: class of what it finds.
        run: does it: leaves its files in the job's folder, and returns what it found.
        reads: keys of the recipe on which the result hangs: ``"bench"`` is a whole table, ``"cut.macs"`` one key.
        also_reads: more of them, which hang on the recipe.
        needs: names of the stages whose files or records it works from.
        leaves: files of a job that the stages which need it work from; done again where one is gone and is wanted.
        trains: whether it takes so long that it is never done again without being asked for.
    """

    name: str
    record: type[R_co]
    run: Callable[[Job], R_co]
    reads: tuple[str, ...] = ()
    also_reads: Callable[[Recipe], tuple[str, ...]] = lambda recipe: ()
    needs: tuple[str, ...] = ()
    leaves: Callable[[Job], tuple[Path, ...]] = lambda job: ()
    trains: bool = False

    def values(self, job: Job) -> dict[str, JsonValue]:
        """Return the values of the keys that it reads."""
        tables = job.recipe.model_dump(mode="json")
        found: dict[str, JsonValue] = {}
        for key in (*self.reads, *self.also_reads(job.recipe)):
            table, _, name = key.partition(".")
            value = tables[table][name] if name else tables[table]
            found |= {f"{key}.{inner}": it for inner, it in value.items()} if isinstance(value, dict) else {key: value}
        return found


def record_of(stage: Stage[R], folder: RunFolder) -> R:
    """Return what a stage found; FileError where it is not done, or stages.json is damaged."""
    return read_found(folder, stage.name, stage.record)


def is_done(stage: Stage[Record], folder: RunFolder) -> bool:
    """Return whether a stage is done."""
    return is_found(folder, stage.name)


def do(stage: Stage[R], job: Job) -> R:
    """Do one stage, again if it is done already, and keep what it found."""
    log = read_log(job.folder)
    entry = Entry(read=stage.values(job))
    if stage.name not in log:  # begun: from now on a change of what it reads is noticed
        write_log(job.folder, log | {stage.name: entry})
    if stage.trains:
        kept_files = [it for it in job.folder.path.rglob("*") if it.suffix in _WORKED_FROM and it.is_file()]
        parallel.call_others(stage.name, kept_files, job.folder.path)
    found = stage.run(job)
    kept = Entry(read=stage.values(job), found=found.model_dump(mode="json"))
    write_log(job.folder, read_log(job.folder) | {stage.name: kept})
    return found


def do_all(stages: Sequence[Stage[Record]], job: Job) -> None:
    """Do every stage that is not done, in order, and before it those that it needs and whose files are gone."""
    by_name = {stage.name: stage for stage in stages}

    def with_files(stage: Stage[Record]) -> None:
        for need in (by_name[name] for name in stage.needs):
            gone = [file for file in need.leaves(job) if not file.exists()]
            if gone and _has_trained(need, read_log(job.folder)[need.name]):
                raise FileError(
                    f"{gone[0]} is gone, and {need.name} would have to be trained again; put it back, or add"
                    f" --redo-from {need.name}"
                )
            if gone:
                with_files(need)
        do(stage, job)

    for stage in stages:
        if not is_done(stage, job.folder):
            with_files(stage)


def has_files(stage: Stage[Record], job: Job) -> bool:
    """Return whether every file that a stage leaves is there."""
    return all(file.exists() for file in stage.leaves(job))


def drop(stages: Iterable[Stage[Record]], folder: RunFolder) -> None:
    """Forget what stages found, and how far their training had come."""
    names = [stage.name for stage in stages]
    for name in names:  # first: what is not logged must not go on from an old epoch
        (folder.checkpoint / f"{name}.safetensors").unlink(missing_ok=True)
    write_log(folder, {name: entry for name, entry in read_log(folder).items() if name not in names})


def forget(stages: Sequence[Stage[Record]], job: Job, redo_from: str | None) -> None:
    """Forget what holds no longer: stages that read what changed, those named, and those that need one of them.

    Args:
        stages: of the run, in order.
        job: with the recipe to go on with.
        redo_from: name of a stage that is to be done again although nothing changed.

    Raises:
        RecipeError: a stage that is trained already would have to be trained again, and nobody asked for that.
    """
    log = read_log(job.folder)
    changes = {
        stage.name: list(_changes(log[stage.name].read, stage.values(job))) for stage in stages if stage.name in log
    }
    stale: list[Stage[Record]] = []
    for stage in stages:
        again = stage.name == redo_from or any(stage.name in log and need.name in stage.needs for need in stale)
        if again or changes.get(stage.name):
            stale.append(stage)
    named = [stage.name for stage in stages]
    asked = [] if redo_from is None else named[named.index(redo_from) :]
    changed = list(dict.fromkeys(change for found in changes.values() for change in found))
    for stage in stale:
        if stage.name in log and _has_trained(stage, log[stage.name]) and stage.name not in asked:
            changed = changes.get(stage.name) or changed
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise RecipeError(
                f"{job.folder.path} holds a run with {changed[0]}{more}, and {stage.name} is trained already; give "
                f"another --out, the recipe it was begun with, or --redo-from {stage.name}"
            )
    gone = [stage.name for stage in stale if stage.name in log]
    if not gone:
        return
    drop([stage for stage in stale if stage.name in log], job.folder)
    why = f"{', '.join(change.partition(':')[0] for change in changed)} changed: " if changed else ""
    rest = "; all else stays" if len(gone) < len(log) else ""
    job.progress.note(
        f"{why}{' and '.join(filter(None, [', '.join(gone[:-1]), gone[-1]]))} "
        f"{'is' if len(gone) == 1 else 'are'} done again{rest}"
    )


def _has_trained(stage: Stage[Record], entry: Entry) -> bool:
    """Return whether a stage took time that nobody wants to lose; a phase of no epochs did not."""
    return stage.trains and entry.read.get(f"{stage.name}.epochs") != 0


def _changes(before: dict[str, JsonValue], after: dict[str, JsonValue]) -> Iterator[str]:
    tables = {key.partition(".")[0] for key in before}
    for key in dict.fromkeys([*before, *after]):
        # A run of a version that did not have the key yet was made with what is its default now.
        was = before.get(key, default_of(key) if key.partition(".")[0] in tables else None)
        if was != after.get(key):
            yield f"{key}: {json.dumps(was)} → {json.dumps(after.get(key))}"
