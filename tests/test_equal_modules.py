"""A stand-in computes what the module computes whose place it takes, and lets its heads and widths be cut."""

import json
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)

import hoyer_export as hx
from hoyer_export.modules.equal import Attention, stand_in_
from hoyer_export.surgery.plan import PruningPlan, with_plan

SCORES = torch.Generator().manual_seed(0)
MASKS = {
    "none": None,
    "numbers": torch.randn(4, 5, generator=SCORES),
    "truth values": torch.randn(4, 5, generator=SCORES) > 1.5,
    "one a head": torch.randn(6, 4, 5, generator=SCORES),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False, "kdim": 7, "vdim": 9}, {"add_bias_kv": True}, {"add_zero_attn": True, "add_bias_kv": True}],
    ids=str,
)
def test_attention_is_what_torch_computes(options: dict[str, int], batch_first: bool, mask: str) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, batch_first=batch_first, **options).eval()
    inputs = [torch.randn(2, n, width) for n, width in ((4, 12), (5, module.kdim), (5, module.vdim))]
    inputs = inputs if batch_first else [x.transpose(0, 1) for x in inputs]
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    given = MASKS[mask]
    if given is not None and given.dtype != torch.bool:
        padding = torch.zeros(2, 5).masked_fill(padding, -torch.inf)
    for padded, weighs, averages in product((None, padding), (True, False), (True, False)):
        call = {"key_padding_mask": padded, "attn_mask": given, "need_weights": weighs}
        expected = module(*inputs, **call, average_attn_weights=averages)
        module.__class__ = Attention
        found = module(*inputs, **call, average_attn_weights=averages)
        module.__class__ = nn.MultiheadAttention
        for one, other in zip(expected, found, strict=True):
            assert (one is None and other is None) or torch.allclose(one, other, atol=1e-6)


def test_a_single_sequence_and_the_causal_hint_are_what_torch_computes() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3).eval()
    x, causal = torch.randn(5, 12), nn.Transformer.generate_square_subsequent_mask(5)
    calls = [{}, {"attn_mask": causal, "is_causal": True, "need_weights": False}]
    expected = [module(x, x, x, **call) for call in calls]
    stand_in_(module)
    for call, (attended, weights) in zip(calls, expected, strict=True):
        found = module(x, x, x, **call)
        assert torch.allclose(found[0], attended, atol=1e-6)
        assert weights is None or torch.allclose(found[1], weights, atol=1e-6)


class Between(nn.Module):
    """An attention between linear layers, whose weights nobody reads."""

    def __init__(self, key: int = 12, value: int = 12, **options: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, key), nn.Linear(6, value)
        self.attention = nn.MultiheadAttention(12, 4, kdim=key, vdim=value, batch_first=True, **options)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.q(x), self.k(x / 2), self.v(x))[0])


@pytest.mark.parametrize(
    ("model", "widths"),
    [
        (Between(), {"q": 12, "attention": 4, "attention.out_proj": 12}),
        (Between(10, 8, bias=False), {"q": 12, "k": 10, "v": 8, "attention": 4, "attention.out_proj": 12}),
        (Between(add_bias_kv=True, add_zero_attn=True), {"q": 12, "attention": 4, "attention.out_proj": 12}),
    ],
    ids=["one matrix", "three", "more keys"],
)
def test_heads_and_the_widths_around_are_proved(model: nn.Module, widths: dict[str, int]) -> None:
    tested = hx.self_test(model, torch.randn(2, 5, 6))
    assert {verdict.group: verdict.channels for verdict in tested.verdicts if verdict.verdict == "proved"} == widths


class Encoder(nn.Module):
    """A transformer of which positions may be padded."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 4, 20, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(12, 3)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "padding", [None, torch.tensor([[False] * 5, [False] * 3 + [True] * 2])], ids=["whole", "padded"]
)
def test_a_cut_encoder_computes_the_same_in_torchs_fast_way_and_out_of_its_file(padding: Tensor | None) -> None:
    torch.manual_seed(0)
    model, x = Encoder().eval(), torch.randn(2, 5, 12)
    given = {"padding": padding}
    channels = hx.trace_channels(model, x, example_kwargs=given)
    assert [group.width for group in channels.groups] == [4, 20, 4, 20]
    keep = {group.name: torch.arange(1, group.width, 2) for group in channels.groups}
    hx.zero_(model, channels, keep)
    slim = hx.cut(model, channels, keep, x, example_kwargs=given)
    layer = slim.model.encoder.layers[1]
    assert layer.self_attn.num_heads == 2
    assert layer.self_attn.in_proj_weight.shape == (18, 12)
    plan = PruningPlan.from_dict(json.loads(json.dumps(slim.plan.to_dict())), model)
    rebuilt = with_plan(model, plan)
    with torch.no_grad():  # as it is deployed: nobody watches, and torch takes its fused layers
        expected = model(x, padding)
        for cut in (slim.model, rebuilt):
            assert torch.allclose(cut(x, padding), expected, atol=1e-5)
    further = hx.trace_channels(slim.model, x, example_kwargs=given)
    assert [group.width for group in further.groups] == [2, 10, 2, 10]
    assert model.encoder.layers[0].self_attn.__class__ is nn.MultiheadAttention


def test_a_derived_class_is_left_alone() -> None:
    class Own(nn.MultiheadAttention):
        pass

    model = Between()
    model.attention = Own(12, 4, batch_first=True)
    channels = hx.trace_channels(model, torch.randn(2, 5, 6))
    assert not channels.groups
    assert "nn.MultiheadAttention" in {found.reason for found in channels.unprunable}


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("size", [(8, 8), (10, 7), (4, 9)], ids=str)
@pytest.mark.parametrize("shift", [0, 2])
def test_attention_within_windows_is_what_torchvision_computes(
    kind: type[nn.Module], size: tuple[int, int], shift: int
) -> None:
    torch.manual_seed(0)
    module = kind(12, [4, 4], [shift, shift], 3).eval()
    x = torch.randn(2, *size, 12)
    expected = module(x)
    stand_in_(module)
    assert type(module) is not kind
    assert torch.allclose(module(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}], ids=["v1", "v2"]
)
def test_whole_heads_of_a_swin_are_proved(options: dict[str, type[nn.Module]]) -> None:
    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 12, [2], [3], [4, 4], num_classes=5, **options)
    tested = hx.self_test(model, torch.randn(2, 3, 32, 32))
    proved = {verdict.group: verdict.channels for verdict in tested.verdicts if verdict.verdict == "proved"}
    assert {name: width for name, width in proved.items() if "cpb" not in name} == {
        f"features.1.{block}.{layer}": width for block in (0, 1) for layer, width in (("attn.qkv", 3), ("mlp.0", 48))
    }
