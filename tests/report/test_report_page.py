"""report.html is one well-formed page that loads nothing, shows every number and escapes every string."""

import json
import math
import re
from html.parser import HTMLParser

import example_reports
import pytest

from hoyer_export.report import number_format as written
from hoyer_export.report.making import making
from hoyer_export.report.network_picture import network_picture
from hoyer_export.report.page import margin, render_page, width_rows
from hoyer_export.report.report import Report
from hoyer_export.report.stage_records import GroupWidth
from hoyer_export.report.summary import Step, cautions
from hoyer_export.report.tiles import tiles
from hoyer_export.report.time_by_layer import LayerTime, in_view, time_by_layer
from hoyer_export.sparsify.phase import EpochRecord

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}
MAY_LOAD = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "background", "formaction", "ping"}


class Page(HTMLParser):
    """Reads a page, and complains about what a browser would silently mend."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.complaints: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        self.complaints += [f"<{tag}> is never closed" for tag in self.open]
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.complaints.append(f"<{tag}> has an attribute twice: {names}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.complaints.append(f"</{tag}> closes what is not open")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def page_of(name: str) -> Page:
    report: Report = getattr(example_reports, name)()
    return Page(render_page(report, example_reports.example_metrics()))


def external(page: Page) -> list[str]:
    """Return everything in ``page`` that a browser would fetch or run."""
    found = [
        tag for tag, _ in page.tags if tag in {"script", "iframe", "object", "embed", "link", "base", "img", "form"}
    ]
    for tag, attributes in page.tags:
        loads = {name: value for name, value in attributes.items() if name in MAY_LOAD}
        found += [f"{tag} {name}={value}" for name, value in loads.items() if not (value or "").startswith("#")]
        found += [f"{tag} {name}" for name in attributes if name.startswith("on")]
        found += [f"{tag} {name}={value}" for name, value in attributes.items() if "url(" in (value or "")]
    return found


@pytest.mark.parametrize("name", example_reports.EXAMPLES)
def test_the_page_is_well_formed(name: str) -> None:
    page = page_of(name)
    assert page.complaints == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = [part for _, a in page.tags for part in (a.get("aria-labelledby") or "").split()]
    assert set(labels) <= set(ids)


@pytest.mark.parametrize("broken", ["<p><b></p>", "<p>", "</p>", '<p class="a" class="b"></p>'])
def test_a_page_that_is_not_well_formed_would_be_noticed(broken: str) -> None:
    assert Page(broken).complaints


@pytest.mark.parametrize("name", example_reports.EXAMPLES)
def test_the_page_loads_and_runs_nothing(name: str) -> None:
    html = render_page(getattr(example_reports, name)(), example_reports.example_metrics())
    assert external(Page(html)) == []
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    assert re.findall(r"url\(([^)]*)\)|@import|https?:", style[1]) == ["#hatch"]
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "added",
    [
        "<script></script>",
        '<img src="a.png">',
        "<p onclick=x></p>",
        '<a href="https://x"></a>',
        "<p style='a:url(b)'></p>",
    ],
)
def test_a_page_that_loads_something_would_be_noticed(added: str) -> None:
    assert external(Page(added))


def test_every_string_of_a_recipe_or_a_file_is_shown_as_text() -> None:
    html = render_page(example_reports.hostile(), example_reports.example_metrics())
    page = Page(html)
    hostile = re.sub(r"\s+", " ", example_reports.HOSTILE)
    assert "<script>" not in html
    assert html.count("</style>") == 1
    # title, h1, eyebrow, CPU, flag, two of versions, os, group, noise, check and value, dtype, validation, recipe, ...
    assert page.text.count(hostile) >= 20


def numbers_of(report: Report) -> list[str]:
    """Return every number of a report as the page should write it."""
    found = [written.small(report.cut.max_rel_error), written.small(report.cut.tolerance)]
    for artifact in report.artifacts:
        file, verified, latency = artifact.file, artifact.verified, artifact.latency
        found += [written.exact(value) for value in (file.params, file.macs, file.flops, file.size_bytes)]
        found += [written.percent(a) for a in (verified.accuracy, verified.onnx_accuracy) if a is not None]
        for check in verified.checks:
            assert isinstance(check.value, float)
            found += [written.small(check.value), written.small(check.tolerance)]
        for row in verified.onnx:
            found += [written.small(row.max_abs_error), written.small(row.tolerance)]
        if latency is not None:
            found += [written.milliseconds(getattr(latency, key)) for key in ("p50", "p90", "p99", "min", "cpu_p50")]
            found.append(written.exact(latency.n))
            if latency.speedup is not None:
                found.append(f"{latency.speedup.median:.2f}×")
                found += ["{:.2f}–{:.2f}".format(*latency.speedup.ci95)] if latency.speedup.ci95 is not None else []
            if latency.blocked_convs is not None:
                found.append(f"{latency.blocked_convs.blocked} of {latency.blocked_convs.total}")
    if report.verify.sparse_accuracy is not None:
        found.append(written.percent(report.verify.sparse_accuracy))
    told = making(report).norms_tell
    if report.effective_macs is not None and told:
        found.append(written.share(report.effective_macs))
    for width in report.cut.widths:
        found += [str(width.dense), *([str(width.alive)] if told else []), str(width.slim)]
    found += [written.duration(seconds) for seconds in report.seconds.values() if seconds != 0]
    return [*found, *report.environment.versions.values()]


@pytest.mark.parametrize("name", [name for name in example_reports.EXAMPLES if name != "hostile"])
def test_the_page_shows_every_number_of_the_report(name: str) -> None:
    report: Report = getattr(example_reports, name)()
    text = page_of(name).text
    absent = [
        number for number in numbers_of(report) if not re.search(rf"(?<![\w.,]){re.escape(number)}(?![\w,])", text)
    ]
    assert absent == []


def row(html: str, head: str) -> list[str]:
    """Return the cells of the one table row with that head."""
    cells, *_ = re.findall(rf'<tr[^>]*><th scope="row"[^>]*>{re.escape(head)}</th>(.*?)</tr>', html, re.DOTALL)
    return [re.sub("<[^>]*>", "", cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", cells, re.DOTALL)]


def test_figures_stand_in_their_rows_and_columns() -> None:
    report = example_reports.passed()
    html = render_page(report, ())
    assert row(html, "Test accuracy, torch") == ["91.73 %", "91.30 %", "-0.43 points", "88.61 %"]
    assert row(html, "MACs") == ["40,551,808", "20,133,632", "49.6 %", "46.3 % effective"]
    assert row(html, "Parameters") == ["272,474", "161,290", "59.2 %", ""]
    dense, slim = report.bench.artifacts
    quantiles = {"p50": (dense.p50, slim.p50), "p90": (dense.p90, slim.p90), "p99": (dense.p99, slim.p99)}
    for head, (before, after) in quantiles.items():
        assert row(html, head) == [f"{before:.2f} ms", f"{after:.2f} ms", f"{before / after:.2f}×"]
    assert row(html, "fastest") == [f"{dense.min:.2f} ms", f"{slim.min:.2f} ms", f"{dense.min / slim.min:.2f}×"]
    assert row(html, "blocked convolutions") == ["21 of 21", "20 of 21", ""]


def test_every_artifact_has_its_column() -> None:
    html = render_page(example_reports.three_artifacts(), ())
    assert row(html, "File, bytes") == ["1,104,218", "659,884", "201,118", "59.8 %", ""]
    assert row(html, "Speed-up (95 % interval)") == ["", "2.21× (2.19–2.24)", "2.90× (2.87–2.94)", "", ""]
    files = re.findall(r'<li><code class="name">(.*?)</li>', html, re.DOTALL)
    assert [re.sub(r"<[^>]*>|\s+", " ", it).split()[0] for it in files] == ["dense.onnx", "slim.onnx", "slim-int8.onnx"]
    assert ["✗ departs from its network" in it for it in files] == [False, False, True]
    assert row(html, "blocked convolutions") == ["21 of 21", "20 of 21", "0 of 21", ""]
    assert html.count("<h3>slim-int8.onnx, ") == 3


def test_a_cut_without_data_has_a_page_without_accuracy() -> None:
    page = Page(render_page(example_reports.without_data(), ()))
    assert tiles(example_reports.without_data())[0].name == "MACs"
    assert "no data" not in page.text
    assert "accuracy" not in page.text.lower()
    assert "picture.png" not in page.text
    assert "Nothing was trained in this run." in page.text


def test_a_network_without_macs_has_no_share_of_them_on_the_page() -> None:
    report = example_reports.without_macs()
    html = render_page(report, ())
    assert row(html, "MACs") == ["0", "0", "–", "46.3 % effective"]
    assert tiles(report)[1].change == ""
    assert "0.0 %" not in Page(html).text


def test_the_page_shows_every_number_of_every_epoch() -> None:
    metrics = example_reports.example_metrics(4, 3, 2)
    text = Page(render_page(example_reports.passed(), metrics)).text
    for epoch in metrics:
        assert f" {epoch.loss:.4g} " in text
        assert f" {epoch.validation_accuracy:.2f} " in text
        if epoch.effective_macs is not None:
            assert f" {100 * epoch.effective_macs:.1f} " in text


def test_a_run_that_went_well_warns_of_nothing() -> None:
    text = page_of("passed").text
    assert "✓ verified, 77 of 77 steps" in text
    assert "✓ budget met" in text
    assert "✓ quiet machine" in text
    assert "✗" not in text


def test_what_went_wrong_stands_at_the_top() -> None:
    top = page_of("failed").text.partition("Figures")[0]
    assert "✗ verification failed, 3 of 77 steps" in top
    assert (
        "Verification failed: 3 of 77 steps did not pass, do not ship this file; slim.onnx, top-1 (17, tolerance 0)"
        in top
    )
    assert "Budget missed: at most 45.0 % of the dense MACs asked, 49.6 % reached" in top
    assert page_of("failed").text.count("✗ failed") == 3


def test_a_noisy_machine_is_named_beside_the_speed() -> None:
    top = page_of("noisy").text.partition("Figures")[0]
    assert "! noisy machine" in top
    assert "Noisy machine: too noisy to say: times spread by 41% of their median" in top
    assert "1.08× as fast, unclear" in top


def test_what_was_not_measured_is_said() -> None:
    page = Page(render_page(example_reports.unmeasured(), ()))
    assert "latency not measured" in page.text
    assert "No curves: there is no metrics.jsonl" in page.text
    assert "Validation images: seen in training" in page.text
    assert "Latency, median" not in page.text


def test_a_tile_draws_both_figures_to_one_scale() -> None:
    macs = tiles(example_reports.passed())[1]
    assert (macs.name, macs.slim, macs.dense, macs.change) == ("MACs", "20.1 M", "40.6 M", "49.6 % of dense")
    assert macs.dense_length == 100
    assert macs.slim_length == pytest.approx(100 * 20133632 / 40551808, abs=0.05)


def test_a_width_bar_tells_kept_filled_and_dropped_channels_apart() -> None:
    widths = [
        {"group": "filled", "dense": 64, "alive": 20, "slim": 32},
        {"group": "dropped", "dense": 64, "alive": 48, "slim": 16},
        {"group": "wide", "dense": 2048, "alive": 2048, "slim": 2048},
    ]
    filled, dropped, wide = width_rows(example_reports.changed({"cut.align": 16, "cut.widths": widths}))
    assert (filled.kept, filled.filled, filled.dropped) == (31.25, 18.75, 0)
    assert (dropped.kept, dropped.filled, dropped.dropped) == (25, 0, 50)
    assert filled.ticks == (25, 50, 75)
    assert wide.ticks == ()


def step(ratio: float | None) -> Step:
    return Step("file", "x", "", "", ratio, True)


def test_a_margin_bar_is_logarithmic_and_ends_at_the_tolerance() -> None:
    assert margin(step(1.0)) == pytest.approx(100 * 8 / 9, abs=0.05)
    assert margin(step(1e-4)) == pytest.approx(100 * 4 / 9, abs=0.05)
    assert margin(step(0.0)) == 0
    assert margin(step(None)) is None
    assert margin(step(1e9)) == 100
    assert margin(step(1e-30)) == pytest.approx(100 * 0.1 / 9, abs=0.05)


@pytest.mark.parametrize("accuracy", [None, 50.0])
def test_a_single_epoch_has_a_page(accuracy: float | None) -> None:
    epoch = EpochRecord(phase="finetune", epoch=0, loss=0.0, train_accuracy=accuracy)
    page = Page(render_page(example_reports.passed(), [epoch]))
    assert page.complaints == []
    assert ("Accuracy over epochs" in page.text) == (accuracy is not None)


def test_a_long_run_of_a_deep_network_stays_below_a_quarter_of_a_megabyte() -> None:
    html = render_page(example_reports.many_groups(), example_reports.example_metrics(80, 80, 40))
    assert len(html) < 250_000
    assert Page(html).complaints == []


def test_a_loss_over_many_decades_is_drawn_on_a_logarithmic_axis() -> None:
    metrics = [EpochRecord(phase="dense", epoch=i, loss=math.exp(-i)) for i in range(8)]
    assert "loss, log scale" in render_page(example_reports.passed(), metrics)
    assert "loss, log scale" not in render_page(example_reports.passed(), metrics[:3])


@pytest.mark.parametrize(
    ("changes", "figure", "kind"),
    [
        ({}, "Accuracy", "care"),
        ({}, "MACs", "saving"),
        ({"verify.artifacts.1.accuracy": 91.73}, "Accuracy", "same"),
        ({"verify.artifacts.1.accuracy": 92.0}, "Accuracy", "saving"),
        ({"verify.artifacts.1.accuracy": 90.0}, "Accuracy", "loss"),
        ({"inputs.metric": "MAE", "inputs.higher_is_better": False}, "MAE", "saving"),
        ({"bench.artifacts.1.speedup": {"median": 0.9, "ci95": [0.88, 0.92]}}, "Latency, median", "loss"),
        ({"bench.artifacts.1.speedup": {"median": 1.2, "ci95": [0.9, 1.5]}}, "Latency, median", "care"),
        ({"export.artifacts.1.size_bytes": 2104218}, "ONNX file", "loss"),
    ],
)
def test_a_loss_is_told_from_a_saving(changes: dict[str, object], figure: str, kind: str) -> None:
    report = example_reports.changed(changes)
    assert {tile.name: tile.kind for tile in tiles(report)}[figure] == kind
    assert f'<p class="change {kind}">' in render_page(report, ())


@pytest.mark.parametrize(
    ("dense", "slim", "words", "severe"),
    [
        (91.73, 91.3, "✓ accuracy -0.43 points", None),
        (91.73, 89.0, "! accuracy -2.73 points", False),
        (91.73, 19.6, "✗ accuracy -72.13 points", True),
        (20.3, 19.6, "! 19.60 % accuracy", False),
    ],
)
def test_a_bad_accuracy_is_said_beside_the_green_ticks(dense: float, slim: float, words: str, severe: bool) -> None:
    report = example_reports.changed({"verify.artifacts.0.accuracy": dense, "verify.artifacts.1.accuracy": slim})
    top = Page(render_page(report, ())).text.partition("Figures")[0]
    assert words in top
    found = [it for it in cautions(report) if it.title in ("Accuracy lost", "More answers wrong than right")]
    assert [it.severe for it in found] == ([] if severe is None else [severe])


def test_the_network_is_drawn_group_by_group_to_one_scale() -> None:
    picture = network_picture(example_reports.example_widths())
    assert [(it.name, len(it.columns)) for it in picture.stages[:4]] == [
        ("conv1", 1), ("layer1", 3), ("layer2", 3), ("layer3", 3),
    ]  # fmt: skip
    columns = [column for stage in picture.stages for column in stage.columns]
    heights = [it.dense / picture.height for it in columns]
    assert heights == pytest.approx([math.sqrt(it.group.dense / 64) for it in columns], 0.01)
    assert [it.slim / it.dense for it in columns] == pytest.approx(
        [it.group.slim / it.group.dense for it in columns], 0.01
    )


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (["features.0.0", "features.1.conv.0.0", "features.1.conv.1.0"], ["features.0", "features.1"]),
        (["net.stem.conv", "net.layer1.0.conv1", "net.layer1.1.conv1"], ["stem", "layer1"]),
        (["layer1.0.a", "layer2.0.a", "layer2.1.a", "layer2.2.a"], ["layer1", "layer2"]),
        (["conv1"], ["conv1"]),
        ([], []),
    ],
)
def test_groups_whose_names_begin_alike_are_a_stage(names: list[str], stages: list[str]) -> None:
    widths = [GroupWidth(group=name, dense=8, alive=8, slim=4) for name in names]
    assert [stage.name for stage in network_picture(widths).stages] == stages


def with_times() -> Report:
    """Return a report with the time of two layers, one of which runs twice, and of what multiplies nothing."""
    dense = [("stem", "Conv", 0.4, 100), ("fc", "Gemm", 0.1, 10), ("fc", "Gemm", 0.1, 10), ("", "Add", 0.2, 0)]
    slim = [("stem", "Conv", 0.3, 50), ("fc", "Gemm", 0.1, 10), ("", "ReorderOutput", 0.05, 0)]
    keys = ("layer", "op", "ms", "macs")
    return example_reports.changed(
        {
            f"bench.artifacts.{index}.nodes": [dict(zip(keys, it, strict=True)) for it in nodes]
            for index, nodes in enumerate((dense, slim))
        }
        | {"bench.artifacts.1.findings": ["13 % of the time: 1 reorder"]}
    )


def test_every_layer_has_its_time_dense_beside_slim() -> None:
    html = render_page(with_times(), ())
    assert row(html, "stem") == ["", "400", "300", "75.0 %", "50.0 %"]
    assert row(html, "fc") == ["", "200", "100", "50.0 %", "50.0 %"]
    assert row(html, "Add") == ["", "200", "–", "–", "–"]
    assert row(html, "ReorderOutput") == ["", "–", "50", "–", "–"]
    assert "13 % of the time: 1 reorder" in html
    assert "dense, µs" in html
    assert [it.dense_length for it in time_by_layer(with_times())] == [100, 50, 50, 0]


def test_of_many_layers_those_that_take_most_are_in_view() -> None:
    rows = [LayerTime(str(i), True, float(i % 40), 1.0, None, 0, 0) for i in range(40)]
    slowest, faster = in_view(rows)
    assert [row.name for row in slowest] == [str(i) for i in range(8, 40)]
    assert [row.name for row in faster] == [str(i) for i in range(8)]
    assert in_view(rows[:5]) == (rows[:5], ())


def test_every_file_with_classes_has_its_column() -> None:
    tallies = [{"images": 1000, "correct": 800 + index} for index in range(10)]
    found = example_reports.three_artifacts().model_dump(mode="json")
    found["verify"]["artifacts"][2]["by_class"] = tallies
    html = render_page(Report.model_validate_json(json.dumps(found)), ())
    assert row(html, "cat") == ["1,000", "83.00 %", "80.80 %", "80.30 %", "-2.20 points", ""]
