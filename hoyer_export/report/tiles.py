"""The figures of the headline, slim beside dense: on the page, and on the picture for slides."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from hoyer_export.report.number_format import count, milliseconds, score, score_change, share, size, times
from hoyer_export.report.report import Report
from hoyer_export.report.summary import MOST_LOST, accuracy_change, lost, speed_is_unclear

Kind = Literal["saving", "same", "care", "loss"]


@dataclass(frozen=True)
class Tile:
    """One figure of the headline: slim large, dense beside it.

    Args:
        name: what it is.
        slim, dense: the two figures, written.
        change: from dense to slim.
        kind: what the change is: for the better, none, a small loss or one that nobody is sure of, a loss.
        slim_length, dense_length: of the two bars, in per cent of the longer.
    """

    name: str
    slim: str
    dense: str
    change: str
    kind: Kind
    slim_length: float
    dense_length: float


def tiles(report: Report) -> tuple[Tile, ...]:
    """Return the headline's figures: accuracy, MACs, latency, parameters, bytes."""
    dense, slim, change = report.dense, report.slim, accuracy_change(report)
    found = []
    if dense.accuracy is not None and slim.accuracy is not None and change is not None:
        written, words = partial(score, metric=report.metric), score_change(change, report.metric)
        gone = lost(report, change)
        kind = "same" if words.startswith("±") else "care" if 0 < gone <= MOST_LOST else _kind(gone)
        found.append(_tile(report.metric or "Accuracy", written, dense.accuracy, slim.accuracy, (words, kind)))
    found.append(_tile("MACs", count, dense.file.macs, slim.file.macs))
    if report.speed is not None and report.speed.speedup is not None and report.dense.latency is not None:
        before, after, speedup = report.dense.latency.p50, report.speed.p50, report.speed.speedup.median
        faster, unclear = f"{times(speedup)} as fast", speed_is_unclear(report)
        told: tuple[str, Kind] = (f"{faster}, unclear", "care") if unclear else (faster, _kind(1 - speedup))
        found.append(_tile("Latency, median", milliseconds, before, after, told))
    if report.export.weights:
        whole, left = (sum(getattr(it, key) for it in report.export.weights) for key in ("weights", "nonzero"))
        found.append(_tile("Weights, not zero", count, whole, left))
    found.append(_tile("Parameters", count, dense.file.params, slim.file.params))
    found.append(_tile("ONNX file", size, dense.file.size_bytes, slim.file.size_bytes))
    return tuple(found)


def _tile(
    name: str,
    written: Callable[[float | None], str],
    dense: float,
    slim: float,
    told: tuple[str, Kind] | None = None,
) -> Tile:
    longest = max(dense, slim, 0.0) or 1.0
    change, kind = (
        told if told is not None else (f"{share(slim / dense)} of dense" if dense else "", _kind(slim - dense))
    )
    return Tile(
        name=name,
        slim=written(slim),
        dense=written(dense),
        change=change,
        kind=kind,
        slim_length=round(100 * max(slim, 0.0) / longest, 1),
        dense_length=round(100 * max(dense, 0.0) / longest, 1),
    )


def _kind(worse: float) -> Kind:
    return "loss" if worse > 0 else "saving" if worse < 0 else "same"
