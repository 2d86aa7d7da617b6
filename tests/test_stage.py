"""One loop does the stages of a run: what hangs on a change is done again, training only where that is asked for."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from hoyer_export.errors import FileError, RecipeError
from hoyer_export.recipe.reading import load_recipe
from hoyer_export.record import Record
from hoyer_export.run.job import Job
from hoyer_export.run.log import read_found, read_log, write_log
from hoyer_export.run.progress import Silent
from hoyer_export.run.stage import Stage, do, do_all, forget, record_of
from hoyer_export.run_folder import RunFolder


class Count(Record):
    """How many stages had run before."""

    before: int


class Listening(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    (tmp_path / "recipe.toml").write_text('[network]\nname = "lenet5"\n[data]\nname = "digits"\n[cut]\nmacs = 0.5\n')

    def made(*overrides: str) -> Job:
        return Job(load_recipe(tmp_path / "recipe.toml", overrides), RunFolder(tmp_path), Listening())

    return made


@pytest.fixture
def stages() -> tuple[list[str], tuple[Stage[Count], ...]]:
    """Return what has run, and four stages: b needs a, c trains and needs b, d needs a."""
    ran: list[str] = []
    numbers = itertools.count()

    def run(name: str) -> Callable[[Job], Count]:
        def body(job: Job) -> Count:
            ran.append(name)
            (job.folder.path / name).write_text(name)
            return Count(before=next(numbers))

        return body

    def stage(name: str, **more: object) -> Stage[Count]:
        leaves = lambda job: (job.folder.path / name,)  # noqa: E731
        return Stage(name=name, record=Count, run=run(name), leaves=leaves, **more)

    return ran, (
        stage("a", reads=("seed", "data")),
        stage("b", reads=("cut",), needs=("a",)),
        stage("c", reads=("finetune.lr",), needs=("b",), trains=True),
        stage("d", reads=("bench",), needs=("a",)),
    )


def test_every_stage_is_done_once_in_order_and_its_record_is_kept(job, stages) -> None:
    ran, every = stages
    do_all(every, job())
    do_all(every, job())
    assert ran == ["a", "b", "c", "d"]
    assert [record_of(stage, job().folder).before for stage in every] == [0, 1, 2, 3]
    assert read_log(job().folder)["d"].read["bench.threads"] == 1


@pytest.mark.parametrize(
    ("override", "again", "said"),
    [
        ("bench.threads=2", "d", "bench.threads changed: d is done again; all else stays"),
        ("verify.batches=[1]", "", None),
        ("finetune.epochs=3", "", None),  # another key of the table
    ],
)
def test_what_reads_a_changed_key_is_done_again_and_nothing_else(override, again, said, job, stages) -> None:
    ran, every = stages
    do_all(every, job())
    ran.clear()
    other = job(override)
    forget(every, other, None)
    do_all(every, other)
    assert "".join(ran) == again
    assert other.progress.said == ([] if said is None else [said])


@pytest.mark.parametrize(("override", "again"), [("bench.batch_size=1", []), ("bench.threads=2", ["d"])])
def test_a_key_that_an_earlier_version_did_not_have_was_its_default(override, again, job, stages) -> None:
    ran, every = stages
    do_all(every, job())
    ran.clear()
    log = read_log(job().folder)
    for key in ("bench.threads", "bench.runtime"):
        del log["d"].read[key]
    write_log(job().folder, log)
    other = job(override)
    forget(every, other, None)
    do_all(every, other)
    assert ran == again


@pytest.mark.parametrize(
    ("overrides", "redo_from", "again"),
    [
        (["cut.macs=0.4"], "c", "bc"),
        (["seed=1"], "a", "abcd"),
        (["seed=1"], "b", "abcd"),
        ([], "d", "d"),
        ([], "b", "bc"),
    ],
)
def test_training_is_done_again_where_that_is_asked_for(overrides, redo_from, again, job, stages) -> None:
    ran, every = stages
    do_all(every, job())
    ran.clear()
    forget(every, job(*overrides), redo_from)
    do_all(every, job(*overrides))
    assert "".join(ran) == again


@pytest.mark.parametrize("override", ["cut.macs=0.4", "seed=1", "finetune.lr=0.3"])
def test_training_is_not_done_again_unasked_and_nothing_is_forgotten(override: str, job, stages) -> None:
    _, every = stages
    do_all(every, job())
    before = job().folder.stages.read_bytes()
    with pytest.raises(RecipeError, match=rf"with {override.split('=')[0]}: .* and c is trained .* --redo-from c"):
        forget(every, job(override), None)
    assert job().folder.stages.read_bytes() == before


def test_a_training_that_was_only_begun_counts_as_trained(job, stages) -> None:
    _, every = stages

    def broken(job: Job) -> Count:
        raise KeyboardInterrupt

    do_all(every[:2], job())
    with pytest.raises(KeyboardInterrupt):
        do(Stage(name="c", record=Count, run=broken, reads=every[2].reads, needs=every[2].needs, trains=True), job())
    with pytest.raises(RecipeError, match="c is trained already"):
        forget(every, job("finetune.lr=0.3"), None)


def test_a_stage_whose_files_are_gone_is_done_again_for_those_that_need_it(job, stages) -> None:
    ran, every = stages
    do_all(every, job())
    (job().folder.path / "b").unlink()
    do_all(every, job())
    assert ran == ["a", "b", "c", "d"]  # nobody needs it
    forget(every, job(), "c")
    do_all(every, job())
    assert ran[4:] == ["b", "c"]


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}', '{"a": {"found": {}}}', "\x00"])
def test_a_damaged_log_is_said_so(content: str, job) -> None:
    job().folder.stages.write_text(content)
    with pytest.raises(FileError, match=r"stages\.json is damaged"):
        read_log(job().folder)


def test_a_record_of_another_kind_and_one_that_is_not_there_are_said(job, stages) -> None:
    class Other(Record):
        after: int

    _, every = stages
    with pytest.raises(FileError, match="has not come that far"):
        record_of(every[0], job().folder)
    do_all(every, job())
    with pytest.raises(FileError, match=r"stages\.json is damaged: after is missing"):
        read_found(job().folder, "a", Other)
