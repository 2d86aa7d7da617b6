"""The table of the paper's systems: what was run has its numbers, what was not says so, new recipes are taken up."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from hoyer_export.recipe.reading import load_recipe
from hoyer_export.run.grid import hash_of

SCRIPTS = Path(__file__).parents[2] / "scripts"
RECIPE = """
[network]
name = "lenet300"
[data]
name = "mnist"
[dense]
epochs = 1
[train]
epochs = 2
[cut]
macs = 0.5
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("reproduce_mnist")
    monkeypatch.setattr(module, "MODELS", tmp_path)
    return module


def table(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> list[str]:
    monkeypatch.setattr("sys.argv", ["reproduce_mnist.py", "--table", "--results", str(tmp_path)])
    script.main()
    out: list[str] = capsys.readouterr().out.splitlines()
    return out


def test_rows_that_were_not_run_say_so_beside_the_published_ones(script, tmp_path, monkeypatch, capsys) -> None:
    lines = table(script, tmp_path, monkeypatch, capsys)
    ours = [line for line in lines if "| 0 |" in line]
    assert len(ours) == 4 + 7 + 5 + 5
    assert all("not run" in line for line in ours)
    assert "| Group-HS (the paper) | 353-45-11 | 6.2 % | 98.2 % | |" in lines


def test_finished_runs_are_taken_up_seed_by_seed_and_of_element_wise_recipes_the_weights(
    script, tmp_path, monkeypatch, capsys
) -> None:
    for name, accuracies in {"lenet300-mnist": (98.0, 98.2, 98.4), "lenet300-mnist-hs": (98.5,)}.items():
        path = tmp_path / name / "recipe.toml"
        path.parent.mkdir()
        path.write_text(RECIPE + ("[bench]\nbatch_size = 2\n" if name.endswith("hs") else ""))
        for seed, accuracy in enumerate(accuracies):
            kept = {"test_accuracy": accuracy, "macs": 0.05, "nonzero": 0.016, "widths": {"fc1": 40, "fc2": 20 + seed}}
            key = hash_of(load_recipe(path, [f"seed={seed}", "bench.min_seconds=0"]))
            (tmp_path / f"{key}.json").write_text(json.dumps(kept))
    lines = [
        line for line in table(script, tmp_path, monkeypatch, capsys) if "the recipe" in line and "|  |" not in line
    ]
    assert lines[0] == "| **the recipe** | 40-20; 40-21; 40-22 | 5.00 % | 98.20 ± 0.20 % | 3 |"
    assert "| **the recipe** | 40-20 | 1.60 % | 98.50 % | 1 |" in lines
