"""The runs of a grid: methods × budgets × seeds of one recipe, each a recipe of its own."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pydantic import JsonValue

from hoyer_export.choices import ELEMENTS
from hoyer_export.errors import RecipeError
from hoyer_export.recipe.reading import load_recipe
from hoyer_export.recipe.tables import Recipe

METHODS = {
    "group-hs": ("sparse.norms=function",),
    "group-hs-weights": ("sparse.norms=weights",),
    "function": ("train.cut_at=0", "cut.method=function", "cut.calibration=2048"),
    "sensitivity": ("train.cut_at=0", "cut.method=sensitivity", "cut.calibration=2048"),
    "magnitude": ("train.cut_at=0", "cut.method=magnitude"),
    **{name: (f"sparse.regulariser={name}",) for name in ELEMENTS},
}
"""What is set in a recipe for a method; the ends of all are the same: epochs, schedule, distillation, alignment."""
SHARES = ("macs", "params", "weights", "latency")
"""Budgets that are shares of the dense network."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid or a search.

    Args:
        name: of its folder.
        method: how channels are chosen.
        settings: what sets it apart, each ``section.key=value``.
        recipe: the whole of it.
    """

    name: str
    method: str
    settings: tuple[str, ...]
    recipe: Recipe

    @property
    def budget(self) -> float | None:
        """The share that may stay; None where the budget is of another kind."""
        share = self.recipe.cut.asked().get(budget_key(self.recipe))
        return share if isinstance(share, float) else None


def budget_key(recipe: Recipe) -> str:
    """Return the share that the recipe gives a budget of; ``macs`` where it gives none."""
    return next((key for key in SHARES if key in recipe.cut.asked()), "macs")


def grid(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    methods: Sequence[str] = (),
    budgets: Sequence[float],
    seeds: Sequence[int],
) -> Iterator[Cell]:
    """Yield the runs, seed by seed, so that all is there for the first ones early.

    Args:
        path: of the recipe that all have in common.
        overrides: what is set in it for all.
        methods: each one of ``METHODS``, and what else is set for it: ``group-hs,sparse.ramp=0.4``; without any, the
            recipe's own.
        budgets: shares of what the recipe's [cut] gives a share of.
        seeds: of the runs.

    Raises:
        RecipeError: a method is unknown, or a recipe is wrong.
    """
    common = load_recipe(path, overrides)
    key = budget_key(common)
    for seed, budget, method in product(seeds, budgets, methods or ("",)):
        name, *more = method.split(",")
        if method and name not in METHODS:
            raise RecipeError(f"`methods` {name}: expected some of {', '.join(METHODS)}")
        if common.train is None and any(it.startswith("train.") for it in METHODS.get(name, ())):
            raise RecipeError(f"`methods` {name}: the recipe needs a table [train], the schedule that all share")
        settings = (*METHODS.get(name, ()), *more, f"seed={seed}", f"cut.{key}={budget:g}")
        recipe = load_recipe(path, [*overrides, *settings])
        yield Cell(
            name=re.sub(r"[^\w.=+-]", "_", f"{method or method_of(recipe)}-{key}-{budget:g}-seed-{seed}"),
            method=method or method_of(recipe),
            settings=settings,
            recipe=recipe,
        )


def split_methods(text: str) -> tuple[str, ...]:
    """Return the methods in e.g. ``group-hs,sparse.ramp=0.4,function``: what is set belongs to the one before it."""
    found: list[str] = []
    for part in filter(None, text.split(",")):
        if "=" in part and found:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return tuple(found)


def method_of(recipe: Recipe) -> str:
    """Return what chooses the channels: a regulariser before the cut, or the cut."""
    return recipe.sparse.regulariser if recipe.sparse.epochs else recipe.cut.method


def hash_of(recipe: Recipe, **more: JsonValue) -> str:
    """Return a name for all that a run hangs on: the recipe without paths, and the weights that it starts from.

    What is as by default does not count, so that a new key leaves the names of finished runs as they are.
    """
    tables = recipe.model_dump(mode="json", exclude_defaults=True)
    tables.get("data", {}).pop("root", None)
    if recipe.dense.file is not None and recipe.dense.file.is_file():
        tables["dense"]["weights"] = hashlib.sha256(recipe.dense.file.read_bytes()).hexdigest()
    return short_hash(tables | more)


def short_hash(values: Mapping[str, JsonValue]) -> str:
    """Return 16 hexadecimal digits that stand for the values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
