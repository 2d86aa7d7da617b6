"""report.json holds what the format promises, whatever a run found, and nothing private."""

import json
from typing import Any

import example_reports
import pytest
from example_reports import changed, put
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from hoyer_export.report.report import Report, dated, without_folders
from hoyer_export.report.summary import accuracy_interval, cautions, speedup_words, verification_steps
from hoyer_export.run.ship import sample_quantiles

REQUIRED = {
    "": "recipe inputs training cut export verify bench",
    "cut": "seconds dtype max_rel_error tolerance align widths",
    "cut.widths.0": "group dense alive slim",
    "export": "seconds artifacts budget",
    "export.budget": "asked met",
    "export.artifacts.0": "name file kind params macs flops size_bytes sha256",
    "verify": "seconds passed artifacts sparse_accuracy",
    "verify.artifacts.1": "name passed checks onnx",
    "verify.artifacts.1.checks.0": "name value tolerance passed",
    "verify.artifacts.1.onnx.0": "batch inputs optimization max_abs_error tolerance",
    "bench": "seconds environment threads batch_size artifacts",
    "bench.environment": "cpu flags threads versions load",
    "bench.artifacts.0": "name p50 p90 p99 min n",
    "bench.artifacts.1.speedup": "median ci95",
    "bench.artifacts.1.blocked_convs": "blocked total",
}
"""What every report/2 has: a reader may rely on it."""

WRONG: list[tuple[str, Any]] = [
    ("format", "hoyer-export-report/1"),
    ("verify.artifacts.0.accuracy", "91.7"),
    ("export.artifacts.0.macs", -1),
    ("export.artifacts.1.params", 1.5),
    ("export.artifacts.1.size_bytes", 0),
    ("training.sparse.effective_macs", -0.1),
    ("bench.environment.threads", 0),
    ("bench.environment.versions", {"torch": 2}),
    ("bench.environment.load", -1),
    ("cut.seconds", -0.1),
    ("cut.widths.0.slim", 0),
    ("cut.widths.0.alive", -1),
    ("cut.max_rel_error", -1),
    ("verify.passed", "yes"),
    ("verify.artifacts.1.onnx.0.batch", 0),
    ("verify.artifacts.1.onnx.0.tolerance", 0),
    ("bench.artifacts.0.p50", 0),
    ("bench.artifacts.0.samples", [1.0] * 201),
    ("bench.artifacts.1.speedup.ci95", [1.0]),
    ("bench.artifacts.1.blocked_convs.total", -1),
    ("export.budget.asked", {"macs": True}),
    ("export.budget.met", 1),
    ("recipe", []),
]
SCHEMA = Draft202012Validator(Report.model_json_schema())


def is_readable(report: dict[str, Any]) -> bool:
    try:
        Report.model_validate_json(json.dumps(report))
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", example_reports.EXAMPLES)
def test_every_report_fits_the_schema_and_reads_back_the_same(name: str) -> None:
    report = getattr(example_reports, name)()
    written = report.model_dump_json()
    assert [error.message for error in SCHEMA.iter_errors(json.loads(written))] == []
    assert Report.model_validate_json(written) == report


@pytest.mark.parametrize(("place", "key"), [(place, key) for place, keys in REQUIRED.items() for key in keys.split()])
def test_a_report_without_a_required_key_is_refused(place: str, key: str) -> None:
    report = found = example_reports.example_json()
    for part in filter(None, place.split(".")):
        found = found[int(part) if part.isdigit() else part]
    del found[key]
    assert not SCHEMA.is_valid(report)
    assert not is_readable(report)


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_a_value_out_of_range_is_refused(place: str, value: Any) -> None:
    report = example_reports.example_json()
    put(report, {place: value})
    assert not SCHEMA.is_valid(report)
    assert not is_readable(report)


def test_an_accuracy_is_in_per_cent_and_another_metric_is_any_number() -> None:
    for accuracy in (100.5, -1):
        with pytest.raises(ValidationError, match="0 to 100"):
            changed({"verify.artifacts.0.accuracy": accuracy})
    assert changed({"verify.artifacts.0.accuracy": -100.5, "inputs.metric": "log-likelihood"}).dense.accuracy == -100.5


@pytest.mark.parametrize("place", list(REQUIRED))
def test_no_unknown_key_is_written(place: str) -> None:
    with pytest.raises(ValidationError, match="later"):
        changed({f"{place}.later".strip("."): 1})


@pytest.mark.parametrize("stage", ["export", "verify", "bench"])
def test_a_report_about_other_artifacts_than_dense_and_slim_is_refused(stage: str) -> None:
    with pytest.raises(ValidationError, match="artifacts"):
        changed({f"{stage}.artifacts.1.name": "thin"})


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
    secret = "/home/jane/secret/x"
    report = changed(
        {
            "recipe.data": {"root": secret, "more": [{"deep": f"see {secret}"}], secret: 1},
            "bench.environment.os": f"Linux at {secret}",
            "bench.environment.versions": {"torch": f"2.14 ({secret})"},
            "bench.noise": f"busy with {secret}",
            "inputs.validation": secret,
        }
    )
    made = dated(report)
    written = made.model_dump_json()
    assert "jane" not in written
    assert "secret" not in written
    assert made.recipe["data"] == {"root": "x", "more": [{"deep": "see x"}], "x": 1}
    assert made.cut == report.cut


def test_throughput_follows_from_the_figures() -> None:
    report = changed(
        {"export.artifacts.0.macs": 3_000_000, "bench.batch_size": 4, "bench.artifacts.0.p50": 2.0},
    )
    # 3e6 MACs · 4 images in 2e-3 s
    assert report.dense.gmac_per_s == pytest.approx(3e6 * 4 / 2e-3 / 1e9)
    assert example_reports.unmeasured().slim.gmac_per_s is None


def test_a_number_that_is_not_finite_fails() -> None:
    failed = [step for step in verification_steps(example_reports.failed()) if not step.passed]
    assert [step.value for step in failed] == ["17", "0.0713", "not finite"]
    with pytest.raises(ValidationError):
        changed({"cut.max_rel_error": float("nan")})


@pytest.mark.parametrize(
    "spoilt",
    [
        {"cut.max_rel_error": None},
        {"cut.max_rel_error": 1.01e-9},
        {"verify.artifacts.0.checks.2.passed": False},
        {"verify.artifacts.1.onnx.7.max_abs_error": 9.3e-5 * 1.5},
        {"verify.passed": False},
    ],
)
def test_one_failed_step_fails_the_whole_verification(spoilt: dict[str, Any]) -> None:
    assert [caution.title for caution in cautions(changed(spoilt))] == ["Verification failed"]
    assert not cautions(example_reports.passed())


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
    assert accuracy_interval(100, 10) == pytest.approx((100 / (1 + 1.96**2 / 10), 100), abs=0.01)
    assert accuracy_interval(0, 10) == pytest.approx((0, 100 * 1.96**2 / (10 + 1.96**2)), abs=0.01)
    assert accuracy_interval(None, 10) is None


@pytest.mark.parametrize(
    ("ci95", "words"),
    [
        ((2.19, 2.24), "2.21× as fast (95 % interval 2.19–2.24)"),
        ((0.97, 2.24), "no measurable difference in speed: 2.21× (95 % interval 0.97–2.24)"),
    ],
)
def test_a_speedup_is_claimed_only_if_its_interval_excludes_one(ci95: tuple[float, float], words: str) -> None:
    assert speedup_words(changed({"bench.artifacts.1.speedup.ci95": ci95})) == words


def test_a_slim_file_that_is_slower_is_called_slower() -> None:
    report = changed({"bench.artifacts.1.speedup": {"median": 0.8, "ci95": (0.78, 0.82)}})
    assert [caution.title for caution in cautions(report)] == ["Slower than dense"]
