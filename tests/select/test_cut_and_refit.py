"""Smaller without training: down to the MACs that were asked for, or as far as the loss allows."""

from collections.abc import Callable

import networks
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hoyer_export as hx
from hoyer_export.channels.cost import dense_macs
from hoyer_export.select.cut_and_refit import cut_and_refit
from hoyer_export.select.loss import accuracy_drop, output_change
from hoyer_export.surgery.self_test import without_groups

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
        ({"macs": 0.5, "at_most": 0.1}, "give macs"),
        *(({"macs": 0.5, "step": wrong}, "step is a share") for wrong in (float("nan"), -1.0, float("inf"))),
        *(
            ({"loss": lambda _: 0.0, "at_most": wrong}, "at_most is what may be lost, 0 or more, got")
            for wrong in (float("nan"), -1.0, float("inf"))
        ),
    ]:
        with pytest.raises(hx.HoyerExportError, match=message):
            cut_and_refit(model, IMAGES, align=1, **request)  # type: ignore[arg-type]


def test_an_output_of_zeros_counts_as_changed_or_not() -> None:
    class Dead(nn.Module):
        def __init__(self, shift: float = 0.0) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = x.flatten(1).clone()
            y[::2] = self.shift
            return y, y.sum(1)

    assert output_change(Dead(), IMAGES)(Dead()) == 0
    assert output_change(Dead(), IMAGES)(Dead(0.1)) == 0.5, "of half of the images all outputs are 0"


def labelled(*shape: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(IMAGES, torch.zeros(64, *shape, dtype=torch.int64))]


@pytest.mark.parametrize(
    ("made", "batches", "said"),
    [
        (networks.several_outputs, labelled(), "needs logits .N, classes., the network returns a dict"),
        (lambda: networks.conv(3, 5), labelled(), r"the network returns \[64, 5, 8, 8\]"),
        (redundant, labelled(8, 8), r"one class an image, got labels \[64, 8, 8\] of images \[64, 3, 8, 8\]"),
        (redundant, [IMAGES], "needs batches .images .N, ...., classes .N.., got something else"),
        (redundant, [(IMAGES[:, 0], torch.zeros(64))], "does not run on a calibration batch of shape 64×8×8"),
        (redundant, [], "got no batch"),
    ],
)
def test_accuracy_is_judged_on_classes_alone(made: Callable[[], nn.Module], batches: list, said: str) -> None:
    with pytest.raises(hx.HoyerExportError, match=said) as caught:
        accuracy_drop(made().eval(), batches)
    assert "\n" not in str(caught.value)


def test_an_output_that_is_no_row_an_image_is_said() -> None:
    with pytest.raises(hx.NetworkError, match=r"compares outputs \[64, ...\] of 64 images, the network returns \[\]"):
        output_change(networks.Net(lambda n, x: x.mean()), IMAGES)
    with pytest.raises(hx.DataError, match="batch 0, counted from 0, image 3"):
        output_change(redundant(), IMAGES.index_fill(0, torch.tensor(3), float("inf")))


def test_what_tracing_leaves_whole_stays_whole_on_the_whole_way() -> None:
    def trace(model: nn.Module, example: torch.Tensor) -> hx.ChannelMap:
        return without_groups(hx.trace_channels(model, example), {"a": "somebody says so"})

    shrunk = cut_and_refit(redundant(), IMAGES, macs=0.7, align=1, step=0.1, trace=trace)
    assert len(shrunk.curve) > 2
    assert shrunk.slim.model.a.out_channels == 16
    assert shrunk.slim.model.b.out_channels < 8
