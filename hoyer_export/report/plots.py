"""Small plots as inline SVG: lines over epochs, and two latency distributions on one axis.

Every plot says in words what it shows (``title``, ``desc``), takes its colours from the page's style sheet through
classes, and escapes every text that it is given.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hoyer_export.report.number_format import three_digits

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 30, 34
NAMES = 20
"""Pixels below the top of a plot that belong to the names of the phases: no line comes there."""
TEXT_WIDTH = 6.0
"""Pixels a character of the plots' 11.5-pixel text takes, about: decides which labels fit."""


@dataclass(frozen=True)
class Series:
    """One line: ``values`` one an epoch, None where there is none; ``style`` is the CSS class of its colour."""

    label: str
    style: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Band:
    """A stretch of epochs, first..last (counted from 1), with its name."""

    label: str
    first: int
    last: int


@dataclass(frozen=True)
class Axis:
    """A scale from ``low`` to ``high`` onto pixels ``start`` to ``stop``, linear or logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of ``value``; what lies outside is drawn on the edge."""
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return round(self.start + part * (self.stop - self.start), 1)

    def ticks(self, count: int = 5) -> tuple[float, ...]:
        """Return about ``count`` round numbers inside the scale."""
        return log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high, count)


def nice_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Return the multiples of 1, 2 or 5 · 10^k in low..high, with the step that gives about ``count`` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return powers of ten in low..high, with 2 and 5 times them where there are few."""
    factors = (1, 2, 5) if high / low < 300 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{factor * 10.0**power:.6g}") for power in powers for factor in factors]
    return tuple(tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9))


def line_plot(
    *,
    name: str,
    title: str,
    unit: str,
    series: Sequence[Series],
    bands: Sequence[Band],
    log: bool = False,
    ceiling: float | None = None,
    rule: tuple[float, str] | None = None,
    digits: int = 2,
) -> Markup:
    """Draw lines over epochs; the last value of each line in each band is written beside it.

    Args:
        name: a word that is this plot's own on the page.
        title: what is shown.
        unit: of the vertical axis.
        series: at least one, with at least one value among them.
        bands: the phases, in order, covering all epochs.
        log: logarithmic vertical axis; all values are above 0.
        ceiling: the axis ends here at most (100 for percentages).
        rule: height and label of a dotted line across.
        digits: decimals of the written values.

    Returns:
        an ``<svg>`` element.
    """
    values = [value for line in series for value in line.values if value is not None]
    if rule is not None:
        values.append(rule[0])
    y = _value_axis(min(values), max(values), ceiling, log)
    epochs = max(band.last for band in bands)
    x = Axis(0.5, epochs + 0.5, LEFT, WIDTH - RIGHT)
    parts = [_svg_open(name, title, _describe(series, bands, unit, digits), HEIGHT)]
    parts += [_y_grid(y, x), _x_ticks(x, [t for t in x.ticks(6) if t == int(t) and t >= 1], "epoch")]
    parts += [_band(band, x) for band in bands]
    if rule is not None:
        height = y.at(rule[0])
        parts.append(_tag('<line class="rule" x1="{}" x2="{}" y1="{}" y2="{}"/>', x.start, x.stop, height, height))
        parts.append(_tag('<text class="rule-label" x="{}" y="{}">{}</text>', x.start + 4, height - 4, rule[1]))
    parts += [part for line in series for part in _line(line, x, y)]
    parts += _last_values(series, bands, x, y, digits)
    parts.append(_tag('<text class="unit" x="4" y="13">{}</text>', unit))
    parts += _legend(series)
    return Markup("").join([*parts, Markup("</svg>")])


def distributions_plot(
    *, name: str, title: str, rows: Sequence[tuple[str, str, Sequence[float], float, float, float]], bins: int = 80
) -> Markup:
    """Draw one histogram a row over a common axis in milliseconds that starts at 0, with p50, p90 and p99 marked.

    Args:
        name: a word that is this plot's own on the page.
        title: what is shown.
        rows: (label, style, samples in ms, p50, p90, p99); a row without samples shows its marks alone.
        bins: of the axis.

    Returns:
        an ``<svg>`` element; what lies far beyond the slowest p99 is counted in words, not drawn.
    """
    slowest = max(p99 for *_, p99 in rows)
    x = Axis(0, slowest * 1.12, 12, WIDTH - RIGHT)
    row_height, top = 78, 8
    height = top + row_height * len(rows) + BOTTOM
    words = [
        f"{label}: median {three_digits(p50)} ms, 99 % below {three_digits(p99)} ms"
        for label, _, _, p50, _, p99 in rows
    ]
    parts = [_svg_open(name, title, "; ".join(words) + ".", height)]
    for index, (label, style, samples, p50, p90, p99) in enumerate(rows):
        base = top + row_height * (index + 1) - 6
        parts += _histogram(samples, x, base, row_height - 30, bins, style)
        parts.append(_tag('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>', x.start, x.stop, base, base))
        for mark, value, length in (("p50", p50, row_height - 26), ("p90", p90, 14), ("p99", p99, 14)):
            at = x.at(value)
            parts.append(
                _tag(
                    '<line class="mark {} {}" x1="{}" x2="{}" y1="{}" y2="{}"/>',
                    style,
                    mark,
                    at,
                    at,
                    base,
                    base - length,
                )
            )
        anchor, shift = ("end", -8) if x.at(p50) > WIDTH / 2 else ("start", 8)
        text = f"{label}  p50 {three_digits(p50)} ms"
        parts.append(
            _tag(
                '<text class="value {}" x="{}" y="{}" text-anchor="{}">{}</text>',
                style, x.at(p50) + shift, base - row_height + 32, anchor, text,
            )
        )  # fmt: skip
        beyond = sum(sample > x.high for sample in samples)
        if beyond:
            text = f"{max(100 * beyond / len(samples), 1):.0f} % slower →"
            parts.append(
                _tag('<text class="beyond" x="{}" y="{}" text-anchor="end">{}</text>', x.stop, base - 34, text)
            )
    parts.append(_x_ticks(x, x.ticks(6), "ms a run", height))
    return Markup("").join([*parts, Markup("</svg>")])


def _histogram(
    samples: Sequence[float], x: Axis, base: float, height: float, bins: int, style: str
) -> Iterator[Markup]:
    counts = [0] * bins
    for sample in samples:
        if sample <= x.high:
            counts[min(int(sample / x.high * bins), bins - 1)] += 1
    step = (x.stop - x.start) / bins
    for index, found in enumerate(counts):
        if found:
            tall = round(height * found / max(counts), 1)
            yield _tag(
                '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}"/>',
                style, x.start + index * step, base - tall, step, tall,
            )  # fmt: skip


def _value_axis(low: float, high: float, ceiling: float | None, log: bool) -> Axis:
    if log:
        return Axis(low / 1.15, high * 1.3, HEIGHT - BOTTOM, TOP + NAMES, log=True)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    floor = max(low - room, 0.0) if low >= 0 else low - room
    top = high + room
    if ceiling is not None and high <= ceiling:
        top = min(top, ceiling + 0.08 * (ceiling - floor))  # room, but no tick of a percentage beyond 100
    return Axis(floor, top, HEIGHT - BOTTOM, TOP + NAMES)


def _svg_open(name: str, title: str, description: str, height: float) -> Markup:
    return _tag(
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-title {}-desc">'
        '<title id="{}-title">{}</title><desc id="{}-desc">{}</desc>',
        WIDTH, height, name, name, name, title, name, description,
    )  # fmt: skip


def _describe(series: Sequence[Series], bands: Sequence[Band], unit: str, digits: int) -> str:
    phases = ", ".join(f"{band.label} epochs {band.first} to {band.last}" for band in bands)
    found = []
    for line in series:
        values = [value for value in line.values if value is not None]
        if values:
            found.append(f"{line.label} from {values[0]:.{digits}f} to {values[-1]:.{digits}f}")
    return f"{unit} over {phases}: {'; '.join(found)}."


def _y_grid(y: Axis, x: Axis) -> Markup:
    grid = []
    for tick in y.ticks():
        at = y.at(tick)
        grid.append(_tag('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', x.start, x.stop, at, at))
        grid.append(
            _tag('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>', x.start - 6, at + 4, f"{tick:g}")
        )
    return Markup("").join(grid)


def _x_ticks(x: Axis, ticks: Sequence[float], label: str, height: float = HEIGHT) -> Markup:
    base = height - BOTTOM
    parts = [_tag('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>', x.start, x.stop, base, base)]
    for tick in ticks:
        at = x.at(tick)
        parts.append(_tag('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>', at, at, base, base + 4))
        parts.append(
            _tag('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>', at, base + 16, f"{tick:g}")
        )
    parts.append(_tag('<text class="unit" x="{}" y="{}" text-anchor="end">{}</text>', x.stop, base + 30, label))
    return Markup("").join(parts)


def _band(band: Band, x: Axis) -> Markup:
    start, stop = x.at(band.first - 0.5), x.at(band.last + 0.5)
    line = Markup("")
    if band.first > 1:
        line = _tag('<line class="band" x1="{}" x2="{}" y1="{}" y2="{}"/>', start, start, TOP, HEIGHT - BOTTOM)
    if stop - start < len(band.label) * TEXT_WIDTH + 4:
        return line
    return line + _tag('<text class="band-label" x="{}" y="{}">{}</text>', start + 5, TOP + 10, band.label)


def _line(line: Series, x: Axis, y: Axis) -> Iterator[Markup]:
    run: list[str] = []
    for index, value in enumerate([*line.values, None], start=1):
        if value is not None:
            run.append(f"{x.at(index)},{y.at(value)}")
            continue
        if len(run) == 1:
            # One epoch alone has no line.
            at, height = run[0].split(",")
            yield _tag('<circle class="dot {}" cx="{}" cy="{}" r="2.5"/>', line.style, at, height)
        elif run:
            yield _tag('<polyline class="line {}" points="{}"/>', line.style, " ".join(run))
        run = []


def _last_values(series: Sequence[Series], bands: Sequence[Band], x: Axis, y: Axis, digits: int) -> Iterator[Markup]:
    """Write the first series' last value of each band above the line, where it does not run into the one before."""
    free_from = 0.0
    for band in bands:
        known = [
            (index, value)
            for index, value in enumerate(series[0].values[band.first - 1 : band.last], start=band.first)
            if value is not None
        ]
        if not known:
            continue
        index, value = known[-1]
        text = f"{value:.{digits}f}"
        at, height = x.at(index), y.at(value)
        if at - len(text) * TEXT_WIDTH < free_from:
            continue
        free_from = at + 4
        yield _tag('<circle class="dot {}" cx="{}" cy="{}" r="2.5"/>', series[0].style, at, height)
        yield _tag(
            '<text class="value {}" x="{}" y="{}" text-anchor="end">{}</text>', series[0].style, at, height - 6, text
        )


def _legend(series: Sequence[Series]) -> Iterator[Markup]:
    right = float(WIDTH - RIGHT)
    for line in reversed(series):
        yield _tag('<text class="legend" x="{:.0f}" y="13" text-anchor="end">{}</text>', right, line.label)
        right -= len(line.label) * TEXT_WIDTH + 6
        yield _tag('<line class="line {}" x1="{:.0f}" x2="{:.0f}" y1="9" y2="9"/>', line.style, right - 16, right)
        right -= 30


def _tag(template: str, *values: object) -> Markup:
    return Markup(template).format(*values)
