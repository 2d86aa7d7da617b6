"""slim-int8.onnx: what is in it, how it is looked at, and that nothing else than what was written passes."""

import hashlib

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from hoyer_export.call import Call
from hoyer_export.deploy.checks import RELATIVE_CHANGE
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.quantise import write_int8
from hoyer_export.deploy.verify_coarse import verify_coarse
from hoyer_export.errors import NetworkError, VerificationFailed


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_weights_have_seven_bits_and_a_scale_a_channel_activations_the_range_that_was_seen(tmp_path, network, images):
    export_onnx(network, images, tmp_path / "f.onnx", metadata={"mean": "[0.5]"})
    write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", [Call((images[:32],), {}), Call((images[32:],), {})])
    model = onnx.load(tmp_path / "q.onnx")
    assert {p.key: p.value for p in model.metadata_props}.keys() == {"hoyer_export.mean", "hoyer_export.inputs"}
    tensors = {t.name: t for t in model.graph.initializer}
    (weight,) = [t for t in tensors.values() if t.data_type == TensorProto.INT8 and len(t.dims) == 4]
    values = numpy_helper.to_array(weight).astype(int)
    assert np.abs(values).reshape(8, -1).max(1).tolist() == [64] * 8
    (of_weight,) = [node for node in model.graph.node if node.input[0] == weight.name]
    scales = numpy_helper.to_array(tensors[of_weight.input[1]])
    assert np.allclose(scales, network[0].weight.detach().abs().flatten(1).amax(1) / 64, rtol=0.02)
    (first,) = [node for node in model.graph.node if node.input[0] == "input"]
    assert first.op_type == "QuantizeLinear"
    assert tensors[first.input[2]].data_type == TensorProto.UINT8
    span = images.max().item() - images.min().item()
    assert numpy_helper.to_array(tensors[first.input[1]]).item() == pytest.approx(span / 255, rel=1e-5)
    assert count_macs(tmp_path / "q.onnx").macs == count_macs(tmp_path / "f.onnx").macs


def test_it_is_looked_at_by_change_and_accuracy_and_no_other_file_passes_for_it(tmp_path, network, images):
    path = tmp_path / "q.onnx"
    export_onnx(network, images, tmp_path / "f.onnx")
    write_int8(tmp_path / "f.onnx", path, [Call((images,), {})])
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with torch.no_grad():
        classes = network(images).argmax(1)
    found = verify_coarse(path, network, images, sha256=sha256, labelled=[(images, classes)])
    change = next(check for check in found.checks if check.name == RELATIVE_CHANGE)
    assert found.passed
    assert 1e-4 < change.value < 0.1
    assert found.torch_accuracy is None
    assert 85 < found.onnx_accuracy <= 100
    assert found.class_images == tuple(torch.bincount(classes, minlength=5)[: len(found.class_images)].tolist())
    assert 100 * sum(found.class_correct) / 64 == found.onnx_accuracy

    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4)
    changed = numpy_helper.to_array(weight).copy()
    changed.flat[0] += 1  # too little to be seen in an accuracy
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(model, path)
    wrong = verify_coarse(path, network, images, sha256=sha256)
    assert [check.name for check in wrong.checks if not check.passed] == ["bytes, file against export"]
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, path)
    with pytest.raises(VerificationFailed, match="expected input FLOAT"):
        verify_coarse(path, network, images, sha256=None)


def test_what_cannot_be_quantised_is_one_line(tmp_path, network, images):
    export_onnx(network, images, tmp_path / "f.onnx")
    with pytest.raises(NetworkError, match=r"onnxruntime cannot quantise f\.onnx \(.+\); leave export\.int8 out"):
        write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", [])
    assert [file.name for file in tmp_path.iterdir()] == ["f.onnx"]
