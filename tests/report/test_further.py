"""What is said of the files beside dense and slim, and which int8 files are not shipped."""

import json
import re
from typing import Any

import example_reports
import pytest

from hoyer_export.deploy.checks import RELATIVE_CHANGE
from hoyer_export.report.card import render_card
from hoyer_export.report.further import INT8, further_words, withheld
from hoyer_export.report.page import render_page
from hoyer_export.report.report import Report


def with_int8(
    accuracy: float | None = 91.0,
    speedup: tuple[float, tuple[float, float] | None] = (2.9, (2.8, 3.0)),
    change: float = 0.02,
    drop: float | None = None,
) -> Report:
    """Return the report of a run with a right int8 file; slim has 91.31 % through onnxruntime, dense 91.73 %."""
    found: dict[str, Any] = json.loads(example_reports.three_artifacts().model_dump_json())
    file, verified, latency = (found[part]["artifacts"][2] for part in ("export", "verify", "bench"))
    file["kind"], found["verify"]["passed"] = INT8, True
    check = {"name": RELATIVE_CHANGE, "value": change, "tolerance": None, "passed": True}
    verified |= {"passed": True, "checks": [check], "accuracy": None, "onnx_accuracy": accuracy}
    latency["speedup"] = {"median": speedup[0], "ci95": speedup[1]}
    found["recipe"]["gate"] = {} if drop is None else {"max_accuracy_drop": drop}
    return Report.model_validate_json(json.dumps(found))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"accuracy": 90.32}, None),
        ({"accuracy": 90.3}, r"it loses 1.01 points of slim.onnx, at most 1.00"),
        ({"accuracy": 90.3, "drop": 2.0}, None),
        ({"accuracy": 91.2, "drop": 0.5}, r"it loses 0.53 points of dense.onnx, at most 0.50"),
        ({"speedup": (1.1, (1.0, 1.2))}, "it is slower than slim.onnx"),
        ({"speedup": (1.1, (1.0, 9.0))}, None),  # nobody can tell
        ({"speedup": (1.1, None)}, "it is slower than slim.onnx"),
        ({"accuracy": None, "change": 0.09}, None),
        ({"accuracy": None, "change": 0.11}, "its outputs change by 11.0 %, without labels at most 10.0 %"),
        ({"accuracy": 80.0, "speedup": (1.1, None)}, "it is slower than slim.onnx on this machine .* and it loses"),
    ],
)
def test_an_int8_file_that_is_slower_or_loses_too_much_is_not_shipped(changes, why) -> None:
    report = with_int8(**changes)
    (line,) = further_words(report)
    if why is None:
        assert withheld(report) == {}
        assert "not shipped" not in line
    else:
        assert list(withheld(report)) == ["slim-int8"]
        assert re.search(why, withheld(report)["slim-int8"])
        assert withheld(report)["slim-int8"] in line
        assert "it is left as slim-int8.onnx.rejected" in line
    assert line.split(":")[0] in render_card(report)
    page = render_page(report, ())
    assert f'<code class="name">slim-int8.onnx</code> <span class="muted">{INT8}' in page
    assert ("✓ close to its network" in page, "✗ not shipped" in page) == (why is None, why is not None)
