"""A cut is exact or refused, keeps everything but the channels, and never changes its argument."""

import copy

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import CutRefused
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.zero import zero_

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
KEEP = {"a": torch.tensor([0, 3, 4, 9]), "b": torch.tensor([1, 6])}


def zeroed_chain() -> tuple[networks.Net, ChannelMap]:
    torch.manual_seed(0)
    model = networks.chain()
    networks.perturbed(model)
    channels = trace_channels(model, IMAGE)
    zero_(model, channels, KEEP)
    return model, channels


def test_zeroing_clears_the_whole_channel_and_nothing_else() -> None:
    torch.manual_seed(0)
    before = networks.perturbed(networks.chain()).state_dict()
    after = zeroed_chain()[0].state_dict()
    gone = [1, 2, 5, 6, 7, 8, 10, 11]
    for name in ("a.weight", "a.bias", "bn.weight", "bn.bias", "bn.running_mean"):
        assert not after[name][gone].any()
        assert torch.equal(after[name][KEEP["a"]], before[name][KEEP["a"]])
    assert (after["bn.running_var"][gone] == 1).all(), "it is divided by"
    assert torch.equal(after["bn.running_var"][KEEP["a"]], before["bn.running_var"][KEEP["a"]])
    assert not after["b.weight"][:, gone].any()
    assert torch.equal(after["b.weight"][KEEP["b"]][:, KEEP["a"]], before["b.weight"][KEEP["b"]][:, KEEP["a"]])


def test_the_slim_model_has_the_kept_slices_and_modules_that_say_so() -> None:
    model, channels = zeroed_chain()
    before = copy.deepcopy(model.state_dict())
    slim = cut(model, channels, KEEP, IMAGE).model
    assert torch.equal(slim.b.weight, model.b.weight[KEEP["b"]][:, KEEP["a"]])
    assert (slim.a.out_channels, slim.bn.num_features, slim.b.in_channels, slim.b.out_channels) == (4, 4, 4, 2)
    assert slim.fc.in_features == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("parameter", "index"),
    [("a.weight", (1, 0, 0, 0)), ("a.bias", (2,)), ("bn.bias", (5,)), ("bn.weight", (11,)), ("b.weight", (0, 7, 2, 2))],
)
def test_one_slice_that_is_not_zero_is_refused_by_name(parameter: str, index: tuple[int, ...]) -> None:
    model, channels = zeroed_chain()
    with torch.no_grad():
        model.b.weight[3, [1, 2, 5, 11], 0, 0] = 1.0  # they are read
        model.get_parameter(parameter)[index] = 1e-30
    with pytest.raises(CutRefused, match=rf"{parameter}\[index .*zero it first"):
        cut(model, channels, KEEP, IMAGE)


def test_a_channel_that_nobody_reads_goes_whatever_it_is() -> None:
    model = networks.perturbed(networks.chain())
    channels = trace_channels(model, IMAGE)
    with torch.no_grad():
        model.b.weight[:, [1, 2, 5]] = 0
    keep = {"a": torch.tensor([0, 3, 4, 6, 7, 8, 9, 10, 11])}
    slim = cut(model, channels, keep, IMAGE)
    assert slim.model.a.out_channels == 9
    assert torch.equal(slim.model.bn.bias, model.bn.bias[keep["a"]])


def test_a_channel_that_is_also_multiplied_is_read_even_if_no_weight_reads_it() -> None:
    def attend(n: networks.Net, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)  # [N, positions, 3]
        return n.fc((n.q(y) @ n.k(y).transpose(1, 2)).mean((1, 2))[:, None])

    model = networks.perturbed(networks.Net(attend, q=nn.Linear(3, 8), k=nn.Linear(3, 8), fc=nn.Linear(1, 5)))
    channels = trace_channels(model, IMAGE)
    keep = {"q": torch.arange(4)}
    with pytest.raises(CutRefused, match=r"q\.weight\[index 4 .*zero it first"):
        cut(model, channels, keep, IMAGE)
    zero_(model, channels, keep)
    assert cut(model, channels, keep, IMAGE).model.k.out_features == 4


def test_a_running_mean_counts_only_where_no_scale_silences_it() -> None:
    model, channels = zeroed_chain()
    with torch.no_grad():
        model.b.weight[0, 1] = 1.0  # it is read
    model.bn.running_mean[1] = 7.0
    keep = {**KEEP, "a": torch.tensor([0, 1, 3, 4, 9])}
    assert cut(model, channels, keep, IMAGE).max_rel_error <= 1e-9
    bare = networks.perturbed(networks.unaffine())
    channels = trace_channels(bare, IMAGE)
    keep = {"a": torch.tensor([0, 2])}
    zero_(bare, channels, keep)
    bare.norm.running_mean[1] = 7.0
    bare.fc.weight.data[0, 1] = 1.0
    with pytest.raises(CutRefused, match=r"norm\.running_mean"):
        cut(bare, channels, keep, IMAGE)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"z": torch.tensor([0])}, "'z', which the network does not have"),
        ({"a": torch.tensor([], dtype=torch.int64)}, "at least one"),
        ({"a": torch.tensor([0.0])}, "int64"),
        ({"a": torch.tensor([1, 1])}, "without repeats"),
        ({"a": torch.tensor([3, 1])}, "sorted"),
        ({"a": torch.tensor([0, 12])}, "within 0..11"),
        ({"a": torch.tensor([-1, 3])}, "within 0..11"),
    ],
)
def test_a_keep_that_does_not_fit_is_refused(keep: dict[str, Tensor], message: str) -> None:
    model, channels = zeroed_chain()
    with pytest.raises(CutRefused, match=message):
        cut(model, channels, keep, IMAGE)
    with pytest.raises(CutRefused, match=message):
        zero_(model, channels, keep)


class Hidden(nn.Module):
    """Uses its width where no tracer can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = networks.conv(3, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).mean((2, 3))
        return self.fc(y) * networks.hidden_width(self.a)


def test_a_width_that_the_tracer_cannot_see_is_caught_by_the_numbers() -> None:
    model = networks.perturbed(Hidden())
    channels = trace_channels(model, IMAGE)
    keep = {"a": torch.arange(4)}
    zero_(model, channels, keep)
    with pytest.raises(CutRefused, match="depends on its width"):
        cut(model, channels, keep, IMAGE)


class OnlyInTraining(networks.Net):
    """Wants its width in training mode alone, where tracing cannot see it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(range(self.fc.in_features)) != 8:
            raise ValueError("8 features are needed")
        return self.fc(self.a(x).mean((2, 3)))


def test_a_width_that_only_training_needs_is_caught() -> None:
    model = OnlyInTraining(lambda n, x: x, a=networks.conv(3, 8), fc=nn.Linear(8, 5))
    channels = trace_channels(model, IMAGE)
    keep = {"a": torch.arange(4)}
    zero_(model, channels, keep)
    with pytest.raises(CutRefused, match=r"does not run in training mode.*8 features are needed"):
        cut(model, channels, keep, IMAGE)


def test_a_size_that_hides_behind_a_batch_of_one_is_caught() -> None:
    model = networks.perturbed(
        networks.Net(
            lambda n, x: n.fc((lambda y: y.view(1, y.shape[1], -1).mean(2))(n.a(x))),
            a=networks.conv(3, 8), fc=nn.Linear(8, 5),
        )
    )  # fmt: skip
    channels = trace_channels(model, IMAGE[:1])
    keep = {"a": torch.arange(4)}
    zero_(model, channels, keep)
    with pytest.raises(CutRefused):
        cut(model, channels, keep, IMAGE[:1])


def test_a_batch_size_that_the_code_holds_is_no_obstacle() -> None:
    model = networks.perturbed(
        networks.Net(lambda n, x: n.fc(n.a(x).mean((2, 3)).reshape(2, -1)), a=networks.conv(3, 8), fc=nn.Linear(8, 5))
    )
    channels = trace_channels(model, IMAGE)
    keep = {"a": torch.arange(4)}
    zero_(model, channels, keep)
    assert cut(model, channels, keep, IMAGE).max_rel_error <= 1e-9


def test_a_device_without_float64_is_proved_on_copies_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model, channels = zeroed_chain()
    expected = cut(model, channels, KEEP, IMAGE)
    moved = []
    monkeypatch.setattr(nn.Module, "cpu", lambda self: moved.append(self) or self)
    monkeypatch.setattr("hoyer_export.surgery.proof.WITHOUT_FLOAT64", ("cpu",))  # as if it were Apple's
    slim = cut(model, channels, KEEP, IMAGE)
    assert len(moved) == 2
    assert not any(copied is given for copied in moved for given in (model, slim.model))
    assert slim.max_rel_error == expected.max_rel_error


def test_a_model_that_writes_into_its_input_is_cut_and_leaves_the_callers_alone() -> None:
    model = networks.perturbed(
        networks.Net(
            lambda n, x: n.fc(n.a(x.sub_(0.5).mul_(2)).mean((2, 3))), a=networks.conv(3, 8), fc=nn.Linear(8, 5)
        )
    )
    image = IMAGE.clone()
    channels = trace_channels(model, image)
    keep = {"a": torch.arange(4)}
    zero_(model, channels, keep)
    cut(model, channels, keep, image)
    assert torch.equal(image, IMAGE)


def test_a_network_that_does_not_fit_is_refused_before_anything_is_zeroed() -> None:
    channels = trace_channels(networks.chain(), IMAGE)
    other = networks.chain()
    other.b = networks.conv(12, 7)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CutRefused, match="trace the network again"):
        zero_(other, channels, KEEP)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    with pytest.raises(CutRefused, match="not in the network"):
        zero_(nn.Sequential(), channels, KEEP)


def test_a_map_of_another_network_is_refused() -> None:
    model, channels = zeroed_chain()
    model.a = networks.conv(3, 13)
    with pytest.raises(CutRefused, match="trace the network again"):
        cut(model, channels, KEEP, IMAGE)


def test_nothing_but_the_channels_is_lost() -> None:
    model, channels = zeroed_chain()
    model.a.weight.requires_grad_(False)
    model.to(memory_format=torch.channels_last)
    model.train()
    model.fc.eval()
    slim = cut(model, channels, KEEP, IMAGE).model
    assert not slim.a.weight.requires_grad
    assert slim.b.weight.requires_grad
    assert slim.b.weight.is_contiguous(memory_format=torch.channels_last)
    assert slim.training
    assert not slim.fc.training
    half = cut(model.to(torch.bfloat16), channels, KEEP, IMAGE)
    assert half.model.a.weight.dtype is torch.bfloat16


def test_tied_weights_stay_tied() -> None:
    model = networks.perturbed(networks.tied())
    channels = trace_channels(model, IMAGE)
    keep = {"a": torch.tensor([0, 5, 7])}
    zero_(model, channels, keep)
    slim = cut(model, channels, keep, IMAGE).model
    assert slim.b.weight is slim.c.weight
    assert slim.b.weight.shape[:2] == (3, 3)


def test_the_slim_model_trains_on() -> None:
    model, channels = zeroed_chain()
    slim = cut(model.train(), channels, KEEP, IMAGE).model
    F.cross_entropy(slim(IMAGE), torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for parameter in slim.parameters())
