"""A budget of time: met by asking the table again for what measured files missed, and judged on those shipped."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import nn

from hoyer_export.choices import LATENCY
from hoyer_export.deploy.benchmark import BenchmarkRecord, benchmark
from hoyer_export.deploy.export import export_onnx
from hoyer_export.errors import HoyerExportError
from hoyer_export.report.number_format import milliseconds, share
from hoyer_export.report.stage_records import BudgetRecord
from hoyer_export.run.job import Job

T = TypeVar("T")

WITHIN = 0.05
"""Share of a budget of time by which it may be passed: a measurement is no count."""
_CLOSE = 0.02
"""Share of it within which nothing is tried again."""
_TRIES = 4


@dataclass(frozen=True)
class Reached:
    """What a file takes: a share of the dense file's time, or milliseconds.

    Args:
        value: by the median of paired ratios.
        least: at the fast end of their 95 % interval.
    """

    value: float
    least: float

    def meets(self, asked: float) -> bool:
        """Return whether it is within 5 % of what was asked for, or the interval reaches it."""
        return self.value <= asked * (1 + WITHIN) or self.least <= asked


def reached(found: BenchmarkRecord, key: str) -> Reached:
    """Return what the second of two or more files reaches of the first one's, in the unit of a key in ``LATENCY``."""
    whole, pair = 1.0 if key == "latency" else found.ms(0), found.steady[0]
    assert pair.ci95 is not None
    return Reached(whole / pair.median, whole / pair.ci95[1])


def judged(job: Job, found: BenchmarkRecord) -> BudgetRecord | None:
    """Return what the shipped files make of a budget of time; None where the budget is another."""
    for key, asked in job.recipe.cut.asked().items():
        if key in LATENCY and isinstance(asked, float):
            it = reached(found, key)
            return BudgetRecord(asked={key: asked}, met=it.meets(asked), reached={key: it.value})
    return None


def measured_beside(job: Job, dense: nn.Module, key: str) -> Callable[[nn.Module], float]:
    """Return what exports a slim network, measures it side by side with the dense one, and says what it reaches."""
    table, opset = job.recipe.bench, job.recipe.export.opset
    written: list[bytes] = []

    def measure(slim: nn.Module) -> float:
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("dense.onnx", "slim.onnx")]
            if not written:
                export_onnx(dense, job.example, files[0], opset=opset)
                written.append(files[0].read_bytes())
            files[0].write_bytes(written[0])
            export_onnx(slim, job.example, files[1], opset=opset)
            timed = benchmark(
                files,
                threads=table.threads,
                batch_size=table.batch_size,
                min_seconds=table.min_seconds,
                runtime=table.runtime,
            )
        found = reached(timed, key)
        said = share(found.value) + " of the dense time" if key == "latency" else milliseconds(found.value)
        job.progress.note(f"measured: {said}")
        return found.value

    return measure


def meet_in_time(
    asked: float, choose: Callable[[float], T], expected: Callable[[T], float], measure: Callable[[T], float]
) -> T:
    """Return the network that comes closest to what is asked for from below, or else from above.

    Args:
        asked: a share, or milliseconds.
        choose: returns the network that the table expects to take so much at most.
        expected: what the table expects of it.
        measure: what it really takes.

    Raises:
        HoyerExportError: the table has no network that takes so little.
    """
    tried: list[tuple[float, T]] = []
    aim, before = asked, -1.0
    for _ in range(_TRIES):
        try:
            found = choose(aim)
        except HoyerExportError:
            if not tried:
                raise
            break
        if expected(found) == before:
            break
        before = expected(found)
        tried.append((measure(found), found))
        if abs(tried[-1][0] / asked - 1) <= _CLOSE:
            break
        aim = before * asked / tried[-1][0]
    within = [it for it in tried if it[0] <= asked * (1 + _CLOSE)]
    return max(within, key=lambda it: it[0])[1] if within else min(tried, key=lambda it: it[0])[1]
