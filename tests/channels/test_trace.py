"""Tracing finds what lives or dies together, and says why the rest cannot go."""

import copy
import re

import networks
import pytest
import rule_networks
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hoyer_export as hx
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.rule import Function
from hoyer_export.channels.rules import BUILT_IN
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import NetworkError

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def members(channels: ChannelMap, group: str) -> set[tuple[str, int]]:
    return {(member.parameter, member.dim) for member in channels.group(group).members}


def reasons(channels: ChannelMap, parameter: str, dim: int) -> set[str]:
    return {found.reason for found in channels.unprunable if (found.parameter, found.dim) == (parameter, dim)}


def test_a_filter_takes_its_bias_its_norm_and_its_readers_with_it() -> None:
    channels = trace_channels(networks.chain(), IMAGE)
    assert [(group.name, group.width) for group in channels.groups] == [("a", 12), ("b", 8)]
    norm = {(f"bn.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")}
    assert members(channels, "a") == {("a.weight", 0), ("a.bias", 0), ("b.weight", 1), *norm}
    assert members(channels, "b") == {("b.weight", 0), ("b.bias", 0), ("fc.weight", 1)}


def test_only_contracted_weights_make_up_the_norm() -> None:
    channels = trace_channels(networks.chain(), IMAGE)
    weights = {member.parameter for group in channels.groups for member in group.members if member.is_weight}
    assert weights == {"a.weight", "b.weight", "fc.weight"}


def test_a_flattened_channel_owns_a_run_of_the_next_layers_inputs() -> None:
    channels = trace_channels(networks.flattened(), IMAGE)
    (owner,) = [member.owner for member in channels.group("a").members if member.parameter == "fc.weight"]
    assert owner.tolist() == [index // 16 for index in range(96)]


def test_the_partners_of_a_residual_sum_are_one_group() -> None:
    channels = trace_channels(networks.residual(), IMAGE)
    assert {("a.weight", 0), ("c.weight", 0), ("b.weight", 1), ("fc.weight", 1)} <= members(channels, "a")


def test_concatenation_shifts_the_readers_indices() -> None:
    channels = trace_channels(networks.concatenated(), IMAGE)
    (owner,) = [member.owner for member in channels.group("b").members if member.parameter == "c.weight"]
    assert owner.tolist() == [-1] * 9 + [0, 1, 2, 3]
    assert reasons(channels, "c.weight", 1) == {"meets the model's input or a tensor of fixed size"}


def test_halves_made_by_chunk_and_groups_of_a_convolution_stay_equal() -> None:
    halves = trace_channels(networks.halves(), IMAGE).group("a")
    (owner,) = [member.owner for member in halves.members if member.parameter == "a.weight"]
    assert halves.width == 6
    assert owner.tolist() == [0, 1, 2, 3, 4, 5] * 2
    grouped = trace_channels(networks.grouped(), IMAGE).group("a")
    assert grouped.width == 4


def test_a_shuffle_ties_its_groups_only_because_the_code_divides_the_width() -> None:
    assert trace_channels(networks.shuffled(), IMAGE).group("a").width == 4


def test_where_a_divisor_must_stay_what_it_leaves_of_the_width_shrinks() -> None:
    model = rule_networks.NETWORKS["parts that are weighed against each other"]()
    assert [group.width for group in trace_channels(model, torch.zeros(model.example_shape)).groups] == [4]


def test_tied_weights_tie_what_they_compute() -> None:
    channels = trace_channels(networks.tied(), IMAGE)
    assert {("b.weight", 0), ("b.weight", 1), ("c.bias", 0)} <= members(channels, "a")


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.renorm(x, 2, 0, 1.0)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


# Each takes 8 channels somewhere where no cut could be exact.
HOSTILE = {
    "layer norm over channels": (lambda y: F.layer_norm(y, y.shape[1:]), "layer_norm"),
    "group norm": (lambda y: F.group_norm(y, 2), "a group_norm with a literal number of groups"),
    "softmax over channels": (lambda y: y.softmax(1), "softmax over the channels"),
    "mean over channels": (lambda y: y - y.mean(1, keepdim=True), "a mean or maximum over the channels"),
    "maximum over channels": (lambda y: y + y.amax(1, keepdim=True), "a mean or maximum over the channels"),
    "an op without a rule": (lambda y: y.renorm(2, 1, 1.0), "unknown op `Tensor.renorm`"),
    "a running sum": (lambda y: y.cumsum(1), "a running sum or an order over the channels"),
    "a literal reshape": (lambda y: y.view(2, 2, 4, 16, 16).flatten(1, 2), "reshaped to a literal size"),
    "a literal slice from the end": (lambda y: y[:, -8:], "the code picks channels by literal positions"),
    "a literal split": (lambda y: torch.cat(y.split(4, 1)[::-1], 1), "split at literal positions"),
    "a constant of fixed size": (lambda y: y + torch.ones(8, 1, 1), "a tensor of fixed size"),
    "a constant along the channels": (lambda y: y * torch.arange(8.0).view(8, 1, 1), "meets the model's input"),
    "arithmetic with the width": (lambda y: y / y.shape[1], "the number of channels"),
    "a branch on the width": (lambda y: y * 2 if y.shape[1] == 8 else y, "the code computes with the number"),
    "a logarithm": (lambda y: y.abs().log().clamp(-9, 9), "`log` may not be finite where a channel is zero"),
    "a denominator": (lambda y: 1 / (y + y), "`/` may not be finite where a channel is zero"),
    "an unknown denominator": (lambda y: y / y.softmax(2), "`/` may not be finite where a channel is zero"),
    "a fixed tensor written over the channels": (lambda y: assigned(y, torch.ones(8, 1, 1)), "a tensor of fixed size"),
    "channels written into a tensor of fixed size": (
        lambda y: torch.zeros(2, 8, 16, 16).copy_(y), "a tensor of fixed size",
    ),
    "a custom autograd function": (lambda y: Opaque.apply(y), "unknown op `renorm"),
    "a size in arange": (lambda y: y * torch.arange(y.shape[1])[:, None, None], "is an argument of `arange`"),
    "a number from the tensor": (lambda y: y * y.max().item(), ""),
    "two kinds of channels in one axis": (
        lambda y: y + (y.flatten(2) @ y.flatten(2).mT).flatten(1).mean(1, keepdim=True)[..., None, None],
        "two kinds of channels flattened into one axis",
    ),
    "channels folded into the batch": (
        lambda y: F.conv2d(y.flatten(0, 1)[:, None], torch.ones(1, 1, 1, 1)).view(y.shape),
        "channels folded into the batch",
    ),
    "all channels picked one by one": (lambda y: y[:, torch.arange(8)], "literal positions"),
    "the full width narrowed": (lambda y: y.narrow(1, 0, 8), "literal positions"),
    "a width as a literal slice elsewhere": (lambda y: y + y[:, :, : y.shape[1]].mean(), "the number of channels"),
    "a shift along the channels": (lambda y: F.pad(y, (0, 0, 0, 0, 1, -1)), "cropped"),
    "pooling along the channels": (
        lambda y: F.avg_pool1d(y.movedim(1, -1).flatten(0, 2), 3, 1, 1).view(2, 16, 16, 8).movedim(-1, 1),
        "pooled along the channels",
    ),
    "statistics over the channels": (
        lambda y: F.batch_norm(y.movedim(1, -1), torch.zeros(16), torch.ones(16)).movedim(-1, 1),
        "a normalisation's statistics run over it",
    ),
    "an output argument": (lambda y: torch.tanh(y, out=torch.empty_like(y)), "unknown op"),
    "a vectorised function": (lambda y: torch.vmap(lambda z: z * 2)(y), "inside `torch.vmap`"),
    "a rounded width": (lambda y: y * round(y.shape[1]), "the number of channels"),
}  # fmt: skip


def assigned(y: Tensor, value: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[...] = value
    return z


@pytest.mark.parametrize("name", HOSTILE)
def test_what_depends_on_the_width_is_left_alone_with_the_reason(name: str) -> None:
    code, reason = HOSTILE[name]
    net = networks.Net(
        lambda n, x: n.fc(n.b(code(n.a(x))).mean((2, 3))),
        a=networks.conv(3, 8), b=networks.conv(8, 6), fc=nn.Linear(6, 5),
    )  # fmt: skip
    channels = trace_channels(net, IMAGE)
    offered = {group.name for group in channels.groups}
    assert offered == {"b"}, name
    assert any(reason in found for found in reasons(channels, "a.weight", 0)), reasons(channels, "a.weight", 0)


def test_a_softmax_along_other_axes_is_harmless() -> None:
    net = networks.Net(
        lambda n, x: n.fc(n.a(x).softmax(-1).mean((2, 3), keepdim=True).flatten(1)),
        a=networks.conv(3, 8),
        fc=nn.Linear(8, 5),
    )
    assert [group.name for group in trace_channels(net, IMAGE).groups] == ["a"]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_code_that_no_mode_sees_is_left_alone() -> None:
    net = networks.Net(
        lambda n, x: n.fc(n.script(n.a(x)).mean((2, 3))),
        a=networks.conv(3, 8), script=torch.jit.trace(nn.Hardswish(), torch.zeros(2, 8, 16, 16)), fc=nn.Linear(8, 5),
    )  # fmt: skip
    channels = trace_channels(net, IMAGE)
    assert not channels.groups
    assert any("opaque code" in reason for reason in reasons(channels, "a.weight", 0))


def test_a_rule_of_ones_own_makes_an_unknown_op_known() -> None:
    net = networks.Net(
        lambda n, x: n.fc(torch.renorm(n.a(x), 2, 0, 1.0).mean((2, 3))), a=networks.conv(3, 8), fc=nn.Linear(8, 5)
    )
    assert not trace_channels(net, IMAGE).groups

    def limited(tracer: object, output: Tensor, input: Tensor, p: float, dim: int, maxnorm: float) -> None:
        tracer.put(output, tracer.axes(input))  # type: ignore[attr-defined]

    assert [group.name for group in trace_channels(net, IMAGE, rules={torch.renorm: limited}).groups] == ["a"]
    assert not trace_channels(net, IMAGE).groups, "the rule was for that call only"


def test_what_a_rule_forgets_is_left_alone() -> None:
    net = networks.Net(
        lambda n, x: n.fc(torch.renorm(n.a(x), 2, 0, 1.0).mean((2, 3))), a=networks.conv(3, 8), fc=nn.Linear(8, 5)
    )
    channels = trace_channels(net, IMAGE, rules={torch.renorm: lambda *anything: None})
    assert not channels.groups
    assert any("a way that its rule does not know" in reason for reason in reasons(channels, "a.weight", 0))


def test_sizes_that_outlive_a_trace_are_numbers_in_the_next() -> None:
    seen: list[int] = []

    def reuse(n: networks.Net, x: Tensor) -> Tensor:
        y = n.a(x)
        seen.append(y.shape[1])
        return n.fc(y.reshape(2, seen[0], 256).mean(2))

    net = networks.Net(reuse, a=networks.conv(3, 8), fc=nn.Linear(8, 5))
    first, second = trace_channels(net, IMAGE), trace_channels(net, IMAGE)
    assert [group.name for group in first.groups] == ["a"]
    assert not second.groups, "8 is a literal now"


def test_an_output_that_nobody_can_look_into_is_refused() -> None:
    class Answer:
        def __init__(self, maps: Tensor) -> None:
            self.maps = maps

    net = networks.Net(lambda n, x: (x.mean(), Answer(n.a(x))), a=networks.conv(3, 8))
    with pytest.raises(NetworkError, match="no tensor that can be found in its Answer"):
        trace_channels(net, IMAGE)


def test_tracing_does_not_touch_the_model() -> None:
    model = networks.chain().train()
    before = copy.deepcopy(model.state_dict())
    trace_channels(model, IMAGE)
    assert model.training
    assert not model.a._forward_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_network_without_tensors_in_its_output_is_refused() -> None:
    with pytest.raises(NetworkError, match="returns no tensor"):
        trace_channels(networks.Net(lambda n, x: 3, a=networks.conv(3, 8)), IMAGE)


def test_a_network_that_cannot_run_on_the_inputs_is_named_in_one_line() -> None:
    with pytest.raises(NetworkError, match=r"fails on an input of shape 2×4×8×8: .*channels") as caught:
        trace_channels(networks.chain(), torch.zeros(2, 4, 8, 8))
    assert "\n" not in str(caught.value)


def broken(tracer: hx.rules.Tracer, output: Tensor, input: Tensor, inplace: bool = False) -> None:
    raise ZeroDivisionError("of\nmine")


def short(tracer: hx.rules.Tracer, output: Tensor, input: Tensor, inplace: bool = False) -> None:
    tracer.put(output, {1: tracer.axis(input, 1)[:5]})


def crossed(tracer: hx.rules.Tracer, output: Tensor, input: Tensor, inplace: bool = False) -> None:
    tracer.unite(tracer.axis(input, 1), tracer.axis(input, 1)[:5])


def bare(tracer: hx.rules.Tracer, output: Tensor, input: Tensor, inplace: bool = False) -> None:
    tracer.put(output, {1: tracer.axis(input, 1).labels})  # type: ignore[dict-item]


def nobodys(tracer: hx.rules.Tracer, output: Tensor, input: Tensor, inplace: bool = False) -> None:
    tracer.put(output, {1: hx.rules.AxisLabels(tracer.axis(input, 1).labels + 10**6)})


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (broken, "your rule of `nn.functional.relu` fails, .*ZeroDivisionError: of mine"),
        (short, "it puts 5 labels on axis 1 of an output of shape"),
        (crossed, "shape mismatch"),
        (bare, "it puts a ndarray on axis 1"),
        (nobodys, "tracing with yours fails .ValueError: axis 0 index .* exceeds"),
    ],
)
def test_a_wrong_rule_of_ones_own_is_named_in_one_line(rule: Function, said: str) -> None:
    with pytest.raises(hx.HoyerExportError, match=f"^rules: .*{said}") as caught:
        trace_channels(networks.chain(), IMAGE, rules={F.relu: rule})
    assert "\n" not in str(caught.value)


def test_a_bug_in_a_rule_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN, F.relu, hx.rules.Rule(broken))  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        trace_channels(networks.chain(), IMAGE)


CHECKS = {
    "== 0": lambda y: y.shape[1] == 0,
    "< 1": lambda y: y.shape[1] < 1,
    "not > 0": lambda y: not y.shape[1] > 0,
    "not": lambda y: not y.shape[1],
    "not >= 1": lambda y: not y.shape[1] >= 1,
}


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_that_there_are_channels_at_all_fixes_none(check: str) -> None:
    def forward(net: networks.Net, x: torch.Tensor) -> torch.Tensor:
        y = net.a(x)
        if CHECKS[check](y):
            raise ValueError("no channels")
        return net.fc(y.mean((2, 3)))

    model = networks.Net(forward, a=networks.conv(3, 8), fc=nn.Linear(8, 5))
    assert [group.width for group in trace_channels(model, torch.zeros(2, 3, 8, 8)).groups] == [8]


def test_a_synchronised_batch_norm_is_a_batch_norm() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(networks.chain())
    widths = [
        [group.width for group in trace_channels(it, torch.zeros(2, 3, 16, 16)).groups]
        for it in (model, networks.chain())
    ]
    assert widths[0] == widths[1] != []


@pytest.mark.parametrize(("weights", "inputs"), [(torch.float16, torch.float32), (torch.float32, torch.bfloat16)])
def test_weights_and_inputs_of_different_types_are_said_with_the_way_out(
    weights: torch.dtype, inputs: torch.dtype
) -> None:
    model, images = nn.Conv2d(3, 4, 3).to(weights), torch.zeros(1, 3, 8, 8, dtype=inputs)
    said = f"weights are {weights}, the inputs {inputs}: give it as model.float()".replace("torch.", "")
    with pytest.raises(NetworkError, match=re.escape(said)):
        trace_channels(model, images)
    assert trace_channels(model.float(), images.float())
