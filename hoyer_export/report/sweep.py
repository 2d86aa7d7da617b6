"""sweep.json: the runs of a sweep, and which of their files no other one beats in accuracy and cost."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from hoyer_export.record import Record
from hoyer_export.report.further import withheld
from hoyer_export.report.report import Artifact, Report
from hoyer_export.report.summary import budget_words, gate_words

State = Literal["waiting", "running", "stopped", "done", "failed"]
FILES = ("dense", "slim", "slim-int8")
"""Artifacts that a sweep compares."""


class SweepFile(Record):
    """One shipped file of a run, beside the run's dense one.

    Args:
        name: of the artifact.
        accuracy: on the test images, in percent.
        macs: of one image.
        macs_share: of the dense file's.
        latency_ms: median of a run; None where it was not measured.
        latency_share: of the dense file's, by paired runs.
    """

    name: str
    accuracy: float | None
    macs: int
    macs_share: float | None
    latency_ms: float | None = None
    latency_share: float | None = None


class SweepRun(Record):
    """One run: what sets it apart, how far it is, and what came out.

    Args:
        name: of its folder in ``runs``.
        method: how channels are chosen.
        budget: the share of the dense network that may stay; None where the recipe asks for none.
        seed: of the recipe.
        settings: what was set in the recipe for it, each ``section.key=value``.
        dense: the folder in ``dense`` that it begins from; None where it trains no dense network.
        state: ``stopped`` is begun, and nobody is at it.
        at: where a run that is not done stands.
        error: why a run failed, in one line; there are files all the same where only a budget was missed.
        validation_accuracy: of the slim network after its last epoch; what to choose by.
        files: dense, slim and slim-int8, as far as they are shipped.
        noise: why the machine was too busy to measure latency.
    """

    name: str
    method: str
    budget: float | None
    seed: int
    settings: tuple[str, ...]
    dense: str | None = None
    state: State = "waiting"
    at: str | None = None
    error: str | None = None
    validation_accuracy: float | None = None
    files: tuple[SweepFile, ...] = ()
    noise: str | None = None

    def file(self, name: str) -> SweepFile | None:
        """Return the file of that name, if there is one."""
        return next((it for it in self.files if it.name == name), None)


class SweepRecord(Record):
    """The whole of sweep.json."""

    format: Literal["hoyer-export-sweep/1"] = "hoyer-export-sweep/1"
    network: str
    data: str | None
    runs: tuple[SweepRun, ...]

    def count(self, state: State) -> int:
        """Return how many runs are in a state."""
        return sum(run.state == state for run in self.runs)


def with_report(run: SweepRun, report: Report, validation_accuracy: float | None) -> SweepRun:
    """Return a finished run with what came out of it."""
    short = []
    if not report.passed:
        short.append("verification failed")
    if not report.budget.met:
        short.append(f"budget missed: {budget_words(report)}")
    short += [f"gate: {line}" for line in gate_words(report.gate) if not report.gate.passed and "FAILED" in line]
    kept_back = withheld(report)
    shipped = [it for it in report.artifacts if it.file.name in FILES and it.file.name not in kept_back]
    return run.model_copy(
        update={
            "state": "failed" if short else "done",
            "at": None,
            "error": "; ".join(short) or None,
            "validation_accuracy": validation_accuracy,
            "noise": report.bench.noise,
            "files": tuple(_file(it, report.dense) for it in shipped),
        }
    )


def _file(it: Artifact, dense: Artifact) -> SweepFile:
    share = None
    if it.latency is not None and dense.latency is not None:
        speedup = it.latency.speedup
        share = it.latency.p50 / dense.latency.p50 if speedup is None else 1 / speedup.median
    return SweepFile(
        name=it.file.name,
        accuracy=it.accuracy,
        macs=it.file.macs,
        macs_share=it.file.macs / dense.file.macs if dense.file.macs else None,
        latency_ms=it.p50,
        latency_share=share,
    )


@dataclass(frozen=True)
class Point:
    """A file in the plane of cost (a share of the dense file's) and accuracy (in percent)."""

    run: SweepRun
    file: SweepFile
    cost: float
    accuracy: float


def points(runs: Iterable[SweepRun], cost: Callable[[SweepFile], float | None]) -> tuple[Point, ...]:
    """Return the files of runs that are done, every dense network once."""
    found: dict[object, Point] = {}
    for run in runs:
        for file in run.files if run.state == "done" else ():
            at = cost(file)
            if at is not None and file.accuracy is not None:
                same = (file.name, run.seed, file.accuracy) if file.name == "dense" else (file.name, run.name)
                found.setdefault(same, Point(run, file, at, file.accuracy))
    return tuple(found.values())


def front(given: Iterable[Point]) -> tuple[Point, ...]:
    """Return the points that no other one beats in cost and accuracy, the cheapest first."""
    best: list[Point] = []
    for point in sorted(given, key=lambda it: (it.cost, -it.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return tuple(best)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over n runs; both None without a number, the second where there is one alone."""

    mean: float | None
    deviation: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread":
        """Return that of the values that are known."""
        known = [value for value in values if value is not None]
        return cls(mean(known) if known else None, stdev(known) if len(known) > 1 else None)


@dataclass(frozen=True)
class Means:
    """The finished runs of one method at one budget, over seeds."""

    method: str
    budget: float | None
    runs: tuple[SweepRun, ...]

    def of(self, figure: str) -> Spread:
        """Return the spread of a figure of the slim files."""
        return Spread.of(getattr(file, figure) for run in self.runs if (file := run.file("slim")) is not None)

    @property
    def validation(self) -> Spread:
        """Of the accuracy on validation images."""
        return Spread.of(run.validation_accuracy for run in self.runs)

    @property
    def change(self) -> Spread:
        """Of slim against dense accuracy, in points, run by run."""
        pairs = ((run.file("slim"), run.file("dense")) for run in self.runs)
        return Spread.of(
            slim.accuracy - dense.accuracy
            for slim, dense in pairs
            if slim and dense and slim.accuracy is not None and dense.accuracy is not None
        )


def means(runs: Sequence[SweepRun]) -> tuple[Means, ...]:
    """Return what was run with several seeds, method by method, the largest budget first."""
    cells: dict[object, list[SweepRun]] = defaultdict(list)
    for run in runs:
        if run.state == "done":
            cells[run.method, run.budget, *(it for it in run.settings if it != f"seed={run.seed}")].append(run)
    several = [Means(of[0].method, of[0].budget, tuple(of)) for of in cells.values() if len(of) > 1]
    return tuple(sorted(several, key=lambda it: (it.method, -(it.budget or 0))))
