"""A file that computes something else: the first node that does is named, whoever wrote the two files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hoyer_export.deploy.departure import first_departure
from hoyer_export.deploy.runtime import as_runtime
from hoyer_export.deploy.verify_files import verify_files
from hoyer_export.errors import FileError, VerificationFailed

RANDOM = np.random.default_rng(0)
WEIGHTS = {f"w{i}": RANDOM.standard_normal((4, 4, 3, 3)).astype("f") / 3 for i in range(3)}
SCALE, SHIFT = (RANDOM.standard_normal(4).astype("f") for _ in range(2))


def saved(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], batch: int | str = "n") -> Path:
    """Write a graph x → y."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4, 8, 8]) for name in (nodes[0].input[0], "y")
    ]
    initialisers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initialisers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def chain(path: Path, prefix: str = "", batch: int | str = "n", **changed: np.ndarray) -> Path:
    """Write x → three convolutions with a Relu each → y; names of values begin with ``prefix``."""
    nodes, last = [], f"{prefix}x"
    for i in range(3):
        nodes.append(
            helper.make_node("Conv", [last, f"w{i}"], [f"{prefix}c{i}"], name=f"{prefix}conv{i}", pads=[1] * 4)
        )
        last = f"{prefix}r{i}" if i < 2 else "y"
        nodes.append(helper.make_node("Relu", [f"{prefix}c{i}"], [last], name=f"{prefix}relu{i}"))
    return saved(path, nodes, WEIGHTS | changed, batch)


def one_off(name: str) -> dict[str, np.ndarray]:
    """Return a weight with its first filter a hundredth larger."""
    wrong = WEIGHTS[name].copy()
    wrong[0] *= 1.01
    return {name: wrong}


@pytest.mark.parametrize("prefix", ["", "other_"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_wrong_weight_is_named_by_its_node(tmp_path: Path, at: int, prefix: str) -> None:
    right = chain(tmp_path / "right.onnx", prefix)
    assert verify_files(chain(tmp_path / "same.onnx"), right).passed
    found = verify_files(chain(tmp_path / "wrong.onnx", **one_off(f"w{at}")), right)
    assert not found.passed
    assert found.departure is not None
    assert (found.departure.node, found.departure.weights, found.departure.output) == (f"conv{at}", (f"w{at}",), True)
    assert (found.departure.error is None) == bool(prefix)  # of the value of that name
    assert [it.name for it in found.checks if not it.passed] == [
        "outputs, optimisation disabled",
        "outputs, optimisation all",
    ]


def with_norm(path: Path, folded: bool, wrong: dict[str, np.ndarray]) -> Path:
    """Write conv → norm → Relu → conv, the norm in nodes of its own or in the first convolution."""
    weights = WEIGHTS | wrong
    scale, shift = SCALE.reshape(1, 4, 1, 1), SHIFT.reshape(1, 4, 1, 1)
    last = [
        helper.make_node("Relu", ["shifted"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w1"], ["y"], name="second", pads=[1] * 4),
    ]
    if folded:
        first = [helper.make_node("Conv", ["x", "w0", "b"], ["shifted"], name="first", pads=[1] * 4)]
        return saved(
            path, first + last, {"w0": weights["w0"] * SCALE.reshape(4, 1, 1, 1), "b": SHIFT} | {"w1": weights["w1"]}
        )
    first = [
        helper.make_node("Conv", ["x", "w0"], ["c"], name="first", pads=[1] * 4),
        helper.make_node("Mul", ["c", "scale"], ["scaled"], name="mul"),
        helper.make_node("Add", ["scaled", "shift"], ["shifted"], name="add"),
    ]
    return saved(path, first + last, {"w0": weights["w0"], "w1": weights["w1"], "scale": scale, "shift": shift})


@pytest.mark.parametrize(("at", "node"), [("w0", "first"), ("w1", "second")])
@pytest.mark.parametrize("folded", [True, False])
def test_files_that_are_cut_differently_into_nodes_are_compared_by_values(
    tmp_path: Path, folded: bool, at: str, node: str
) -> None:
    right = with_norm(tmp_path / "right.onnx", not folded, {})
    assert verify_files(with_norm(tmp_path / "same.onnx", folded, {}), right).passed
    found = verify_files(with_norm(tmp_path / "wrong.onnx", folded, one_off(at)), right)
    assert (found.passed, found.departure and found.departure.node) == (False, node)


def test_a_weight_that_meets_only_zeros_is_named_by_the_tensor(tmp_path: Path) -> None:
    """The first convolution gives nothing, so that the second's weights do not show."""
    nothing = {"w0": -np.abs(WEIGHTS["w0"]) * 0}
    right = chain(tmp_path / "right.onnx", **nothing)
    found = verify_files(chain(tmp_path / "wrong.onnx", **nothing, **one_off("w1")), right)
    assert [(it.name, it.value) for it in found.checks if not it.passed] == [("weights", 1)]
    assert found.departure is not None
    assert (found.departure.node, found.departure.output) == ("conv1", False)
    assert str(found.departure) == "conv1 (Conv, weights w1): its weights differ"


def test_nothing_departs_where_nothing_does(tmp_path: Path) -> None:
    files = chain(tmp_path / "a.onnx"), chain(tmp_path / "b.onnx")
    feed = {"x": RANDOM.standard_normal((1, 4, 8, 8)).astype("f")}
    assert first_departure(*files, (feed, feed), as_runtime("onnxruntime")) is None


def test_a_fixed_batch_and_other_sizes_are_named(tmp_path: Path) -> None:
    any_batch, fixed = chain(tmp_path / "any.onnx"), chain(tmp_path / "fixed.onnx", batch=2)
    with pytest.raises(
        VerificationFailed, match=r"takes x FLOAT \[2, 4, 8, 8\], but .*any.onnx x FLOAT \[n, 4, 8, 8\]"
    ):
        verify_files(fixed, any_batch)
    found = verify_files(fixed, any_batch, shapes={"x": (2, 4, 8, 8)})  # who says so gets what can be compared
    assert (found.passed, {it.batch for it in found.onnx}) == (True, {2})
    assert verify_files(any_batch, fixed, shapes={"x": (2, 4, 8, 8)}).passed
    nodes = [helper.make_node("Relu", ["x"], ["z"]), helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT)]
    model = onnx.load(saved(tmp_path / "other.onnx", nodes, {}))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4, 8, 8]))
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(VerificationFailed, match="returns"):
        verify_files(tmp_path / "other.onnx", any_batch)


def test_a_truncated_file_is_no_file(tmp_path: Path) -> None:
    right = chain(tmp_path / "right.onnx")
    (tmp_path / "cut.onnx").write_bytes(right.read_bytes()[:-500])
    with pytest.raises(FileError, match=r"cut\.onnx is not a whole ONNX file"):
        verify_files(tmp_path / "cut.onnx", right)


def test_the_command_line_takes_files_and_says_what_is_missing(call, tmp_path: Path) -> None:
    right, wrong = chain(tmp_path / "right.onnx"), chain(tmp_path / "wrong.onnx", **one_off("w1"))
    assert call("verify", right, "--against", right)[0] == 0
    code, out, _ = call("verify", wrong, "--against", right)
    assert code == 3
    assert "wrong: the first node that departs is conv1 (Conv, weights w1): its output" in out
    assert call("verify", wrong)[0] == 2
    assert call("verify", tmp_path, "--against", right)[0] == 2
    (tmp_path / "w.pth").write_bytes(b"none")
    code, _, err = call("verify", right, "--against", tmp_path / "w.pth")
    assert (code, "name that: --network" in err) == (1, True)
