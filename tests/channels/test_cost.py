"""The cost model equals an independent count of the built networks, dense and slim."""

import networks
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hoyer_export.channels.cost import dense_macs, macs_at, macs_of_keep, params_of_keep
from hoyer_export.channels.trace import trace_channels
from hoyer_export.networks import build_network
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.zero import zero_


def counted_macs(model: nn.Module, image: torch.Tensor) -> int:
    # torch counts attention only where it is not fused into one kernel
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.eval()(image)
    return counter.get_total_flops() // 2 // len(image)


@pytest.mark.parametrize("wiring", networks.WIRINGS, ids=lambda wiring: wiring.__name__)
def test_macs_equal_torchs_own_count_before_and_after_a_cut(wiring: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, image = wiring(), torch.randn(2, 3, 16, 16)
    channels = trace_channels(model, image)
    assert dense_macs(channels) == counted_macs(model, image)
    keep = {group.name: torch.arange(0, group.width, 2) for group in channels.groups}
    zero_(model, channels, keep)
    slim = cut(model, channels, keep, image).model
    assert macs_of_keep(channels, keep) == counted_macs(slim, image)
    assert params_of_keep(channels, keep) == sum(parameter.numel() for parameter in slim.parameters())


@pytest.mark.parametrize(
    ("name", "image", "macs"),
    [
        # 28·28·... by hand: conv1 24²·20·25, conv2 8²·50·20·25, 800·500, 500·10
        ("lenet5", (1, 28, 28), 24 * 24 * 20 * 25 + 8 * 8 * 50 * 20 * 25 + 800 * 500 + 5000),
        ("lenet300", (1, 28, 28), 784 * 300 + 300 * 100 + 1000),
        ("torchvision:resnet18", (3, 224, 224), 1_814_073_344),
        ("torchvision:resnet50", (3, 224, 224), 4_089_184_256),
    ],
)
def test_macs_of_known_networks(name: str, image: tuple[int, ...], macs: int) -> None:
    model = build_network(name)
    assert dense_macs(trace_channels(model, torch.zeros(1, *image))) == macs


def test_macs_at_shares_are_the_polynomial_in_the_widths() -> None:
    channels = trace_channels(networks.chain(), torch.zeros(1, 3, 16, 16))
    a, b = 0.25, 0.5
    shares = {"a": torch.full((12,), a), "b": torch.full((8,), b)}
    expected = 256 * 9 * (3 * 12 * a + 12 * a * 8 * b) + 8 * b * 5
    assert macs_at(channels, shares) == pytest.approx(expected, rel=1e-12)
