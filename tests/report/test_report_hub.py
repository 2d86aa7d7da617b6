"""The folder for the hub holds the card as README.md beside what it describes, whole or not at all."""

from pathlib import Path

import example_reports
import pytest

from hoyer_export.errors import FileError
from hoyer_export.report.card import render_card
from hoyer_export.report.files import write_report
from hoyer_export.report.hub import write_hub_folder
from hoyer_export.report.report import Report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_report(folder, example_reports.passed(), ())
    for name in ("dense.onnx", "slim.onnx", "slim.safetensors", "stages.json"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_folder_for_the_hub_has_the_card_the_slim_files_and_how_they_are_kept(run: Path, tmp_path: Path) -> None:
    write_hub_folder(run, example_reports.passed(), tmp_path / "hub")
    out = tmp_path / "hub"
    assert {it.name for it in out.iterdir()} == {
        *("README.md", ".gitattributes", "slim.onnx", "slim.safetensors", "report.json", "report.html", "headline.png"),
    }
    assert (out / "README.md").read_text(encoding="utf-8") == render_card(example_reports.passed())
    assert (out / "slim.onnx").read_bytes() == b"slim.onnx"
    assert "*.onnx filter=lfs diff=lfs merge=lfs -text\n" in (out / ".gitattributes").read_text()


@pytest.mark.parametrize(
    ("report", "gone", "message"),
    [
        (example_reports.failed(), None, "failed its verification, and is nothing to publish"),
        (example_reports.passed(), "slim.onnx", r"has no slim\.onnx; make it again: hoyer-export export"),
    ],
)
def test_what_cannot_be_published_leaves_no_folder(
    run: Path, tmp_path: Path, report: Report, gone: str | None, message: str
) -> None:
    if gone is not None:
        (run / gone).unlink()
    with pytest.raises(FileError, match=message):
        write_hub_folder(run, report, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_a_folder_that_holds_something_is_left_alone(run: Path) -> None:
    with pytest.raises(FileError, match="is taken; give a folder that is absent or empty"):
        write_hub_folder(run, example_reports.passed(), run)
