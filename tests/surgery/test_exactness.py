"""The one invariant of the surgeon: zeroed and cut networks agree to 1e-9 (relative, float64), whatever is removed.

The share of channels that goes is drawn for each group: equal shares everywhere cannot see a missing tie between
widths. Parameters that start at zero or one are moved away from it, and zeroing must have moved the output, or the
comparison would prove nothing.
"""

import re

import networks
import pytest
import torch
import torchvision
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.trace import trace_channels
from hoyer_export.networks import build_network
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.self_test import random_keep
from hoyer_export.surgery.zero import zero_
from hoyer_export.tensors import tensors_in


def cut_at_random(model: nn.Module, image: Tensor, seed: int = 0) -> tuple[ChannelMap, float, float]:
    """Return the channel map, the cut's own error and how far zeroing moved the output (relative)."""
    networks.perturbed(model)
    channels = trace_channels(model, image)
    keep = random_keep(channels, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        before = list(tensors_in(model(image)))
        zero_(model, channels, keep)
        after = tensors_in(model(image))
        moved = min((b - a).abs().max() / a.abs().max() for a, b in zip(before, after, strict=True))
    slim = cut(model, channels, keep, image)
    dense, left = (sum(p.numel() for p in m.parameters()) for m in (model, slim.model))
    assert left < dense
    assert slim.max_rel_error is not None
    return channels, slim.max_rel_error, float(moved)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("wiring", networks.WIRINGS, ids=lambda wiring: wiring.__name__)
def test_every_wiring_is_cut_exactly(wiring: type[nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    channels, error, moved = cut_at_random(wiring(), torch.randn(2, 3, 16, 16), seed)
    assert error <= 1e-9
    assert moved > 1e-3
    assert channels.groups


FAMILIES = re.compile(r"(alexnet|(wide_)?resne[x]?t\d.*|vgg\d.*|mobilenet.*)$")
TORCHVISION = [n for n in torchvision.models.list_models(module=torchvision.models) if FAMILIES.match(n)]
BY_DEFAULT = {"resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small"}
CIFAR = [f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)]


@pytest.mark.parametrize(
    "name",
    [pytest.param(f"torchvision:{n}", marks=() if n in BY_DEFAULT else pytest.mark.slow) for n in TORCHVISION]
    + [pytest.param(n, marks=() if n == "cifar_resnet20" else pytest.mark.slow) for n in CIFAR]
    + ["lenet5", "lenet300"],
)
def test_named_networks_are_cut_exactly(name: str) -> None:
    torch.manual_seed(0)
    mnist = name.startswith("lenet")
    size = 28 if mnist else 32 if "cifar" in name else 224 if re.search("alexnet|vgg", name) else 64
    channels, error, moved = cut_at_random(build_network(name), torch.randn(2, 1 if mnist else 3, size, size))
    assert error <= 1e-9
    assert moved > 1e-3
    # Everything but the model's input and output can go: these networks hold nothing that mixes channels.
    assert {found.reason for found in channels.unprunable} <= {
        "the model's output",
        "meets the model's input or a tensor of fixed size",
    }


def test_the_torchvision_families_are_not_an_empty_list() -> None:
    assert len(TORCHVISION) >= 20
    assert set(TORCHVISION) >= BY_DEFAULT
