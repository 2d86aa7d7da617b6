"""Constant channels are folded into their readers, exactly, or left with the reason."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import CutRefused
from hoyer_export.store.slim_file import load_slim, save_slim
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.extras.folding import fold_constants
from hoyer_export.surgery.step import SlimModel

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
GONE = [1, 2, 5]
KEEP = {"a": torch.tensor([0, 3, 4, 6, 7])}


def two_layers(reader: nn.Module, *, norm: bool = False) -> networks.Net:
    """a → batch norm → ReLU → reader (→ batch norm): the norm behind the zeroed filters still shifts."""
    torch.manual_seed(0)
    net = networks.Net(
        lambda n, x: n.fc(n.after(n.reader(F.relu(n.bn(n.a(x))))).flatten(2).mean(2)),
        a=networks.conv(3, 8), bn=nn.BatchNorm2d(8), reader=reader, fc=nn.Linear(6, 5),
        after=nn.BatchNorm2d(6) if norm else nn.Identity(),
    )  # fmt: skip
    networks.perturbed(net)
    with torch.no_grad():
        net.a.weight[GONE] = 0
        net.bn.bias[GONE] += 2.0  # seen through the ReLU
    return net


def traced(model: nn.Module) -> ChannelMap:
    return trace_channels(model, IMAGE)


def assert_same(first: nn.Module, second: nn.Module) -> None:
    x = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(first.eval()(x), second.eval()(x))


@pytest.mark.parametrize(
    "reader",
    [
        nn.Conv2d(8, 6, 1),
        nn.Conv2d(8, 6, 3, stride=2, dilation=2),
        nn.Conv2d(8, 6, 3, padding="valid"),
        nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 6, (1, 3), padding=(0, 2), padding_mode="circular"),
    ],
    ids=str,
)
def test_a_constant_moves_into_the_readers_bias(reader: nn.Module) -> None:
    model = two_layers(copy.deepcopy(reader))
    before = copy.deepcopy(model.state_dict())
    slim = cut(model, traced(model), KEEP, IMAGE, fold=True)
    assert slim.left == {}
    assert slim.plan.edits == ()
    assert slim.model.reader.in_channels == 5
    assert slim.max_rel_error <= 1e-9
    assert_same(model, slim.model)
    # The formula by hand: c = relu(β + (b - mean) γ / σ).
    bn, a = model.bn, model.a
    c = F.relu(bn.bias + (a.bias - bn.running_mean) * bn.weight / (bn.running_var + bn.eps).sqrt())
    by = model.reader.weight.sum((2, 3))[:, GONE] @ c[GONE]
    torch.testing.assert_close(slim.model.reader.bias, model.reader.bias + by)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_without_fold_the_constant_is_refused() -> None:
    model = two_layers(nn.Conv2d(8, 6, 1))
    with pytest.raises(CutRefused, match=r"a\.bias\[index 1 "):
        cut(model, traced(model), KEEP, IMAGE)


def test_without_a_bias_the_running_mean_behind_takes_the_constant() -> None:
    model = two_layers(nn.Conv2d(8, 6, 1, bias=False), norm=True)
    slim = cut(model, traced(model), KEEP, IMAGE, fold=True)
    assert slim.plan.edits == ()
    assert slim.model.reader.bias is None
    assert not torch.equal(slim.model.after.running_mean, model.after.running_mean)
    assert torch.equal(slim.model.after.bias, model.after.bias)
    assert_same(model, slim.model)


def test_a_reader_with_neither_gains_a_bias_which_its_file_holds(tmp_path: Path) -> None:
    model = two_layers(nn.Conv2d(8, 6, 1, bias=False))
    channels = traced(model)
    keep = {**KEEP, "reader": torch.tensor([0, 2, 3])}  # a new bias is cut with its layer
    with torch.no_grad():
        model.fc.weight[:, [1, 4, 5]] = 0
    slim = cut(model, channels, keep, IMAGE, fold=True)
    assert [edit.module for edit in slim.plan.edits] == ["reader"]
    assert slim.model.reader.bias.shape == (3,)
    assert_same(model, slim.model)
    save_slim(slim, tmp_path / "slim.safetensors")
    loaded = load_slim(tmp_path / "slim.safetensors", into=two_layers(nn.Conv2d(8, 6, 1, bias=False))).model
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in slim.model.state_dict().items())
    assert_same(model, loaded)


def test_an_output_that_is_read_before_its_norm_keeps_its_own_bias() -> None:
    torch.manual_seed(0)
    model = networks.perturbed(
        networks.Net(
            lambda n, x: (lambda y: n.fc((n.after(y) + y).mean((2, 3))))(n.reader(n.a(x))),
            a=networks.conv(3, 8), reader=nn.Conv2d(8, 6, 1, bias=False), after=nn.BatchNorm2d(6), fc=nn.Linear(6, 5),
        )
    )  # fmt: skip
    with torch.no_grad():
        model.a.weight[GONE] = 0
    slim = cut(model, traced(model), KEEP, IMAGE, fold=True)
    assert [edit.module for edit in slim.plan.edits] == ["reader"]
    assert_same(model, slim.model)


def test_flattened_and_grouped_readers_fold_each_slice_with_its_own_constant() -> None:
    torch.manual_seed(0)
    model = networks.perturbed(
        networks.Net(
            lambda n, x: n.fc(n.b(n.a(x)).flatten(1)),
            a=networks.conv(3, 8), b=nn.Conv2d(8, 4, 1, groups=2), fc=nn.Linear(4 * 256, 5),
        )
    )  # fmt: skip
    with torch.no_grad():
        model.a.weight[[1, 5]] = 0  # channel 1 of both groups, with two constants
        model.b.weight[[0, 2]] = 0  # 256 columns each, all other values
    channels = traced(model)
    keep = {"a": torch.tensor([0, 2, 3]), "b": torch.tensor([1])}
    assert not torch.equal(model.a.bias[1], model.a.bias[5])
    slim = cut(model, channels, keep, IMAGE, fold=True)
    assert (slim.model.a.out_channels, slim.model.b.out_channels, slim.model.fc.in_features) == (6, 2, 512)
    torch.testing.assert_close(model(IMAGE), slim.model(IMAGE))


def test_a_padded_reader_takes_zero_and_nothing_else() -> None:
    model = two_layers(nn.Conv2d(8, 6, 3, padding=1))
    with torch.no_grad():
        model.bn.bias[1] = -50.0  # dead behind the ReLU
    slim = cut(model, traced(model), KEEP, IMAGE, fold=True)
    assert list(slim.left["a"]) == [2, 5]
    assert "reader, which reads it, is padded with zeros" in slim.left["a"][2]
    assert slim.model.a.out_channels == 7
    assert slim.max_rel_error <= 1e-9
    assert_same(model, slim.model)


def dead_but_alive() -> tuple[nn.Module, str]:
    model = two_layers(nn.Conv2d(8, 6, 1))
    with torch.no_grad():
        model.a.weight[1] = 1e-3  # never seen through the ReLU on any of the inputs, but it could be
        model.bn.bias[1] = -1e6
    return model, r"a.weight\[index 1 .*the input shows"


def shared() -> tuple[nn.Module, str]:
    model = two_layers(nn.Conv2d(8, 6, 1))
    model.after = nn.Sequential(nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1))
    model.after[1].weight = model.reader.weight
    with torch.no_grad():
        model.after[0].weight[GONE] = 0
    return model, "shared by several layers"


class Standardised(nn.Conv2d):
    """Does something else with its weight than a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 2.0, self.bias)


def of_another_class() -> tuple[nn.Module, str]:
    return two_layers(Standardised(8, 6, 1)), "its activation is also summed up or multiplied"


def by_position() -> tuple[nn.Module, str]:
    model = two_layers(nn.Conv2d(8, 6, 1))
    model.bn = nn.Sequential(model.bn, nn.Conv2d(8, 8, 3, padding=1, groups=8))  # its border is another constant
    networks.perturbed(model.bn[1])
    return model, "not one constant where reader reads it"


@pytest.mark.parametrize("case", [dead_but_alive, shared, of_another_class, by_position])
def test_what_cannot_be_folded_stays_with_the_reason(case: Callable[[], tuple[nn.Module, str]]) -> None:
    model, reason = case()
    channels = traced(model)
    name = next(group.name for group in channels.groups if any(m.parameter == "a.weight" for m in group.members))
    keep = {name: KEEP["a"]}
    folding = fold_constants(model, channels, keep, IMAGE)
    assert 1 in folding.left[name]
    assert re.search(reason, folding.left[name][1])
    assert set(folding.left[name]) <= set(folding.keep[name].tolist())
    slim = cut(SlimModel(folding.model, folding.plan), folding.channels, folding.keep, IMAGE)
    assert slim.max_rel_error <= 1e-9


def test_a_dead_channel_folds_through_a_depthwise_layer_as_in_mobilenets() -> None:
    torch.manual_seed(0)
    model = networks.perturbed(
        networks.Net(
            lambda n, x: n.fc(n.c(F.relu6(n.bn2(n.b(F.relu6(n.bn(n.a(x))))))).mean((2, 3))),
            a=networks.conv(3, 8), bn=nn.BatchNorm2d(8), b=networks.conv(8, 8, groups=8), bn2=nn.BatchNorm2d(8),
            c=nn.Conv2d(8, 6, 1, bias=False), fc=nn.Linear(6, 5),
        )
    )  # fmt: skip
    with torch.no_grad():
        model.bn.weight[GONE] = 0  # γ alone, the filter is what it is
        model.bn.bias[GONE] = -1.0
    slim = cut(model, traced(model), KEEP, IMAGE, fold=True)
    assert slim.model.b.groups == 5
    assert bool(F.relu6(model.bn2(torch.zeros(1, 8, 1, 1)))[0, GONE].any())
    assert_same(model, slim.model)


def test_folding_has_no_effect_on_what_a_batch_norm_learns() -> None:
    model = two_layers(nn.Conv2d(8, 6, 1, bias=False), norm=True)
    slim = cut(model, traced(model), KEEP, IMAGE, fold=True).model
    for net in (model, slim):
        net.bn.eval()
        net.after.train()
        net.after.momentum = 1.0
    torch.testing.assert_close(model(IMAGE), slim(IMAGE))
    assert not torch.allclose(model.after.running_mean, slim.after.running_mean)
    torch.testing.assert_close(model.eval()(IMAGE), slim.eval()(IMAGE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_error_of_what_is_delivered_holds_the_rounding_of_the_constants(dtype: torch.dtype) -> None:
    model = two_layers(nn.Conv2d(8, 6, 1)).to(dtype)
    image = IMAGE.to(dtype)
    slim = cut(model, trace_channels(model, image), KEEP, image, fold=True)
    x = torch.cat([image.double(), torch.randn((3, 3, 16, 16), dtype=torch.float64)])
    before, after = (copy.deepcopy(network).double().eval()(x).detach() for network in (model, slim.model))
    own = float((before - after).abs().max() / before.abs().max())
    assert slim.delivered_rel_error == pytest.approx(own, rel=0.2, abs=1e-14)  # on other images
    rounding = torch.finfo(dtype).eps
    assert min(rounding / 1e3, 1e-9) < slim.delivered_rel_error < rounding or dtype is torch.float64
    assert slim.max_rel_error <= 1e-14


def test_a_model_in_half_precision_is_folded_to_its_own_rounding() -> None:
    model = two_layers(nn.Conv2d(8, 6, 1)).to(torch.bfloat16)
    slim = cut(model, trace_channels(model, IMAGE.bfloat16()), KEEP, IMAGE.bfloat16(), fold=True)
    assert slim.model.reader.bias.dtype is torch.bfloat16
    assert slim.max_rel_error <= 1e-9


SLEEPING = {
    "a filter of one number": networks.Net(
        lambda n, x: n.fc(F.relu(n.b(F.relu(n.a(x[:, :1])))).mean((2, 3))),
        a=nn.Conv2d(1, 8, 1), b=nn.Conv2d(8, 6, 1), fc=nn.Linear(6, 5),
    ),
    "a filter behind a zero scale that is also read before it": networks.Net(
        lambda n, x: n.fc((n.r(n.bn(n.a(x))) + n.s(F.relu(n.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 8, 1), bn=nn.BatchNorm2d(8), r=nn.Conv2d(8, 6, 1), s=nn.Conv2d(8, 6, 1), fc=nn.Linear(6, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SLEEPING)
def test_a_channel_that_only_sleeps_is_no_constant(name: str) -> None:
    model = copy.deepcopy(SLEEPING[name])
    networks.perturbed(model)
    with torch.no_grad():
        model.a.bias[2] = -20
        if hasattr(model, "bn"):
            model.bn.weight[2] = 0
    channels = trace_channels(model, IMAGE)
    (group,) = [g for g in channels.groups if any(m.parameter == "a.weight" for m in g.members)]
    keep = {group.name: torch.tensor([0, 1, 3, 4, 5, 6, 7])}
    assert 2 in cut(model, channels, keep, IMAGE, fold=True).left[group.name]
