"""Sparse phase, cut and fine-tuning as one schedule: [train] in a recipe, the rate, the momenta, and a broken run."""

from pathlib import Path

import pytest

from hoyer_export.errors import FileError, RecipeError
from hoyer_export.recipe.reading import dump_recipe, load_recipe
from hoyer_export.report.making import how_it_was_made
from hoyer_export.report.report import Report
from hoyer_export.run.chain import run_recipe
from hoyer_export.run.progress import Silent
from hoyer_export.sparsify.phase import EpochRecord, TrainSettings

NETWORK = """
from torch import nn

def small(in_channels=1, classes=10):
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes),
    )
"""
RECIPE = """
threads = 1
[network]
name = "small_net:small"
[data]
name = "digits"
validation = 0.2
[dense]
epochs = 2
lr = 0.05
[train]
epochs = 4
lr = 0.02
warmup = 0.5
cut_at = 0.5
[sparse]
norms = "function"
[cut]
macs = 0.5
align = 1
[bench]
min_seconds = 0
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "small_net.py").write_text(NETWORK)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def run(recipe: Path, out: Path, *overrides: str, resume: bool = False, progress: Silent | None = None) -> Report:
    """Run the recipe into a folder."""
    told = load_recipe(recipe, overrides)
    return run_recipe(told, out, resume=resume, allow_import=["small_net"], progress=progress or Silent())


class Stop(Exception):
    """Stands for a power cut."""


class StopAfter(Silent):
    """Cuts the power after an epoch."""

    def __init__(self, phase: str, epoch: int) -> None:
        self._at = (phase, epoch)

    def epoch(self, epoch: EpochRecord, epochs: int) -> None:
        if (epoch.phase, epoch.epoch) == self._at:
            raise Stop


def test_the_table_decides_what_the_phases_have_in_common(recipe: Path) -> None:
    found = load_recipe(recipe)
    assert (found.sparse.epochs, found.finetune.epochs) == (2, 2)
    assert found.sparse.lr == found.finetune.lr == 0.02
    assert load_recipe(recipe, ["train.cut_at=0.6"]).sparse.epochs == 3
    assert load_recipe(recipe, ["train.cut_at=0", "cut.method=function"]).sparse.epochs == 0


def test_a_recipe_with_one_schedule_reads_back_the_same_and_can_be_changed(recipe: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.toml"
    again.write_text(dump_recipe(load_recipe(recipe)))
    assert load_recipe(again) == load_recipe(recipe)
    assert load_recipe(again, ["train.epochs=8"]).finetune.epochs == 4
    assert load_recipe(again, ["sparse.norms=weights", "sparse.strength=2e-3"]).sparse.strength == 2e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.lr=0.1", r"finetune.lr is decided by \[train\]"),
        ("sparse.epochs=3", r"sparse.epochs is decided by \[train\]"),
        ("train.cut_at=1", "train.cut_at: expected a number below 1"),
        ("train.epochs=0", "train.epochs: expected"),
        ("train.cut_at=0.9", "cut_at leaves no epoch after the cut"),
        ("sparse.norms=functoin", 'did you mean "function"'),
        ("sparse.norms=['function']", "sparse.norms: expected"),
        ("train.epochs=x", "train.epochs: expected a whole number"),
        ("sparse.strength=1", 'strength does not belong to norms = "function"'),
        ("cut.method=magnitude", 'norms = "function" decides in [sparse] what goes'),
        ("cut.threshold=0.1", "needs macs or params"),
    ],
)
def test_what_contradicts_the_schedule_is_one_line(override: str, message: str, recipe: Path) -> None:
    with pytest.raises(RecipeError, match=message.replace("in [s", r"in \[s")):
        load_recipe(recipe, [override])


def test_the_phases_rates_are_one_warm_up_and_one_cosine() -> None:
    one = TrainSettings(phase="sparse", steps_per_epoch=10, epochs=8, lr=0.1, warmup_epochs=1)
    parts = [
        TrainSettings(phase="sparse", steps_per_epoch=10, epochs=3, schedule_epochs=8, lr=0.1, warmup_epochs=1),
        TrainSettings(
            phase="finetune", steps_per_epoch=10, epochs=5, first_epoch=3, schedule_epochs=8, lr=0.1, warmup_epochs=1
        ),
    ]
    rates = [part.learning_rate(step) for part in parts for step in range(part.epochs * 10)]
    assert rates == [one.learning_rate(step) for step in range(80)]


def test_a_run_ends_at_the_budget_and_broken_anywhere_it_goes_on_to_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    whole = run(recipe, tmp_path / "whole")
    assert whole.budget.met
    assert all(group.alive == group.slim < group.dense for group in whole.cut.widths)  # align = 1
    assert any("in one schedule" in words and "were saved" in words for words in how_it_was_made(whole))
    assert 0.4 < whole.slim.file.macs / whole.dense.file.macs <= 0.5
    for number, (phase, epoch) in enumerate([("sparse", 0), ("finetune", 0)]):
        out = tmp_path / f"broken{number}"
        with pytest.raises(Stop):
            run(recipe, out, progress=StopAfter(phase, epoch))
        run(recipe, out, resume=True)
        for name in ("sparse.safetensors", "slim.safetensors", "slim.onnx"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (phase, epoch, name)


def test_the_momenta_go_on_through_the_cut(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first fine-tuned step is another where they begin anew."""
    weights = []
    for number, forget in enumerate((False, True)):
        if forget:
            monkeypatch.setattr("hoyer_export.run.train.load_momenta", lambda path, optimizer: optimizer.state.clear())
        out = tmp_path / str(number)
        run(recipe, out, "train.epochs=3")
        weights.append((out / "slim.safetensors").read_bytes())
    assert (tmp_path / "0" / "sparse.safetensors").read_bytes() == (tmp_path / "1" / "sparse.safetensors").read_bytes()
    assert weights[0] != weights[1]


def test_a_finished_run_is_cut_again_with_the_same_momenta(recipe: Path, tmp_path: Path) -> None:
    run(recipe, out := tmp_path / "run")
    before = (out / "slim.safetensors").read_bytes()
    again = load_recipe(recipe)
    run_recipe(again, out, redo_from="cut", allow_import=["small_net"], progress=Silent())
    assert (out / "slim.safetensors").read_bytes() == before
    (out / "checkpoint" / "sparse.safetensors").unlink()
    with pytest.raises(FileError, match=r"the momenta; put it back, or add --redo-from sparse"):
        run_recipe(again, out, redo_from="cut", allow_import=["small_net"], progress=Silent())


def test_another_budget_on_resume_is_another_sparse_phase(recipe: Path, tmp_path: Path) -> None:
    run(recipe, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"cut.macs: 0.5 → 0.4.*sparse is trained already"):
        run(recipe, tmp_path / "run", "cut.macs=0.4", resume=True)


def test_what_goes_is_zero_inside_an_epoch_if_that_is_where_the_share_ends(recipe: Path, tmp_path: Path) -> None:
    headlines: list[str] = []

    class Listening(Silent):
        def headline(self, text: str) -> None:
            headlines.append(text)

    report = run(recipe, tmp_path / "run", "train.cut_at=0.3", progress=Listening())
    steps = -(-1150 // 128)
    assert any(f"2 epochs, Group-HS on function, to macs = 0.5 in {round(1.2 * steps)} steps" in it for it in headlines)
    assert report.budget.met


def test_from_scratch_in_one_run(recipe: Path, tmp_path: Path) -> None:
    report = run(recipe, tmp_path / "run", "dense.epochs=0")
    assert report.budget.met
    with pytest.raises(RecipeError, match="epochs = 0 needs weights"):
        load_recipe(recipe, ["dense.epochs=0", "distill.weight=0.7"])
