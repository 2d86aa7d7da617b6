"""What a stage, a verb or a file says: one frozen pydantic model, in memory, on disk and in a report."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hoyer_export.errors import FileError

R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """A set of facts. Writing forbids keys that the class does not have; reading (``read_record``) ignores them."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def read_record(kind: type[R], content: bytes | str, path: Path, advice: str) -> R:
    """Return the record in a JSON text; keys that its class does not have, from a later version, are left out.

    Args:
        kind: class of the record.
        content: JSON.
        path: of the file, for the message.
        advice: what to do about a damaged file.

    Raises:
        FileError: it is no such record.
    """
    try:
        return kind.model_validate_json(content, extra="ignore")
    except ValidationError as error:
        raise FileError(f"{path} is damaged: {first_complaint(error)}; {advice}") from None


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
