"""A recipe from a TOML file and back, with overrides; whatever is wrong is said in one line that names the key."""

import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from hoyer_export.errors import RecipeError
from hoyer_export.recipe.messages import explained, one_line, show
from hoyer_export.recipe.tables import BUDGETS, GIVEN, PATHS, RANDOM, Recipe, foreign_keys

_KINDS = ("sparse.regulariser", "sparse.grouping", "sparse.norms")
"""Keys that decide which others there are: set before these, and those that are not there then are unset."""


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        path: a TOML file.
        overrides: each ``section.key=value`` (or ``seed=value``); the value is read as TOML, and as a string where it
            is none. Setting one of [cut]'s budgets unsets the others.

    Returns:
        The recipe. Its paths are whole, so that it means the same wherever it is written and read again: those of the
        file are relative to its folder, those of ``overrides`` to the working directory.

    Raises:
        RecipeError: the file cannot be read, or a key or value is wrong; one line that names the culprit.
    """
    tables, set_by = _read(Path(path), overrides)
    return _validated(tables, str(path), set_by)


def read_tables(path: Path | str) -> dict[str, Any]:
    """Return the tables of a recipe that is not whole yet; its paths are. RecipeError where it cannot be read."""
    return _read(Path(path), ())[0]


def _read(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}; give the path of a TOML file") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text, so it is no TOML recipe") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {one_line(str(error))}") from error
    kinds_first = sorted(overrides, key=lambda it: it.partition("=")[0].strip() not in _KINDS)
    set_by = {_apply(override, tables): override for override in kinds_first}
    _make_whole(tables, path.parent, set_by)
    return tables, set_by


def make_recipe(tables: Mapping[str, Any], source: str = "the recipe") -> Recipe:
    """Return the recipe of tables that are not read from a file; None leaves a value out, paths are relative to here.

    Raises:
        RecipeError: a key or value is wrong.
    """
    given = {
        key: {name: it for name, it in table.items() if it is not None} if isinstance(table, Mapping) else table
        for key, table in tables.items()
        if table is not None
    }
    _make_whole(given, Path(), {})
    return _validated(given, source, {})


def _make_whole(tables: dict[str, Any], folder: Path, set_by: Mapping[tuple[str, ...], str]) -> None:
    """Make paths in ``tables`` whole: relative ones are of ``folder``, those of overrides of the working directory."""
    for section, key in PATHS:
        table = tables.get(section)
        given = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(given, str) and given not in ("", RANDOM, GIVEN):
            table[key] = os.path.abspath(given if (section, key) in set_by else folder / given)


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as TOML that ``load_recipe`` reads back to the same."""
    tables = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.train is not None:
        for name, decided in recipe.train.phases().items():
            tables[name] = {key: value for key, value in tables[name].items() if key not in decided}
    return tomli_w.dumps(tables)


def resolved(recipe: Recipe, found: Mapping[str, Any]) -> Recipe:
    """Return the recipe with what it leaves open settled, so that it alone says how the run was made.

    Args:
        recipe: as it was given.
        found: ``section.key`` or ``key`` → the value in force; what the recipe sets itself stays.
    """
    tables = recipe.model_dump()
    for key in left_open(recipe, found):
        section, _, name = key.rpartition(".")
        (tables[section] if section else tables)[name] = found[key]
    return Recipe.model_validate(tables)


def left_open(recipe: Recipe, keys: Iterable[str]) -> list[str]:
    """Return those of the keys, each ``section.key`` or ``key``, that the recipe does not set."""
    given = _flat(recipe.model_dump())
    return [key for key in keys if given.get(key) is None]


def reopened(recipe: Recipe, begun: Recipe, settled: Iterable[str]) -> Recipe:
    """Return a recipe to go on with: what it leaves open is as it was settled when the run was begun.

    Args:
        recipe: as given now.
        begun: of the run, resolved.
        settled: keys of it that ``resolved`` gave a value.
    """
    before = _flat(begun.model_dump())
    return resolved(recipe, {key: before[key] for key in settled if before.get(key) is not None})


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _apply(override: str, tables: dict[str, Any]) -> tuple[str, ...]:
    """Set one value in ``tables`` and return its key."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) > 2 or not all(parts):
        raise RecipeError(f"`overrides` {override}: expected section.key=value, e.g. sparse.strength=2e-3")
    value = _toml_value(text.strip())
    if len(parts) == 1:
        tables[parts[0]] = value
        return (parts[0],)
    section, name = parts
    table = tables.setdefault(section, {})
    if not isinstance(table, dict):
        raise RecipeError(f"`overrides` {override}: {section} is {show(table)} in the recipe, not a table")
    if section == "cut" and name in BUDGETS:
        for other in BUDGETS:
            table.pop(other, None)
    if (section, name) == ("sparse", "regulariser") and table.get(name, "group-hs") != value:
        table.pop("strength", None)  # which is of the other one
    table[name] = value
    if f"{section}.{name}" in _KINDS:
        for key in set(foreign_keys(table)) - {name}:
            del table[key]
    return section, name


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _validated(tables: dict[str, Any], path: str, set_by: Mapping[tuple[str, ...], str]) -> Recipe:
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        key, message = explained(error)
        source = f"`overrides` {set_by[key]}" if key in set_by else path
        raise RecipeError(f"{source}: {message}") from None
