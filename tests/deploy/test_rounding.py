"""The tolerance follows torch's own rounding: not where torch is certain, and not without an end."""

import numpy as np
import pytest
import torch
from networks import Net, conv
from torch import nn
from torch.nn import functional as F

from hoyer_export.call import Call
from hoyer_export.deploy.rounding import LEAST, MOST, Rounding, float64_copy


def standardised() -> nn.Module:
    """(c - mean) / √(var + ε) of what a convolution makes of an image: rounding, where the image is constant."""
    torch.manual_seed(0)
    return Net(
        lambda n, x: n.fc(F.relu(n.norm(n.a(x))).mean((2, 3))),
        a=conv(3, 8), norm=nn.InstanceNorm2d(8), fc=nn.Linear(8, 5),
    ).eval().requires_grad_(False)  # fmt: skip


def allowed(network: nn.Module, images: torch.Tensor, error: float):
    """Return how an error of every output is judged, in units of the outputs' scale."""
    torchs = Rounding(network)
    expected = torchs.expected(Call((images,)))
    [scale], [output] = expected.scales, expected.outputs
    return torchs.judge([output + error * scale], [output], expected)[0]


def test_an_ordinary_input_allows_the_least_and_a_constant_one_what_its_rounding_makes() -> None:
    network = standardised()
    for images in (torch.randn(2, 3, 32, 32), torch.zeros(2, 3, 32, 32)):
        close = allowed(network, images, LEAST / 2)
        assert (close.tolerance, close.is_open) == (LEAST * close.scale, False)
    ordinary, constant = (allowed(network, x, 1e-4) for x in (torch.randn(2, 3, 32, 32), torch.zeros(2, 3, 32, 32)))
    assert ordinary.tolerance == LEAST * ordinary.scale < ordinary.error
    # √27 units in a convolution of |c| ≤ 1/√27, times 1 / √1e-5 = 316, of which ReLU and mean leave a part; 4 of that
    assert 1e-5 < constant.tolerance < 4 * 2**-23 * 27**0.5 * 316


def test_what_rounding_alone_decides_is_left_open_and_no_more_is_allowed_than_the_most() -> None:
    torch.manual_seed(0)
    layers = [[nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4)] for _ in range(4)]
    network = nn.Sequential(nn.Conv2d(3, 4, 3), *(layer for pair in layers for layer in pair)).eval()
    for error, is_open in ((MOST / 2, False), (MOST * 2, True)):
        judged = allowed(network, torch.ones(1, 3, 16, 16), error)
        assert (judged.is_open, judged.tolerance) == (is_open, MOST * judged.scale)
    assert not allowed(network, torch.randn(1, 3, 16, 16), MOST * 2).is_open


def test_an_output_of_torch_that_is_not_finite_allows_nothing_more() -> None:
    class Divides(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) / x.amax((1, 2, 3))[:, None]

    torchs = Rounding(Divides())
    expected = torchs.expected(Call((torch.zeros(1, 3, 4, 4),)))
    [judged] = torchs.judge(expected.outputs, expected.outputs, expected)
    assert np.isnan(expected.outputs[0]).all()
    assert (judged.error, judged.tolerance, judged.is_open) == (np.inf, LEAST, False)


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.body(x).float()


# what rounds by itself, or cannot run in float64, says nothing about float32's rounding
ROUNDS = [
    ("plain", lambda: nn.Conv2d(3, 4, 3), True),
    ("a comparison", lambda: Net(lambda n, x: n.a(x) * (x > 0).any().to(x.dtype), a=conv(3, 4)), True),
    ("autocast", Autocast, False),
    ("a literal float", lambda: Net(lambda n, x: n.a(x).float(), a=conv(3, 4)), False),
    ("a literal float in front", lambda: Net(lambda n, x: n.a(x.float()), a=conv(3, 4)), False),
]


@pytest.mark.parametrize(("make", "has_copy"), [c[1:] for c in ROUNDS], ids=[c[0] for c in ROUNDS])
def test_a_network_that_rounds_by_itself_has_no_exact_copy(make, has_copy: bool) -> None:
    network = make().eval().requires_grad_(False)
    found = float64_copy(network, Call((torch.randn(2, 3, 8, 8),)))
    assert (found is not None) == has_copy
    assert next(network.parameters()).dtype == torch.float32
