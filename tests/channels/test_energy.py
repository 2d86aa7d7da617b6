"""Energy of channels: the formula, by brute force, on every kind of reader."""

from collections.abc import Callable

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.channels.cost import marginal_macs
from hoyer_export.channels.energy import InputMoments, energy_shares
from hoyer_export.channels.trace import trace_channels
from hoyer_export.tensors import named_tensors

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def measured(model: nn.Module, images: Tensor = IMAGES) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model.eval()
    channels = trace_channels(model, images[:2])
    moments = InputMoments(channels, model)
    for batch in images.split(4):
        with moments:
            model(batch)
    return energy_shares(channels, named_tensors(model), moments.take())


def weighed(reads: Tensor, weight: Tensor) -> Tensor:
    """Of inputs [N, I, ...] and weights [I, ...]: E[a²] ‖w‖², normalised, [I]."""
    moments = reads.double().square().transpose(0, 1).flatten(1).mean(1)
    energy = moments * weight.double().square().flatten(1).sum(1)
    return energy / energy.sum()


def test_a_residual_stream_adds_up_over_its_readers() -> None:
    model = networks.residual().eval()
    found = measured(model)
    a = model.a(IMAGES)
    b = F.relu(model.b(a))
    stream = F.relu(a + model.c(b)).mean((2, 3))
    expected = weighed(a, model.b.weight.transpose(0, 1)) + weighed(stream, model.fc.weight.T)
    torch.testing.assert_close(found["a"].double(), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found["b"].double(), weighed(b, model.c.weight.transpose(0, 1)), rtol=1e-4, atol=1e-7)


def test_what_a_linear_layer_reads_of_one_channel_is_summed() -> None:
    model = networks.flattened().eval()
    read = F.max_pool2d(F.relu(model.a(IMAGES)), 4).flatten(1)
    expected = weighed(read, model.fc.weight.T).view(6, 16).sum(1)
    torch.testing.assert_close(measured(model)["a"].double(), expected, rtol=1e-4, atol=1e-7)


def test_the_readers_whole_energy_counts_and_what_is_no_channel_too() -> None:
    model = networks.concatenated().eval()
    found = measured(model)
    read = torch.cat([model.a(IMAGES), IMAGES, model.b(IMAGES)], 1)
    expected = weighed(read, model.c.weight.transpose(0, 1))
    torch.testing.assert_close(torch.cat([found["a"], found["b"]]).double(), expected[[*range(6), *range(9, 13)]])
    assert float(found["a"].sum() + found["b"].sum()) < 1


@pytest.mark.parametrize("groups", [1, 3])
def test_grouped_convolutions_add_their_groups(groups: int) -> None:
    model = networks.Net(
        lambda n, x: n.fc(n.b(F.relu(n.a(x))).mean((2, 3))),
        a=networks.conv(3, 12), b=networks.conv(12, 9, groups=groups), fc=nn.Linear(9, 5),
    )  # fmt: skip
    read = F.relu(model.a(IMAGES))
    weight = model.b.weight.view(groups, 9 // groups, 12 // groups, -1).transpose(1, 2).flatten(0, 1)
    expected = weighed(read, weight).view(groups, -1).sum(0)
    torch.testing.assert_close(measured(model)["a"].double(), expected, rtol=1e-4, atol=1e-7)


def test_transposed_and_depthwise() -> None:
    model = networks.transposed().eval()
    read = model.a(IMAGES)
    expected = weighed(read, model.b.weight).view(2, 4).sum(0)  # both groups lose as many
    torch.testing.assert_close(measured(model)["a"].double(), expected, rtol=1e-4, atol=1e-7)
    model = networks.depthwise().eval()
    read = F.relu6(model.b(model.a(IMAGES)))
    expected = weighed(read, model.c.weight.transpose(0, 1)).view(8, 2).sum(1)
    torch.testing.assert_close(measured(model)["a"].double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("product", [lambda x, w: x @ w, torch.matmul])
def test_calls_without_a_module(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = networks.Net(
        lambda n, x: product(F.relu(F.conv2d(x, n.a)).mean((2, 3)), n.w),
        a=nn.Parameter(torch.randn(7, 3, 3, 3)), w=nn.Parameter(torch.randn(7, 5)),
    )  # fmt: skip
    (energy,) = measured(model).values()
    expected = weighed(F.relu(F.conv2d(IMAGES, model.a)).mean((2, 3)), model.w)
    torch.testing.assert_close(energy.double(), expected, rtol=1e-4, atol=1e-7)


def test_shared_layers_accumulate_and_training_goes_on() -> None:
    model = networks.Net(
        lambda n, x: n.fc(F.relu(n.b(F.relu(n.b(n.a(x))))).mean((2, 3))),
        a=networks.conv(3, 8), b=networks.conv(8, 8), fc=nn.Linear(8, 5),
    )  # fmt: skip
    first = model.a(IMAGES)
    second = F.relu(model.b(first))
    both = weighed(torch.cat([first, second]), model.b.weight.transpose(0, 1))
    last = weighed(F.relu(model.b(second)).mean((2, 3)), model.fc.weight.T)
    torch.testing.assert_close(measured(model)["a"].double(), both + last, rtol=1e-4, atol=1e-7)
    channels = trace_channels(model, IMAGES)
    moments = InputMoments(channels, model.train())
    with moments:
        loss = model(IMAGES).square().sum()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert moments.take()
    assert not moments.take()


def test_marginal_macs_are_what_one_channel_less_saves() -> None:
    model = networks.residual().eval()
    channels = trace_channels(model, IMAGES)
    for name, macs in marginal_macs(channels).items():
        left = torch.ones(len(macs), dtype=torch.float64)
        left[1] = 0
        assert float(macs[1]) == channels.macs({}) - channels.macs({name: left})
