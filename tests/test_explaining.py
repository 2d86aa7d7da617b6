"""The latency in a report has the time of every node that multiplies, and of all others by their operator."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hoyer_export.recipe.tables import Bench
from hoyer_export.report.stage_records import FileLatency
from hoyer_export.run.explaining import explained

LATENCY = FileLatency(name="slim", p50=1, p90=1, p99=1, min=1, n=10)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A convolution of 8 channels on 6×6, a sine, which fuses with nothing, and a linear layer."""
    ones = np.ones((8, 8, 3, 3), np.float32), np.ones((288, 5), np.float32)
    weights = [numpy_helper.from_array(it, name) for it, name in zip(ones, ("stem.weight", "fc.weight"), strict=True)]
    nodes = [
        helper.make_node("Conv", ["input", "stem.weight"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Sin", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "fc.weight"], ["logits"]),
    ]
    info = helper.make_tensor_value_info
    taken, given = info("input", TensorProto.FLOAT, ["batch", 8, 6, 6]), info("logits", TensorProto.FLOAT, ["batch", 5])
    graph = helper.make_graph(nodes, "small", [taken], [given], weights)
    path = tmp_path / "slim.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_every_layer_has_its_time_and_macs_and_the_rest_its_operator(file: Path) -> None:
    found = explained(LATENCY, file, Bench(min_seconds=0.1, batch_size=2), None)
    layers = {node.layer: node for node in found.nodes if node.layer}
    assert {name: node.macs for name, node in layers.items()} == {"stem": 2 * 36 * 64 * 9, "fc": 2 * 288 * 5}
    assert "Sin" in {node.op for node in found.nodes if not node.layer}
    assert all(node.ms >= 0 for node in found.nodes)
    assert found.findings
    assert found.model_copy(update={"nodes": (), "findings": ()}) == LATENCY


def test_a_file_that_cannot_be_explained_keeps_its_latency(tmp_path: Path) -> None:
    (tmp_path / "slim.onnx").write_bytes(b"no network")
    assert explained(LATENCY, tmp_path / "slim.onnx", Bench(min_seconds=0.1), None) == LATENCY
