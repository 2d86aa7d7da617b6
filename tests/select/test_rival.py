"""Two tracers that know nothing of each other find the same coupled channels."""

from dataclasses import replace

import networks
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import NetworkError
from hoyer_export.networks import build_network
from hoyer_export.select.rival import cross_check, group_importance


@pytest.mark.parametrize(
    "name",
    [
        "cifar_resnet20",
        "torchvision:resnet18",
        "torchvision:resnet50",
        "torchvision:vgg11_bn",
        "torchvision:mobilenet_v2",
        *(
            pytest.param(f"torchvision:{n}", marks=pytest.mark.slow)
            for n in ("resnet34", "resnet101", "wide_resnet50_2")
        ),
        *(pytest.param(f"cifar_resnet{depth}", marks=pytest.mark.slow) for depth in (32, 44, 56, 110)),
    ],
)
def test_coupled_channels_agree_with_torch_prunings(name: str) -> None:
    model = build_network(name)
    image = torch.randn(1, 3, 32, 32) if "vgg" not in name else torch.randn(1, 3, 64, 64)
    channels = trace_channels(model, image)
    check = cross_check(model, image, channels)
    assert check.agreeing == sum(group.width for group in channels.groups) > 0
    assert check.only_here == ()
    output = {"linear.weight", "fc.weight", "classifier.6.weight", "classifier.1.weight"}
    assert len(check.only_there) == 1
    assert set(check.only_there) <= output


def test_a_channel_that_is_coupled_otherwise_is_seen() -> None:
    model, image = build_network("cifar_resnet20"), torch.randn(1, 3, 32, 32)
    channels = trace_channels(model, image)
    member = next(member for member in channels.group("conv1").members if member.parameter == "layer1.0.conv2.weight")
    member.owner.copy_(member.owner.roll(1))
    assert cross_check(model, image, channels).only_here == ("conv1",)


def test_the_rivals_score_is_the_mean_of_squared_slices_over_the_groups_mean() -> None:
    torch.manual_seed(0)
    model, image = networks.chain(), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        model.bn.weight.uniform_(0.5, 2)
    scores = group_importance(model, image, trace_channels(model, image))
    of_a = model.a.weight.square().sum((1, 2, 3)) + model.bn.weight.square() + model.b.weight.square().sum((0, 2, 3))
    of_b = model.b.weight.square().sum((1, 2, 3)) + model.fc.weight.square().sum(0)
    for group, expected in (("a", of_a), ("b", of_b)):
        torch.testing.assert_close(scores[group], (expected / expected.mean()).double(), rtol=1e-5, atol=0)


def test_a_channel_of_many_positions_gets_their_mean_score() -> None:
    torch.manual_seed(0)
    model, image = networks.shuffled(), torch.randn(1, 3, 16, 16)
    channels = trace_channels(model, image)
    scores = group_importance(model, image, channels)
    assert {name: len(score) for name, score in scores.items()} == {g.name: g.width for g in channels.groups}


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
def test_channels_that_torch_pruning_does_not_see_get_no_score() -> None:
    model = networks.Net(
        lambda n, x: n.fc(F.relu(x.mean((2, 3)) @ n.w.t())), w=nn.Parameter(torch.randn(8, 3)), fc=nn.Linear(8, 5)
    )
    channels = trace_channels(model, torch.randn(1, 3, 16, 16))
    absent = replace(channels, groups=(replace(channels.groups[0], members=channels.groups[0].members[:1]),))
    with pytest.raises(NetworkError, match=r"does not see channel 0 of group 'w'.*use method = 'group-hs'"):
        group_importance(model, torch.randn(1, 3, 16, 16), absent)


def test_a_network_that_torch_pruning_cannot_trace_is_said_in_one_line() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("two\nlines")

    channels = trace_channels(networks.chain(), torch.randn(1, 3, 16, 16))
    with pytest.raises(NetworkError, match=r"cannot trace the network \(two lines\); do without it"):
        group_importance(Broken(), torch.randn(1, 3, 16, 16), channels)
