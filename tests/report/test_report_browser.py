"""The page in a browser: nothing reaches beyond the window, and axe-core finds nothing that shuts anybody out.

Needs chromium, and axe-core from npm: ``npm ci --prefix tests/browser``.
"""

from collections.abc import Iterator
from pathlib import Path

import example_reports
import pytest
from chromium import Browser, browser
from test_report_page import with_times

from hoyer_export.report.page import render_page

AXE = Path(__file__).parents[1] / "browser" / "node_modules" / "axe-core" / "axe.min.js"
A4 = 688
"""Pixels between the margins of a sheet."""
WIDTHS = (390, 768, 1280)
EVERYTHING_OPEN = "document.querySelectorAll('details').forEach(it => it.open = true)"
BEYOND = """[...document.querySelectorAll('body *')]
    .filter(it => it.getBoundingClientRect().right > innerWidth + 1 && !it.closest('.scroll, pre'))
    .map(it => it.outerHTML.slice(0, 120))"""
SERIOUS = """axe.run(document).then(found => found.violations
    .filter(it => ['serious', 'critical'].includes(it.impact))
    .map(it => `${it.id}: ${it.nodes[0].html.slice(0, 120)} ${it.nodes[0].failureSummary}`))"""


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as found:
        yield found


def page(name: str) -> str:
    report = with_times() if name == "with_times" else getattr(example_reports, name)()
    return render_page(report, example_reports.example_metrics(4, 3, 2))


@pytest.mark.parametrize(
    "name", ["with_times", "three_artifacts", "every_artifact", "many_groups", "hostile", "without_data"]
)
def test_nothing_reaches_beyond_the_window(tab: Browser, name: str) -> None:
    for width, media in (*((it, "screen") for it in WIDTHS), (A4, "print")):
        tab.show(page(name), width, media=media)
        tab.run(EVERYTHING_OPEN)
        assert tab.run(BEYOND) == []
        assert tab.run("document.documentElement.scrollWidth") == width
        if media == "print":  # nobody scrolls paper
            assert tab.run("[...document.querySelectorAll('.scroll')].every(it => it.scrollWidth <= it.clientWidth)")


def test_what_reaches_beyond_the_window_would_be_noticed(tab: Browser) -> None:
    tab.show("<p style='width: 500px'>wide", 390)
    assert len(tab.run(BEYOND)) == 1


@pytest.mark.parametrize("name", ["with_times", "every_artifact", "failed"])
def test_nothing_shuts_anybody_out(tab: Browser, name: str) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm ci --prefix tests/browser")
    for width, scheme in ((390, "dark"), (1280, "light")):
        tab.show(page(name), width, scheme)
        tab.run(AXE.read_text(encoding="utf-8") + ";0")
        tab.run(EVERYTHING_OPEN)
        assert tab.run(SERIOUS) == []


def test_what_shuts_somebody_out_would_be_noticed(tab: Browser) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm ci --prefix tests/browser")
    tab.show("<html lang=en><title>x</title><main><p style='color: #ccc'>pale", 390)
    tab.run(AXE.read_text(encoding="utf-8") + ";0")
    (found,) = tab.run(SERIOUS)
    assert found.startswith("color-contrast")


def test_colours_follow_the_scheme_and_paper_is_white(tab: Browser) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    found = []
    for scheme, media in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        tab.show(page("passed"), 768, scheme, media)
        found.append(tab.run(colour))
    assert found == ["rgb(255, 255, 255)", "rgb(20, 23, 27)", "rgb(255, 255, 255)"]


def test_every_figure_of_the_table_is_in_view_on_a_phone(tab: Browser) -> None:
    tab.show(page("three_artifacts"), 390)
    hidden = """[...document.querySelectorAll('#figures tbody td')].filter(it => it.textContent.trim())
        .filter(it => { const box = it.getBoundingClientRect(); return box.right > innerWidth || !box.width })"""
    assert tab.run(f"{hidden}.length") == 0
    assert tab.run("document.querySelectorAll('#figures tbody td').length") > 20


def test_the_keyboard_reaches_every_section_and_all_that_scrolls(tab: Browser) -> None:
    tab.show(page("with_times"), 390)
    tab.run(EVERYTHING_OPEN)
    broken = "[...document.querySelectorAll('nav a')].filter(it => !document.querySelector(it.getAttribute('href')))"
    assert tab.run(f"{broken}.length") == 0
    assert tab.run("document.querySelectorAll('nav a').length") == tab.run(
        "document.querySelectorAll('section').length"
    )
    scrolls = """[...document.querySelectorAll('.scroll, pre')].filter(it => it.scrollWidth > it.clientWidth)
        .filter(it => it.tabIndex !== 0).length"""
    assert tab.run(scrolls) == 0
