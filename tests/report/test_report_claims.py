"""Card and page claim what the recipe and the record say was done, and nothing else."""

import re
from pathlib import Path
from typing import Any

import example_reports
import pytest
from test_report_page import Page, row

from hoyer_export.console.files import print_benchmark
from hoyer_export.console.runs import print_report
from hoyer_export.deploy.benchmark import BenchmarkRecord, LatencyRecord, Speedup
from hoyer_export.report.card import render_card
from hoyer_export.report.page import render_page
from hoyer_export.report.report import Report


def told(report: Report) -> dict[str, str]:
    """Return the words of card and page, markup and folding aside, without the recipe, which lists its keys."""
    card = re.sub(r"\\(.)", r"\1", " ".join(render_card(report).split()))
    page = Page(render_page(report, example_reports.example_metrics())).text
    return {"card": card.partition("## Recipe")[0], "page": page.partition("Recipe, as resolved")[0]}


REFIT = {
    **{"refitted": 19, "left": {}, "images": 1024, "wanted": 90, "lost_by": "accuracy"},
    "steps": [
        {"macs": macs, "lost": lost, "within": lost < 1}
        for macs, lost in ((1.0, 0.0), (0.8, 0.2), (0.5, 0.5), (0.4, 2.0))
    ],
}
CLAIMS: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "as it should be",
        {},
        [
            "The dense network trained for 30 epochs.",
            "trained with Group-HS for 30 epochs at strength 0.002",
            "Before the cut: 88.61 % test accuracy, 46.3 % of the MACs at effective widths.",
            "448 channels in 12 groups became 392, widths rounded up to whole blocks of 8",
            "The slim network then trained for 15 epochs.",
        ],
        ["not trained", "changed little", "Nothing was cut", "no Group-HS"],
    ),
    (
        "no sparse phase",
        {"recipe.sparse.epochs": 0},
        ["There was no training with Group-HS.", "The slim network then trained for 15 epochs."],
        ["trained with Group-HS", "Group-HS training", "Pruned with Group-HS", "strength 0.002", "group-hs,"],
    ),
    (
        "strength 0",
        {"training.sparse.effective_macs": 0.999, "recipe.sparse.strength": 0.0},
        ["trained for 30 epochs with a Group-HS strength of 0, which is without Group-HS."],
        ["trained with Group-HS", "Group-HS training", "Pruned with Group-HS", "group-hs,", "changed little"],
    ),
    (
        "blocks of 16, of which half a one is allowed",
        {"cut.align": 16},
        ["became 392, widths rounded up to whole blocks of 16 or to 8"],
        [],
    ),
    ("odd widths", {"cut.align": 1}, ["became 392."], ["blocks of 1 ", "rounded up"]),
    (
        "no fine-tuning",
        {"recipe.finetune.epochs": 0},
        ["The slim network was not trained after the cut."],
        ["then trained", "fine-tuning", "Not trained after the cut"],
    ),
    (
        "a loss without fine-tuning",
        {"recipe.finetune.epochs": 0, "verify.artifacts.1.accuracy": 60.0},
        ["Not trained after the cut: accuracy is -31.73 points from dense; fine-tune the slim network"],
        [],
    ),
    (
        "a loss with fine-tuning",
        {"verify.artifacts.1.accuracy": 60.0},
        ["-31.73 points"],
        ["Not trained after the cut"],
    ),
    (
        "one epoch",
        {"recipe.finetune.epochs": 1},
        ["The slim network then trained for 1 epoch."],
        ["1 epochs"],
    ),
    (
        "given weights",
        {"recipe.dense.epochs": 0, "recipe.dense.weights": "given.pth"},
        ["The dense network is the given one (given.pth), not trained here; this run cannot tell which images it had"],
        ["dense network trained", "dense training"],
    ),
    (
        "given weights, trained further",
        {"recipe.dense.epochs": 3, "recipe.dense.weights": "given.pth"},
        ["The dense network is the given one (given.pth), trained here for 3 epochs;"],
        ["not trained here"],
    ),
    (
        "Group-HS without effect",
        {"training.sparse.effective_macs": 0.9987},
        [
            "Group-HS changed little: 99.9 % of the MACs are left at effective widths",
            "raise sparse.strength or sparse.epochs",
            "99.9 % of the MACs at effective widths: Group-HS made next to no channel weak.",
        ],
        [],
    ),
    (
        "Group-HS with effect",
        {"training.sparse.effective_macs": 0.9899},
        ["99.0 % of the MACs at effective widths."],
        ["changed little"],
    ),
    (
        "a threshold",
        {"export.budget.asked": {"threshold": "natural"}},
        ["udget: none asked; channels below the natural threshold were to go, 49.6 % of the dense MACs left."],
        ["budget met", "at most"],
    ),
    (
        "a number as threshold",
        {"export.budget.asked": {"threshold": 0.25}},
        ["channels below 0.25 of the natural threshold were to go"],
        ["budget met"],
    ),
    (
        "a network that nobody regularised, cut in steps as far as accuracy allows",
        {
            "recipe.sparse.epochs": 0,
            "recipe.cut": {"method": "function", "refit": True, "max_drop": 1.0},
            "cut.refit": REFIT,
            "export.budget": {"asked": {"max_drop": 1.0}, "met": True, "reached": {"max_drop": 0.5}},
        },
        [
            "Before the cut: 88.61 % test accuracy.",
            "were zeroed and removed in 2 steps, each refitted before the next was chosen: 448 channels",
            "19 weights were refitted by least squares on 1,024 images without labels",
            "at most 1 points of accuracy on validation images asked, 0.5 lost at 49.6 % of the dense MACs",
        ],
        ["alive, removed", "alive and kept", "46.3 %", "strongest of the weak"],
    ),
    (
        "as far as the outputs allow",
        {"export.budget": {"asked": {"max_change": 0.02}, "met": True, "reached": {"max_change": 0.01}}},
        ["at most 0.02 mean relative change of the outputs on held-out images without labels asked, 0.01 lost"],
        [],
    ),
    (
        "a missed budget",
        {"export.budget.asked": {"macs": 0.4}, "export.budget.met": False},
        ["Budget missed: at most 40.0 % of the dense MACs asked, 49.6 % reached."],
        ["budget met"],
    ),
    (
        "classes",
        {},
        ["Accuracy", "lost most", "A picture is 32×32 already, and used as it is."],
        ["The other", "the other"],
    ),
    (
        "a folder of pictures of which some cannot be read",
        {
            **{"inputs.resize": "crop", "inputs.short_side": 37, "inputs.interpolation": "bicubic"},
            "inputs.notes": ["an unreadable image is left out: a.png (truncated)"],
        },
        [
            "A picture's shorter side is resized to 37 pixels (bicubic), and the middle 32×32 is cut out.",
            "An unreadable image is left out: a.png (truncated).",
        ],
        ["used as it is"],
    ),
    (
        "squashed pictures",
        {"inputs.resize": "squash", "inputs.interpolation": "bilinear"},
        ["A picture is resized to 32×32 (bilinear), whatever its proportions."],
        [],
    ),
    (
        "padded pictures",
        {"inputs.resize": "pad", "inputs.interpolation": "bilinear"},
        ["A picture is resized to fit into 32×32 (bilinear), with black around it."],
        [],
    ),
    (
        "a report from before classes had names",
        {"inputs.class_names": None, "verify.artifacts.0.by_class": [], "verify.artifacts.1.by_class": []},
        [],
        ["A picture", "Accuracy by class", "test images of each class", "in their order", "hoyer_export.class_names"],
    ),
    (
        "one class",
        {"inputs.classes": 1},
        ["One class: every answer is right, so that accuracy says nothing."],
        [],
    ),
    (
        "a cut that is not exact",
        {"cut.max_rel_error": 1e-3},
        ["Verification failed: 1 of 77 steps did not pass, do not ship this file; zeroed = slim network"],
        ["Passed", "✓ verified"],
    ),
    (
        "a failure that no step owns up to",
        {"verify.passed": False},
        ["Verification failed: the run says so, and not which step, do not ship this file."],
        ["Passed", "✓ verified", "0 of 77"],
    ),
    (
        "nothing but figures",
        {"recipe": {}, "inputs": {}, "training": {}, "verify.sparse_accuracy": None},
        ["The network trained with Group-HS, which", "448 channels in 12 groups became 392"],
        ["epoch.", "epochs.", "Before the cut:", "Images:"],
    ),
    (
        "random weights",
        {f"recipe.{phase}.epochs": 0 for phase in ("dense", "sparse", "finetune")} | {"recipe.dense.weights": "random"},
        ["The dense network has random weights.", "Random weights: the weights are random"],
        ["dense network trained", "given one"],
    ),
    (
        "blocks that became shortcuts, and an input layer that reads less",
        {"cut.dead_blocks": ["layer1.0"], "cut.gathered": {"fc": [512, 400]}},
        ["The cut: dead blocks, now their shortcuts: layer1.0; fc reads 400 of 512 input features."],
        [],
    ),
    (
        "what is not counted",
        {"export.artifacts.1.uncounted": {"QLinearConv": 2}},
        ["Not counted: 2 × QLinearConv may multiply and accumulate beside these MACs."],
        [],
    ),
]


@pytest.mark.parametrize(("change", "said", "unsaid"), [c[1:] for c in CLAIMS], ids=[c[0] for c in CLAIMS])
def test_what_was_done_is_said_and_what_was_not_is_not(
    change: dict[str, Any], said: list[str], unsaid: list[str]
) -> None:
    for where, words in told(example_reports.changed(change)).items():
        words = words.replace("**", "")
        assert [claim for claim in said if claim not in words] == [], where
        assert [claim for claim in unsaid if claim in words] == [], where


def test_a_run_that_cut_nothing_says_so_and_what_to_do() -> None:
    for words in told(example_reports.whole()).values():
        words = words.replace("**", "")
        assert "Nothing was cut: every channel stays; ask for a smaller share, or a larger threshold." in words
        assert "Nothing was cut: all 448 channels of 12 groups stay." in words
        assert "Group-HS changed little" in words
        assert "became" not in words
        assert "MACs reduction" not in words
        assert "Pruned" not in words


def test_a_run_that_trained_nothing_says_so_in_place_of_curves() -> None:
    assert "Nothing was trained in this run." in render_page(example_reports.given(), ())
    assert "there is no metrics.jsonl" in render_page(example_reports.passed(), ())


def test_a_noisy_machine_gives_no_interval_anywhere() -> None:
    report = example_reports.noisy()
    for words in told(report).values():
        assert "1.08× as fast (the machine was too noisy for an interval)" in words
        assert "0.91–1.33" not in words
        assert "95 % interval 0" not in words
        assert "MACs reduction" not in words


def test_a_report_with_an_interval_and_noise_is_shown_without_the_interval() -> None:
    for words in told(example_reports.changed({"bench.noise": "too noisy to say: times spread by 12%"})).values():
        assert "2.21× as fast (the machine was too noisy for an interval)" in words
        assert "2.19–2.24" not in words


def test_a_mean_of_cpu_time_is_not_set_against_medians() -> None:
    means = {f"bench.artifacts.{file}.cpu": cpu for file, cpu in enumerate((4.24, 1.92))}
    medians = {f"bench.artifacts.{file}.cpu_p50": None for file in (0, 1)}
    html = render_page(example_reports.changed(means | medians), ())
    assert row(html, "CPU time, mean") == ["4.24 ms", "1.92 ms", ""]
    assert row(render_page(example_reports.passed(), ()), "CPU time, p50") == ["4.24 ms", "1.92 ms", "2.21×"]


def test_cpu_time_of_several_threads_is_explained() -> None:
    words = told(example_reports.changed({"bench.threads": 2}))["page"]
    assert "CPU time is the sum over all threads" in words
    assert "CPU time is the sum" not in told(example_reports.passed())["page"]


def test_the_terminal_gives_no_interval_either(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(example_reports.noisy(), Path("run"))
    said = " ".join(capsys.readouterr().out.split())
    assert "speed: 1.08× as fast (the machine was too noisy for an interval)" in said
    assert "Noisy machine: too noisy to say: times spread by 41% of their median" in said
    print_report(example_reports.passed(), Path("run"))
    assert "2.21× as fast (95 % interval 2.19–2.24)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ci95", "noisy", "within"), [((1.45, 1.49), None, "1.47× (1.45–1.49)"), (None, "busy", "1.47× (too noisy)")]
)
def test_the_table_of_a_measurement_gives_an_interval_where_there_is_one(
    ci95: tuple[float, float] | None, noisy: str | None, within: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tuple(LatencyRecord(name, 1, 1, 1, 1, 10, 1, 1, ()) for name in ("a.onnx", "b.onnx"))
    print_benchmark(BenchmarkRecord(files, (Speedup(1.47, ci95),), 1, 1, noisy))
    said = capsys.readouterr().out
    assert within in said
    assert ("warning: busy" in said) == (noisy is not None)
