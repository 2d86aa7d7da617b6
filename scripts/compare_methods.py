"""Methods × budgets × epochs × seeds of one recipe: every run once, kept as a small file, and a table of differences.

    python scripts/compare_methods.py RECIPE --set data.root=DATA
        [--methods group-hs function magnitude] [--budgets 0.5 0.3 0.15] [--epochs 10 30] [--seeds 0 1 2]
        [--results results] [--runs build/compare] [--table] [--test]

A method is one of ``METHODS`` in hoyer_export/run/grid.py, and what else is set for it:
``group-hs,sparse.ramp=0.4,train.cut_at=0.4``. A finished run is ``RESULTS/HASH.json``, the hash that of the whole
recipe and of the dense weights; it is never done again. A run that was broken goes on from its last epoch, and several
processes may work on the same grid. The table shows validation accuracy, on which choices are made; ``--test`` the test
accuracy, to be looked at once. Differences to the last method are paired by seed; the interval is Student's, 95 %.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from finished_runs import Result, result_of, spread
from scipy.stats import t as student

from hoyer_export.errors import HoyerExportError
from hoyer_export.recipe.reading import load_recipe
from hoyer_export.run.grid import budget_key, grid


def main() -> None:
    """Do what is missing of the grid, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--methods", nargs="+", default=["group-hs", "function", "magnitude"])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.3, 0.15])
    parser.add_argument("--epochs", nargs="+", type=int, default=[10])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--runs", type=Path, default=Path("build/compare"))
    parser.add_argument("--table", action="store_true", help="train nothing, print what there is")
    parser.add_argument("--test", action="store_true", help="test accuracy instead of validation accuracy")
    given = parser.parse_args()
    found: dict[tuple[int, float, str, int], Result] = {}
    of = budget_key(load_recipe(given.recipe, given.set))
    # Seed by seed, so that the table is whole for the first ones early.
    for seed, epochs in product(given.seeds, given.epochs):
        common = [*given.set, f"train.epochs={epochs}"]
        for cell in grid(given.recipe, common, methods=given.methods, budgets=given.budgets, seeds=[seed]):
            method, budget = cell.method, cell.budget
            try:
                runs = None if given.table else given.runs
                result = result_of(cell.recipe, method, given.results, runs)
            except HoyerExportError as error:
                print(f"{method}, {budget:.1%} of the {of}, {epochs} epochs, seed {seed}: {error}", flush=True)
                continue
            if result is not None:
                found[epochs, budget, method, seed] = result
    print_table(found, given.methods, given.seeds, "test_accuracy" if given.test else "validation_accuracy", of)


def print_table(
    found: dict[tuple[int, float, str, int], Result], methods: Sequence[str], seeds: Sequence[int], key: str, of: str
) -> None:
    """Print mean ± standard deviation over the seeds, and the paired difference to the last method."""
    for epochs, budget in sorted({cell[:2] for cell in found}, key=lambda cell: (cell[0], -cell[1])):
        print(f"\n{epochs} epochs, {budget:.1%} of the {of}, {key.replace('_', ' ')}, %")
        scores = {
            method: {
                seed: float(found[epochs, budget, method, seed][key])
                for seed in seeds
                if (epochs, budget, method, seed) in found
            }
            for method in methods
        }
        rival = scores[methods[-1]]
        for method, by_seed in scores.items():
            if not by_seed:
                continue
            values = list(by_seed.values())
            size = "nonzero" if of == "weights" else "macs"
            left = mean(float(found[epochs, budget, method, seed][size]) for seed in by_seed)
            line = f"  {method:<60} {spread(values):>13} n = {len(values)}  {size} {left:.3f}"
            pairs = [value - rival[seed] for seed, value in by_seed.items() if seed in rival]
            if method != methods[-1] and pairs:
                line += f"  {mean(pairs):+.2f}"
                if len(pairs) > 1:
                    line += f" ± {student.ppf(0.975, len(pairs) - 1) * stdev(pairs) / len(pairs) ** 0.5:.2f}"
            print(line)


if __name__ == "__main__":
    main()
