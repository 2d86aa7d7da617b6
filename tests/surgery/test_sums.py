"""Where a layer's output is added to what was there before, and what it has to give for that."""

import copy

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hoyer_export as hx
from hoyer_export.surgery.extras.dense_outputs import DenseOutputs
from hoyer_export.surgery.extras.refit import _Refitting
from hoyer_export.surgery.extras.sums import Sum

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def block(n: networks.Net, x: Tensor, end: str) -> Tensor:
    s = n.stem(x)
    y = n.bn(n.b(F.relu(n.a(s))))
    if end == "plus":
        return F.relu(s + y)
    if end == "in place":
        y += s
        return F.relu_(y)
    if end == "shortcut later":
        return torch.add(y, n.short(s))
    if end == "used twice":
        return (s + y) * y
    if end == "in the middle":
        return s + F.relu(y)
    return s[:, :1] + y  # broadcast


def network(end: str) -> networks.Net:
    torch.manual_seed(0)
    model = networks.Net(
        lambda n, x: n.fc(block(n, x, end).mean((2, 3))),
        stem=networks.conv(3, 8), a=networks.conv(8, 16), b=networks.conv(16, 8), bn=nn.BatchNorm2d(8),
        short=networks.conv(8, 8), fc=nn.Linear(8, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.bn.running_var.uniform_(0.5, 2)
        model.bn.weight.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(
    ("end", "layers"),
    [
        ("plus", ["b.weight"]),
        ("in place", ["b.weight"]),
        ("shortcut later", ["short.weight"]),
        ("used twice", []),
        ("in the middle", []),
        ("broadcast", []),
    ],
)
def test_the_layer_whose_output_comes_last_to_a_sum_and_goes_nowhere_else(end: str, layers: list[str]) -> None:
    assert [name for name, _ in DenseOutputs(network(end), IMAGES)._sums] == layers


def test_a_batch_norm_between_is_undone_but_not_where_it_lets_hardly_anything_through() -> None:
    gain = torch.tensor([2.0, -0.5, 1e-4])
    given = Sum(0, gain).through(torch.ones(3))
    assert torch.allclose((given * gain)[:2], torch.ones(2), atol=0.06)
    assert abs(float(given[2])) < 0.1
    assert Sum(0, None).through(gain) is gain


def test_the_last_layer_of_a_block_makes_up_for_what_the_stream_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = network("plus")
    channels = hx.trace_channels(dense, IMAGES[:2])
    keep = {"a": torch.arange(8)}

    def slim() -> hx.SlimModel:
        zeroed = copy.deepcopy(dense)
        noise = torch.randn(dense.stem.weight.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            zeroed.stem.weight.add_(0.1 * noise)  # comes before the cut, so that nobody refits it
        hx.zero_(zeroed, channels, keep)
        return hx.cut(zeroed, channels, keep, IMAGES[:2])

    def stream(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return block(model, IMAGES + 0.5, "plus")

    lost = {}
    for made_up in (True, False):
        if not made_up:
            monkeypatch.setattr(_Refitting, "_lacking", lambda *arguments: None)
        lost[made_up] = float((stream(hx.refit_(slim(), dense, IMAGES).slim.model) - stream(dense)).norm())
    assert lost[True] < 0.8 * lost[False]


class ImageByImage(nn.Module):
    """Runs as many operations as there are images before its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network("plus")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.stack([image * 1 for image in x]))


def test_how_many_operations_run_may_hang_on_the_batch() -> None:
    dense = ImageByImage().eval()
    channels = hx.trace_channels(network("plus"), IMAGES[:2])
    keep = {"a": torch.arange(8)}
    zeroed = network("plus")
    hx.zero_(zeroed, channels, keep)
    slim = hx.cut(zeroed, channels, keep, IMAGES[:2])
    expected = hx.refit_(hx.SlimModel(copy.deepcopy(slim.model), slim.plan), dense.net, IMAGES.split(24)).slim.model
    wrapped = ImageByImage().eval()
    traced = hx.trace_channels(wrapped, IMAGES[:2])
    hx.zero_(wrapped, traced, {"net.a": keep["a"]})
    found = hx.refit_(hx.cut(wrapped, traced, {"net.a": keep["a"]}, IMAGES[:2]), dense, IMAGES.split(24)).slim.model
    assert torch.allclose(found(IMAGES), expected(IMAGES), atol=1e-5)


def test_a_batch_norm_of_another_axis_and_a_layer_that_runs_again_are_left_alone() -> None:
    tokens = networks.Net(
        lambda n, x: n.fc((x + n.bn(n.b(F.relu(n.a(x))))).mean(1)),
        a=nn.Linear(6, 12), b=nn.Linear(12, 6, bias=False), bn=nn.BatchNorm1d(4), fc=nn.Linear(6, 3),
    ).eval()  # fmt: skip
    x = torch.randn(32, 4, 6, generator=torch.Generator().manual_seed(0))
    channels = hx.trace_channels(tokens, x[:2])
    keep = {"a": torch.arange(8)}
    zeroed = copy.deepcopy(tokens)
    hx.zero_(zeroed, channels, keep)
    assert hx.refit_(hx.cut(zeroed, channels, keep, x[:2]), tokens, x).refitted == ("b.weight", "fc.weight")
    assert not DenseOutputs(tokens, x)._sums
    again = networks.Net(
        lambda n, x: n.fc(twice(n, n.stem(x)).mean((2, 3))),
        stem=networks.conv(3, 8), a=networks.conv(8, 8), fc=nn.Linear(8, 5),
    ).eval()  # fmt: skip
    assert not DenseOutputs(again, IMAGES)._sums


def twice(n: networks.Net, x: Tensor) -> Tensor:
    x = F.relu(x + n.a(x))
    return F.relu(x + n.a(x))
