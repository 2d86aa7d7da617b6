"""The gate: what passes, what does not, and what a pipeline reads of it."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hoyer_export.data import load_data
from hoyer_export.errors import HoyerExportError
from hoyer_export.recipe.reading import make_recipe
from hoyer_export.recipe.tables import Gate
from hoyer_export.report.stage_records import Speedup
from hoyer_export.run.gate import _judged

NOTHING = {"epochs": 0}
RECIPE = {"network": {"name": "lenet5"}, "dense": NOTHING | {"weights": "random"}, "sparse": NOTHING} | {
    "finetune": NOTHING,
    "cut": {"macs": 0.5},
}


def always(path: Path, answer: int, width: int, batch: int | str = "n") -> Path:
    """Write a file for digits, 64 · width + width · 10 MACs, whose answer is always the same."""
    ends = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 8, 8]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 10]),
    ]
    bias = np.zeros(10, "f")
    bias[answer] = 1
    weights = {"w0": np.zeros((64, width), "f"), "w1": np.zeros((width, 10), "f"), "bias": bias}
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w0"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w1", "bias"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(w, n) for n, w in weights.items()]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def share_of_class() -> np.ndarray:
    labels = np.concatenate([targets.numpy() for _, targets in load_data("digits").test.batches(100)])
    return 100 * np.bincount(labels) / len(labels)


def test_every_limit_is_held_against_the_files(call, tmp_path: Path, share_of_class: np.ndarray) -> None:
    dense, slim = always(tmp_path / "dense.onnx", 3, 40), always(tmp_path / "slim.onnx", 8, 20, batch=7)
    lost = share_of_class[3] - share_of_class[8]
    assert abs(lost) > 0.2  # else nothing would be shown
    asked = ["check", slim, "--against", dense, "--max-macs", "0.5", "--max-params", "0.4", "--data", "digits"]
    code, out, _ = call(*asked, "--max-accuracy-drop", f"{max(lost, 0):.4f}", "--json", "--junit", tmp_path / "j.xml")
    found = {it["name"]: it for it in json.loads(out)["limits"]}
    assert code == 3
    assert json.loads(out)["passed"] is False
    assert {name: it["passed"] for name, it in found.items()} == {
        "max_macs": True,
        "max_params": False,
        "max_accuracy_drop": True,
    }
    assert found["max_macs"]["reached"] == 0.5
    assert found["max_params"]["reached"] == pytest.approx((74 * 20 + 10) / (74 * 40 + 10))
    assert found["max_accuracy_drop"]["reached"] == pytest.approx(lost)
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["max_params"]
    assert "parameters 50.2 % of dense, at most 40.0 %" in suite.find(".//failure").get("message")
    code, out, _ = call(*asked[:-4], "--max-latency", "50", "--min-seconds", "0.1")
    assert (code, out.splitlines()[0], out.splitlines()[-1]) == (
        0,
        "MACs 50.0 % of dense, at most 50.0 %: passed",
        "gate passed",
    )
    code, out, _ = call("check", slim, "--against", dense, "--max-latency", "0.0001", "--min-seconds", "0.1")
    assert (code, out.startswith("latency ")) == (3, True)


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        ([], 2, "at least one limit"),
        (["--max-macs", "50"], 2, "expected a share"),
        (["--max-accuracy-drop", "1"], 2, "belong together"),
        (["--max-macs", "0.5", "--data", "digits"], 2, "belong together"),
        (["--max-macs", "0.5", "--threads", "2"], 2, "only together with --max-latency"),
        (["--max-accuracy-drop", "1", "--data", "digit"], 1, "did you mean digits?"),
        (["--max-accuracy-drop", "1", "--data", "digits", "--mean", "1,2", "--std", "1,2"], 1, "mean is [1.0, 2.0]"),
    ],
)
def test_what_is_asked_wrongly_is_said(call, tmp_path: Path, wrong: list[str], code: int, said: str) -> None:
    file = always(tmp_path / "f.onnx", 1, 4)
    found, _, err = call("check", file, "--against", file, *wrong)
    assert (found, said in " ".join(err.replace("│", " ").split())) == (code, True)


def test_a_file_of_too_few_classes_and_of_another_size_is_refused(call, tmp_path: Path) -> None:
    file = always(tmp_path / "f.onnx", 1, 4)
    model = onnx.load(file)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros((4, 5), "f"), "w1"))
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.zeros(5, "f"), "bias"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    onnx.save(model, tmp_path / "few.onnx")
    asked = ("--max-accuracy-drop", "1", "--data", "digits")
    code, _, err = call("check", tmp_path / "few.onnx", "--against", file, *asked)
    assert (code, "at least 10 classes]" in err) == (1, True)
    model = onnx.load(file)
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 9
    onnx.save(model, tmp_path / "wide.onnx")
    code, _, err = call("check", tmp_path / "wide.onnx", "--against", file, *asked)
    assert (code, "wide.onnx" in err) == (1, True)


def test_images_are_prepared_as_the_file_says(call, tmp_path: Path) -> None:
    """The answer is 0 where the first pixel is above 0: nowhere as it is, everywhere after a mean of -1."""
    file = always(tmp_path / "f.onnx", 3, 4)
    model = onnx.load(file)
    first = np.zeros((64, 4), "f")
    first[0, 0] = 9
    by_pixel = np.zeros((4, 10), "f")
    by_pixel[0, 0] = 1
    for at, value in enumerate((first, by_pixel)):
        model.graph.initializer[at].CopyFrom(numpy_helper.from_array(value, f"w{at}"))
    onnx.save(model, tmp_path / "plain.onnx")
    onnx.helper.set_model_props(model, {"hoyer_export.mean": "[-1.0]", "hoyer_export.std": "[1.0]"})
    onnx.save(model, tmp_path / "told.onnx")
    asked = ("--max-accuracy-drop", "100", "--data", "digits", "--json")

    def drop(slim: str, *more: str) -> float:
        _, out, _ = call("check", tmp_path / slim, "--against", file, *asked, *more)
        return float(json.loads(out)["limits"][0]["reached"])

    share = {"plain.onnx": drop("plain.onnx"), "told.onnx": drop("told.onnx")}
    assert share["told.onnx"] == drop("plain.onnx", "--mean", "-1", "--std", "1")
    assert share["told.onnx"] == drop("told.onnx", "--mean", "-1", "--std", "1")
    assert share["plain.onnx"] == drop("told.onnx", "--mean", "0.3054", "--std", "0.3761")
    assert share["plain.onnx"] != share["told.onnx"]
    onnx.helper.set_model_props(model, {"hoyer_export.mean": "none"})
    onnx.save(model, tmp_path / "damaged.onnx")
    code, _, err = call("check", tmp_path / "damaged.onnx", "--against", file, *asked)
    assert (code, "metadata" in err) == (1, True)


def test_what_cannot_be_told_does_not_pass() -> None:
    class Counted:
        macs, params, size_bytes, uncounted = 10, 10, 10, {"Loop": 1}

    gate = Gate(max_macs=1.0, max_bytes=1.0, max_latency=0.9, max_accuracy_drop=1.0)
    found = {it.name: it for it in _judged(gate, (Counted, Counted), None, None, None).limits}
    assert {name: it.passed for name, it in found.items()} == {
        "max_macs": False,
        "max_bytes": True,
        "max_latency": False,
        "max_accuracy_drop": False,
    }
    speedup = Speedup(median=1.25, ci95=(1.2, 1.3))
    found = {it.name: it for it in _judged(gate, (Counted, Counted), speedup, None, -0.5).limits}
    assert (found["max_latency"].reached, found["max_latency"].passed) == (0.8, True)
    assert found["max_latency"].note == "95 % interval 76.9 % to 83.3 %"
    assert found["max_accuracy_drop"].passed is True


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"gate": {"max_latency": 0.7}, "bench": {"min_seconds": 0.0}}, "gate.max_latency needs bench.min_seconds"),
        ({"gate": {"max_accuracy_drop": 1.0}}, "gate.max_accuracy_drop needs .data."),
        ({"gate": {"max_mac": 0.5}}, "did you mean max_macs"),
        ({"gate": {"max_macs": 50.0}}, "gate.max_macs: expected a number of at most 1"),
    ],
)
def test_a_gate_that_could_never_be_judged_is_no_recipe(tables, said: str) -> None:
    with pytest.raises(HoyerExportError, match=said):
        make_recipe(RECIPE | tables)
