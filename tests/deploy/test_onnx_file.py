import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hoyer_export.deploy.benchmark import benchmark
from hoyer_export.deploy.explain import blocked_convolutions
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.onnx_file import subnormals
from hoyer_export.deploy.verify import verify_onnx
from hoyer_export.deploy.verify_files import verify_files
from hoyer_export.errors import FileError

NETWORK = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
IMAGES = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)

READERS = {
    "macs": count_macs,
    "bench": lambda path: benchmark([path], min_seconds=0.01),
    "explain": blocked_convolutions,
    "verify": lambda path: verify_onnx(path, NETWORK, IMAGES),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "whole.onnx"
    export_onnx(NETWORK, IMAGES, path)
    return path.read_bytes()


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing", "folder"])
def test_a_file_that_is_no_whole_onnx_file_is_named_in_one_line(tmp_path, whole, read, damage):
    path = tmp_path / "slim.onnx"
    contents = {"truncated": whole[:-100], "empty": b"", "garbage": b"not an ONNX file\n" * 9}
    if damage in contents:
        path.write_bytes(contents[damage])
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(FileError, match=r"slim\.onnx") as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == ([] if damage == "missing" else [path])


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_an_operator_that_nobody_knows_is_named_in_one_line(tmp_path, whole, read):
    model = onnx.load_model_from_string(whole)
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Rleu"
    onnx.save(model, tmp_path / "slim.onnx")
    with pytest.raises(FileError, match=r"slim\.onnx.*Rleu"):
        read(tmp_path / "slim.onnx")


def test_what_the_checker_passes_and_onnxruntime_does_not_is_named_in_one_line(tmp_path, whole):
    model = onnx.load_model_from_string(whole)
    model.graph.node[0].domain = "nobody"
    model.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
    onnx.save(model, tmp_path / "slim.onnx")
    assert count_macs(tmp_path / "slim.onnx").uncounted == {"Conv": 1}
    with pytest.raises(FileError, match=r"onnxruntime cannot load .*slim\.onnx \(.*\); export it again") as caught:
        benchmark([tmp_path / "slim.onnx"])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_weights_that_did_not_come_along_are_named(tmp_path, whole, read):
    model = onnx.load_model_from_string(whole)
    onnx.save(model, tmp_path / "slim.onnx", save_as_external_data=True, location="slim.data", size_threshold=0)
    (tmp_path / "slim.data").unlink()
    with pytest.raises(FileError, match=r"slim.onnx keeps weights in slim.data, missing there; put .* beside it"):
        read(tmp_path / "slim.onnx")


@pytest.mark.parametrize(("opset", "said"), [(17, r"ReduceMean.*input size 2"), (999, r"cannot load .*opset")])
def test_an_opset_that_is_not_that_of_the_nodes_or_that_nobody_has_is_named(tmp_path, opset, said):
    nodes = [onnx.helper.make_node("ReduceMean", ["x", "axes"], ["y"])]  # axes are an input from 18 on
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 3), ("y", 1))]
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    graph = onnx.helper.make_graph(nodes, "graph", ends[:1], ends[1:], [axes])
    paths = {}
    for version in (18, opset):
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)], ir_version=8)
        onnx.save(model, paths.setdefault(version, tmp_path / f"{version}.onnx"))
    assert verify_files(paths[18], paths[18]).passed
    for read in (lambda path: verify_files(path, paths[18]), READERS["bench"], READERS["explain"]):
        with pytest.raises(FileError, match=said) as caught:
            read(paths[opset])
        assert len(str(caught.value).splitlines()) == 1


def test_an_output_without_a_shape_is_read_also_beside_weights_in_another_file(tmp_path, whole):
    model = onnx.load_model_from_string(whole)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "slim.onnx", save_as_external_data=True, location="slim.data", size_threshold=0)
    assert count_macs(tmp_path / "slim.onnx").macs == 4 * 36 * 9 + 4 * 36 * 3
    model = onnx.load(tmp_path / "slim.onnx")
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=100)
    assert (
        benchmark([tmp_path / "big.onnx"], min_seconds=0.01).files[0].gmacs_per_second
    )  # onnxruntime wants shapes inside
    (tmp_path / "damaged.onnx").write_bytes((tmp_path / "slim.onnx").read_bytes()[:-20])
    with pytest.raises(FileError, match=r"damaged.onnx"):
        count_macs(tmp_path / "damaged.onnx")


def test_subnormals_are_the_float32_values_between_zero_and_the_smallest_normal():
    tiny = np.finfo(np.float32).tiny
    values = np.array([0, tiny, -tiny, tiny / 2, -tiny / 2, 1e-45, np.nan, 1], np.float32)
    assert subnormals(onnx.numpy_helper.from_array(values)).tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert not subnormals(onnx.numpy_helper.from_array(values.astype(np.float64))).any()
