"""sweep.html: one page of all runs of a sweep, every point and every row of which opens the report of its run."""

from collections.abc import Callable, Mapping
from itertools import cycle
from urllib.parse import quote

from markupsafe import Markup

from hoyer_export.report.number_format import WRITTEN, milliseconds, percent, share
from hoyer_export.report.page import templates
from hoyer_export.report.plots import SHAPES, Spot, scatter_plot
from hoyer_export.report.sweep import Point, Spread, SweepFile, SweepRecord, front, means, points

COLOURS = ("c0", "c1", "c2", "c3", "c4")


def render_sweep(sweep: SweepRecord) -> str:
    """Return sweep.html, which lies beside the folder of the runs."""
    looks = _looks(sweep)
    every = points(sweep.runs, lambda file: file.macs_share)
    environment = templates()
    environment.filters |= {"spread": spread, "report": report_of}
    return environment.get_template("sweep.html").render(
        sweep=sweep,
        plots=[
            plot
            for plot in (
                _plot(sweep, looks, "macs", "MACs", lambda file: file.macs_share),
                _plot(sweep, looks, "latency", "latency", lambda file: file.latency_share),
            )
            if plot is not None
        ],
        best={point.run.name for point in front(every) if point.file.name != "dense"},
        legend=_legend(every, looks),
        means=means(sweep.runs),
        written=WRITTEN,
        noisy=[run.name for run in sweep.runs if run.noise is not None],
        has_int8=any(run.file("slim-int8") for run in sweep.runs),
        is_timed=any(file.latency_ms for run in sweep.runs for file in run.files),
    )


def report_of(name: str) -> str:
    """Return where the page of a run lies, seen from that of the sweep."""
    return f"runs/{quote(name)}/report.html"


def spread(found: Spread, written: Callable[[float | None], str] = percent) -> str:
    """Return e.g. ``98.61 ± 0.32 %``."""
    if found.mean is None or found.deviation is None:
        return written(found.mean)
    number, _, unit = written(found.mean).partition(" ")
    return f"{number} ± {written(found.deviation).partition(' ')[0].lstrip('±+-')} {unit}".rstrip()


def _looks(sweep: SweepRecord) -> Mapping[str, tuple[str, str]]:
    """Return method → colour and shape."""
    methods = sorted({run.method for run in sweep.runs}, key=lambda name: (not name.startswith("group-hs"), name))
    return dict(zip(methods, cycle(zip(COLOURS, SHAPES, strict=True)), strict=False))


def _look(point: Point, looks: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    colour, shape = looks[point.run.method]
    if point.file.name == "dense":
        return "dense", "circle"
    return (colour if point.file.name == "slim" else f"{colour} hollow"), shape


def _legend(every: tuple[Point, ...], looks: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Return what each look stands for → style and path."""
    found = {}
    for point in sorted(every, key=lambda it: (it.file.name, it.run.method)):
        style, shape = _look(point, looks)
        name = point.file.name if point.file.name == "dense" else f"{point.run.method}, {point.file.name}"
        found[name] = (style, SHAPES[shape])
    return found


def _plot(
    sweep: SweepRecord,
    looks: Mapping[str, tuple[str, str]],
    name: str,
    words: str,
    cost: Callable[[SweepFile], float | None],
) -> Markup | None:
    found = points(sweep.runs, cost)
    if not any(point.file.name != "dense" for point in found):
        return None
    spots = []
    for point in found:
        style, shape = _look(point, looks)
        took = "" if point.file.latency_ms is None else f", {milliseconds(point.file.latency_ms)}"
        told = f"{point.file.name} of {point.run.name}: {percent(point.accuracy)} at {share(point.cost)} of the {words}"
        spots.append(Spot(100 * point.cost, point.accuracy, told + took, style, shape, report_of(point.run.name)))
    return scatter_plot(
        name=name,
        title=f"Test accuracy against {words}",
        unit="test accuracy, %",
        across=f"{words}, % of dense",
        spots=spots,
        front=[(100 * point.cost, point.accuracy) for point in front(found)],
    )
