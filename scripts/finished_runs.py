"""Finished runs, a small file each, named by the hash of all that a run hangs on.

A run that was broken goes on from its last epoch, and several processes may work on the same runs. Those that begin
with the same dense training share it.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from safetensors.torch import load_file

from hoyer_export.environment import environment_record
from hoyer_export.recipe.reading import dump_recipe
from hoyer_export.recipe.tables import Recipe
from hoyer_export.report.metrics import read_metrics
from hoyer_export.run.chain import begin_from, hangs_on, run_recipe, train_dense
from hoyer_export.run.grid import hash_of, short_hash
from hoyer_export.run.progress import Silent
from hoyer_export.run_folder import RunFolder, write_whole

Result = dict[str, object]


def result_of(recipe: Recipe, method: str, results: Path, runs: Path | None) -> Result | None:
    """Return what is kept of a run, which is done first where it was not.

    Args:
        recipe: the whole of it.
        method: what it is called.
        results: the folder of finished runs.
        runs: the folder of those that are under way, and of dense networks; None: nothing is run, nor returned then.
    """
    key = hash_of(recipe)
    file = results / f"{key}.json"
    if not file.exists() and runs is not None:
        results.mkdir(parents=True, exist_ok=True)
        runs.mkdir(parents=True, exist_ok=True)
        folder = runs / key
        if recipe.dense.epochs:
            dense = runs / f"dense-{short_hash(hangs_on(recipe))}"
            train_dense(recipe, dense, progress=Silent())
            begin_from(dense, folder)
        result = run(recipe, folder) | {"method": method}
        write_whole(file, json.dumps(result, indent=1) + "\n")
        shutil.rmtree(folder)
        print(f"<!-- {method}, seed {recipe.seed}: {result['validation_accuracy']:.2f} % on validation -->", flush=True)
    return json.loads(file.read_text()) if file.exists() else None


def run(recipe: Recipe, folder: Path) -> Result:
    """Run a recipe, or go on with it, and return the few numbers that are kept."""
    report = run_recipe(recipe, folder, resume=True, progress=Silent())
    last = read_metrics(folder)[-1]
    return {
        "validation_accuracy": last.validation_accuracy,
        "test_accuracy": report.slim.accuracy,
        "dense_test_accuracy": report.dense.accuracy,
        "macs": report.slim.file.macs / report.dense.file.macs,
        "nonzero": _nonzero(folder),
        "widths": {group.group: group.slim for group in report.cut.widths},
        "train_seconds": sum(epoch.seconds or 0 for epoch in read_metrics(folder)),
        "recipe": dump_recipe(_without_paths(recipe)),
        "versions": environment_record().versions,
    }


def _without_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with nothing of this machine in it: no root, and of the weights the file's name."""
    data, weights = recipe.data, recipe.dense.weights
    named = recipe.dense.model_copy(update={"weights": None if weights is None else Path(weights).name})
    return recipe.model_copy(update={"data": data and data.model_copy(update={"root": None}), "dense": named})


def _nonzero(folder: Path) -> float:
    """Return the weights that are not zero, as a share of the dense network's; biases and norms are not counted."""
    slim, dense = (
        [tensor for tensor in load_file(file).values() if tensor.ndim > 1]
        for file in (RunFolder(folder).slim_weights, RunFolder(folder).dense_weights)
    )
    return sum(int(it.count_nonzero()) for it in slim) / sum(it.numel() for it in dense)


def spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation of what several seeds gave."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
