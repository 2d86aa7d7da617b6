"""Plots stay inside their frame, say what they show, and have round ticks."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from hoyer_export.report.plots import (
    HEIGHT,
    WIDTH,
    Axis,
    Band,
    Series,
    distributions_plot,
    line_plot,
    log_ticks,
    nice_ticks,
)


def lines(*values: float | None, log: bool = False, **styles: tuple[float | None, ...]) -> Markup:
    series = [Series("main", "slim", values), *(Series(name, "dense", line) for name, line in styles.items())]
    band = [Band("dense", 1, len(values))]
    return line_plot(name="x", title="Title", unit="unit, %", series=series, bands=band, log=log)


def points(svg: Markup, style: str) -> list[list[tuple[float, float]]]:
    found = re.findall(rf'<polyline class="line {style}" points="([^"]*)"', svg)
    pairs = [[pair.split(",") for pair in line.split()] for line in found]
    return [[(float(x), float(y)) for x, y in line] for line in pairs]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, (0, 2, 4, 6, 8, 10)),
        (0.12, 0.88, (0.2, 0.4, 0.6, 0.8)),
        (31, 104, (40, 60, 80, 100)),
        (0.5, 75.5, (20, 40, 60)),
        (-3, 3, (-2, 0, 2)),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: tuple[float, ...]) -> None:
    assert nice_ticks(low, high) == expected


def test_ticks_of_a_logarithmic_axis_are_powers_with_two_and_five_where_there_is_room() -> None:
    assert log_ticks(0.015, 1.2) == (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    assert log_ticks(1e-4, 10) == (1e-4, 1e-3, 1e-2, 0.1, 1, 10)


def test_an_axis_maps_its_ends_and_middle() -> None:
    assert [Axis(0, 10, 100, 0).at(v) for v in (0, 5, 10, 99)] == [100, 50, 0, 0]
    assert [Axis(0.01, 1, 0, 100, log=True).at(v) for v in (0.01, 0.1, 1)] == [0, 50, 100]


@pytest.mark.parametrize("values", [(1.0,), (5.0, 5.0), (0.0, 0.0), (1e-9, 1e9), (100.0, 99.9, 3.0), (-2.0, -1.0)])
def test_everything_drawn_lies_in_the_frame(values: tuple[float, ...]) -> None:
    svg = lines(*values)
    ElementTree.fromstring(svg)
    horizontal = [float(v) for v in re.findall(r'\b(?:x|x1|x2|cx)="([-\d.]+)"', svg)]
    vertical = [float(v) for v in re.findall(r'\b(?:y|y1|y2|cy)="([-\d.]+)"', svg)]
    assert min(horizontal) >= 0
    assert max(horizontal) <= WIDTH
    assert min(vertical) >= 0
    assert max(vertical) <= HEIGHT
    for line in points(svg, "slim"):
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)


@pytest.mark.parametrize("values", [(99.9, 99.9), (40.0, 99.9), (100.0, 100.0), (3.0, 100.0), (0.31, 0.3)])
def test_no_value_is_written_over_the_name_of_a_phase(values: tuple[float, ...]) -> None:
    bands = [Band("dense", 1, 1), Band("Group-HS", 2, 2)]
    svg = line_plot(name="x", title="T", unit="%", series=[Series("a", "slim", values)], bands=bands, ceiling=100.0)
    (names,) = set(re.findall(r'<text class="band-label" x="[\d.]+" y="([\d.]+)"', svg))
    written = [float(y) for y in re.findall(r'<text class="value slim" x="[\d.]+" y="([\d.]+)"', svg)]
    assert len(written) == 2
    # 11.5-pixel digits stand on their y and are about 9 pixels tall; the names' letters reach 3 below theirs.
    assert min(written) - 9 >= float(names) + 3


def test_no_percentage_beyond_a_hundred_is_on_the_axis() -> None:
    for values in [(100.0,), (99.0, 100.0), (0.0, 100.0)]:
        svg = line_plot(
            name="x", title="T", unit="%", series=[Series("a", "slim", values)], bands=[Band("b", 1, 2)], ceiling=100.0
        )
        assert (
            max(float(tick) for tick in re.findall(r'class="tick" x="34" y="[\d.]+" text-anchor="end">([\d.]+)<', svg))
            == 100
        )


def test_higher_values_are_drawn_higher_and_later_ones_further_right() -> None:
    ((first, second, third),) = points(lines(1.0, 3.0, 2.0), "slim")
    assert first[0] < second[0] < third[0]
    assert second[1] < third[1] < first[1]


def test_a_gap_in_the_values_is_a_gap_in_the_line_and_a_lone_value_is_a_dot() -> None:
    svg = lines(1.0, 2.0, None, 3.0, None, 2.0, 1.0)
    assert [len(line) for line in points(svg, "slim")] == [2, 2]
    # One dot for the lone value, one for the last value of the band.
    assert svg.count("<circle") == 2


def test_the_last_value_of_each_phase_is_written() -> None:
    series = [Series("validation", "slim", (50.0, 91.25, 60.0, 88.5))]
    bands = [Band("dense", 1, 2), Band("sparse", 3, 4)]
    svg = line_plot(name="x", title="t", unit="%", series=series, bands=bands, digits=1)
    assert ">91.2</text>" in svg
    assert ">88.5</text>" in svg


def test_a_plot_says_what_it_shows_for_those_who_cannot_see_it() -> None:
    root = ElementTree.fromstring(lines(1.0, 2.5, other=(3.0, 4.0)))
    assert root.attrib["aria-labelledby"] == "x-title x-desc"
    assert root.attrib["role"] == "img"
    assert [root[0].text, root[1].text] == [
        "Title",
        "unit, % over dense epochs 1 to 2: main from 1.00 to 2.50; other from 3.00 to 4.00.",
    ]


def test_text_in_a_plot_is_escaped() -> None:
    svg = line_plot(
        name="x",
        title="<b>",
        unit="</svg>",
        series=[Series("<script>", "slim", (1.0, 2.0))],
        bands=[Band("<i>", 1, 2)],
    )
    ElementTree.fromstring(svg)
    assert not re.search(r"<(b|i|script)>", svg)


def test_distributions_share_an_axis_from_zero_and_mark_their_quantiles() -> None:
    dense, slim = [4.0 + index / 1000 for index in range(100)], [2.0 + index / 1000 for index in range(100)]
    rows = [("dense", "dense", dense, 4.05, 4.09, 4.1), ("slim", "slim", slim, 2.05, 2.09, 2.1)]
    svg = distributions_plot(name="x", title="t", rows=rows)
    ElementTree.fromstring(svg)
    mark = {style: float(at) for style, at in re.findall(r'<line class="mark (\w+) p50" x1="([\d.]+)"', svg)}
    # From 0 at pixel 12: the distances of the two medians have the ratio of the medians.
    assert (mark["dense"] - 12) / (mark["slim"] - 12) == pytest.approx(4.05 / 2.05, rel=0.01)
    assert "dense p50 4.05 ms" in re.sub(r"\s+", " ", svg)
    assert "slower →" not in svg


def test_runs_far_beyond_the_axis_are_counted_in_words() -> None:
    samples = [1.0] * 97 + [50.0] * 3
    svg = distributions_plot(name="x", title="t", rows=[("slim", "slim", samples, 1.0, 1.1, 2.0)])
    assert ">3 % slower →</text>" in svg


@pytest.mark.parametrize(
    ("values", "focused"),
    [
        ((20.0, 60.0, 90.0, 96.0, 97.0, 95.0, 98.0, 98.0, 98.0), True),
        ((20.0, 60.0, 90.0, 96.0, 97.0, 30.0, 98.0, 98.0, 98.0), False),  # what fell later is shown
        ((100.0, 100.0, 100.0, 100.0, 100.0, 70.0, 50.0, 40.0, 35.0), False),
        ((50.0, 60.0, 70.0, 80.0, 85.0, 88.0), False),
    ],
)
def test_an_axis_leaves_out_the_first_climb_alone(values: tuple[float, ...], focused: bool) -> None:
    svg = lines(*values)
    ticks = [float(it) for it in re.findall(r'class="tick"[^>]*text-anchor="end">([\d.]+)<', svg)]
    assert (min(ticks) >= 85) == focused
    assert (">from 20.00<" in svg) == focused


@pytest.mark.parametrize("values", [(1.0, 3.0, 5.0, 7.0, 9.0), (9.0, 5.0, 2.0, 1.0), (1.0, 9.0, 1.0, 9.0)])
def test_no_line_runs_through_a_written_value(values: tuple[float, ...]) -> None:
    svg = lines(*values)
    ((*_, last),) = points(svg, "slim")
    (at,) = [float(y) for y in re.findall(r'<text class="value slim" x="[\d.]+" y="([\d.]+)"', svg)]
    width = 6.0 * 4
    for (x0, y0), (x1, y1) in pairwise(points(svg, "slim")[0]):
        for part in range(11):
            x, y = x0 + part / 10 * (x1 - x0), y0 + part / 10 * (y1 - y0)
            assert not (last[0] - width <= x <= last[0] and at - 8 < y < at + 1)
