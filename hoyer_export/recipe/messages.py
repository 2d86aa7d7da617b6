"""What is wrong with a recipe, in one line that names the key."""

import json
from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hoyer_export.recipe.keys import table_class
from hoyer_export.recipe.tables import Recipe


def explained(error: ValidationError) -> tuple[tuple[str, ...], str]:
    """Return the key that is to be mended first, and what is wrong with it.

    The branches of a union each complain about the same key; an unknown key explains a missing one (nmae for name), so
    it comes first.
    """
    details = {_key(detail): detail for detail in reversed(error.errors(include_url=False))}
    key = min(reversed(details), key=lambda key: details[key]["type"] != "extra_forbidden")
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return key, f"{_explain(details[key], key)}{more}"


def _key(detail: ErrorDetails) -> tuple[str, ...]:
    """Return the place of an error without the names of union branches, e.g. ("cut", "threshold", "float")."""
    if detail["type"] == "extra_forbidden":
        return tuple(str(part) for part in detail["loc"])
    return tuple(str(part) for part in detail["loc"] if isinstance(part, int) or part in _known_words())


def _explain(detail: ErrorDetails, path: tuple[str, ...]) -> str:
    if detail["type"] == "extra_forbidden":
        return _unknown_key(path)
    key = ".".join(path) or "the recipe"
    if detail["type"] == "rule":
        return f"{key}: {detail['msg']}"
    if detail["type"] == "missing":
        return f"{key} is missing: {'the table [' + key + '] is needed' if len(path) == 1 else 'expected a value'}"
    return f"{key}: expected {_expected(detail, path)}, got {show(detail['input'])}{_closest(detail)}"


def _known_words() -> set[str]:
    tables = {name: table_class(name) for name in Recipe.model_fields}
    return set(tables) | {key for table in tables.values() if table is not None for key in table.model_fields}


def _unknown_key(path: tuple[str, ...]) -> str:
    section = ".".join(path[:-1])
    table = table_class(path[0]) if len(path) > 1 and path[0] in Recipe.model_fields else Recipe
    valid = list(table.model_fields) if table is not None else []
    close = get_close_matches(path[-1], valid, n=1, cutoff=0.6)
    where = f"[{section}] has" if section else "a recipe has"
    hint = f"did you mean {close[0]}?" if close else f"it has {listed(valid)}"
    return f"{'.'.join(path)}: {where} no key {path[-1]!r}; {hint}"


_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "string_too_short": "a string that is not empty",
    "bool_type": "true or false",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list of numbers",
    "too_short": "a list that is not empty",
}


def _expected(detail: ErrorDetails, path: tuple[str, ...]) -> str:
    if path == ("cut", "threshold"):
        return 'a number of at least 0, or "natural"'
    context = detail.get("ctx", {})
    bounds = {"greater_than": "above", "greater_than_equal": "of at least", "less_than": "below"}
    if detail["type"] in bounds:
        return f"a number {bounds[detail['type']]} {next(iter(context.values())):g}"
    if detail["type"] == "less_than_equal":
        return f"a number of at most {context['le']:g}"
    if detail["type"] == "literal_error":
        return str(context["expected"]).replace("'", '"')
    return _KINDS.get(detail["type"], one_line(detail["msg"]))


def _closest(detail: ErrorDetails) -> str:
    if detail["type"] != "literal_error" or not isinstance(detail["input"], str):
        return ""
    choices = [part.strip("'") for part in str(detail.get("ctx", {})["expected"]).replace(" or ", ", ").split(", ")]
    close = get_close_matches(detail["input"], choices, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def show(value: object) -> str:
    if isinstance(value, dict):
        text = f"a table with {listed(value) or 'nothing in it'}"
    else:
        text = one_line(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def listed(names: Iterable[str]) -> str:
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
