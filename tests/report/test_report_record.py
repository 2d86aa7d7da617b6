"""report.json holds what the format promises, whatever a run found, and nothing private."""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import example_reports
import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from hoyer_export.report.record import Report, assemble_report, sample_quantiles, without_folders
from hoyer_export.report.summary import accuracy_interval, cautions, speedup_words, verification_steps

EXAMPLES = ["passed", "failed", "noisy", "unmeasured", "given", "whole", "many_groups", "hostile"]

REQUIRED = {
    "": "format recipe environment seconds dense sparse slim widths verify latency budget",
    "environment": "cpu flags threads versions load",
    "seconds": "dense sparse cut finetune export verify bench",
    "dense": "accuracy params macs flops onnx_bytes",
    "sparse": "accuracy effective_width",
    "slim": "accuracy onnx_accuracy params macs flops onnx_bytes",
    "widths.0": "group dense alive slim",
    "verify": "passed cut checks onnx",
    "verify.cut": "dtype max_rel_error",
    "verify.checks.0": "name value tolerance passed",
    "verify.onnx.0": "batch inputs optimization max_abs_error tolerance",
    "latency": "threads batch_size dense_ms slim_ms speedup blocked_convs",
    "latency.dense_ms": "p50 p90 p99 min n",
    "latency.slim_ms": "p50 p90 p99 min n",
    "latency.speedup": "median ci95",
    "latency.blocked_convs": "dense slim",
    "latency.blocked_convs.dense": "blocked total",
    "budget": "asked met",
}
"""Copied from the description of the format, not from the schema."""

WRONG: list[tuple[str, Any]] = [
    ("format", "hoyer-export-report/2"),
    ("dense.accuracy", 100.5),
    ("dense.accuracy", -1),
    ("dense.accuracy", "91.7"),
    ("dense.accuracy", None),
    ("slim.onnx_accuracy", 101),
    ("dense.macs", 0),
    ("slim.params", 1.5),
    ("slim.onnx_bytes", -3),
    ("sparse.effective_width", -0.1),
    ("environment.threads", 0),
    ("environment.versions", {"torch": 2}),
    ("environment.load", -1),
    ("seconds.cut", -0.1),
    ("widths.0.slim", 0),
    ("widths.0.alive", -1),
    ("verify.passed", "yes"),
    ("verify.cut.max_rel_error", -1),
    ("verify.onnx.0.batch", 0),
    ("verify.onnx.0.tolerance", 0),
    ("latency.dense_ms.p50", 0),
    ("latency.dense_ms.samples", [1.0] * 201),
    ("latency.speedup.ci95", [1.0]),
    ("latency.blocked_convs.slim.total", -1),
    ("budget.asked", {"macs": True}),
    ("budget.met", 1),
    ("recipe", []),
]


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    content = files("hoyer_export.report").joinpath("report_schema.json").read_text(encoding="utf-8")
    Draft202012Validator.check_schema(json.loads(content))
    return Draft202012Validator(json.loads(content))


def example_json() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(example_reports.passed().model_dump_json(exclude_unset=True))
    return loaded


def parent(report: Any, path: list[str]) -> Any:
    for part in path:
        report = report[int(part)] if isinstance(report, list) else report[part]
    return report


def is_readable(report: dict[str, Any]) -> bool:
    try:
        Report.model_validate_json(json.dumps(report))
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_report_fits_the_schema_and_reads_back_the_same(name: str, schema: Draft202012Validator) -> None:
    report = getattr(example_reports, name)()
    written = report.model_dump_json(exclude_unset=True)
    assert [error.message for error in schema.iter_errors(json.loads(written))] == []
    assert Report.model_validate_json(written).model_dump_json(exclude_unset=True) == written


@pytest.mark.parametrize(("place", "key"), [(place, key) for place, keys in REQUIRED.items() for key in keys.split()])
def test_a_report_without_a_required_key_is_refused(place: str, key: str, schema: Draft202012Validator) -> None:
    report = example_json()
    del parent(report, place.split(".") if place else [])[key]
    assert not schema.is_valid(report)
    assert not is_readable(report)


def test_a_report_with_the_required_keys_alone_is_accepted(schema: Draft202012Validator) -> None:
    report = example_json()

    def strip(place: str, part: Any) -> Any:
        if isinstance(part, list):
            return [strip(f"{place}.0", item) for item in part]
        if place not in REQUIRED or not isinstance(part, dict):
            return part
        return {key: strip(f"{place}.{key}".strip("."), part[key]) for key in REQUIRED[place].split()}

    bare = strip("", report)
    assert set(bare) < set(report)
    assert schema.is_valid(bare)
    assert is_readable(bare)


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_a_value_out_of_range_is_refused(place: str, value: Any, schema: Draft202012Validator) -> None:
    report = example_json()
    *path, key = place.split(".")
    parent(report, path)[key] = value
    assert not schema.is_valid(report)
    assert not is_readable(report)


@pytest.mark.parametrize("place", list(REQUIRED))
def test_more_keys_are_allowed_and_kept(place: str, schema: Draft202012Validator) -> None:
    report = example_json()
    path = place.split(".") if place else []
    parent(report, path)["later"] = {"a": [1]}
    assert schema.is_valid(report)
    again = json.loads(Report.model_validate_json(json.dumps(report)).model_dump_json(exclude_unset=True))
    assert parent(again, path)["later"] == {"a": [1]}


PATHS = [
    ("/home/jane/data/cifar", "cifar"),
    ("/home/Jane Doe/data", "data"),
    ("C:\\Users\\jane\\data", "data"),
    ("C:/Users/jane/data", "data"),
    ("\\\\server\\share\\data", "data"),
    ("/", "…"),
    ("cannot read /home/jane/a.bin: too short", "cannot read a.bin: too short"),
    ("root='/srv/jane/x', more", "root='x', more"),
    ("at file:///home/jane/x.onnx", "at x.onnx"),
    ("in D:\\jane\\x.onnx here", "in x.onnx here"),
    ("data/cifar", "data/cifar"),
    ("../weights/a.safetensors", "../weights/a.safetensors"),
    ("~/data/cifar", "~/data/cifar"),
    ("torch/onnxruntime, 1/2", "torch/onnxruntime, 1/2"),
    ("https://arxiv.org/abs/1908.09979", "https://arxiv.org/abs/1908.09979"),
    ("<b>x</b>", "<b>x</b>"),
    ("package.module:function", "package.module:function"),
]


@pytest.mark.parametrize(("text", "expected"), PATHS)
def test_an_absolute_path_loses_its_folders_and_nothing_else_changes(text: str, expected: str) -> None:
    assert without_folders(text) == expected


def test_no_absolute_path_gets_into_a_report_from_anywhere() -> None:
    arguments = example_reports.example_arguments()
    secret = "/home/jane/secret/x"
    arguments["recipe"]["data"] = {"root": secret, "more": [{"deep": f"see {secret}"}], secret: 1}
    arguments["environment"] |= {"os": f"Linux at {secret}", "versions": {"torch": f"2.14 ({secret})"}}
    arguments["latency"]["noise"] = f"busy with {secret}"
    arguments["validation"] = secret
    written = assemble_report(**arguments).model_dump_json()
    assert "jane" not in written
    assert "secret" not in written


def test_flops_speed_and_share_follow_from_the_figures() -> None:
    arguments = example_reports.example_arguments()
    arguments["dense"]["macs"], arguments["slim"]["macs"] = 3_000_000, 1_200_000
    arguments["latency"]["batch_size"] = 4
    arguments["latency"]["dense_ms"]["p50"] = 2.0
    report = assemble_report(**arguments)
    assert (report.dense.flops, report.slim.flops) == (6_000_000, 2_400_000)
    assert report.latency is not None
    assert report.latency.gmac_per_s is not None
    # 3e6 MACs · 4 images in 2e-3 s
    assert report.latency.gmac_per_s.dense == pytest.approx(3e6 * 4 / 2e-3 / 1e9)
    assert report.budget.reached == {"macs": 0.4}


BUDGETS: list[tuple[dict[str, float | str], bool]] = [
    ({"macs": 0.5}, True),
    ({"macs": 20133632 / 40551808}, True),
    ({"macs": 20133631 / 40551808}, False),
    ({"params": 0.6}, True),
    ({"params": 0.59}, False),
    ({"latency": 0.46}, True),
    ({"latency": 0.45}, False),
    ({"threshold": "natural"}, True),
    ({"threshold": 0.3}, True),
]


@pytest.mark.parametrize(("asked", "met"), BUDGETS)
def test_a_budget_is_met_up_to_the_last_mac(asked: dict[str, float | str], met: bool) -> None:
    report = assemble_report(**example_reports.example_arguments() | {"budget_asked": asked})
    assert report.budget.met is met
    assert any(caution.title == "Budget missed" for caution in cautions(report)) is not met


def test_a_latency_budget_that_was_not_measured_is_not_met() -> None:
    arguments = example_reports.example_arguments() | {"latency": None, "budget_asked": {"latency": 0.5}}
    assert assemble_report(**arguments).budget.met is False


def test_a_number_that_is_not_finite_is_null_and_fails() -> None:
    report = example_reports.failed()
    assert report.verify.onnx[9].max_abs_error is None
    failed = [step for step in verification_steps(report) if not step.passed]
    assert [step.value for step in failed] == ["17", "0.0713", "not finite"]
    assert "NaN" not in report.model_dump_json()
    assert "Infinity" not in report.model_dump_json()


def spoil_cut(arguments: dict[str, Any]) -> None:
    arguments["cut"]["max_rel_error"] = math.nan


def spoil_check(arguments: dict[str, Any]) -> None:
    arguments["verify"]["checks"][2]["passed"] = False


def spoil_comparison(arguments: dict[str, Any]) -> None:
    row = arguments["verify"]["onnx"][7]
    row["max_abs_error"] = row["tolerance"] * 1.01


@pytest.mark.parametrize("spoil", [spoil_cut, spoil_check, spoil_comparison])
def test_one_failed_step_fails_the_whole_verification(spoil: Callable[[dict[str, Any]], None]) -> None:
    arguments = example_reports.example_arguments()
    assert assemble_report(**deepcopy(arguments)).verify.passed
    spoil(arguments)
    report = assemble_report(**arguments)
    assert not report.verify.passed
    assert [caution.title for caution in cautions(report)] == ["Verification failed"]


def test_a_stage_may_hand_over_its_dataclass() -> None:
    @dataclass(frozen=True)
    class Cut:
        dtype: str
        max_rel_error: float

    arguments = example_reports.example_arguments() | {"cut": Cut("float64", 2e-15)}
    assert assemble_report(**arguments).verify.cut.max_rel_error == 2e-15


@pytest.mark.parametrize("count", [1, 199, 200, 201, 5000])
def test_quantiles_keep_the_ends_the_order_and_the_median(count: int) -> None:
    samples = [float((index * 7919) % count) for index in range(count)]
    kept = sample_quantiles(samples)
    assert len(kept) == min(count, 200)
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert kept[len(kept) // 2] == pytest.approx(count / 2, abs=1 + count / 100)


def test_the_interval_of_an_accuracy_is_wilsons() -> None:
    # R: prop.test(95, 100, correct = FALSE)$conf.int
    assert accuracy_interval(95, 100) == pytest.approx((88.82, 97.85), abs=0.01)
    # All of n correct: the lower end is 1 / (1 + z² / n).
    assert accuracy_interval(100, 10) == pytest.approx((100 / (1 + 1.96**2 / 10), 100))
    assert accuracy_interval(0, 10)[0] == 0


@pytest.mark.parametrize(
    ("ci95", "words"),
    [
        ((2.19, 2.24), "2.21× as fast (95 % interval 2.19–2.24)"),
        ((0.97, 2.24), "no measurable difference in speed: 2.21× (95 % interval 0.97–2.24)"),
    ],
)
def test_a_speedup_is_claimed_only_if_its_interval_excludes_one(ci95: tuple[float, float], words: str) -> None:
    arguments = example_reports.example_arguments()
    arguments["latency"]["speedup"]["ci95"] = ci95
    assert speedup_words(assemble_report(**arguments)) == words


def test_a_slim_file_that_is_slower_is_called_slower() -> None:
    arguments = example_reports.example_arguments()
    arguments["latency"]["speedup"] = {"median": 0.8, "ci95": (0.78, 0.82)}
    assert [caution.title for caution in cautions(assemble_report(**arguments))] == ["Slower than dense"]
