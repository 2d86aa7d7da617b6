"""A budget is judged by the file, and what is not counted or not finite is said by ``run``, ``cut`` and ``inspect``."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hoyer_export.deploy.macs import MacsRecord, count_macs
from hoyer_export.errors import NetworkError
from hoyer_export.recipe.reading import load_recipe
from hoyer_export.run import cut as cutting
from hoyer_export.run import inputs, inspecting, ship
from hoyer_export.run.chain import run_recipe, verify_run
from hoyer_export.run.inputs import check_export, look_at_inputs, macs_in_torch
from hoyer_export.run.job import Job
from hoyer_export.run.progress import Silent
from hoyer_export.run_folder import RunFolder

NETWORKS = """
import torch
from torch import nn
from torch.nn import functional as F

class Pixels(nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.a, self.b, self.mixer, self.fc = nn.Conv2d(1, 8, 3, 2), nn.Conv2d(8, 8, 1), mixer, nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.mix(self.b(self.a(x).relu()).flatten(2).mT).mean(1))

class Encoder(Pixels):
    def __init__(self):
        super().__init__(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))

    def mix(self, x):
        return self.mixer(x)

class Heads(Pixels):
    def __init__(self):
        super().__init__(nn.MultiheadAttention(8, 2, batch_first=True))

    def mix(self, x):
        return x + self.mixer(x, x, x)[0]

class Fused(Pixels):
    def __init__(self):
        super().__init__(nn.Linear(8, 24))

    def mix(self, x):
        q, k, v = self.mixer(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 10)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())

    def forward(self, x):
        x = self.a(x)
        return self.fc((self.body(x) + self.body(x).sigmoid()).mean((2, 3)))

class Twins(nn.Module):  # the same weights until they are trained
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        self.c.load_state_dict(self.b.state_dict())

    def forward(self, x):
        x = self.a(x)
        return self.fc((self.b(x) + self.c(x).sigmoid()).mean((2, 3)))

class Divides(nn.Module):  # 0 / 0 on a black image
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x):
        x = x - x.amin((1, 2, 3), True)
        return self.fc(self.b(self.a(x / x.amax((1, 2, 3), True)).relu()).mean((2, 3)))

class Explodes(Divides):
    def forward(self, x):
        return self.fc(self.b(self.a(x).relu()).mean((2, 3))) + (x * 1e38).mean((1, 2, 3))[:, None] * 1e38

class Hidden(nn.Module):  # a product in a function that tracing does not know
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 10)
        self.w = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return self.fc(torch.inner(self.b(self.a(x).relu()).flatten(2).mT, self.w).mean(1))
"""
RECIPE = """
[network]
name = "judged_nets:Twice"
[data]
name = "digits"
validation = 0.2
[dense]
epochs = 1
lr = 0.05
[sparse]
epochs = 0
[cut]
macs = 0.6
align = 4
[finetune]
epochs = 0
[bench]
min_seconds = 0.1
"""


pytestmark = pytest.mark.usefixtures("exported_once")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("judged")
    (folder / "judged_nets.py").write_text(NETWORKS)
    (folder / "recipe.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop("judged_nets", None)


def loaded(home: Path, network: str, *overrides: str) -> Job:
    recipe = load_recipe(home / "recipe.toml", [f"network.name=judged_nets:{network}", *overrides])
    job = Job(recipe, RunFolder(home), Silent(), ["judged_nets"])
    look_at_inputs(job)
    return job


# T pixels of width E, H of the feed-forward: 3 E² + 2 T E + E² (+ 2 E H) for each pixel
PIXELS, EMBED = 9, 8
ATTENTION = PIXELS * (4 * EMBED**2 + 2 * PIXELS * EMBED)
STEM = PIXELS * (8 * 9 + 8 * 8) + 8 * 10
ATTENTIVE = [
    ("Encoder", STEM + ATTENTION + PIXELS * 2 * EMBED * 16),
    ("Heads", STEM + ATTENTION),
    ("Fused", STEM + ATTENTION - PIXELS * EMBED**2),
]


@pytest.mark.parametrize(("network", "macs"), ATTENTIVE)
def test_torch_counts_fused_attention_as_the_products_that_it_is(home: Path, network: str, macs: int) -> None:
    found = loaded(home, network)
    assert asdict(macs_in_torch(found.network(), found.example)) == {"macs": macs, "distinct": macs, "uncounted": {}}


@pytest.mark.parametrize("network", ["Encoder", "Twins"])
def test_fused_attention_and_equal_weights_can_be_exported(home: Path, network: str) -> None:
    check_export(loaded(home, network))


def test_a_count_that_differs_or_is_not_whole_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, record = loaded(home, "Twins"), MacsRecord(9_999, 19_998, 1, 1, (), 1, {})
    monkeypatch.setattr(inputs, "export_as_asked", lambda *them, **options: None)
    monkeypatch.setattr(inputs, "count_macs", lambda path, **sizes: record)
    with pytest.raises(NetworkError, match=r"has 9,999 MACs, but .* were traced"):
        check_export(found)
    record = replace(record, uncounted={"DeformConv": 2})
    with pytest.raises(NetworkError, match=r"cut.macs cannot be judged: 2 × DeformConv of judged_nets:Twins"):
        check_export(found)
    check_export(loaded(home, "Twins", "cut.params=0.5"))  # no budget of MACs


def test_what_is_computed_twice_counts_once_in_the_budget(home: Path, tmp_path: Path) -> None:
    recipe = load_recipe(home / "recipe.toml")
    report = run_recipe(recipe, tmp_path / "run", allow_import=["judged_nets"], progress=Silent())
    dense = 64 * 16 * 9 + 16 * 16 * 16 * 9 + 16 * 10
    assert (report.dense.file.macs, report.passed, report.budget.met) == (dense, True, True)
    assert report.slim.file.macs <= 0.6 * dense
    # widths of 12 and 12 would meet the share of what torch runs, and have 27,768 MACs in the file
    assert 0.6 * dense < 27_768

    model = onnx.load(tmp_path / "run" / "slim.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.nan, np.float32), bias.name))
    onnx.save(model, tmp_path / "run" / "slim.onnx")
    found = verify_run(tmp_path / "run", allow_import=["judged_nets"], progress=Silent())
    assert found.passed is False
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    checks = {check["name"]: check for check in stages["verify"]["found"]["artifacts"][1]["checks"]}
    assert (checks["outputs, optimisation all"]["value"], checks["outputs, optimisation all"]["passed"]) == (
        None,
        False,
    )
    assert json.loads((tmp_path / "run" / "report.json").read_text())["verify"]["passed"] is False


CUT = ("--input", "1x8x8", "--macs", "0.7", "--align", "4", "--allow-import", "judged_nets")


def test_what_is_not_finite_or_not_counted_is_said_and_is_no_success(call, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        ship, "count_macs", lambda path, **sizes: replace(count_macs(path, **sizes), uncounted={"Loop": 1})
    )
    code, out, err = call("cut", "--network", "judged_nets:Divides", *CUT, "--out", str(tmp_path / "cut"))
    assert (code, err.count("Traceback")) == (3, 0)
    said = " ".join(out.split())
    assert "Verification failed" in said
    assert "dense.onnx, outputs, optimisation disabled (not finite, tolerance" in said
    assert "Budget missed" in said
    assert "Not counted: 1 × Loop may multiply" in said


def test_how_far_zeroing_moved_an_infinite_output_is_not_known(home: Path) -> None:
    import judged_nets

    dense = judged_nets.Explodes()
    moved = cutting._difference("noise", dense, dense, [torch.ones(2, 1, 8, 8)])
    assert (moved.max_change, moved.max_output) == (None, None)
    for nan_first in (True, False):
        batches = [torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)][:: 1 if nan_first else -1]
        assert cutting._difference("noise", dense, dense, batches).max_change is None
    assert cutting._difference("noise", dense, dense, [torch.zeros(2, 1, 8, 8)]).max_change == 0


class Empty(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean((2, 3)), x[x > 1e9]


def test_an_empty_output_is_no_crash() -> None:
    assert cutting._difference("noise", Empty(), Empty(), [torch.zeros(2, 1, 8, 8)]).max_change == 0


def test_inspect_says_what_tracing_does_not_count(call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("inspect", "--network", "judged_nets:Hidden", *CUT)
    code, out, _ = call(*asked)
    assert code == 0
    said = " ".join(out.split())
    assert "not counted: 2.30 k MACs" in said
    assert "macs = 0.7 cannot be judged" in said
    found = json.loads(call(*asked, "--json")[1])
    assert (found["uncounted"], found["reachable"]) == ({"MACs": 36 * 8 * 8}, None)
    whole = json.loads(call("inspect", "--network", "judged_nets:Twins", *CUT, "--json")[1])
    assert (whole["uncounted"], whole["reachable"]) == ({}, True)
    monkeypatch.setattr(
        inspecting, "macs_in_torch", lambda *them: replace(macs_in_torch(*them), uncounted={"deform_conv2d": 3})
    )
    out = call("inspect", "--network", "judged_nets:Twins", *CUT)[1]
    assert "not counted: 3 × deform_conv2d" in " ".join(out.split())
