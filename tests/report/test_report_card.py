"""card.md is a model card whose code runs and whose names stay text."""

import re

import example_reports
import pytest
import yaml
from markdown_it import MarkdownIt

from hoyer_export.report.card import code, render_card, text

MARKUP = re.compile(r"<(script|style|strong|em|a|img|h1)\b")


def rendered(markdown: str) -> str:
    """Return the HTML of GitHub-flavoured Markdown that lets raw HTML through."""
    return str(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))


@pytest.mark.parametrize(
    "value", ["plain", "a`b", "``", "`", "a|b", "<b>", "**x**", "[a](b)", "x\n\n# y", " ", "a\\", "\\|"]
)
def test_a_code_span_in_a_table_holds_the_value_and_nothing_else(value: str) -> None:
    html = rendered(f"| a | b |\n|---|---|\n| {code(value)} | c |\n")
    cells = re.findall(r"<td>(.*?)</td>", html)
    shown = " ".join(value.split()).replace("<", "&lt;").replace(">", "&gt;")
    assert cells == [f"<code>{shown or ' '}</code>", "c"]


@pytest.mark.parametrize(
    "value", ["a*b*", "_x_", "`x`", "<script>", "[a](b)", "![a](b)", "a|b", "~~x~~", "&lt;", "a\n# b", "\\*"]
)
def test_escaped_text_has_no_markup(value: str) -> None:
    html = rendered(f"| a | b |\n|---|---|\n| x {text(value)} | c |\n")
    shown = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert re.findall(r"<td>(.*?)</td>", html) == [f"x {shown}", "c"]


def test_unescaped_text_would_have_been_noticed() -> None:
    assert MARKUP.search(rendered("x **b** <script>"))


def test_names_in_a_card_are_no_markup() -> None:
    card = render_card(example_reports.hostile())
    html = rendered(card.partition("---\n\n")[2])
    assert not re.search(r"<(script|/style|style|a)\b", html)
    # Our own headings and warnings alone are bold.
    assert set(re.findall(r"<strong>(.*?)</strong>", html)) <= {
        "Verification failed:",
        "Noisy machine:",
        "Not counted:",
        "Selection:",
        "Failed",
        "failed",
    }
    assert html.count("<h1>") == 1


@pytest.mark.parametrize("name", example_reports.EXAMPLES)
def test_every_row_of_every_table_has_as_many_cells_as_its_head(name: str) -> None:
    html = rendered(render_card(getattr(example_reports, name)()))
    for table in re.findall(r"<table>(.*?)</table>", html, re.DOTALL):
        rows = [row.count("<th") + row.count("<td") for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
        assert len(set(rows)) == 1
    assert "|--" not in html


def test_the_card_opens_with_front_matter_and_the_result() -> None:
    card = render_card(example_reports.passed())
    assert card.startswith("---\nlibrary_name: onnx\n")
    assert "# `cifar_resnet20` on `cifar10`, slim\n" in card
    assert "49.6 % of the MACs, 2.21× as fast (95 % interval 2.19–2.24), 91.30 % accuracy (-0.43 points)." in card
    assert "| MACs (FLOPs = 2 · MACs) | 40,551,808 | 20,133,632 | 49.6 % |" in card
    assert "Passed, 77 of 77 steps" in card
    assert "\n\n\n" not in card


def test_a_speed_stands_beside_its_machine_number_of_runs_and_version() -> None:
    (line,) = [p for p in render_card(example_reports.passed()).split("\n\n") if p.startswith("Speed:")]
    for word in ("900 interleaved runs", "1 thread", "batch 1", "Platinum 8481C", "onnxruntime 1.32.0", "2.19–2.24"):
        assert word in line


def test_a_failed_verification_is_the_first_thing_that_the_card_says() -> None:
    card = render_card(example_reports.failed())
    assert card.index("> **Verification failed:**") < card.index("| test accuracy")
    assert "> **Budget missed:** at most 45.0 % of the dense MACs asked, 49.6 % reached." in card
    assert "**Failed**: 3 of 77 steps." in card
    assert "| slim.onnx, optimisations disabled, logits, batch 2, ones | not finite | 9.2e-5 |" in card


def test_a_card_without_latency_claims_no_speed() -> None:
    card = render_card(example_reports.unmeasured())
    assert "Speed: not measured." in card
    assert "as fast" not in card
    assert "Validation: seen in training." in card


def test_a_card_of_a_cut_without_data_claims_no_accuracy_and_no_preparation() -> None:
    card = render_card(example_reports.without_data())
    assert "# `cifar_resnet20`, slim\n" in card
    assert "49.6 % of the MACs, 2.21× as fast (95 % interval 2.19–2.24).\n" in card
    assert "> **Random weights:**" in card
    assert "accuracy" not in card.partition("## How it was made")[0]
    assert "how its images are prepared is not known here" in card
    assert "```python" not in card
    assert "zeroing moved outputs by up to 0.31 on 2 images of noise; they reach 1.7" in card


def test_a_card_has_a_column_for_every_artifact() -> None:
    card = render_card(example_reports.three_artifacts())
    assert "| | dense | slim | slim-int8 | slim against dense |\n|---|--:|--:|--:|--:|\n" in card
    assert "| test accuracy, 10,000 images | 91.73 % | 91.30 % | 90.90 % | -0.43 points |" in card
    assert "| file, bytes | 1,104,218 | 659,884 | 201,118 | 59.8 % |" in card
    assert "| speed-up (95 % interval) |  | 2.21× (2.19–2.24) | 2.90× (2.87–2.94) |  |" in card
    assert "1 of 115 steps did not pass, do not ship this file; slim-int8.onnx, top-1 (3, tolerance 0)" in card
    assert "; it is left as slim-int8.onnx.rejected." in card


def test_a_network_without_macs_has_no_share_of_them() -> None:
    card = render_card(example_reports.without_macs())
    assert "\n2.21× as fast (95 % interval 2.19–2.24), 91.30 % accuracy (-0.43 points).\n" in card
    assert "| MACs (FLOPs = 2 · MACs) | 0 | 0 | – |" in card
    assert "| parameters | 0 | 0 | – |" in card
    assert "threshold were to go." in card
    assert "MACs\nreduction" not in card


def test_the_card_says_what_each_output_is_and_which_classes_lost_most() -> None:
    card = render_card(example_reports.passed())
    assert "Outputs, in their order: `airplane`, `automobile`, `bird`, `cat`," in card
    table = card.partition("## Accuracy by class")[2].partition("## How to use it")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert rows[0] == ["| `cat`", "1,000", "83.00 %", "80.80 %", "-2.20 points |"]
    assert [row[0] for row in rows[1:3]] == ["| `bird`", "| `dog`"]
    assert rows[-1] == ["| `airplane`", "1,000", "93.00 %", "93.20 %", "+0.20 points |"]
    assert len(rows) == 10


def test_many_classes_are_not_all_on_the_card() -> None:
    names = [f"kind {i}" for i in range(25)]
    tallies = [{"images": 20 if i else 0, "correct": 10 if i else 0} for i in range(25)]
    card = render_card(
        example_reports.changed(
            {"inputs.class_names": names, "inputs.classes": 25}
            | {f"verify.artifacts.{file}.by_class": tallies for file in (0, 1)}
        )
    )
    assert "the other 14 of 24 classes are in `report.html`" in card  # one has no test images
    assert "`kind 19`, ... (25 in all)." in card
    assert "`kind 11`" not in card.partition("## How to use it")[0]


@pytest.mark.parametrize("name", example_reports.EXAMPLES)
def test_the_front_matter_is_what_the_hub_reads(name: str) -> None:
    report = getattr(example_reports, name)()
    found = yaml.safe_load(render_card(report).split("---\n")[1])
    assert found["library_name"] == "onnx"
    if report.slim.accuracy is None or not report.passed:
        assert "model-index" not in found
        return
    (model,) = found["model-index"]
    (result,) = model["results"]
    # The keys of https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    assert model.keys() == {"name", "results"}
    assert result.keys() == {"task", "dataset", "metrics"}
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"type": report.inputs.data, "name": report.inputs.data, "split": "test"}
    values = {it["type"]: it["value"] for it in result["metrics"]}
    assert all(it.keys() == {"type", "name", "value"} for it in result["metrics"])
    assert values["accuracy"] == pytest.approx(report.slim.accuracy / 100)
    assert values["macs"] == report.slim.file.macs
    assert ("latency" in values) == (report.speed is not None)


def test_the_card_comes_to_the_point_before_the_recipe() -> None:
    card = render_card(example_reports.passed())
    heads = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert heads == [
        *("Accuracy by class", "How to use it", "Verification", "Limits", "How it was made", "Recipe"),
    ]
    assert card.index("Machine: ") < card.index("| `network.name` |")
