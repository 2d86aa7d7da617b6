"""Norms against a loop over single elements, which is slow and obvious."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap, Member
from hoyer_export.channels.norms import channel_grid, channel_norms
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import NetworkError

N = -1  # nobody's

# name: (shapes, group → (width, [(parameter, dim, owner)]))
CASES = {
    "a convolution between two groups": (
        {"w": (4, 3, 3, 3)},
        {"out": (4, [("w", 0, [0, 1, 2, 3])]), "in": (3, [("w", 1, [0, 1, 2])])},
    ),
    "a convolution inside a residual stream": (
        {"w": (3, 3, 3, 3)},
        {"stream": (3, [("w", 0, [0, 1, 2]), ("w", 1, [0, 1, 2])])},
    ),
    "both dims in one group, in another order and with nobody's between": (
        {"w": (4, 5, 2, 2)},
        {"stream": (3, [("w", 0, [2, N, 0, 1]), ("w", 1, [1, 2, N, 0, 2])])},
    ),
    "a depthwise convolution": ({"w": (4, 1, 3, 3)}, {"g": (4, [("w", 0, [0, 1, 2, 3])])}),
    "a grouped convolution whose input positions go together": (
        {"w": (4, 2, 1, 1)},
        {"out": (2, [("w", 0, [0, 1, 0, 1])]), "in": (2, [("w", 1, [0, 1])])},
    ),
    "a linear layer behind a flattened 2×2 map": (
        {"w": (5, 12)},
        {"conv": (3, [("w", 1, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])]), "fc": (5, [("w", 0, range(5))])},
    ),
    "channels among others of the same axis": (
        {"w": (6, 2)},
        {"a": (2, [("w", 0, [0, 1, N, N, N, N])]), "b": (3, [("w", 0, [N, N, 0, 1, 2, N])])},
    ),
    "two weights of one group": (
        {"w": (3, 2, 3, 3), "v": (2, 3, 1)},
        {"g": (3, [("w", 0, [0, 1, 2]), ("v", 1, [2, 0, 1])])},
    ),
    "three dims in one group": (
        {"w": (3, 3, 2, 3)},
        {"g": (3, [("w", 0, [0, 1, 2]), ("w", 1, [1, 2, 0]), ("w", 3, [0, 2, 1])])},
    ),
    "one dim in two members of a group": (
        {"w": (4, 2)},
        {"g": (4, [("w", 0, [0, 1, 2, N]), ("w", 0, [1, 1, N, 3])])},
    ),
    "a group whose weights are all others'": ({"w": (2, 2)}, {"g": (2, [("w", 0, [N, N])]), "h": (1, [])}),
}


def make_map(shapes: dict, groups: dict) -> ChannelMap:
    return ChannelMap(
        groups=tuple(
            ChannelGroup(
                name, width, tuple(Member(p, dim, torch.tensor(list(own)), is_weight=True) for p, dim, own in members)
            )
            for name, (width, members) in groups.items()
        ),
        unprunable=(),
        contractions=(),
        shapes=shapes,
    )


def slow_norms(channels: ChannelMap, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    squares = {group.name: [0.0] * group.width for group in channels.groups}
    for group in channels.groups:
        for name, tensor in parameters.items():
            members = [member for member in group.members if member.is_weight and member.parameter == name]
            for index in itertools.product(*map(range, tensor.shape)):
                owners = {int(member.owner[index[member.dim]]) for member in members} - {N}
                for channel in owners:
                    squares[group.name][channel] += float(tensor[index]) ** 2
    return {name: torch.tensor(values, dtype=torch.float64).sqrt() for name, values in squares.items()}


def random_weights(shapes: dict, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize("case", CASES)
def test_norms_equal_a_loop_over_elements(case):
    shapes, groups = CASES[case]
    channels, weights = make_map(shapes, groups), random_weights(shapes)
    expected = slow_norms(channels, weights)
    norms = channel_norms(channels, weights)
    assert list(norms) == list(expected)
    for name in expected:
        torch.testing.assert_close(norms[name], expected[name], rtol=1e-12, atol=0)


def test_an_element_whose_two_dims_lie_in_one_channel_counts_once():
    channels = make_map({"w": (2, 2)}, {"g": (2, [("w", 0, [0, 1]), ("w", 1, [0, 1])])})
    norms = channel_norms(channels, {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
    # Channel 0 holds 1, 2, 3; channel 1 holds 2, 3, 4.
    torch.testing.assert_close(norms["g"], torch.tensor([14.0, 29.0], dtype=torch.float64).sqrt())


def test_only_members_that_are_weights_count():
    owner = torch.arange(3)
    members = (Member("w", 0, owner, is_weight=True), Member("b", 0, owner), Member("bn.weight", 0, owner))
    channels = ChannelMap((ChannelGroup("g", 3, members),), (), (), {})
    parameters = {"w": torch.eye(3), "b": torch.full((3,), 7.0), "bn.weight": torch.full((3,), 7.0)}
    assert channel_norms(channels, parameters)["g"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("case", CASES)
def test_gradients_agree_with_finite_differences(case):
    shapes, groups = CASES[case]
    channels, weights = make_map(shapes, groups), random_weights(shapes)
    names = list(weights)

    def norms(*tensors: Tensor) -> Tensor:
        found = channel_norms(channels, dict(zip(names, tensors, strict=True)))
        # A norm of 0 has no derivative.
        return sum((n[n > 0].sum() for n in found.values()), torch.zeros((), dtype=torch.float64))

    if any((n > 0).any() for n in channel_norms(channels, weights).values()):
        assert torch.autograd.gradcheck(norms, [weights[name].requires_grad_() for name in names])


@pytest.mark.parametrize("case", CASES)
def test_spread_is_the_transpose_of_squares(case):
    shapes, groups = CASES[case]
    grid, weights = channel_grid(make_map(shapes, groups)), random_weights(shapes)
    tensors = [weights[weight.parameter].requires_grad_() for weight in grid.weights]
    squares = grid.squares(tensors)
    values = torch.randn(squares.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (values * squares).sum().backward()
    for tensor, spread in zip(tensors, grid.spread(values, tensors), strict=True):
        torch.testing.assert_close(tensor.grad, 2 * spread * tensor.detach(), rtol=1e-12, atol=1e-12)


def test_a_zero_channel_has_norm_and_gradient_zero():
    weight = torch.randn(3, 2, requires_grad=True)
    with torch.no_grad():
        weight[1] = 0
    norms = channel_norms(make_map({"w": (3, 2)}, {"g": (3, [("w", 0, range(3))])}), {"w": weight})["g"]
    norms.sum().backward()
    assert norms[1] == 0
    assert weight.grad.isfinite().all()
    assert (weight.grad[1] == 0).all()


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1.0, 1e20, 1e38])
def test_float32_weights_neither_overflow_nor_vanish(size):
    weight = torch.full((2, 4), size)
    norms = channel_norms(make_map({"w": (2, 4)}, {"g": (2, [("w", 0, range(2))])}), {"w": weight})["g"]
    torch.testing.assert_close(norms, torch.full((2,), 2 * size, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_weights_are_summed_in_float64(dtype):
    weight = torch.full((2, 4096), 8.0, dtype=dtype)  # Σ w² = 262144 is beyond float16
    norms = channel_norms(make_map({"w": (2, 4096)}, {"g": (2, [("w", 0, range(2))])}), {"w": weight})["g"]
    assert norms.dtype == torch.float64
    assert norms.tolist() == [512, 512]


def test_the_memory_format_does_not_matter():
    shapes, groups = CASES["both dims in one group, in another order and with nobody's between"]
    channels, weights = make_map(shapes, groups), random_weights(shapes)
    last = {name: weight.to(memory_format=torch.channels_last) for name, weight in weights.items()}
    torch.testing.assert_close(channel_norms(channels, last), channel_norms(channels, weights), rtol=1e-12, atol=0)


def test_traced_channels_of_a_residual_block_equal_the_loop():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head((x + self.conv(x)).mean((2, 3)))

    model = Block().double()
    channels = trace_channels(model, torch.randn(2, 2, 5, 5, dtype=torch.float64))
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    assert [group.width for group in channels.groups] == [3]
    torch.testing.assert_close(
        channel_norms(channels, parameters), slow_norms(channels, parameters), rtol=1e-12, atol=0
    )


def test_a_network_without_groups_has_no_norms():
    assert channel_norms(ChannelMap((), (), (), {}), {}) == {}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, r"^w: expected a weight of this name, got none; trace this very network$"),
        ({"w": torch.zeros(2, 3)}, r"^w: the channels expect 3 in dimension 0, the network has shape \(2, 3\); trace"),
        ({"w": torch.zeros(())}, r"^w: the channels expect 3 in dimension 0, the network has shape \(\); trace"),
    ],
)
def test_a_map_of_another_network_is_refused(parameters, message):
    with pytest.raises(NetworkError, match=message):
        channel_norms(make_map({"w": (3, 3)}, {"g": (3, [("w", 0, range(3))])}), parameters)
