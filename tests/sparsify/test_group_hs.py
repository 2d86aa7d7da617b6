"""Group-HS on models, against autograd, finite differences, and a loop over channels that is slow and obvious."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import Axis, ChannelGroup, ChannelMap, Contraction, Member
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import NetworkError, TrainingError
from hoyer_export.sparsify.group_hs import GroupHS
from hoyer_export.sparsify.state import macs_shares


class Wired(nn.Module):
    """A residual stream with a convolution inside it, a depthwise and a grouped convolution, a flattened map."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.inside = nn.Conv2d(4, 4, 3, padding=1)
        self.wide = nn.Conv2d(4, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.grouped = nn.Conv2d(6, 4, 1, groups=2)
        self.fc1 = nn.Linear(4 * 9, 5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x):
        x = self.bn(self.stem(x))
        x = torch.relu(x + self.inside(x))
        x = self.grouped(torch.relu(self.depthwise(self.wide(x))))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def wired(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, ChannelMap]:
    torch.manual_seed(0)
    model = Wired().to(dtype)
    return model, trace_channels(model, torch.randn(2, 2, 3, 3, dtype=dtype))


def single(weight: Tensor) -> tuple[nn.Module, ChannelMap]:
    """A linear layer whose rows are the channels of one group."""
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    model.weight = nn.Parameter(weight.clone())
    member = Member("weight", 0, torch.arange(len(weight)), is_weight=True)
    return model, ChannelMap((ChannelGroup("g", len(weight), (member,)),), (), (), {"weight": tuple(weight.shape)})


def slow_norms(channels: ChannelMap, model: nn.Module) -> dict[str, list[float]]:
    norms = {}
    parameters = {name: weight.detach() for name, weight in model.named_parameters()}
    for group in channels.groups:
        squares = [0.0] * group.width
        for name, weight in parameters.items():
            members = [member for member in group.members if member.is_weight and member.parameter == name]
            for index in itertools.product(*map(range, weight.shape)) if members else ():
                for channel in {int(member.owner[index[member.dim]]) for member in members} - {-1}:
                    squares[channel] += float(weight[index]) ** 2
        norms[group.name] = [math.sqrt(square) for square in squares]
    return norms


def slow_gradient(channels: ChannelMap, model: nn.Module, strength: float, *, relative: bool) -> dict[str, Tensor]:
    """The design's formula, element by element."""
    norms = slow_norms(channels, model)
    parameters = {name: weight.detach() for name, weight in model.named_parameters()}
    gradients = {name: torch.zeros_like(weight) for name, weight in parameters.items()}
    for group in channels.groups:
        n = norms[group.name]
        total, squares = sum(n), sum(x * x for x in n)
        scale = squares / len(n) if relative else 1.0
        for name, weight in parameters.items():
            members = [member for member in group.members if member.is_weight and member.parameter == name]
            for index in itertools.product(*map(range, weight.shape)) if members else ():
                for k in {int(member.owner[index[member.dim]]) for member in members} - {-1}:
                    slope = 2 * total / squares * (1 - n[k] * total / squares)
                    gradients[name][index] += strength * scale * slope * float(weight[index]) / n[k]
    return gradients


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if weight.grad is None else weight.grad.clone() for name, weight in model.named_parameters()}


def by_autograd(penalty: GroupHS, model: nn.Module) -> dict[str, Tensor | None]:
    model.zero_grad()
    penalty.penalty().backward()
    return gradients(model)


def closed_form(penalty: GroupHS, model: nn.Module) -> dict[str, Tensor | None]:
    model.zero_grad()
    penalty.add_gradient_()
    return gradients(model)


def assert_same(actual, expected, *, rtol=1e-11, atol=1e-14):
    for name in expected:
        if expected[name] is None:
            assert actual[name] is None, name
        else:
            torch.testing.assert_close(
                actual[name], expected[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("scale", ["relative", "paper"])
def test_the_closed_form_equals_a_loop_over_channels(scale):
    model, channels = wired()
    expected = slow_gradient(channels, model, 0.3, relative=scale == "relative")
    actual = closed_form(GroupHS(channels, model, 0.3, scale=scale), model)
    for name, gradient in expected.items():
        got = torch.zeros_like(gradient) if actual[name] is None else actual[name]
        torch.testing.assert_close(got, gradient, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("scale", ["relative", "paper"])
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-11), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)]
)
def test_the_closed_form_equals_autograd_to_rounding(dtype, rtol, scale):
    model, channels = wired()
    model.to(dtype)
    costs = {group.name: 1.0 + i for i, group in enumerate(channels.groups)}
    penalty = GroupHS(channels, model, 0.3, scale=scale, costs=costs)
    expected = by_autograd(penalty, model)
    assert any(gradient is not None and gradient.abs().max() > 1e-3 for gradient in expected.values())
    assert_same(closed_form(penalty, model), expected, rtol=rtol, atol=1e-3 * rtol)
    torch.testing.assert_close(penalty.add_gradient_(), penalty.penalty().detach())


def test_the_paper_form_agrees_with_finite_differences():
    model, channels = wired()
    penalty = GroupHS(channels, model, 0.3, scale="paper")
    gradient = closed_form(penalty, model)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if gradient[name] is None:
            continue
        direction = torch.randn(weight.shape, dtype=torch.float64, generator=generator)
        values = []
        for step in (1e-5, -2e-5):
            weight.data += step * direction
            values.append(penalty.penalty().item())
        weight.data += 1e-5 * direction
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx(float((gradient[name] * direction).sum()), rel=1e-5, abs=1e-8)


def test_the_relative_form_agrees_with_finite_differences_that_hold_its_scale():
    model, channels = wired()
    gradient = closed_form(GroupHS(channels, model, 0.3), model)
    norms = slow_norms(channels, model)
    # With costs the paper's form becomes the relative form at this point: cost_g · mean = Σn²/K.
    scales = {name: sum(x * x for x in n) / len(n) for name, n in norms.items()}
    mean = sum(scales.values()) / len(scales)
    held = GroupHS(channels, model, 0.3 * mean, scale="paper", costs=scales)
    torch.testing.assert_close(held.penalty(), GroupHS(channels, model, 0.3).penalty(), rtol=1e-9, atol=0)
    weight = model.inside.weight
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values = []
    for step in (1e-5, -2e-5):
        weight.data += step * direction
        values.append(held.penalty().item())
    slope = (values[0] - values[1]) / 2e-5
    assert slope == pytest.approx(float((gradient["inside.weight"] * direction).sum()), rel=1e-5)


def test_value_widths_and_gradient_equal_hand_numbers():
    model, channels = single(torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
    penalty = GroupHS(channels, model, 0.5, scale="paper")
    assert penalty.effective_widths() == {"g": pytest.approx(49 / 25)}
    assert penalty.penalty().item() == pytest.approx(0.5 * 49 / 25)
    # ∂G/∂n = (0.0896, -0.0672).
    expected = torch.tensor([[0.0448, 0.0], [0.0, -0.0336]], dtype=torch.float64)
    torch.testing.assert_close(closed_form(penalty, model)["weight"], expected, rtol=1e-9, atol=1e-15)
    relative = GroupHS(channels, model, 0.5)  # scale_g = 25 / 2
    assert relative.penalty().item() == pytest.approx(0.5 * 49 / 2)
    torch.testing.assert_close(closed_form(relative, model)["weight"], 12.5 * expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_a_step_of_sgd_moves_a_channel_by_the_claimed_relative_rate(factor):
    lr, strength = 0.1, 2e-3
    model, channels = single(
        factor * torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    before = model.weight.detach().clone()
    n = before.norm(dim=1)
    GroupHS(channels, model, strength).add_gradient_()
    torch.optim.SGD(model.parameters(), lr=lr).step()
    ratio = n.sum() / n.square().sum()
    moved = -lr * strength * 2 * (n.sum() / (6 * n)) * (1 - n * ratio)
    torch.testing.assert_close(model.weight.detach(), before * (1 + moved[:, None]), rtol=1e-9, atol=0)
    shrunk = model.weight.norm(dim=1) < n
    assert torch.equal(shrunk, n < n.square().sum() / n.sum())
    assert shrunk.any()
    assert not shrunk.all()


@pytest.mark.parametrize("scale", ["relative", "paper"])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
@pytest.mark.parametrize("kind", ["random", "all zero", "one zero", "one alive", "equal", "one channel"])
def test_no_weights_give_a_gradient_that_is_not_finite(kind, size, scale):
    weight = torch.randn(1 if kind == "one channel" else 4, 3, generator=torch.Generator().manual_seed(0))
    if kind == "all zero":
        weight.zero_()
    elif kind == "one zero":
        weight[1] = 0
    elif kind == "one alive":
        weight[1:] = 0
    elif kind == "equal":
        weight[:] = 1
    model, channels = single(size * weight)
    penalty = GroupHS(channels, model, 1e-3, scale=scale)
    closed, autograd = closed_form(penalty, model)["weight"], by_autograd(penalty, model)["weight"]
    dead = model.weight.detach().abs().sum(1) == 0
    for gradient in (closed, autograd):
        assert gradient.isfinite().all()
        assert (gradient[dead] == 0).all()
    if scale == "relative":
        torch.testing.assert_close(closed, autograd, rtol=1e-5, atol=1e-6 * size)
    assert penalty.penalty().isfinite()
    assert 0 <= penalty.effective_widths()["g"] <= 4 + 1e-9
    if kind == "all zero":
        assert penalty.effective_widths()["g"] == 0


def test_the_gradient_is_added_in_place_and_keeps_dtype_and_memory_format():
    model, channels = wired(torch.float32)
    model.to(memory_format=torch.channels_last)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    held = {name: weight.grad for name, weight in model.named_parameters()}
    alone = closed_form(GroupHS(channels, model), model)  # on fresh gradients
    for name, weight in model.named_parameters():
        weight.grad = held[name]
    GroupHS(channels, model).add_gradient_()
    for name, weight in model.named_parameters():
        assert weight.grad is held[name]
        assert weight.grad.stride() == weight.stride()
        if alone[name] is not None:
            assert alone[name].stride() == weight.stride()
            assert alone[name].dtype == weight.dtype
            torch.testing.assert_close(weight.grad, 1 + alone[name])
        else:
            assert (weight.grad == 1).all()


def test_biases_and_batch_norm_get_no_gradient():
    model, channels = wired()
    touched = {name for name, gradient in closed_form(GroupHS(channels, model), model).items() if gradient is not None}
    layers = ("stem", "inside", "wide", "depthwise", "grouped", "fc1", "fc2")
    assert touched == {f"{layer}.weight" for layer in layers}


def test_frozen_weights_count_in_the_norms_and_get_no_gradient():
    model, channels = wired()
    penalty = GroupHS(channels, model)
    whole = closed_form(penalty, model)
    model.inside.weight.requires_grad_(False)
    frozen = closed_form(penalty, model)
    assert frozen.pop("inside.weight") is None
    assert whole.pop("inside.weight") is not None
    assert_same(frozen, whole)
    assert_same(by_autograd(penalty, model), frozen | {"inside.weight": None})


def test_where_everything_is_frozen_that_is_said():
    model, channels = wired()
    with pytest.raises(TrainingError, match=r"every weight that Group-HS acts on is frozen .*unfreeze some"):
        GroupHS(channels, model.requires_grad_(False))


def test_a_weight_that_is_a_buffer_counts_in_the_norms():
    model, channels = single(torch.tensor([[3.0], [4.0]]))
    weight = model.weight.detach()
    del model.weight
    model.register_buffer("weight", weight)
    penalty = GroupHS(channels, model)
    penalty.add_gradient_()
    assert penalty.effective_widths()["g"] == pytest.approx(49 / 25)


def test_strength_zero_adds_nothing_and_strength_may_be_changed():
    model, channels = wired()
    penalty = GroupHS(channels, model, 0.0)
    for gradients_of in (closed_form, by_autograd):
        assert all(gradient is None or (gradient == 0).all() for gradient in gradients_of(penalty, model).values())
    assert penalty.penalty().item() == 0
    penalty.strength = 0.3
    assert_same(closed_form(penalty, model), closed_form(GroupHS(channels, model, 0.3), model))


def test_costs_are_relative_to_their_mean():
    model, channels = wired()
    names = [group.name for group in channels.groups]
    plain = closed_form(GroupHS(channels, model), model)
    assert_same(closed_form(GroupHS(channels, model, costs=dict.fromkeys(names, 17.0)), model), plain)
    only_first = {name: 5.0 * (name == names[0]) for name in names}
    penalty = GroupHS(channels, model, 0.3, scale="paper", costs=only_first)
    widths = penalty.effective_widths()
    assert penalty.penalty().item() == pytest.approx(0.3 * len(names) * widths[names[0]])


def test_the_rate_is_bounded_on_request():
    weight = torch.tensor([[1.0], [1.0], [1.0], [1e-3]], dtype=torch.float64)
    model, channels = single(weight)
    free = closed_form(GroupHS(channels, model, 1e-3), model)["weight"] / weight
    bound = closed_form(GroupHS(channels, model, 1e-3, max_rate=5e-3), model)["weight"] / weight
    assert free[3] > 1
    assert bound[3].item() == pytest.approx(5e-3)
    torch.testing.assert_close(bound[:3], free[:3])


def test_dense_widths_keep_the_pull_of_the_dense_network_after_a_cut():
    model, channels = single(torch.tensor([[1.0], [2.0]], dtype=torch.float64))
    cut = closed_form(GroupHS(channels, model, dense_widths={"g": 8}), model)["weight"]
    torch.testing.assert_close(cut, closed_form(GroupHS(channels, model), model)["weight"] * 2 / 8)


def test_a_replaced_parameter_is_followed():
    model, channels = wired()
    penalty = GroupHS(channels, model)
    penalty.add_gradient_()
    state = {
        name: tensor + 0.1 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    other, _ = wired()
    other.load_state_dict(state)
    assert_same(closed_form(penalty, model), closed_form(GroupHS(channels, other), other))


def test_a_network_without_groups_has_no_penalty():
    model = nn.Linear(2, 2)
    penalty = GroupHS(ChannelMap((), (), (), {}), model)
    assert penalty.penalty().item() == float(penalty.add_gradient_()) == 0
    assert penalty.effective_widths() == {}


def test_without_a_task_only_the_strongest_channel_stays():
    """The minimum of G_H is 1: below the natural threshold channels die one after the other, the weakest first."""
    weight = torch.diag(torch.tensor([1.0, 0.9, 0.5, 0.4, 0.3, 0.2])).double()
    model, channels = single(weight)
    penalty = GroupHS(channels, model, 0.1, max_rate=10.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    widths = []
    for _ in range(500):
        optimizer.zero_grad()
        penalty.add_gradient_()
        optimizer.step()
        widths.append(penalty.effective_widths()["g"])
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(1, abs=1e-3)
    assert model.weight.detach().norm(dim=1).argmax() == 0


MISTAKES = [
    ({"strength": -1.0}, r"strength of 0 or more, got -1.0"),
    ({"strength": math.nan}, r"strength of 0 or more, got nan"),
    ({"scale": "absolute"}, r"\"relative\" or \"paper\", got 'absolute'"),
    ({"max_rate": 0.0}, r"max_rate above 0"),
    ({"costs": {}}, r"one for every channel group, got none for 'g'"),
    ({"costs": {"g": 1.0, "h": 1.0}}, r"names of channel groups, got 'h'"),
    ({"costs": {"g": -1.0}}, r"0 or more for 'g', got -1.0"),
    ({"costs": {"g": 0.0}}, r"at least one above 0"),
    ({"dense_widths": {"h": 4}}, r"names of channel groups, got 'h'"),
    ({"dense_widths": {"g": 1}}, r"at least 2 channels for 'g', got 1"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_an_argument_that_makes_no_sense_is_named(options, message):
    model, channels = single(torch.ones(2, 2))
    with pytest.raises(TrainingError, match=message):
        GroupHS(channels, model, **options)


def test_channels_of_another_network_are_refused():
    _, channels = single(torch.ones(2, 2))
    with pytest.raises(NetworkError, match=r"^weight: expected a weight of this name, got none"):
        GroupHS(channels, nn.ReLU())
    with pytest.raises(NetworkError, match=r"^weight: the channels expect 2 in dimension 0"):
        GroupHS(channels, nn.Linear(2, 3))


def test_macs_shares_equal_hand_numbers():
    """Two layers, 1 → 4 → 2 with 10 positions: 10 · (1 · c + c · 2) = 30 c, c channels of 4."""
    weight = torch.diag(torch.tensor([1.0, 1.0, 0.2, 0.05], dtype=torch.float64))
    model, channels = single(weight)
    each = {"g": torch.ones(4, dtype=torch.int64)}
    contractions = (
        Contraction("first", 10, (Axis(0, each), Axis(1))),
        Contraction("second", 10, (Axis(2), Axis(0, each))),
    )
    shares = macs_shares(ChannelMap(channels.groups, (), contractions, {}), model)
    n = [1.0, 1.0, 0.2, 0.05]
    effective = sum(n) ** 2 / sum(x * x for x in n)
    assert shares.effective == pytest.approx(effective / 4)
    assert shares.alive == pytest.approx(3 / 4)  # a tenth of the natural threshold is 0.091
    with torch.no_grad():
        model.weight.zero_()
    assert macs_shares(ChannelMap(channels.groups, (), contractions, {}), model).alive == 0
