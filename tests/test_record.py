"""A record: nothing wrong can be made, what a newer version wrote is read, and damage is one line."""

import pytest
from pydantic import ValidationError

from hoyer_export.errors import FileError
from hoyer_export.record import Record, read_record


class Width(Record):
    group: str
    kept: int


class Widths(Record):
    of: tuple[Width, ...]


def test_what_is_written_is_read_back() -> None:
    widths = Widths(of=(Width(group="conv1", kept=3),))
    assert read_record(Widths, widths.model_dump_json(), "w.json", "write it again") == widths


def test_making_one_forbids_unknown_keys_and_reading_ignores_them_at_any_depth() -> None:
    with pytest.raises(ValidationError, match="align"):
        Width(group="conv1", kept=3, align=16)
    newer = '{"format": 2, "of": [{"group": "conv1", "kept": 3, "align": 16}]}'
    assert read_record(Widths, newer, "w.json", "write it again") == Widths(of=(Width(group="conv1", kept=3),))


def test_a_record_is_strict_and_frozen() -> None:
    width = Width(group="conv1", kept=3)
    with pytest.raises(ValidationError):
        Width(group="conv1", kept="3")
    with pytest.raises(ValidationError, match="frozen"):
        width.kept = 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"^w\.json is damaged: not JSON \(.*\); write it again$"),
        (b"\xff", r"^w\.json is damaged: not JSON \(.*\); write it again$"),
        (b'{"of": [{"group": "conv1"}]}', r"^w\.json is damaged: of\.0\.kept is missing; write it again$"),
        (b'{"of": [{"group": "conv1", "kept": "3"}]}', r"^w\.json is damaged: of\.0\.kept: input .*, got '3'; write"),
        (b"[]", r"^w\.json is damaged: the top: input should be an object, got \[\]; write it again$"),
    ],
)
def test_damage_is_one_line(content: bytes, message: str) -> None:
    with pytest.raises(FileError, match=message) as raised:
        read_record(Widths, content, "w.json", "write it again")
    assert "\n" not in str(raised.value)
