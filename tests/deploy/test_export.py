import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from hoyer_export.deploy import export
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.onnx_file import subnormals, tensors_of
from hoyer_export.errors import FileError, NetworkError

TINY = torch.finfo(torch.float32).tiny


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


IMAGES = torch.ones(1, 3, 8, 8)


class Lambda(nn.Module):
    """A network that is one function."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def test_the_file_has_the_promised_interface_and_record(tmp_path):
    record = export_onnx(network(), torch.zeros(5, 3, 8, 8), tmp_path / "f.onnx", opset=18)
    content = (tmp_path / "f.onnx").read_bytes()
    assert list(tmp_path.iterdir()) == [record.path]
    assert (record.opset, record.size_bytes, record.sha256) == (18, len(content), hashlib.sha256(content).hexdigest())
    session = onnxruntime.InferenceSession(content)
    assert [(v.name, v.type, v.shape) for v in session.get_inputs()] == [("input", "tensor(float)", ["batch", 3, 8, 8])]
    assert [(v.name, v.type, v.shape) for v in session.get_outputs()] == [("logits", "tensor(float)", ["batch", 5])]
    assert onnx.load(record.path).opset_import[0].version == 18


def test_the_same_network_gives_the_same_bytes_here_and_in_a_fresh_process(tmp_path):
    first, second = (
        export_onnx(network(), IMAGES, tmp_path / name, metadata={"b": "1", "a": "2"}).sha256 for name in ("1", "2")
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_export import *; "
        "print(export_onnx(network(), IMAGES, sys.argv[2], metadata={'a': '2', 'b': '1'}).sha256)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "3")]
    fresh = subprocess.run(command, capture_output=True, text=True, check=True)
    assert first == second == fresh.stdout.strip()
    assert fresh.stderr == ""
    other = network()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1
    assert export_onnx(other, IMAGES, tmp_path / "4", metadata={"a": "2", "b": "1"}).sha256 != first


def test_nothing_of_the_exporter_or_of_this_machine_is_left_in_the_file(tmp_path):
    export_onnx(network(), IMAGES, tmp_path / "f.onnx", metadata={"mean": json.dumps([0.5, 0.25, 0])})
    content = (tmp_path / "f.onnx").read_bytes()
    for trace in (b".py", b"site-packages", b"pkg.", b"stack_trace", b"torch.nn", str(tmp_path).encode()):
        assert trace not in content
    facts = {prop.key: prop.value for prop in onnx.load_model_from_string(content).metadata_props}
    assert facts == {
        "hoyer_export.inputs": json.dumps({"input": [3, 8, 8]}),
        "hoyer_export.mean": "[0.5, 0.25, 0]",
    }


def test_without_stripping_there_would_be_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_strip_", lambda proto: None)
    export_onnx(network(), IMAGES, tmp_path / "f.onnx")
    assert b"site-packages" in (tmp_path / "f.onnx").read_bytes()


def test_the_network_stays_as_it_is(tmp_path):
    model = network().double().train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, IMAGES.double(), tmp_path / "f.onnx")
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_memory_format_and_training_mode_do_not_change_the_file(tmp_path):
    plain = export_onnx(network().eval(), IMAGES, tmp_path / "1")
    other = network().to(memory_format=torch.channels_last).train()
    assert export_onnx(other, IMAGES.to(memory_format=torch.channels_last), tmp_path / "2").sha256 == plain.sha256


def test_several_inputs_are_called_as_the_networks_arguments_are(tmp_path):
    model = Lambda(lambda image, extra: image.mean((2, 3)) + extra)
    export_onnx(model, (IMAGES, torch.zeros(1, 3)), tmp_path / "f.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "f.onnx")
    assert [(v.name, v.shape) for v in session.get_inputs()] == [
        ("image", ["batch", 3, 8, 8]),
        ("extra", ["batch", 3]),
    ]


REFUSED = [
    (
        "batch in the input",
        lambda x: x.reshape(2, 3 * 64),
        NetworkError,
        r"fixes the batch in its input: .* \[2, 3, 8, 8\]",
    ),
    ("batch in the output", lambda x: x.sum(0), NetworkError, r"fixes the batch in its logits: .* got \[3, 8, 8\]"),
    ("no output", lambda x: None, NetworkError, "returns a NoneType without a tensor"),
    ("a branch on values", lambda x: x + 1 if x.sum() > 0 else x, NetworkError, "cannot export Lambda"),
    ("a network that does not run", lambda x: x @ torch.zeros(3, 3), NetworkError, r"batch of two, 2×3×8×8"),
]


@pytest.mark.parametrize(("forward", "error", "line"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_cannot_be_exported_is_refused_in_one_line_and_nothing_is_written(tmp_path, capfd, forward, error, line):
    with pytest.raises(error, match=line) as caught:
        export_onnx(Lambda(forward), IMAGES, tmp_path / "f.onnx")
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_other_opsets_empty_batches_and_large_weights_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileError, match="opset must be from 17 to 25, got 16"):
        export_onnx(network(), IMAGES, tmp_path / "f.onnx", opset=16)
    with pytest.raises(NetworkError, match=r"at least 1, got shapes 0×3×8×8"):
        export_onnx(network(), IMAGES[:0], tmp_path / "f.onnx")
    monkeypatch.setattr(export, "_MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(NetworkError, match="GiB of weights, one ONNX file holds at most 2"):
        export_onnx(network(), IMAGES, tmp_path / "f.onnx")


def test_a_folder_that_is_missing_is_named_and_logging_works_again(tmp_path):
    with pytest.raises(FileError, match=r"cannot write .*nowhere"):
        export_onnx(network(), IMAGES, tmp_path / "nowhere" / "f.onnx")
    assert logging.getLogger("anybody").isEnabledFor(logging.CRITICAL)


def test_flushing_sets_subnormals_and_nothing_else_to_zero(tmp_path):
    model = nn.Conv2d(3, 8, 3, bias=False)
    with torch.no_grad():
        model.weight.view(-1)[:5] = torch.tensor([TINY / 2, -TINY / 4, TINY, -TINY, 0.0])
    assert export_onnx(model, IMAGES, tmp_path / "f.onnx").flushed == 2
    [weight] = [onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "f.onnx").graph.initializer]
    assert weight.reshape(-1)[:5].tolist() == [0, 0, TINY, -TINY, 0]
    assert np.array_equal(weight.reshape(-1)[5:], model.weight.detach().numpy().reshape(-1)[5:])


def test_subnormals_that_folding_a_batch_norm_makes_are_flushed_too(tmp_path):
    model = network()
    with torch.no_grad():
        model[0].weight[0] = 1e-37  # normal, but not after γ = 0.01
        model[1].weight[0] = 0.01
    assert export_onnx(model, IMAGES, tmp_path / "f.onnx").flushed == 27
    tensors = list(tensors_of(onnx.load(tmp_path / "f.onnx").graph))
    assert not any(subnormals(tensor).any() for tensor in tensors)
    [weight] = [onnx.numpy_helper.to_array(t) for t in tensors if list(t.dims) == [8, 3, 3, 3]]
    assert np.count_nonzero(weight[0]) == 0
    assert np.count_nonzero(weight[1:]) == 7 * 27
