"""The files of a report are written together, read back, and made again from the run folder."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import example_reports
import pytest

from hoyer_export.errors import FileError
from hoyer_export.report.card import render_card
from hoyer_export.report.files import read_report, write_report
from hoyer_export.report.metrics import read_metrics
from hoyer_export.report.page import render_page

MODELS = sorted(path.parent for path in (Path(__file__).parents[2] / "models").glob("*/report.json"))
NAMES = ("report.json", "card.md", "report.html", "headline.svg", "headline.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [epoch.model_dump_json() + "\n" for epoch in example_reports.example_metrics(4, 3, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    write_report(tmp_path, example_reports.passed(), read_metrics(tmp_path))
    return tmp_path


def test_all_files_are_made_again_to_the_same_bytes(folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in NAMES}
    (folder / "card.md").unlink()
    (folder / "report.html").write_text("old")
    write_report(folder, read_report(folder), read_metrics(folder))
    assert {name: (folder / name).read_bytes() for name in NAMES} == before
    assert sorted(path.name for path in folder.iterdir()) == sorted([*NAMES, "metrics.jsonl"])


def test_a_folder_without_metrics_has_a_report_without_curves(folder: Path) -> None:
    (folder / "metrics.jsonl").unlink()
    assert read_metrics(folder) == ()
    write_report(folder, read_report(folder), ())
    assert "there is no metrics.jsonl" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_missing_report_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"report\.json is missing; finish the run first: hoyer-export run"):
        read_report(tmp_path)


DAMAGED = [
    (b"", r"is damaged: not JSON \(EOF"),
    (b'{"format": "hoyer-export-rep', r"is damaged: not JSON \(EOF"),
    (b"\xff\xfe\x00", r"is damaged: not JSON"),
    (b"[]", r"is damaged: the top: .*got \[\]"),
    (b"[" * 100_000, r"is damaged: not JSON"),
    (b'{"format": "hoyer-export-report/9"}', r"has the format 'hoyer-export-report/9', expected .*report/2'"),
    (b"{}", r"has the format None, expected .*report/2'"),
    (b'{"format": "hoyer-export-report/2"}', r"is damaged: recipe is missing"),
    (b'{"format": "hoyer-export-report/1"}', r"is damaged: seconds is missing"),
]


@pytest.mark.parametrize(("content", "message"), DAMAGED)
def test_a_damaged_report_is_named_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(FileError, match=message) as raised:
        read_report(tmp_path)
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "report.json") in str(raised.value)


def test_a_wrong_figure_is_named_with_its_place(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    report["cut"]["widths"][3]["slim"] = 0
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(FileError, match=r"widths\.3\.slim: input should be greater than or equal to 1, got 0"):
        read_report(folder)


def test_a_key_of_the_file_cannot_break_the_line(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    report["bench"]["environment"]["versions"] = {"a\nb\x1b[2J": 1}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(FileError, match=r"versions\.a b \[2J: input should be a valid string, got 1"):
        read_report(folder)


def test_a_folder_in_place_of_a_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(FileError, match="cannot read"):
        read_report(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(FileError, match="cannot read"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    "line", ["{", '{"phase": "warm-up", "epoch": 0, "loss": 1}', '{"phase": "dense", "epoch": 0}', ""]
)
def test_a_damaged_line_of_metrics_is_named(folder: Path, line: str) -> None:
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(FileError, match=r"metrics\.jsonl is damaged in line 10: ") as raised:
        read_metrics(folder)
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_there_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write"):
        write_report(tmp_path / "absent", example_reports.passed(), ())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_a_published_card_is_what_its_report_says(model: Path) -> None:
    report = read_report(model)
    assert (model / "card.md").read_text(encoding="utf-8") == render_card(report)
    assert f"format {report.format}" in render_page(report, ())
    assert report.tool is not None
    assert re.fullmatch(r"\d+\.\d+\.\d+( \(source tree\))?", report.tool.version)
    assert report.environment.versions["hoyer-export"] == report.tool.version


def places(found: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of every value of a JSON, the first of every list."""
    items = found.items() if isinstance(found, dict) else enumerate(found[:1]) if isinstance(found, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


WRONG_KINDS = (7, ["x"], ABSENT := object())


def test_a_damaged_report_of_version_1_gives_one_clear_error_or_is_read(tmp_path: Path) -> None:
    old = json.loads((MODELS[0].with_name("resnet20-cifar10") / "report.json").read_text())
    assert old["format"] == "hoyer-export-report/1"
    for latency in (old["latency"]["dense_ms"], old["latency"]["slim_ms"]):
        del latency["samples"][2:]  # 200 of one kind take their time
    refused, complaints = [], []
    for *path, key in places(old):
        for wrong in WRONG_KINDS:
            damaged = deepcopy(old)
            parent = damaged
            for part in path:
                parent = parent[part]
            if wrong is ABSENT:
                del parent[key]
            else:
                parent[key] = wrong
            (tmp_path / "report.json").write_text(json.dumps(damaged))
            try:
                read_report(tmp_path)
            except FileError as error:
                refused.append((*path, key))
                complaints.append(str(error))
    assert {("seconds",), ("dense", "macs"), ("latency", "dense_ms", "p50"), ("verify", "checks")} <= set(refused)
    assert all(re.fullmatch(r".*report\.json (is damaged|has the format).*; .*", line) for line in complaints)


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (("dense",), None, "is damaged: a section is of another kind than in hoyer-export-report/1"),
        (("latency",), "fast", "is damaged: a section is of another kind than in hoyer-export-report/1"),
        (("verify", "onnx", 0), {}, r"is damaged: verify\.artifacts\.1\.onnx\.0\.batch is missing"),
    ],
)
def test_what_is_wrong_with_a_report_of_version_1_is_said(
    tmp_path: Path, place: tuple[str | int, ...], value: object, complaint: str
) -> None:
    old = parent = json.loads((MODELS[0].with_name("resnet20-cifar10") / "report.json").read_text())
    for part in place[:-1]:
        parent = parent[part]
    parent[place[-1]] = value
    (tmp_path / "report.json").write_text(json.dumps(old))
    with pytest.raises(FileError, match=complaint):
        read_report(tmp_path)


def test_a_report_of_a_later_version_with_more_keys_is_read(folder: Path) -> None:
    later = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for part in (later, later["cut"], later["export"]["artifacts"][1], later["bench"]["environment"]):
        part["later"] = {"a": [1]}
    (folder / "report.json").write_text(json.dumps(later), encoding="utf-8")
    assert read_report(folder) == example_reports.passed()
