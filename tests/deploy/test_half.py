"""slim-fp16.onnx: float16 inside, float32 outside, verified against the float32 network; the same bytes each time."""

import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from hoyer_export.deploy import half
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.half import write_half
from hoyer_export.deploy.verify import verify_onnx
from hoyer_export.errors import NetworkError


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


def test_weights_are_float16_and_inputs_and_outputs_float32(tmp_path, network):
    images = torch.randn(8, 3, 8, 8)
    export_onnx(network, images, tmp_path / "f.onnx", metadata={"mean": "[0.5]"})
    searched = list(sys.path)
    write_half(tmp_path / "f.onnx", tmp_path / "h.onnx")
    assert sys.path == searched
    model = onnx.load(tmp_path / "h.onnx")
    onnx.checker.check_model(model, full_check=True)
    outside = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert outside == [TensorProto.FLOAT] * 2
    weights = [t for t in model.graph.initializer if len(t.dims) > 1]
    assert [t.data_type for t in weights] == [TensorProto.FLOAT16] * 2
    assert (tmp_path / "h.onnx").stat().st_size < 0.7 * (tmp_path / "f.onnx").stat().st_size
    assert {p.key: p.value for p in model.metadata_props}["hoyer_export.mean"] == "[0.5]"

    found = verify_onnx(tmp_path / "h.onnx", network, images, tolerance=1e-2)
    outputs = [check for check in found.checks if check.name.startswith("outputs")]
    assert all(check.passed and check.value > 1e-6 for check in outputs)
    (weight,) = [t for t in weights if len(t.dims) == 2]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros(weight.dims, "f2"), weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    wrong = verify_onnx(tmp_path / "wrong.onnx", network, images, tolerance=1e-2)
    assert "outputs, optimisation all" in [check.name for check in wrong.checks if not check.passed]


def test_what_onnxruntime_dies_of_is_one_line(tmp_path, network, monkeypatch):
    export_onnx(network, torch.randn(2, 3, 8, 8), tmp_path / "f.onnx")
    monkeypatch.setattr(half, "_LOAD", "import os; os.abort()")
    with pytest.raises(NetworkError, match=r"onnxruntime does not load f\.onnx in float16; leave export\.fp16 out"):
        write_half(tmp_path / "f.onnx", tmp_path / "h.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["f.onnx"]
