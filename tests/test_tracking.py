"""An epoch's numbers reach whoever tracks them, from the first process alone; what is not installed is said before."""

import csv
from pathlib import Path

import pytest
from lightning_fabric.loggers import CSVLogger

from hoyer_export import parallel
from hoyer_export.errors import RecipeError
from hoyer_export.run import tracking
from hoyer_export.run_folder import RunFolder
from hoyer_export.sparsify.phase import EpochRecord

EPOCH = EpochRecord(phase="sparse", epoch=1, loss=0.5, learning_rate=0.1, validation_accuracy=75.0)


@pytest.fixture
def to_csv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a logger of Fabric's own, which needs no package, stand for the others."""
    monkeypatch.setattr(tracking, "find_spec", lambda package: package)
    monkeypatch.setattr(tracking, "_made", lambda name, folder: CSVLogger(folder.path, name, version=""))


def test_every_number_that_there_is_has_its_phase_and_step(to_csv: None, tmp_path: Path) -> None:
    with tracking.trackers(["tensorboard"], RunFolder(tmp_path)) as trackers:
        tracking.track(trackers, EPOCH, 7)
    (row,) = csv.DictReader((tmp_path / "tensorboard/metrics.csv").read_text().splitlines())
    expected = {"sparse/loss": "0.5", "sparse/learning_rate": "0.1", "sparse/validation_accuracy": "75.0", "step": "7"}
    assert row == expected


def test_only_the_first_process_tracks(to_csv: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    with tracking.trackers(["tensorboard"], RunFolder(tmp_path)) as trackers:
        assert trackers == []


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    with pytest.raises(RecipeError, match=rf"^track: {name} needs {package}; pip install 'hoyer-export\[{name}\]'"):
        tracking.check_trackers([name])
