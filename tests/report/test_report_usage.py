"""The lines that page and card give to copy run on a real picture, and prepare it as the test images were prepared."""

import html
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import example_reports
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from hoyer_export.report.card import render_card
from hoyer_export.report.page import render_page
from hoyer_export.report.report import Report
from hoyer_export.report.usage import usage

RGB = {"inputs.shape": [3, 24, 16], "inputs.mean": [0.4, 0.5, 0.6], "inputs.std": [0.2, 0.25, 0.3]}
HOW: list[dict[str, Any]] = [
    RGB,
    RGB | {"inputs.resize": "squash", "inputs.interpolation": "bicubic"},
    RGB | {"inputs.resize": "crop", "inputs.short_side": 30, "inputs.interpolation": "bilinear"},
    RGB | {"inputs.resize": "pad", "inputs.interpolation": "lanczos"},
    {"inputs.shape": [1, 8, 8], "inputs.mean": [0.3], "inputs.std": [0.4]},
]


def saving_file(path: Path, report: Report) -> None:
    """Write a file that gives what it is fed, flat: so that what it was fed can be read."""
    size = int(np.prod(report.inputs.shape))
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["input", "flat"], ["logits"])],
        "flat",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *report.inputs.shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", size])],
        [numpy_helper.from_array(np.array([-1, size]), "flat")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {f"hoyer_export.{key}": text for key, text in report.inputs.metadata().items()})
    onnx.save(model, path)


@pytest.mark.parametrize("how", HOW)
def test_the_copied_lines_prepare_a_picture_as_the_client_does(
    how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = example_reports.changed(how)
    saving_file(tmp_path / "slim.onnx", report)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    lines = usage(report)
    assert lines is not None
    found: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(lines.rpartition("\n")[0], found)
    client = (Path(__file__).parents[2] / "examples" / "02_onnx_client.py").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["client", "slim.onnx", "picture.png"])
    facts = {f"hoyer_export.{key}": text for key, text in report.inputs.metadata().items()}
    facts["hoyer_export.inputs"] = f'{{"input": {list(report.inputs.shape)}}}'
    model = onnx.load(tmp_path / "slim.onnx")
    del model.metadata_props[:]
    helper.set_model_props(model, facts)
    onnx.save(model, tmp_path / "slim.onnx")
    read: dict[str, Any] = {}
    exec(client, read)
    assert found["outputs"].shape == read["logits"].shape
    np.testing.assert_allclose(found["outputs"], read["logits"], atol=1e-5)


def test_the_lines_on_page_and_card_are_the_same_and_print_a_name(tmp_path: Path) -> None:
    report = example_reports.changed({"inputs.shape": [1, 2, 5], "inputs.mean": [0.5], "inputs.std": [0.5]})
    (on_card,) = re.findall(r"```python\n(.*?)\n```", render_card(report), re.DOTALL)
    (on_page,) = re.findall(r"<pre[^>]*><code>(.*?)</code>", render_page(report, ()), re.DOTALL)
    assert html.unescape(on_page) == on_card == usage(report)
    saving_file(tmp_path / "slim.onnx", report)
    Image.fromarray(np.array([[0, 9, 0, 0, 0], [0, 0, 0, 200, 0]], np.uint8)).save(tmp_path / "picture.png")
    ran = subprocess.run([sys.executable, "-c", on_card], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "ship\n"  # the ninth of ten


def test_many_names_are_read_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"kind {i}" for i in range(64)]
    report = example_reports.changed(
        {"inputs.shape": [1, 8, 8], "inputs.mean": [0.5], "inputs.std": [0.5], "inputs.class_names": names}
    )
    lines = usage(report)
    assert lines is not None
    assert "kind 7" not in lines
    saving_file(tmp_path / "slim.onnx", report)
    Image.new("L", (8, 8), 7).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(lines, found)
    assert found["names"] == names


@pytest.mark.parametrize(
    "changes", [{"inputs.mean": None}, {"inputs.shape": []}, {"inputs.shape": [4, 8, 8]}, {"inputs.shape": [12]}]
)
def test_what_nobody_knows_how_to_prepare_has_no_lines(changes: dict[str, Any]) -> None:
    report = example_reports.changed(changes)
    assert usage(report) is None
    assert "picture.png" not in render_page(report, ()) + render_card(report)
