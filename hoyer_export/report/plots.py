"""Small plots as inline SVG: lines over epochs, latency distributions on one axis, points that open pages.

Every plot says in words what it shows (``title``, ``desc``), takes its colours from the page's style sheet through
classes, and escapes every text that it is given.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from markupsafe import Markup

from hoyer_export.report.number_format import three_digits

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 30, 34
NAMES = 24
"""Pixels below the top of a plot that belong to the names of the phases: no line comes there."""
TEXT_WIDTH = 6.0
"""Pixels a character of the plots' 11.5-pixel text takes, about: decides which labels fit."""
FAR = 26
"""Pixels from its point beyond which a value stands better on the other side of it."""
NAME_WIDTH = 5.2
"""The same of a phase's name, which is smaller."""


Points = Sequence[tuple[float, float]]
"""Places in pixels, from left to right."""


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


SHAPES = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "square": "M-3.6-3.6h7.2v7.2h-7.2z",
    "diamond": "M0-5.2 5.2 0 0 5.2-5.2 0z",
    "triangle": "M0-5 4.7 3.4h-9.4z",
    "point": "M0 5 4.7-3.4h-9.4z",
}
"""Paths of the marks of a scatter plot, around the place that they stand for."""


@dataclass(frozen=True)
class Spot:
    """One point of a scatter plot, which opens a page.

    Args:
        x, y: where.
        words: what it is.
        style: CSS classes of its colour.
        shape: one of ``SHAPES``.
        href: the page.
    """

    x: float
    y: float
    words: str
    style: str
    shape: str
    href: str


def scatter_plot(
    *, name: str, title: str, unit: str, across: str, spots: Sequence[Spot], front: Sequence[tuple[float, float]]
) -> Markup:
    """Draw points that open pages, and a line of steps through the best of them; the horizontal axis begins at 0.

    Args:
        name: a word that is this plot's own on the page.
        title: what is shown.
        unit: of the vertical axis, which is in percent.
        across: what the horizontal axis counts.
        spots: at least one.
        front: places of the best, from left to right.

    Returns:
        an ``<svg>`` element.
    """
    y = replace(_value_axis([spot.y for spot in spots], 100.0, log=False), stop=TOP)  # no phases stand above it
    x = Axis(0, 1.05 * max(100.0, *(spot.x for spot in spots)), LEFT, WIDTH - RIGHT)
    parts: list[Markup] = []
    for tick in y.ticks():
        at = y.at(tick)
        parts += [_line("grid", x.start, x.stop, at, at), _text("tick", x.start - 6, at + 4, f"{tick:g}", "end")]
    parts += [*_x_axis(x, x.ticks(6), across, HEIGHT), _text("unit", 4, 13, unit)]
    places = [(x.at(a), y.at(b)) for a, b in front]
    corners = [corner for (_, up), (b, down) in pairwise(places) for corner in ((b, up), (b, down))]
    parts.append(_tag("polyline", class_="front", points=" ".join(f"{a},{b}" for a, b in [*places[:1], *corners])))
    for spot in spots:
        mark = _tag("path", class_=f"spot {spot.style}", d=SHAPES[spot.shape])
        moved = f"translate({x.at(spot.x)} {y.at(spot.y)})"
        inside = _tag("title", spot.words) + _tag("circle", class_="aim", r=9) + mark
        parts.append(_tag("a", inside, href=spot.href, aria_label=spot.words, transform=moved))
    described = f"{len(spots)} points, {len(front)} of them on the front."
    return _svg(name, title, described, HEIGHT, parts, role="group")


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
    across: str = "epoch",
) -> Markup:
    """Draw lines over epochs; the last value of each line in each band is written beside it.

    How the first epochs climbed is left out where all else would be a line along the top; from where they came is said.

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
        across: what the horizontal axis counts.

    Returns:
        an ``<svg>`` element.
    """
    values = [value for line in series for value in line.values if value is not None]
    floor = None if log else _focused(series)
    y = _value_axis([*values, *(rule or ())[:1]], ceiling, log, floor)
    x = Axis(0.5, max(band.last for band in bands) + 0.5, LEFT, WIDTH - RIGHT)
    parts: list[Markup] = []
    for tick in y.ticks():
        at = y.at(tick)
        parts += [_line("grid", x.start, x.stop, at, at), _text("tick", x.start - 6, at + 4, f"{tick:g}", "end")]
    parts += _x_axis(x, [tick for tick in x.ticks(6) if tick == int(tick) and tick >= 1], across, HEIGHT)
    parts += [part for band in bands for part in _band(band, x)]
    parts += [part for line in series for part in _curve(line, x, y)]
    drawn = [points for line in series for _, points in _runs(line, x, y)]
    if floor is not None:
        climbed = next(i for i, value in enumerate(series[0].values) if value is not None and value > floor)
        parts.append(_text("below", x.at(climbed + 1) + 8, y.start - 5, f"from {min(values):.{digits}f}"))
    if rule is not None:
        at = y.at(rule[0])
        above = _beside((x.start, x.start + len(rule[1]) * TEXT_WIDTH), at, drawn)
        parts += [_line("rule", x.start, x.stop, at, at), _text("rule-label", x.start + 4, above, rule[1])]
        drawn.append([(x.start, at), (x.stop, at)])
    parts += [*_last_values(series[0], bands, (x, y), drawn, digits), _text("unit", 4, 13, unit), *_legend(series)]
    return _svg(name, title, _describe(series, bands, unit, digits, across), HEIGHT, parts)


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
    x = Axis(0, 1.12 * max(p99 for *_, p99 in rows), 12, WIDTH - RIGHT)
    row_height, top = 78, 8
    height = top + row_height * len(rows) + BOTTOM
    words: list[str] = []
    parts: list[Markup] = []
    for index, (label, style, samples, p50, p90, p99) in enumerate(rows):
        words.append(f"{label}: median {three_digits(p50)} ms, 99 % below {three_digits(p99)} ms")
        base = top + row_height * (index + 1) - 6
        parts += _histogram(samples, x, base, row_height - 30, bins, style)
        parts.append(_line("axis", x.start, x.stop, base, base))
        for mark, value, length in (("p50", p50, row_height - 26), ("p90", p90, 14), ("p99", p99, 14)):
            parts.append(_line(f"mark {style} {mark}", x.at(value), x.at(value), base, base - length))
        anchor, shift = ("end", -8) if x.at(p50) > WIDTH / 2 else ("start", 8)
        text = f"{label}  p50 {three_digits(p50)} ms"
        parts.append(_text(f"value {style}", x.at(p50) + shift, base - row_height + 32, text, anchor))
        if beyond := sum(sample > x.high for sample in samples):
            text = f"{max(100 * beyond / len(samples), 1):.0f} % slower →"
            parts.append(_text("beyond", x.stop, base - 20, text, "end"))
    parts += _x_axis(x, x.ticks(6), "ms a run", height)
    return _svg(name, title, "; ".join(words) + ".", height, parts)


def _histogram(
    samples: Sequence[float], x: Axis, base: float, height: float, bins: int, style: str
) -> Iterator[Markup]:
    counts = Counter(min(int(sample / x.high * bins), bins - 1) for sample in samples if sample <= x.high)
    step = (x.stop - x.start) / bins
    for index, found in sorted(counts.items()):
        tall = height * found / max(counts.values())
        yield _tag("rect", class_=style, x=x.start + index * step, y=base - tall, width=step, height=tall)


def _focused(series: Sequence[Series]) -> float | None:
    """Return where the axis begins if the climb of the first third takes more room than all that follows."""
    values = [value for line in series for value in line.values if value is not None]
    later = [value for line in series for value in line.values[len(line.values) // 3 :] if value is not None]
    high, low = max(values), min(later, default=0.0)
    floor = low - 0.1 * (high - low)
    return floor if later and floor - min(values) > high - floor > 0 else None


def _value_axis(values: Sequence[float], ceiling: float | None, log: bool, floor: float | None = None) -> Axis:
    low, high = min(values) if floor is None else floor, max(values)
    if log:
        return Axis(low / 1.15, high * 1.3, HEIGHT - BOTTOM, TOP + NAMES, log=True)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    floor = max(low - room, 0.0) if low >= 0 else low - room
    top = high + room
    if ceiling is not None and high <= ceiling:
        top = min(top, ceiling + 0.08 * (ceiling - floor))  # room, but no tick of a percentage beyond 100
    return Axis(floor, top, HEIGHT - BOTTOM, TOP + NAMES)


def _describe(series: Sequence[Series], bands: Sequence[Band], unit: str, digits: int, across: str) -> str:
    phases = ", ".join(f"{band.label} {across}s {band.first} to {band.last}".strip() for band in bands)
    known = [(line.label, [value for value in line.values if value is not None]) for line in series]
    found = [f"{label} from {v[0]:.{digits}f} to {v[-1]:.{digits}f}" for label, v in known if v]
    return f"{unit} over {phases}: {'; '.join(found)}."


def _x_axis(x: Axis, ticks: Sequence[float], label: str, height: float) -> Iterator[Markup]:
    base = height - BOTTOM
    yield _line("axis", x.start, x.stop, base, base)
    for tick in ticks:
        at = x.at(tick)
        yield _line("axis", at, at, base, base + 4)
        yield _text("tick", at, base + 16, f"{tick:g}", "middle")
    yield _text("unit", x.stop, base + 30, label, "end")


def _band(band: Band, x: Axis) -> Iterator[Markup]:
    start, stop = x.at(band.first - 0.5), x.at(band.last + 0.5)
    if band.first > 1:
        yield _line("band", start, start, TOP + NAMES - 8, HEIGHT - BOTTOM)
    if band.label:
        yield _tag("rect", class_="phase", x=start + 1, y=TOP - 6.0, width=max(stop - start - 2, 1.0), height=15, rx=2)
    if stop - start >= len(band.label) * NAME_WIDTH - 6:  # it may reach a little into its neighbours, who are long
        yield _text("band-label", (start + stop) / 2, TOP + 5, band.label, "middle")


def _curve(line: Series, x: Axis, y: Axis) -> Iterator[Markup]:
    for style, places in _runs(line, x, y):
        if len(places) == 1:  # one epoch alone has no line
            yield _dot(style, *places[0])
        else:
            yield _tag("polyline", class_=f"line {style}", points=" ".join(f"{a},{b}" for a, b in places))


def _runs(line: Series, x: Axis, y: Axis) -> Iterator[tuple[str, Points]]:
    """Yield the style and the pixels of every stretch of a line without a gap."""
    for is_gap, run in groupby(enumerate(line.values, start=1), lambda it: it[1] is None):
        if not is_gap:
            yield line.style, [(x.at(epoch), y.at(value)) for epoch, value in run if value is not None]


def _beside(span: tuple[float, float], height: float, drawn: Sequence[Points]) -> float:
    """Return where a text stands that no line runs through, as near to ``height`` as that goes: above or below."""
    heights = [height]
    for points in drawn:
        for (x0, y0), (x1, y1) in pairwise(points):
            if x1 >= span[0] and x0 <= span[1]:
                inside = [min(max(end, x0), x1) for end in span]
                heights += [y0 + (at - x0) / ((x1 - x0) or 1) * (y1 - y0) for at in inside]
                heights += [y for x, y in ((x0, y0), (x1, y1)) if span[0] <= x <= span[1]]
    above, below = min(heights) - 5, max(heights) + 13
    if above - 9 < TOP + NAMES - 8 or (below - height < height - above + 9 and below < HEIGHT - BOTTOM - 2):
        return min(below, HEIGHT - BOTTOM - 3)
    return above


def _last_values(
    line: Series, bands: Sequence[Band], axes: tuple[Axis, Axis], drawn: Sequence[Points], digits: int
) -> Iterator[Markup]:
    """Write a line's last value of each band beside it, where it does not run into the one before."""
    x, y = axes
    free_from = 0.0
    for band in bands:
        for epoch in range(min(band.last, len(line.values)), band.first - 1, -1):
            if (value := line.values[epoch - 1]) is not None:
                text, at, height = f"{value:.{digits}f}", x.at(epoch), y.at(value)
                if at - len(text) * TEXT_WIDTH >= free_from:
                    free_from = at + 4
                    yield _dot(line.style, at, height)
                    width = len(text) * TEXT_WIDTH
                    beside, anchor, shift = _beside((at - width, at), height, drawn), "end", 0
                    if abs(beside - height) > FAR and at + width + 6 < x.stop:
                        beside, anchor, shift = _beside((at + 4, at + 6 + width), height, drawn), "start", 6
                    yield _text(f"value {line.style}", at + shift, beside, text, anchor)
                break


def _legend(series: Sequence[Series]) -> Iterator[Markup]:
    right = float(WIDTH - RIGHT)
    for line in reversed(series):
        yield _text("legend", right, 13, line.label, "end")
        right -= len(line.label) * TEXT_WIDTH + 6
        yield _line(f"line {line.style}", right - 16, right, 9, 9)
        right -= 30


def _svg(name: str, title: str, description: str, height: float, parts: Sequence[Markup], role: str = "img") -> Markup:
    words = _tag("title", title, id=f"{name}-title") + _tag("desc", description, id=f"{name}-desc")
    size, labelled = f"0 0 {WIDTH} {height}", f"{name}-title {name}-desc"
    inside = words + Markup("").join(parts)
    return _tag("svg", inside, class_="plot", viewBox=size, role=role, aria_labelledby=labelled)


def _line(style: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    return _tag("line", class_=style, x1=x1, x2=x2, y1=y1, y2=y2)


def _text(style: str, x: float, y: float, words: str, anchor: str | None = None) -> Markup:
    return _tag("text", words, class_=style, x=x, y=y, **({"text_anchor": anchor} if anchor else {}))


def _dot(style: str, x: float, y: float) -> Markup:
    return _tag("circle", class_=f"dot {style}", cx=x, cy=y, r=2.5)


def _tag(name: str, content: str = "", **attributes: str | float) -> Markup:
    """Return an element; names of attributes have ``_`` for ``-``, numbers a tenth of a pixel."""
    given = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), round(value, 1) if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, given, content)
