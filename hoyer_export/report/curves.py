"""The training curves of the page: loss, accuracy and MACs over the epochs of the three phases."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from hoyer_export.report.making import making
from hoyer_export.report.number_format import share
from hoyer_export.report.plots import Band, Series, line_plot
from hoyer_export.report.report import Report
from hoyer_export.sparsify.phase import EpochRecord

LOG_FROM = 30.0
"""A loss that falls by more than this factor is drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Curve:
    """One plot and the sentence under it."""

    plot: Markup
    caption: str


def training_curves(report: Report, metrics: Sequence[EpochRecord]) -> tuple[Curve, ...]:
    """Return the plots for which there are numbers; none without epochs."""
    if not metrics:
        return ()
    bands = phase_bands(metrics, phase_names(report))
    curves = [_loss(metrics, bands)]
    train = Series("training", "dense", tuple(epoch.train_accuracy for epoch in metrics))
    held_out = Series("validation", "slim", tuple(epoch.validation_accuracy for epoch in metrics))
    accuracies = [series for series in (held_out, train) if any(value is not None for value in series.values)]
    if accuracies:
        plot = line_plot(
            name="score",
            title=f"{report.metric or 'Accuracy'} over epochs",
            unit=report.metric or "accuracy, %",
            series=accuracies,
            bands=bands,
            ceiling=None if report.metric else 100.0,
            digits=4 if report.metric else 1,
        )
        seen = f" Validation images: {report.inputs.validation}." if report.inputs.validation else ""
        read = "On validation images." if report.metric else "Correct top-1; training images as the epoch met them."
        curves.append(Curve(plot, f"{read}{seen}"))
    return (*curves, *_macs(report, metrics, bands))


def way_down(report: Report) -> Curve | None:
    """Return what was lost over the steps of a cut that was refitted; None where it did not go in steps."""
    refit = report.cut.refit
    if refit is None or len(refit.steps) < 2:
        return None
    unit = "points lost" if refit.lost_by == "accuracy" else "change of outputs"
    asked = next((v for k, v in report.budget.asked.items() if k.startswith("max_") and isinstance(v, float)), None)
    within = [step for step in refit.steps if step.within]
    series = [Series("lost", "slim", tuple(step.lost for step in within))]
    digits = 2 if refit.lost_by == "accuracy" else 4
    plot = line_plot(
        name="way-down",
        title="What was lost over the steps of the cut",
        unit=unit,
        series=series,
        bands=[Band("", 1, len(within))],
        rule=None if asked is None else (asked, "asked"),
        digits=digits,
        across="step",
    )
    points = ", ".join(
        f"{share(step.macs)}: {step.lost:.{digits}f}{'' if step.within else ' (too much)'}"
        for step in refit.steps
        if step.lost is not None
    )
    images = "validation images" if refit.lost_by == "accuracy" else "held-out images, without labels"
    return Curve(plot, f"{unit[:1].upper()}{unit[1:]} on {images}, at MACs of dense: {points}.")


def phase_names(report: Report) -> dict[str, str]:
    """Return what the phases are called on the page."""
    sparse = making(report).regularised_by or "no Group-HS"
    return {"dense": "dense", "sparse": sparse, "finetune": "fine-tune"}


def phase_bands(metrics: Sequence[EpochRecord], names: Mapping[str, str]) -> tuple[Band, ...]:
    """Return where each phase lies when all epochs are counted through from 1, under its name."""
    bands: list[Band] = []
    for phase, epochs in groupby(epoch.phase for epoch in metrics):
        first = bands[-1].last + 1 if bands else 1
        bands.append(Band(names[phase], first, first + len(list(epochs)) - 1))
    return tuple(bands)


def _loss(metrics: Sequence[EpochRecord], bands: Sequence[Band]) -> Curve:
    losses = tuple(epoch.loss for epoch in metrics)
    log = min(losses) > 0 and max(losses) / min(losses) > LOG_FROM
    plot = line_plot(
        name="loss",
        title="Training loss over epochs",
        unit="loss, log scale" if log else "loss",
        series=[Series("training", "slim", losses)],
        bands=bands,
        log=log,
        digits=2 if min(losses) >= 0.1 else math.ceil(1 - math.log10(max(min(losses), 1e-4))),
    )
    loss = "Cross-entropy" if any(epoch.train_accuracy is not None for epoch in metrics) else "The loss"
    return Curve(plot, f"{loss} on the training images, without the penalty.")


def _macs(report: Report, metrics: Sequence[EpochRecord], bands: Sequence[Band]) -> tuple[Curve, ...]:
    effective = Series("effective", "slim", _percentages([epoch.effective_macs for epoch in metrics]))
    alive = Series("alive", "alive", _percentages([epoch.alive_macs for epoch in metrics]))
    known = [series for series in (effective, alive) if any(value is not None for value in series.values)]
    if not known:
        return ()
    asked = report.budget.asked.get("macs")
    plot = line_plot(
        name="macs",
        title="MACs over epochs",
        unit="MACs, % of dense",
        series=known,
        bands=bands,
        rule=(100 * asked, f"budget {share(asked)}") if isinstance(asked, float) else None,
        ceiling=100.0,
        digits=1,
    )
    caption = "MACs at the effective widths, and at the channels above 0.1 of the natural threshold (alive)."
    return (Curve(plot, caption),)


def _percentages(shares: Sequence[float | None]) -> tuple[float | None, ...]:
    return tuple(None if value is None else 100 * value for value in shares)
