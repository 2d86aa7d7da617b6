"""slim.pt2: runs with torch alone, holds nothing of this machine, and no other file passes for it."""

import hashlib
import json
import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn

from hoyer_export.deploy.program import FACTS, write_program
from hoyer_export.deploy.verify_program import verify_program
from hoyer_export.errors import NetworkError

ALONE = """
import json, sys, torch
facts = {"hoyer_export.json": ""}
program = torch.export.load(sys.argv[1], extra_files=facts).module()
images = torch.arange(5 * 3 * 8 * 8).reshape(5, 3, 8, 8) / 1000
print(json.dumps([program(images).tolist(), facts, "hoyer_export" in sys.modules]))
"""
IMAGES = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 36, 5)
    return nn.Sequential(*layers)


class Two(nn.Module):
    """Takes two tensors, one by name, and returns two."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, image: torch.Tensor, *, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.body(image) + shift
        return {"logits": logits, "sum": logits.sum(1)}


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_runs_with_torch_alone_and_holds_nothing_of_this_machine(tmp_path):
    model, path = network(), tmp_path / "slim.pt2"
    write_program(model, IMAGES[:1], path, metadata={"mean": "[0.5]"})
    assert model.training
    run = subprocess.run([sys.executable, "-c", ALONE, path], capture_output=True, text=True, check=True)
    output, facts, is_ours = json.loads(run.stdout)
    images = torch.arange(5 * 3 * 8 * 8).reshape(5, 3, 8, 8) / 1000
    assert torch.allclose(torch.tensor(output), model.eval()(images), atol=1e-6)
    assert json.loads(facts[FACTS]) == {"mean": "[0.5]"}
    assert not is_ours
    with zipfile.ZipFile(path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    for trace in (b".py", b"site-packages", str(tmp_path).encode(), IMAGES[0, 0, 0].numpy().tobytes()):
        assert trace not in content


@pytest.mark.parametrize("model", [network(), Two()], ids=["one", "two"])
def test_it_is_compared_with_the_network(tmp_path, model):
    path = tmp_path / "slim.pt2"
    inputs = IMAGES if isinstance(model, nn.Sequential) else {"image": IMAGES, "shift": torch.ones(7, 1)}
    labelled = None if isinstance(model, Two) else [(IMAGES, torch.arange(7) % 5)]
    write_program(model, inputs, path, metadata={})
    found = verify_program(path, model, inputs, sha256=sha256(path), labelled=labelled)
    assert found.passed
    assert [it.name for it in found.checks][:2] == ["bytes, file against export", "outputs"]
    assert found.checks[1].value < 1e-6
    assert found.onnx_accuracy is None
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] += 0.1
    wrong = verify_program(path, model, inputs, sha256=sha256(path), labelled=labelled)
    assert "outputs" in [it.name for it in wrong.checks if not it.passed]


def test_a_file_of_other_bytes_is_not_even_loaded(tmp_path, monkeypatch):
    path = tmp_path / "slim.pt2"
    path.write_bytes(b"who knows what")
    monkeypatch.setattr(torch.export, "load", None)
    found = verify_program(path, network(), IMAGES, sha256="0" * 64)
    assert [(it.name, it.passed) for it in found.checks] == [("bytes, file against export", False)]


class Chooses(nn.Module):
    """Does one thing or another, by what it sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1) if x.sum() > 0 else x.mean(1)


def test_what_torch_export_cannot_follow_is_one_line(tmp_path):
    with pytest.raises(NetworkError, match=r"torch\.export cannot export Chooses.*leave export\.pt2 out") as caught:
        write_program(Chooses(), IMAGES, tmp_path / "slim.pt2", metadata={})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
