"""What a file says of itself, of any origin."""

import hashlib
import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hoyer_export.deploy.info import file_info


def written(path):
    ends = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", None]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        helper.make_tensor_sequence_value_info("z", TensorProto.FLOAT, None),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["y"]),
        helper.make_node("SequenceConstruct", ["y"], ["z"]),
    ]
    table = numpy_helper.from_array(np.ones((50, 30), "f"), "table")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [table])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="by hand", doc_string="a table")
    helper.set_model_props(model, {"author": "me", "[note]": "in [brackets]"})
    onnx.save(model, path, save_as_external_data=True, location="table.bin", size_threshold=0)
    return path


def test_all_of_it_is_told(tmp_path, call):
    path = written(tmp_path / "f.onnx")
    found = file_info(path)
    assert found.size_bytes == path.stat().st_size + (tmp_path / "table.bin").stat().st_size
    assert found.side_files == ("table.bin",)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.producer, found.ir_version, found.description) == ("by hand", 8, "a table")
    assert found.opsets == {"ai.onnx": 18, "com.microsoft": 1}
    assert [(it.name, it.type, it.shape) for it in found.inputs] == [("ids", "int64", ("n", "?"))]
    assert [(it.name, it.type, it.shape) for it in found.outputs] == [("y", "float32", None), ("z", "sequence", None)]
    assert (found.params, found.nodes) == (1500, {"Gather": 1, "SequenceConstruct": 1})
    assert found.metadata == {"author": "me", "[note]": "in [brackets]"}
    code, out, _ = call("info", path)
    assert code == 0
    for line in ("input       ids int64 [n, ?]", "metadata    [note] = in [brackets]", "parameters  1,500"):
        assert line in out.splitlines()
    code, out, _ = call("info", path, "--json")
    assert (code, json.loads(out)["metadata"]["author"]) == (0, "me")
    (tmp_path / "table.bin").unlink()
    code, _, err = call("info", path)
    assert (code, "table.bin, missing there" in err) == (1, True)
