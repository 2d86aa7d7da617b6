"""The page of a sweep: what it says, in words and in a browser."""

import re
from collections.abc import Iterator

import pytest
from chromium import Browser, browser
from test_report_browser import AXE, BEYOND, EVERYTHING_OPEN, SERIOUS

from hoyer_export.report.sweep import SweepFile, SweepRecord, SweepRun
from hoyer_export.report.sweep_page import render_sweep

BUDGETS = (0.7, 0.5, 0.35)
SEEDS = (0, 1, 2)
WORSE = {"group-hs": 0.0, "function": 0.2, "magnitude": 0.7}


def file(name: str, accuracy: float, share: float, faster: float = 1.0) -> SweepFile:
    told = {"latency_ms": 0.08 * share / faster, "latency_share": share / faster}
    return SweepFile(name=name, accuracy=accuracy, macs=int(2.5e6 * share), macs_share=share, **told)


def finished(method: str, budget: float, seed: int) -> SweepRun:
    accuracy = 99.0 + 0.1 * seed - WORSE[method] - (0.8 - budget)
    return SweepRun(
        name=f"{method}-macs-{budget}-seed-{seed}",
        method=method,
        budget=budget,
        seed=seed,
        settings=(f"seed={seed}", f"cut.macs={budget}"),
        state="done",
        validation_accuracy=accuracy - 0.3,
        files=(
            file("dense", 99.0 + 0.1 * seed, 1.0),
            file("slim", accuracy, budget - 0.01),
            file("slim-int8", accuracy - 0.1, budget - 0.01, 1.6),
        ),
    )


def example(*more: SweepRun) -> SweepRecord:
    runs = [finished(method, budget, seed) for method in WORSE for budget in BUDGETS for seed in SEEDS]
    return SweepRecord(network="cifar_resnet20", data="digits", runs=(*runs, *more))


def unfinished() -> tuple[SweepRun, ...]:
    given = {"method": "<b>group-hs</b>, search", "budget": 0.2, "seed": 0, "settings": ("cut.macs=0.2",)}
    why = (
        "cut.macs = 0.01 cannot be reached: <script>x</script> at its narrowest keeps 0.0297 of its macs; ask for more"
    )
    return (
        SweepRun(name="trial-abcdef-0000", state="failed", error=why, **given),
        SweepRun(name="trial-abcdef-0001", state="running", at="sparse, epoch 3 of 13", **given),
        SweepRun(name="trial-abcdef-0002", state="waiting", **given),
    )


def test_every_finished_run_can_be_opened_from_its_points_and_its_row() -> None:
    page = render_sweep(example(*unfinished()))
    for run in example().runs:
        linked = page.count(f'href="runs/{run.name}/report.html"')
        points = 2 * 2 + (2 if run.name in {f"group-hs-macs-0.7-seed-{seed}" for seed in SEEDS} else 0)
        assert linked == points + 1  # two files, in two plots; the dense one of each seed stands there once
    assert "trial-abcdef" not in " ".join(re.findall('href="([^"]+)"', page))


def test_means_state_and_failure_are_in_words() -> None:
    page = render_sweep(example(*unfinished()))
    words = " ".join(re.sub("<[^>]+>", " ", page).split())
    assert "✓ 27 done ✗ 1 failed … 1 running 1 waiting" in words
    assert "group-hs, 50.0 % 3 98.50 ± 0.10 % 98.80 ± 0.10 % -0.30 ± 0.00 points 49.0 ± 0.0 %" in words
    assert "running: sparse, epoch 3 of 13" in words
    assert "&lt;script&gt;x&lt;/script&gt; at its narrowest" in page
    assert "<script" not in page
    assert "<b>" not in page


def test_what_nothing_was_measured_of_has_no_column() -> None:
    whole = render_sweep(example())
    files = (SweepFile(name="dense", accuracy=99.0, macs=10, macs_share=1.0),)
    files += (SweepFile(name="slim", accuracy=98.0, macs=5, macs_share=0.5),)
    page = render_sweep(
        SweepRecord(network="n", data="d", runs=(finished("group-hs", 0.5, 0).model_copy(update={"files": files}),))
    )
    assert all(f">{name}</th>" in whole for name in ("int8, test", "latency, p50"))
    assert not any(f">{name}</th>" in page for name in ("int8, test", "latency, p50"))
    assert page.count("<figure>") == 1


def test_latencies_of_a_busy_machine_are_not_passed_over() -> None:
    busy = finished("group-hs", 0.5, 0).model_copy(update={"noise": "waited for a processor 64% of the time"})
    told = "too busy to tell the latency of 1 of the runs: group-hs-macs-0.5-seed-0."
    assert told in render_sweep(SweepRecord(network="n", data="d", runs=(busy, finished("group-hs", 0.5, 1))))
    assert "the latency of any run." in render_sweep(SweepRecord(network="n", data="d", runs=(busy,)))
    assert "too busy" not in render_sweep(example())


def test_a_sweep_without_a_finished_run_says_so() -> None:
    page = render_sweep(SweepRecord(network="net", data=None, runs=unfinished()))
    assert "No run is done yet" in page
    assert "<figure>" not in page


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as found:
        yield found


def test_it_fits_every_window_and_shuts_nobody_out(tab: Browser) -> None:
    page = render_sweep(example(*unfinished()))
    for width, scheme in ((390, "dark"), (1280, "light"), (390, "light"), (1280, "dark")):
        tab.show(page, width, scheme)
        tab.run(EVERYTHING_OPEN)
        assert tab.run(BEYOND) == []
        assert tab.run("document.documentElement.scrollWidth") == width
        if AXE.exists():
            tab.run(AXE.read_text(encoding="utf-8") + ";0")
            assert tab.run(SERIOUS) == []


def test_the_keyboard_reaches_every_point(tab: Browser) -> None:
    tab.show(render_sweep(example()), 1280)
    assert tab.run("document.querySelectorAll('figure a[href][aria-label]').length") == 2 * (27 * 2 + 3)
    tab.run("document.querySelector('figure a').focus()")
    assert "runs/" in tab.run("document.activeElement.getAttribute('href')")
