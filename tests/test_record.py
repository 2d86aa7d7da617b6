"""What is wrong in JSON from a file is said in one line; what is right comes back as a record."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from hoyer_export.errors import FileError
from hoyer_export.record import Record, read_record


class Inner(Record):
    """One of several."""

    number: int


class Outer(Record):
    """A record with others in it."""

    name: str
    parts: tuple[Inner, ...] = ()


def test_a_record_comes_back_and_unknown_keys_are_ignored_on_reading_alone() -> None:
    text = '{"name": "x", "later": 1, "parts": [{"number": 3, "later": 2}]}'
    assert read_record(Outer, text, "f", "") == Outer(name="x", parts=(Inner(number=3),))
    with pytest.raises(ValidationError):
        Outer(name="x", later=1)  # type: ignore[call-arg]


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Inner(number=3).number = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "dir/f.json is damaged: not JSON (EOF while parsing a value at line 1 column 0); do this"),
        ("[]", "dir/f.json is damaged: the top: input should be an object, got []; do this"),
        ("{}", "dir/f.json is damaged: name is missing; do this"),
        ('{"name": 3}', "dir/f.json is damaged: name: input should be a valid string, got 3; do this"),
        (
            '{"name": "x", "parts": [{"number": true}]}',
            "dir/f.json is damaged: parts.0.number: input should be a valid integer, got True; do this",
        ),
    ],
)
def test_the_first_complaint_is_one_line_with_the_place(text: str, message: str) -> None:
    with pytest.raises(FileError) as caught:
        read_record(Outer, text, Path("dir/f.json"), "do this")
    assert str(caught.value) == message


def test_a_long_or_wicked_value_is_quoted_in_short() -> None:
    with pytest.raises(FileError) as caught:
        read_record(Outer, '{"name": [' + '"\\u001b[2J\\n",' * 10_000 + "1]}", "f", "do this")
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()
