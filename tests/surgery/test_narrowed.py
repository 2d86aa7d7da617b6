"""Attention that takes the width of all its heads from its input: heads go, and it gets a narrower input."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hoyer_export as hx
from hoyer_export.channels.cost import macs_of_keep
from hoyer_export.errors import FileError
from hoyer_export.surgery.perturb import perturb_
from hoyer_export.surgery.plan import PruningPlan, with_plan

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Fused(nn.Module):
    """As ViT, DeiT and Swin were first written."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        return self.proj((((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Apart(nn.Module):
    """Three layers, and a scale made from the width of a head."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.size()
        q, k, v = (f(x).view(b, n, self.heads, c // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.mT * (c // self.heads) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).contiguous().view(b, n, c))


class Looks(Fused):
    """Looks at its input, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.mean(-1, keepdim=True)


class Encoder(nn.Module):
    """Patches, blocks with residual sums and layer norms, and a head."""

    def __init__(self, *attentions: nn.Module) -> None:
        super().__init__()
        self.patches, self.attentions = nn.Conv2d(3, 16, 4, 4), nn.ModuleList(attentions)
        self.norms, self.head = nn.ModuleList(nn.LayerNorm(16) for _ in attentions), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x))
        return self.head(x.mean(1))


SHARED = Fused()
BARE = Encoder(Fused(), Apart())
BARE.norms = nn.ModuleList([nn.Identity(), nn.Identity()])  # what comes in can go as well, more of it or less


@pytest.mark.parametrize(
    ("model", "widths"),
    [
        (Encoder(Fused(heads=4), Fused(heads=8)), {"attentions.0.qkv": 4, "attentions.1.qkv": 8}),
        (Encoder(Apart()), {"attentions.0.q": 4}),
        (Encoder(SHARED, SHARED), {"attentions.0.qkv": 4}),
        (Encoder(Looks()), {}),
        (BARE, {"patches": 16, "attentions.0.qkv": 4, "attentions.1.q": 4}),
    ],
    ids=["fused", "apart", "shared", "looks", "bare"],
)
def test_whole_heads_are_proved(model: nn.Module, widths: dict[str, int]) -> None:
    tested = hx.self_test(model, IMAGE)
    assert {verdict.group: verdict.channels for verdict in tested.verdicts if verdict.verdict == "proved"} == widths
    assert "refuted" not in {verdict.verdict for verdict in tested.verdicts}


def test_heads_go_in_two_steps_and_the_plan_rebuilds_what_is_left(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Encoder(Fused(), Fused()).eval()
    perturb_(model, torch.Generator().manual_seed(0))
    slim = hx.SlimModel(model, PruningPlan())
    for left in ([0, 2, 3], [1]):
        channels = hx.trace_channels(slim.model, IMAGE)
        keep = {"attentions.0.qkv": torch.tensor(left)}
        macs = macs_of_keep(channels, keep)
        zeroed = copy.deepcopy(slim)
        hx.zero_(zeroed.model, channels, keep)
        slim = hx.cut(zeroed, channels, keep, IMAGE)
    assert [(edit.kind, edit.module) for edit in slim.plan.edits] == [
        ("attribute", "attentions.0"),
        ("narrow", "attentions.0"),
    ]
    plan = PruningPlan.from_dict(json.loads(json.dumps(slim.plan.to_dict())), model)
    rebuilt = with_plan(model, plan)
    rebuilt.load_state_dict(slim.model.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(IMAGE), slim.model(IMAGE))
    hx.export_onnx(slim.model, IMAGE, tmp_path / "slim.onnx")
    assert hx.verify_onnx(tmp_path / "slim.onnx", slim.model, IMAGE).passed
    assert hx.count_macs(tmp_path / "slim.onnx").macs == macs


def test_a_plan_that_narrows_what_has_no_such_layer_is_refused() -> None:
    edit = {"kind": "narrow", "module": "attentions.0", "layers": ["norm"], "width": 4}
    with pytest.raises(FileError, match="narrows the input"):
        PruningPlan.from_dict({"version": 1, "keep": {}, "edits": [edit]}, Encoder(Fused()))
