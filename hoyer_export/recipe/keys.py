"""What a recipe may say, to be read by people: each table and key, its type in plain words, its default, its meaning.

All of it is in ``tables.py``, and nothing is listed here: docs/recipe.md and the recipes that ``init`` writes are made
of these.
"""

from dataclasses import dataclass
from inspect import cleandoc
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import to_jsonable_python

from hoyer_export.recipe.tables import Recipe


@dataclass(frozen=True)
class Key:
    """One key of a table.

    Args:
        name: as it stands in the recipe.
        type: in plain words.
        default: as TOML; None where it is unset, or needed.
        needed: whether the table cannot do without it.
        meaning: on one line, with ``code`` in double backquotes.
    """

    name: str
    type: str
    default: str | None
    needed: bool
    meaning: str


def table_class(name: str) -> type[BaseModel] | None:
    """Return the class of the recipe's table called ``name``; None where that is a single key."""
    annotation = Recipe.model_fields[name].annotation
    kinds = (annotation, *get_args(annotation))  # a table that may be left out is a union
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def default_of(key: str) -> Any:
    """Return the default of ``section.key`` or ``key``, as JSON has it; None where there is none."""
    section, _, name = key.partition(".")
    fields = ((table_class(section) if name else Recipe) or Recipe).model_fields
    field = fields.get(name or section)
    return None if field is None or field.is_required() else to_jsonable_python(field.get_default())


def table_names() -> tuple[str, ...]:
    """Return the tables of a recipe, in its order."""
    return tuple(name for name in Recipe.model_fields if table_class(name) is not None)


def keys_of(table: type[BaseModel]) -> tuple[Key, ...]:
    """Return the keys of a table, or those of ``Recipe`` that are in no table."""
    schema = table.model_json_schema()
    single = [name for name in table.model_fields if table is not Recipe or table_class(name) is None]
    return tuple(
        Key(
            name=name,
            type=_words(schema["properties"][name]),
            default=_default(table, name),
            needed=table.model_fields[name].is_required(),
            meaning=_meaning(table, name),
        )
        for name in single
    )


def own_keys(table: type[BaseModel]) -> tuple[Key, ...]:
    """Return the keys that the table itself says something about, without those that it only shares with others."""
    return tuple(key for key in keys_of(table) if key.name in vars(table).get("__annotations__", {}))


def meaning_of(table: type[BaseModel]) -> str:
    """Return what a table is for, in paragraphs."""
    return cleandoc(table.__doc__ or "")


def as_toml(name: str, value: object) -> str:
    """Return ``name = value``."""
    if isinstance(value, tuple | list):  # on one line, which tomli_w never does
        return f"{name} = [{', '.join(as_toml('_', part).removeprefix('_ = ') for part in value)}]"
    return tomli_w.dumps({name: value}).strip()


def _default(table: type[BaseModel], name: str) -> str | None:
    field = table.model_fields[name]
    unset = field.is_required() or field.default is None
    return None if unset else as_toml("_", field.default).removeprefix("_ = ")


def _meaning(table: type[BaseModel], name: str) -> str:
    """Return the text under a key; a table that changes only its default has it from the table it is made of."""
    fields = (it.model_fields.get(name) for it in table.mro() if issubclass(it, BaseModel))
    return " ".join(next((field.description for field in fields if field and field.description), "").split())


_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "of at least",
    "exclusiveMaximum": "below",
    "maximum": "of at most",
}


def _words(schema: JsonSchemaValue) -> str:
    """Return a JSON schema in words, e.g. ``number above 0, at most 1``."""
    if "anyOf" in schema:
        return " or ".join(_words(kind) for kind in schema["anyOf"] if kind.get("type") != "null")
    if choices := schema.get("enum") or [schema[key] for key in ("const",) if key in schema]:
        named = [as_toml("_", choice).removeprefix("_ = ") for choice in choices]
        return ", ".join(named[:-1]) + (" or " if len(named) > 1 else "") + named[-1]
    if schema["type"] == "array":
        return _list_words(schema)
    bounds = [f"{word} {schema[key]:,}" for key, word in _BOUNDS.items() if key in schema]
    return " ".join([_KINDS[schema["type"]], ", ".join(bounds)]).strip()


def _list_words(schema: JsonSchemaValue) -> str:
    fixed = schema.get("prefixItems")
    of = _words(fixed[0] if fixed else schema["items"])
    return f"list of {len(fixed)}: {of}" if fixed else f"list: {of}"
