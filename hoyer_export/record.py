"""Records that come from JSON and go there: pydantic says what is wrong, and it is told in one line."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hoyer_export.errors import FileError


class Record(BaseModel):
    """Base of what is written as JSON: it cannot be changed, and nothing is converted or unknown."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


Kind = TypeVar("Kind", bound=BaseModel)


def read_record(kind: type[Kind], content: str | bytes, path: str | Path, advice: str) -> Kind:
    """Return the record in a file's JSON; keys that this release does not know are ignored.

    Args:
        kind: class of the record.
        content: the JSON.
        path: where it comes from, for the error.
        advice: what to do if it is damaged, for the error.

    Raises:
        FileError: it is no JSON, or not of this kind.
    """
    try:
        return kind.model_validate_json(content, extra="ignore")
    except ValidationError as error:
        raise FileError(f"{path} is damaged: {first_complaint(error)}; {advice}") from error


def first_complaint(error: ValidationError) -> str:
    """Return what is wrong first, in one line: where, what was expected, what came."""
    detail = error.errors(include_url=False)[0]
    # A key of the file may hold anything, also what moves a terminal's cursor.
    place = "".join(c if c.isprintable() else " " for c in ".".join(str(part) for part in detail["loc"]))
    if detail["type"] == "missing":
        return f"{place} is missing"
    if detail["type"] == "json_invalid":
        return f"not JSON ({detail['msg'].removeprefix('Invalid JSON: ')})"
    return f"{place or 'the top'}: {detail['msg'].lower()}, got {detail['input']!r:.60}"
