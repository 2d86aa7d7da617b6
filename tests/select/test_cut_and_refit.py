"""Smaller without training: down to the MACs that were asked for, or as far as the loss allows."""

import networks
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hoyer_export as hx
from hoyer_export.channels.cost import dense_macs
from hoyer_export.select.cut_and_refit import accuracy_drop, cut_and_refit, output_change

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def redundant() -> networks.Net:
    """A network in which half of the channels of ``a`` are combinations of the others."""
    torch.manual_seed(0)
    model = networks.Net(
        lambda n, x: n.fc(F.relu(n.b(n.a(x))).mean((2, 3))),
        a=networks.conv(3, 16), b=networks.conv(16, 8), fc=nn.Linear(8, 5),
    )  # fmt: skip
    with torch.no_grad():
        model.a.bias.zero_()
        model.a.weight[8:] = (torch.randn(8, 8) @ model.a.weight[:8].flatten(1)).view(8, 3, 3, 3)
    return model


def test_macs_are_reached_in_steps_and_the_refit_keeps_the_function() -> None:
    model = redundant().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change = output_change(model, IMAGES + 1)
    shrunk = cut_and_refit(model, IMAGES.split(32), macs=0.7, align=1, step=0.1)
    slim = shrunk.slim.model
    found = dense_macs(hx.trace_channels(slim, IMAGES[:2]))
    assert [point.macs for point in shrunk.curve][-1] == found <= 0.7 * shrunk.curve[0].macs
    assert len(shrunk.curve) == 4
    assert len(shrunk.keep["a"]) == slim.a.out_channels < 16
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    channels = hx.trace_channels(model, IMAGES[:2])
    hx.zero_(model, channels, shrunk.keep)
    assert change(slim) < 0.5 * change(model)


def test_the_smallest_network_within_a_loss() -> None:
    model = redundant().eval()
    change = output_change(model, IMAGES + 1)
    shrunk = cut_and_refit(model, IMAGES, loss=change, at_most=0.05, align=1, step=0.1)
    within = [point for point in shrunk.curve if point.within]
    beyond = [point for point in shrunk.curve if not point.within]
    assert change(shrunk.slim.model) == within[-1].loss <= 0.05 < min(point.loss for point in beyond if point.loss)
    assert dense_macs(hx.trace_channels(shrunk.slim.model, IMAGES[:2])) == within[-1].macs < 0.8 * within[0].macs
    assert beyond[-1].macs > within[-1].macs - 0.07 * within[0].macs  # one channel
    nothing = cut_and_refit(model, IMAGES, loss=lambda _: 1.0, at_most=0.5, align=1, step=0.2)
    assert nothing.refit is None
    assert change(nothing.slim.model) == 0


def test_accuracy_drop_counts_points() -> None:
    model = redundant().eval()
    targets = model(IMAGES).argmax(1)
    targets[:16] = (targets[:16] + 1) % 5
    drop = accuracy_drop(model, zip(IMAGES.split(32), targets.split(32), strict=True))
    assert drop(model) == 0
    assert drop(networks.Net(lambda n, x: torch.zeros(len(x), 5).index_fill(1, torch.tensor(0), 1))) == pytest.approx(
        75 - 100 * float((targets == 0).float().mean())
    )


def test_what_cannot_be_asked_is_said() -> None:
    model = redundant()
    for request, message in [
        ({}, "give macs"),
        ({"loss": lambda _: 0.0}, "give macs"),
        ({"macs": 0.5, "step": 0.0}, "step is a share"),
        ({"macs": 0.0}, "above 0 and at most 1, got 0.0"),
        ({"macs": 1e-3}, "the least that can be reached is"),
    ]:
        with pytest.raises(hx.HoyerExportError, match=message):
            cut_and_refit(model, IMAGES, align=1, **request)  # type: ignore[arg-type]
