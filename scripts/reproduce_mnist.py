"""The paper's systems on MNIST: our rows beside the published ones, every run once and kept as a small file.

    python scripts/reproduce_mnist.py --set data.root=DATA
        [--only lenet300-mnist lenet5-mnist] [--seeds 0 1 2] [--results results] [--runs build/compare] [--table]

Of each recipe in models/ its own three seeds, and rivals with the same epochs, schedule, distillation and MACs; then
LeNet-5 with nothing but the budget changed, one seed. The test images are looked at here alone; choices were made on
validation images. What was not run says so; ``--table`` runs nothing. Accuracy is mean ± standard deviation over the
seeds, size the MACs that are left, input Gather counted, and of element-wise rows the non-zero weights.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from finished_runs import Result, result_of, spread

from hoyer_export.choices import ELEMENTS
from hoyer_export.errors import HoyerExportError
from hoyer_export.recipe.reading import load_recipe
from hoyer_export.run.grid import METHODS

MODELS = Path(__file__).parents[1] / "models"
BUDGETS = (0.5, 0.25, 0.1)
"""Shares of LeNet-5's MACs that its one recipe is run at as well."""
OURS = "**the recipe**"
RIVALS = {
    "Group-HS on function": ("sparse.norms=function", "train.cut_at=0.25", "cut.method=group-hs"),
    "one cut by function": METHODS["function"],
    "one cut by sensitivity": METHODS["sensitivity"],
    "one cut by magnitude": METHODS["magnitude"],
}
ON_ELEMENTS = tuple(name for name in ELEMENTS if name != "hs")


@dataclass(frozen=True)
class Published:
    """A row of somebody else's: widths, MACs or non-zero weights in %, accuracy in %."""

    method: str
    widths: str
    size: float
    accuracy: float


@dataclass(frozen=True)
class System:
    """A network and what is counted of it; ``key`` is that of a kept result."""

    recipe: str
    title: str
    key: str
    rivals: tuple[str, ...]
    published: tuple[Published, ...]


# Yang, Wen, Li 2020 (DeepHoyer, arXiv 1908.09979), tables 1 and 2, and the rows that they quote: Louizos et al. 2017
# (BC-GHS), Louizos et al. 2018 (L0), Wen et al. 2016 (SSL); the reproduction is one with the authors' code.
SYSTEMS = (
    System(
        "lenet300-mnist",
        "LeNet-300-100, structured, MACs of 266.2K",
        "macs",
        ("Group-HS on function", "one cut by function", "one cut by magnitude"),
        (
            Published("Group-HS (the paper)", "353-45-11", 6.2, 98.2),
            Published("its reproduction", "349-38-14", 5.2, 97.8),
            Published("Bayes ℓ1-trim", "245-75-25", 7.7, 98.3),
            Published("L0, hard concrete", "266-88-33", 10.0, 98.2),
            Published("BC-GHS", "311-86-14", 10.6, 98.2),
        ),
    ),
    System(
        "lenet5-mnist",
        "LeNet-5, structured, MACs of 2,293K",
        "macs",
        ("Group-HS on function", "one cut by function", "one cut by sensitivity"),
        (
            Published("BC-GHS", "5-10-76-16", 6.7, 99.0),
            Published("Group-HS (the paper)", "5-12-139-13", 7.4, 99.0),
            Published("group lasso (SSL)", "3-12-192-500", 8.8, 99.0),
            Published("L0, hard concrete", "9-18-65-25", 17.0, 99.0),
        ),
    ),
    System(
        "lenet300-mnist-hs",
        "LeNet-300-100, element-wise, weights of 266.2K",
        "nonzero",
        ON_ELEMENTS,
        (Published("HS (the paper)", "", 1.74, 98.4), Published("its reproduction", "", 3.7, 97.99)),
    ),
    System(
        "lenet5-mnist-hs",
        "LeNet-5, element-wise, weights of 430.5K",
        "nonzero",
        ON_ELEMENTS,
        (Published("HS (the paper)", "", 0.8, 99.2), Published("its reproduction", "", 1.4, 99.17)),
    ),
)


def main() -> None:
    """Do what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [system.recipe for system in SYSTEMS]
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--runs", type=Path, default=Path("build/compare"))
    parser.add_argument("--table", action="store_true", help="train nothing, print what there is")
    given = parser.parse_args()
    # Our own rows first, so that they are there early.
    asked = [(system, *it) for system in SYSTEMS if system.recipe in given.only for it in enumerate(rows_of(system))]
    found: dict[tuple[str, str], list[Result]] = {}
    for system, _, (name, changed) in sorted(asked, key=lambda it: it[1]):
        found[system.title, name] = list(runs(system.recipe, name, changed, given))
    for system in (it for it in SYSTEMS if it.recipe in given.only):
        print(f"\n{system.title}\n\n| method | widths | size | accuracy | n |\n|---|---|--:|--:|--:|")
        for name, _ in rows_of(system):
            print(row(name, found[system.title, name], system.key))
        for it in system.published:
            print(f"| {it.method} | {it.widths} | {it.size} % | {it.accuracy} % | |")


def rows_of(system: System) -> list[tuple[str, Sequence[str]]]:
    """Return our rows of a system, each with what is set in its recipe."""
    budgets = BUDGETS if system.recipe == "lenet5-mnist" else ()
    changed = [(f"{OURS}, cut.macs = {share}", (f"cut.macs={share}",)) for share in budgets]
    return [(OURS, ()), *changed, *((name, (RIVALS | METHODS)[name]) for name in system.rivals)]


def runs(name: str, method: str, changed: Sequence[str], given: argparse.Namespace) -> Iterator[Result]:
    """Yield what there is of the runs of a recipe, seed by seed; done first unless only the table is asked for."""
    path = MODELS / name / "recipe.toml"
    seeds = given.seeds[:1] if any(it.startswith("cut.macs") for it in changed) else given.seeds
    for seed in seeds if path.exists() else ():
        # What is measured and written beside slim.onnx is no part of these runs.
        recipe = load_recipe(path, [*given.set, *changed, f"seed={seed}", "bench.min_seconds=0"])
        try:
            result = result_of(recipe, method, given.results, None if given.table else given.runs)
        except HoyerExportError as error:
            print(f"<!-- {name}, {method}, seed {seed}: {error} -->", flush=True)
            continue
        if result is not None:
            yield result


def row(method: str, results: Sequence[Result], key: str) -> str:
    """Return a row of ours."""
    if not results:
        return f"| {method} | | | not run | 0 |"
    widths = "; ".join("-".join(map(str, result["widths"].values())) for result in results)
    size = mean(100 * float(result[key]) for result in results)
    accuracy = spread([float(result["test_accuracy"]) for result in results])
    return f"| {method} | {widths} | {size:.2f} % | {accuracy} % | {len(results)} |"


if __name__ == "__main__":
    main()
