"""Numbers are written the same everywhere, with three digits and a unit."""

from collections.abc import Callable
from typing import Any

import pytest

from hoyer_export.report import number_format as written

CASES: list[tuple[Callable[[Any], str], float | None, str]] = [
    (written.three_digits, 40.551808, "40.6"),
    (written.three_digits, 555.4, "555"),
    (written.three_digits, 0.0421, "0.0421"),
    (written.three_digits, 999.95, "1000"),
    (written.count, 40_551_808, "40.6 M"),
    (written.count, 2_293_000, "2.29 M"),
    (written.count, 4_089_184_256, "4.09 G"),
    (written.count, 272_474, "272 k"),
    (written.count, 999_960, "1.00 M"),
    (written.count, 999, "999"),
    (written.count, 1000, "1.00 k"),
    (written.count, None, "–"),
    (written.size, 812, "812 B"),
    (written.size, 1_104_218, "1.10 MB"),
    (written.size, 659_884, "660 kB"),
    (written.exact, 40_551_808, "40,551,808"),
    (written.percent, 91.725, "91.72 %"),
    (written.percent, 100, "100.00 %"),
    (written.percent, None, "–"),
    (written.share, 0.49649, "49.6 %"),
    (written.points, -0.43, "-0.43 points"),
    (written.points, 0.1, "+0.10 points"),
    (written.points, -0.001, "±0.00 points"),
    (written.milliseconds, 1.8349, "1.83 ms"),
    (written.milliseconds, 13.3, "13.3 ms"),
    (written.times, 2.3149, "2.31×"),
    (written.times, 0.91, "0.91×"),
    (written.times, 9.996, "10.0×"),
    (written.times, 12.34, "12.3×"),
    (written.small, 7.2e-7, "7.2e-7"),
    (written.small, 1e-9, "1e-9"),
    (written.small, 0.0, "0"),
    (written.small, 17, "17"),
    (written.small, None, "not finite"),
    (written.duration, 0.421, "0.42 s"),
    (written.duration, 45.12, "45.1 s"),
    (written.duration, 59.96, "1 min 00 s"),
    (written.duration, 192.4, "3 min 12 s"),
    (written.duration, 3599.7, "1 h 00 min"),
    (written.duration, 3840, "1 h 04 min"),
    (written.duration, None, "–"),
]


@pytest.mark.parametrize(("write", "value", "expected"), CASES)
def test_a_number_is_written_with_its_unit(write: Callable[[Any], str], value: float | None, expected: str) -> None:
    assert write(value) == expected
