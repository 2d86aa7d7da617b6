"""Single weights through the chain: regularised, zeroed, held at zero, counted, exported in the dense shape."""

import re
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file

from hoyer_export.console.runs import print_report
from hoyer_export.errors import RecipeError
from hoyer_export.recipe.reading import dump_recipe, load_recipe
from hoyer_export.report.files import read_report
from hoyer_export.report.making import how_it_was_made
from hoyer_export.report.report import Report
from hoyer_export.run.chain import run_recipe, ship_weights
from hoyer_export.run.grid import grid
from hoyer_export.run.progress import Silent
from hoyer_export.select.elements import element_weights
from hoyer_export.sparsify.phase import EpochRecord

NETWORK = """
from torch import nn

def small(in_channels=1, classes=10):
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, classes),
    )

def linear(in_channels=1, classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""
RECIPE = """
threads = 1
[network]
name = "small_elements:small"
[data]
name = "digits"
validation = 0.2
[dense]
epochs = 1
lr = 0.05
[train]
epochs = 4
lr = 0.02
cut_at = 0.5
[sparse]
regulariser = "hs"
ramp = 0.9
[cut]
method = "elements"
weights = 0.25
[bench]
min_seconds = 0
"""
WHOLE = 72 + 1280
LEFT = WHOLE // 4


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "small_elements.py").write_text(NETWORK)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def run(recipe: Path, out: Path, *overrides: str, resume: bool = False, progress: Silent | None = None) -> Report:
    told = load_recipe(recipe, overrides)
    return run_recipe(told, out, resume=resume, allow_import=["small_elements"], progress=progress or Silent())


class Stop(Exception):
    """Stands for a power cut."""


class StopAfter(Silent):
    def __init__(self, phase: str, epoch: int) -> None:
        self._at = (phase, epoch)

    def epoch(self, epoch: EpochRecord, epochs: int) -> None:
        if (epoch.phase, epoch.epoch) == self._at:
            raise Stop


def in_file(path: Path) -> dict[str, int]:
    """Return how many numbers of each weight in an ONNX file are not zero."""
    found = {it.name: numpy_helper.to_array(it) for it in onnx.load(path).graph.initializer}
    return {name: int((array != 0).sum()) for name, array in found.items() if array.ndim > 1}


def test_a_run_zeroes_a_share_holds_it_and_says_so_everywhere(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = run(recipe, out)
    assert [(it.name, it.weights) for it in report.export.weights] == [("0.weight", 72), ("4.weight", 1280)]
    assert sum(it.nonzero for it in report.export.weights) == LEFT == sum(in_file(out / "slim.onnx").values())
    assert report.budget.asked == {"weights": 0.25}
    assert report.budget.met
    assert report.passed
    assert report.slim.file.macs == report.dense.file.macs
    assert report.slim.file.params == report.dense.file.params
    assert all(group.slim == group.dense for group in report.cut.widths)
    assert report.cut.align is None
    assert report.effective_macs is None  # no channel is meant to go
    told = {it.key: it.value for it in onnx.load(out / "slim.onnx").metadata_props}
    assert (told["hoyer_export.weights"], told["hoyer_export.nonzero_weights"]) == (str(WHOLE), str(LEFT))
    assert "hoyer_export.weights" not in {it.key for it in onnx.load(out / "dense.onnx").metadata_props}
    card, page = ((out / name).read_text(encoding="utf-8") for name in ("card.md", "report.html"))
    for text in (card, page):
        assert "338 of 1,352 weights (25.00 %) are not zero" in text
        assert "a dense runtime is not faster by them" in text
        assert "Nothing was cut" not in text
        assert "Group-HS" not in text
    assert "at most 25 % of the weights asked, 25.00 % reached" in card
    assert "unstructured-pruning" in card
    capsys.readouterr()
    print_report(report, out)
    assert "338 of 1,352 weights (25.00 %) are not zero" in " ".join(capsys.readouterr().out.split())
    made = " ".join(how_it_was_made(report))
    assert "regulariser hs on single weights for 2 epochs at strength 2e-06; single weights went in the last 90" in made
    assert "what was zero staying zero" in made
    assert "multiply-accumulates" not in made


@pytest.mark.parametrize(("phase", "epoch"), [("sparse", 0), ("finetune", 0)])
def test_a_broken_run_ends_with_the_same_weights(phase: str, epoch: int, recipe: Path, tmp_path: Path) -> None:
    run(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        run(recipe, tmp_path / "broken", progress=StopAfter(phase, epoch))
    run(recipe, tmp_path / "broken", resume=True)
    whole, broken = ((tmp_path / name / "slim.onnx").read_bytes() for name in ("whole", "broken"))
    assert whole == broken


@pytest.mark.parametrize("kdim", [None, 4])
def test_the_weights_of_attention_are_those_of_linear_layers(kdim: int | None) -> None:
    names = set(element_weights(torch.nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim)))
    parts = ("q", "k", "v") if kdim else ("in",)
    assert names == {"out_proj.weight", *(f"{part}_proj_weight" for part in parts)}


@pytest.mark.parametrize("kind", ["sparse.strength=0", "sparse.regulariser=magnitude-elements"])
def test_all_of_the_share_is_used_where_the_cut_comes_late_in_an_epoch(kind: str, recipe: Path, tmp_path: Path) -> None:
    report = run(recipe, tmp_path / "out", "train.epochs=3", kind)
    assert sum(it.nonzero for it in report.export.weights) == LEFT
    assert "The network trained without a penalty for 2 epochs; single" in " ".join(how_it_was_made(report))


def test_a_layer_that_lost_all_of_its_weights_is_named(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(recipe, out, "cut.weights=0.001", "train.epochs=2", "dense.epochs=0")
    assert "no weight is left of 4.weight: nothing goes through" in (out / "card.md").read_text(encoding="utf-8")


def test_the_paper_s_way_is_a_threshold_of_each_layer_s_spread(recipe: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("weights = 0.25", "threshold = 1.5").replace("ramp = 0.9\n", "")
    recipe.write_text(
        text.replace(
            "[train]\nepochs = 4\nlr = 0.02\ncut_at = 0.5\n", '[finetune]\nepochs = 1\noptimizer = "adam"\nlr = 1e-3\n'
        )
    )
    report = run(recipe, tmp_path / "out", "sparse.epochs=1")
    weights = load_file(tmp_path / "out" / "sparse.safetensors")
    expected = {
        name: int((weights[name].abs() > 1.5 * weights[name].std(correction=0)).sum())
        for name in ("0.weight", "4.weight")
    }
    assert {it.name: it.nonzero for it in report.export.weights} == expected
    assert report.budget.met
    assert "weights up to 1.5 standard deviations of their layer were to go" in (
        tmp_path / "out" / "card.md"
    ).read_text(encoding="utf-8")


def test_without_training_nothing_but_zeroing_happens_and_how_to_hold_the_zeros_is_said(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(
        RECIPE.partition("[dense]")[0]
        + '[dense]\nepochs = 0\nweights = "random"\n[sparse]\nepochs = 0\n[finetune]\nepochs = 0\n'
        + '[cut]\nmethod = "elements"\nweights = 0.1\n[bench]\nmin_seconds = 0\n'
    )
    report = run(recipe, tmp_path / "out")
    assert sum(it.nonzero for it in report.export.weights) == 135
    assert report.cut.moved[0].max_change > 0
    print_report(report, tmp_path / "out")
    assert "hx.hold_zeros_(slim.model, optimizer)" in capsys.readouterr().out


def test_a_network_without_channels_to_cut_has_weights_to_zero(recipe: Path, tmp_path: Path) -> None:
    report = run(recipe, tmp_path / "out", "network.name=small_elements:linear")
    assert [it.nonzero for it in report.export.weights] == [160]
    assert report.cut.widths == ()


def test_weights_trained_elsewhere_that_are_no_longer_zero_miss_the_budget(recipe: Path, tmp_path: Path) -> None:
    run(recipe, tmp_path / "out")
    dense = tmp_path / "filled.pth"
    torch.save(dict(load_file(tmp_path / "out" / "dense.safetensors")), dense)
    report = ship_weights(tmp_path / "out", dense, allow_import=["small_elements"], progress=Silent())
    assert report.budget.reached["weights"] == 1
    assert not report.budget.met


def test_the_paper_s_groups_of_each_layer_train(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(
        RECIPE.replace('regulariser = "hs"\nramp = 0.9', 'grouping = "layer"\nalpha_c = 0').replace(
            'method = "elements"\nweights = 0.25', "macs = 0.9\nalign = 1"
        )
    )
    report = run(recipe, tmp_path / "out")
    assert report.effective_macs is not None
    assert report.effective_macs < 1
    assert report.recipe["sparse"]["alpha_n"] == 2e-3
    assert report.recipe["sparse"]["alpha_c"] == 0


ELEMENTS = RECIPE.replace("small_elements:small", "lenet5")
WRONG = [
    (["cut.method=group-hs"], 'cut: weights needs method = "elements"'),
    (["cut.macs=0.5"], 'cut: method = "elements" removes no channel and takes no macs; leave it out'),
    (["cut.align=8"], "takes no align"),
    (["cut.fold=false"], "takes no fold"),
    (["sparse.regulariser=group-hs"], "removes no channel: set sparse.regulariser to one of hs, hoyer"),
    (["cut.refit=true"], "takes no refit"),
    (["cut.gather=['fc1']"], "takes no gather"),
    (["cut.threshold=natural"], "needs either weights, a share, or threshold, a number of standard deviations"),
    (["cut.threshold=0.5"], "sparse.ramp leads down to cut.weights"),
    (["cut.weights=0"], "cut.weights: expected a number above 0"),
    (["sparse.ramp=1"], "sparse.ramp: expected a number below 1"),
    (["sparse.scale=paper"], 'sparse: scale does not belong to regulariser = "hs"; leave it out'),
    (["sparse.norms=function"], 'norms does not belong to regulariser = "hs"'),
    (["sparse.grouping=layer"], 'grouping does not belong to regulariser = "hs"'),
    (["sparse.regulariser=magnitude-elements", "sparse.strength=1"], 'strength does not belong to regulariser = "magn'),
    (["sparse.regulariser=hsq"], 'did you mean "hs"?'),
    (["sparse.alpha_n=1"], "alpha_n does not belong to"),
]


@pytest.mark.parametrize(("overrides", "said"), WRONG, ids=[" ".join(it) for it, _ in WRONG])
def test_what_does_not_go_together_is_one_line(overrides: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(ELEMENTS)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.toml", overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hoyer", "l1-elements", "transformed-l1", "magnitude-elements", "group-hs"])
def test_another_regulariser_takes_only_the_keys_that_are_its_own_along(name: str, tmp_path: Path) -> None:
    channels = re.sub('method = "elements"\nweights = .*', "macs = 0.5", ELEMENTS)
    (tmp_path / "recipe.toml").write_text(channels if name == "group-hs" else ELEMENTS)
    table = load_recipe(tmp_path / "recipe.toml", [f"sparse.regulariser={name}"]).sparse
    assert table.ramp == (None if name == "group-hs" else 0.9)
    first = load_recipe(
        tmp_path / "recipe.toml", ["sparse.strength=1", f"sparse.regulariser={name}"][name == "magnitude-elements" :]
    )
    assert first.sparse.strength == (None if name == "magnitude-elements" else 1)
    assert table.strength == {"hoyer": 1e-3, "l1-elements": 8e-5, "transformed-l1": 4e-5, "group-hs": 1e-3}.get(name)


def test_a_recipe_of_single_weights_reads_back_the_same(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(ELEMENTS)
    recipe = load_recipe(tmp_path / "recipe.toml")
    (tmp_path / "again.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "again.toml") == recipe


def test_a_share_that_leaves_nothing_is_said_before_training(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cut\.weights = 0\.0005 leaves none of 1,352 weights; ask for more"):
        run(recipe, tmp_path / "out", "cut.weights=0.0005")


@pytest.mark.parametrize("name", ["lenet300-mnist-hs", "lenet5-mnist-hs"])
def test_the_files_of_the_zoo_have_the_zeros_that_they_claim(name: str) -> None:
    folder = Path(__file__).parents[1] / "models" / name
    report, asked = read_report(folder), load_recipe(folder / "recipe.toml").cut.weights
    assert asked is not None
    whole, left = (sum(getattr(it, key) for it in report.export.weights) for key in ("weights", "nonzero"))
    assert sum(in_file(folder / "slim.onnx").values()) == left <= asked * whole


def test_a_grid_takes_the_rivals_on_single_weights_as_methods(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(ELEMENTS.replace('"hs"', '"hs"\nstrength = 3e-6'))
    cells = list(grid(tmp_path / "recipe.toml", methods=["hoyer", "magnitude-elements"], budgets=[0.1], seeds=[0]))
    found = [(it.recipe.sparse.regulariser, it.recipe.sparse.strength, it.budget) for it in cells]
    assert found == [("hoyer", 1e-3, 0.1), ("magnitude-elements", None, 0.1)]
