"""Records: what a stage finds, as one frozen model that is checked when it is made, and when it is read from JSON.

Writing forbids unknown keys. Reading ignores them: a file that a newer version wrote, with a key more, is still read.
"""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hoyer_export.errors import FileError


class Record(BaseModel):
    """Base of all records. Making one refuses unknown keys, and so does writing; ``read_record`` ignores them."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_record(kind: type[AnyRecord], content: bytes | str, path: Path | str, advice: str) -> AnyRecord:
    """Read a record from JSON.

    Args:
        kind: its class.
        content: the JSON.
        path: the file that it comes from, for the error.
        advice: what to do if it is damaged, for the error.

    Raises:
        FileError: the content is not JSON, or a value is missing or wrong; one line.
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
