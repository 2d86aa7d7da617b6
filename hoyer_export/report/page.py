"""report.html: one self-contained page, readable offline, everything that came from a file escaped."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hoyer_export.report.curves import phase_names, training_curves, way_down
from hoyer_export.report.making import aligned_words, making
from hoyer_export.report.network_picture import network_picture
from hoyer_export.report.number_format import ABSENT, WRITTEN, three_digits
from hoyer_export.report.plots import distributions_plot
from hoyer_export.report.report import Report
from hoyer_export.report.stage_records import BlockedConvs, GroupWidth
from hoyer_export.report.summary import Step, asks_a_share, facts, verification_steps, with_classes
from hoyer_export.report.tiles import tiles
from hoyer_export.report.time_by_layer import in_view, time_by_layer
from hoyer_export.sparsify.phase import EpochRecord

MARGIN_DECADES = 8
"""The bars of the verification reach from 1e-8 of the tolerance to the tolerance, and a decade beyond."""
ROWS_IN_ONE_COLUMN = 24
MOST_TICKS = 20
"""More blocks than that in one bar and their marks would fill it."""


@dataclass(frozen=True)
class WidthRow:
    """One group's bar: lengths in per cent of its dense width.

    Args:
        group: the record.
        kept: alive and kept; kept, where norms do not say which are alive.
        filled: kept beyond the alive ones, to fill a block.
        dropped: alive, but cut to meet the budget.
        ticks: places of the blocks' ends.
    """

    group: GroupWidth
    kept: float
    filled: float
    dropped: float
    ticks: tuple[float, ...]


def templates() -> Environment:
    """Return what renders the pages: everything escaped, numbers written as ``number_format`` has them."""
    environment = Environment(
        loader=PackageLoader("hoyer_export.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= WRITTEN
    return environment


def render_page(report: Report, metrics: Sequence[EpochRecord]) -> str:
    """Return report.html.

    Args:
        report: from ``dated`` or ``read_report``.
        metrics: epochs in order; without any, the page says that the curves are absent.
    """
    environment = templates()
    times = time_by_layer(report)
    slowest, faster = in_view(times)
    environment.filters |= {
        "breakable": breakable,
        "three_digits": three_digits,
        "blocked_words": blocked_words,
    }
    return environment.get_template("page.html").render(
        facts(report),
        aligned=aligned_words(report),
        asks_a_share=asks_a_share(report),
        tiles=tiles(report),
        latency_plot=_latency_plot(report),
        with_classes=with_classes(report),
        picture=network_picture(report.cut.widths),
        times=times,
        slowest=slowest,
        faster=faster,
        width_columns=_columns(width_rows(report)),
        curves=training_curves(report, metrics),
        way_down=way_down(report),
        epochs=metrics,
        phase_names=phase_names(report),
        stages=_stages(verification_steps(report)),
        margin=margin,
    )


def width_rows(report: Report) -> tuple[WidthRow, ...]:
    """Return every group's bar, in the network's order."""
    told = making(report).norms_tell
    align = report.cut.align or 1
    return tuple(_width_row(group, group.alive if told else group.slim, align) for group in report.cut.widths)


def _width_row(group: GroupWidth, alive: int, align: int) -> WidthRow:
    def part(channels: int) -> float:
        return round(100 * min(channels, group.dense) / group.dense, 2)

    blocks = range(align, group.dense, align) if align > 1 and group.dense / align <= MOST_TICKS else range(0)
    return WidthRow(
        group=group,
        kept=part(min(alive, group.slim)),
        filled=part(max(group.slim - alive, 0)),
        dropped=part(max(alive - group.slim, 0)),
        ticks=tuple(part(end) for end in blocks),
    )


def _columns(rows: tuple[WidthRow, ...]) -> tuple[tuple[WidthRow, ...], ...]:
    if len(rows) <= ROWS_IN_ONE_COLUMN:
        return (rows,) if rows else ()
    half = (len(rows) + 1) // 2
    return rows[:half], rows[half:]


def margin(step: Step) -> float | None:
    """Return the length in per cent of a step's error on the logarithmic scale of the bars; None without a number."""
    if step.ratio is None:
        return None
    if step.ratio <= 0:
        return 0.0
    decades = math.log10(step.ratio) + MARGIN_DECADES
    return round(100 * min(max(decades, 0.1), MARGIN_DECADES + 1) / (MARGIN_DECADES + 1), 1)


def _stages(steps: Sequence[Step]) -> tuple[tuple[tuple[str, tuple[Step, ...]], ...], ...]:
    """Return the tables of the verification, row by row: the cut, every file's steps, each file's comparisons."""
    found: dict[str, dict[str, tuple[Step, ...]]] = {}
    for stage in dict.fromkeys(step.stage for step in steps):
        file, compared, _ = stage.partition(",")
        words = "max |Δ| against torch" if compared else "step by step"
        name = "The cut: what was removed was zero" if stage == "cut" else f"{stage}, {words}"
        row = found.setdefault(stage if stage == "cut" else file if compared else "files", {})
        row[name] = tuple(step for step in steps if step.stage == stage)
    return tuple(tuple(row.items()) for row in found.values())


def blocked_words(found: BlockedConvs | None) -> str:
    """Return how many convolutions run blocked, e.g. ``20 of 21``."""
    return ABSENT if found is None else f"{found.blocked} of {found.total}"


def breakable(name: str) -> Markup:
    """Return a module's name, escaped, that may be broken after its dots."""
    return Markup("<wbr>").join(re.split(r"(?<=[./])", name))


def _latency_plot(report: Report) -> Markup | None:
    measured = report.bench.artifacts
    if not measured:
        return None
    return distributions_plot(
        name="latency",
        title="Latency of every file",
        rows=[
            (it.name, "dense" if it.name == "dense" else "slim", it.samples, it.p50, it.p90, it.p99) for it in measured
        ],
    )
