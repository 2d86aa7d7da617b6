"""Which groups the outputs depend on: energy alone cannot tell, for it is a share of one reader."""

import networks
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hoyer_export as hx
from hoyer_export.select.loss import output_change
from hoyer_export.select.sensitivity import _spread, sensitivities

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def two_branches() -> networks.Net:
    """Two equal branches, of which the second adds a hundredth to the outputs."""
    torch.manual_seed(0)
    return networks.Net(
        lambda n, x: n.one(F.relu(n.a(x)).mean((2, 3))) + 0.01 * n.two(F.relu(n.b(x)).mean((2, 3))),
        a=networks.conv(3, 16), b=networks.conv(3, 16), one=nn.Linear(16, 5), two=nn.Linear(16, 5),
    ).eval()  # fmt: skip


def test_what_the_outputs_do_not_depend_on_goes_first() -> None:
    model = two_branches()
    channels = hx.trace_channels(model, IMAGES[:2])
    factors = sensitivities(channels, model, IMAGES)
    assert factors["a"].max() > 100 * factors["b"].max()
    changes, widths = {}, {}
    for method in ("function", "sensitivity"):
        keep = hx.select_channels(channels, model, macs=0.6, align=1, method=method, inputs=IMAGES).keep
        zeroed = two_branches()
        hx.zero_(zeroed, channels, keep)
        changes[method], widths[method] = output_change(model, IMAGES)(zeroed), [len(keep[name]) for name in "ab"]
    assert widths["sensitivity"][0] > widths["function"][0]
    assert changes["sensitivity"] < 0.2 * changes["function"]


def test_the_walk_down_carries_them_along() -> None:
    model = two_branches()
    lost = {}
    for method in ("function", "sensitivity"):
        shrunk = hx.cut_and_refit(model, IMAGES, macs=0.6, align=1, step=0.2, method=method)
        lost[method] = output_change(model, IMAGES + 1)(shrunk.slim.model)
    assert lost["sensitivity"] < 0.5 * lost["function"]
    with pytest.raises(hx.HoyerExportError, match="method must be one of function, sensitivity, got 'dead'"):
        hx.cut_and_refit(model, IMAGES, macs=0.6, method="dead")


def test_stronger_channels_of_a_group_never_cost_less() -> None:
    order = torch.tensor([2, 0, 3, 1])  # strongest first
    factors = _spread(order, [3, 1], [0.0, 0.4, 0.5], [0.1, 1.0])  # the weakest looks dear: measured together
    assert torch.allclose(factors, torch.full((4,), 0.5 / 1.1, dtype=torch.float64))
    factors = _spread(order, [3, 1], [0.0, 0.1, 1.1], [1.0, 1.0])
    assert factors.tolist() == [1.0, 0.1, 1.0, 1.0]
    assert _spread(order[:1], [], [0.0], []).tolist() == [1.0]


def test_any_batches_and_narrow_groups() -> None:
    model = two_branches()
    channels = hx.trace_channels(model, IMAGES[:2])
    one = sensitivities(channels, model, [IMAGES[:1]])
    assert {name: len(it) for name, it in one.items()} == {"a": 16, "b": 16}
    thin = networks.Net(lambda n, x: n.fc(n.a(x).mean((2, 3))), a=networks.conv(3, 2), fc=nn.Linear(2, 5)).eval()
    channels = hx.trace_channels(thin, IMAGES[:2])
    keep = hx.select_channels(channels, thin, macs=0.6, align=1, method="sensitivity", inputs=IMAGES).keep
    assert [len(kept) for kept in keep.values()] == [1]


def test_outputs_that_are_masked_do_not_hide_what_others_lose() -> None:
    model, plain = two_branches(), two_branches()
    mask = torch.tensor([True, False, False, False, False])
    model.wiring = lambda n, x: plain.wiring(n, x).masked_fill(mask, -torch.inf)
    channels = hx.trace_channels(plain, IMAGES[:2])
    factors = sensitivities(channels, model, IMAGES)
    assert all(bool(it.isfinite().all()) for it in factors.values())
    assert factors["a"].max() > 50 * factors["b"].max()


def test_batches_may_come_from_a_generator_and_outputs_must_be_of_images() -> None:
    model = two_branches()
    channels = hx.trace_channels(model, IMAGES[:2])
    asked = {"macs": 0.6, "align": 1, "method": "sensitivity"}
    one = hx.select_channels(channels, model, **asked, inputs=(it for it in IMAGES.split(16)))
    assert one == hx.select_channels(channels, model, **asked, inputs=IMAGES.split(16))
    scalar = two_branches()
    scalar.wiring = lambda n, x: two_branches().wiring(n, x).sum()
    with pytest.raises(hx.NetworkError, match="or choose by function"):
        sensitivities(channels, scalar, IMAGES)
