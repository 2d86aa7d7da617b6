"""Two tracers that know nothing of each other find the same coupled channels."""

import pytest
import torch

from hoyer_export.channels.trace import trace_channels
from hoyer_export.networks import build_network
from hoyer_export.surgery.torch_pruning_baseline import cross_check


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
    image = torch.randn(1, 3, 32, 32) if "vgg" not in name else torch.randn(1, 3, 224, 224)
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
