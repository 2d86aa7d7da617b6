"""Selection keeps the strongest channels, at aligned widths, within the budget."""

from typing import Any

import networks
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hoyer_export.channels.cost import dense_macs, macs_of_keep, params_of_keep
from hoyer_export.channels.norms import channel_norms
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import HoyerExportError
from hoyer_export.networks import build_network
from hoyer_export.select.align import aligned_width, least_keep
from hoyer_export.select.choose import select_channels

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def wide() -> networks.Net:
    return networks.Net(
        lambda n, x: n.fc(n.b(n.a(x)).mean((2, 3))),
        a=networks.conv(3, 64), b=networks.conv(64, 40), fc=nn.Linear(40, 5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("align", "expected"),
    [
        (16, {1: 8, 8: 8, 9: 16, 16: 16, 17: 32, 33: 48, 49: 64, 64: 64}),
        (8, {1: 8, 9: 16, 17: 24, 33: 40}),
        (4, {1: 4, 5: 8, 61: 64}),
        (1, {1: 1, 61: 61, 0: 1}),
        (100, {1: 64}),
    ],
)
def test_widths_are_rounded_up_and_never_beyond_the_dense_width(align: int, expected: dict[int, int]) -> None:
    group = trace_channels(wide(), IMAGE).group("a")
    assert {alive: aligned_width(group, alive, align) for alive in expected} == expected


def test_alignment_counts_positions_on_the_tensors_axis() -> None:
    group = trace_channels(networks.grouped(), IMAGE).group("a")
    # 4 channels of 3 positions each, on an axis of 12: two of them are 6 positions, four are 12.
    assert [aligned_width(group, alive, 4) for alive in (1, 2, 3, 4)] == [4, 4, 4, 4]
    assert [aligned_width(group, alive, 2) for alive in (1, 2, 3, 4)] == [2, 2, 4, 4]


@pytest.mark.parametrize("align", [1, 4, 8, 16])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.77, 1.0])
def test_a_macs_budget_holds_after_alignment_and_is_used(share: float, align: int) -> None:
    torch.manual_seed(0)
    model = build_network("cifar_resnet56")
    channels = trace_channels(model, torch.randn(2, 3, 32, 32))
    if share < macs_of_keep(channels, least_keep(channels, align)) / dense_macs(channels):
        pytest.skip("below the least reachable: another test's case")
    chosen = select_channels(channels, model, macs=share, align=align)
    assert chosen.macs == macs_of_keep(channels, chosen.keep) <= share * chosen.dense_macs
    # One channel's norm down in the threshold would break the budget: nothing was cut in vain.
    norms = channel_norms(channels, model.state_dict()).values()
    scores = torch.cat([n.double() * n.double().sum() / n.double().square().sum() for n in norms])
    if share < 1:
        below = float(scores[scores < chosen.threshold * (1 - 1e-12)].max())
        assert select_channels(channels, model, threshold=below, align=align).macs > share * chosen.dense_macs
    for group in channels.groups:
        width = len(chosen.keep[group.name])
        assert width % align == 0 or width == group.width or (align, width) == (16, 8)


def test_a_parameter_budget_counts_parameters() -> None:
    torch.manual_seed(0)
    model = wide()
    channels = trace_channels(model, IMAGE)
    keep = select_channels(channels, model, params=0.4, align=4).keep
    assert params_of_keep(channels, {}) == sum(p.numel() for p in model.parameters())
    assert params_of_keep(channels, keep) <= 0.4 * params_of_keep(channels, {})


def test_the_natural_threshold_parts_dead_from_alive() -> None:
    torch.manual_seed(0)
    model = wide()
    with torch.no_grad():
        for weights in (model.a.weight[10:], model.b.weight[:, 10:], model.a.bias[10:]):
            weights.mul_(1e-3)
        model.b.weight[7:].mul_(1e-3)
        model.fc.weight[:, 7:].mul_(1e-3)
    channels = trace_channels(model, IMAGE)
    chosen = select_channels(channels, model, threshold=0.5, align=4)
    assert chosen.unaligned["a"].tolist() == list(range(10))
    assert len(chosen.keep["a"]) == 12
    assert set(range(10)) <= set(chosen.keep["a"].tolist())
    assert chosen.unaligned_macs < chosen.macs


def test_weights_that_are_not_finite_choose_nothing() -> None:
    model = wide()
    channels = trace_channels(model, IMAGE)
    with torch.no_grad():
        model.b.weight[3, 5] = float("nan")
    with pytest.raises(HoyerExportError, match="'a' are not finite"):
        select_channels(channels, model, macs=0.5)


def test_a_weight_that_is_computed_counts_in_the_norms() -> None:
    torch.manual_seed(0)
    model = networks.Net(
        lambda n, x: n.fc((x.mean((2, 3)) @ n.w.t()).relu()), w=nn.Parameter(torch.randn(16, 3)), fc=nn.Linear(16, 5)
    )
    with torch.no_grad():
        model.w[4:] *= 1e-3
        model.fc.weight[:, 4:] *= 1e-3
    channels = trace_channels(model, IMAGE)
    assert select_channels(channels, model, threshold=0.1, align=1).keep["w"].tolist() == [0, 1, 2, 3]


def test_the_natural_threshold_warns_on_a_dense_network() -> None:
    model = build_network("cifar_resnet20")
    channels = trace_channels(model, torch.randn(2, 3, 32, 32))
    assert "natural threshold" in str(select_channels(channels, model, threshold="natural").warning)
    assert select_channels(channels, model, macs=0.7).warning is None


def test_the_rival_ranks_by_its_own_scores_and_everything_else_is_equal() -> None:
    torch.manual_seed(0)
    model = networks.chain()
    with torch.no_grad():  # the rival counts the batch norm's scale, Group-HS the weights alone
        model.bn.weight[8:] = 100
        model.a.weight[8:] *= 0.1
        model.b.weight[:, 8:] *= 0.1
    channels = trace_channels(model, IMAGE)
    ours = select_channels(channels, model, macs=0.5, align=4)
    theirs = select_channels(channels, model, macs=0.5, align=4, method="magnitude", inputs=[IMAGE])
    for chosen in (ours, theirs):
        assert chosen.align == 4
        assert chosen.macs <= 0.5 * chosen.dense_macs
        assert all(len(kept) % 4 == 0 for kept in chosen.keep.values())
    assert not {8, 9, 10, 11} & set(ours.keep["a"].tolist())
    assert {8, 9, 10, 11} <= set(theirs.keep["a"].tolist())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "exactly one of macs, params and threshold, got none"),
        ({"macs": 0.5, "threshold": 1.0}, "got macs and threshold"),
        ({"macs": 0.0}, "above 0 and at most 1, got 0.0"),
        ({"macs": 1.5}, "above 0 and at most 1, got 1.5"),
        ({"threshold": -1.0}, "at least 0"),
        ({"threshold": "half"}, "natural"),
        ({"macs": 0.5, "align": 0}, "align must be a whole number of at least 1"),
        ({"macs": 0.5, "align": 2.5}, "align must be a whole number"),
        ({"macs": True}, "got True"),
        ({"threshold": True}, "natural"),
        (
            {"macs": 0.5, "method": "taylor"},
            "one of group-hs, magnitude, function, sensitivity, dead, zero, got 'taylor'",
        ),
        ({"macs": 0.5, "method": "magnitude"}, "'magnitude' needs inputs"),
        ({"macs": 0.5, "method": "magnitude", "inputs": []}, "got no batch"),
        ({"threshold": "natural", "method": "magnitude", "inputs": IMAGE}, "give magnitude a number"),
        ({"macs": 0.01}, r"cannot be met: with align = 16 the least that can be reached is 0\.\d+"),
    ],
)
def test_what_cannot_be_asked_is_said(request_: dict[str, Any], message: str) -> None:
    model = wide()
    with pytest.raises(HoyerExportError, match=message):
        select_channels(trace_channels(model, IMAGE), model, **request_)


def test_by_function_the_channels_go_that_their_readers_do_not_miss() -> None:
    torch.manual_seed(0)
    model = wide()
    with torch.no_grad():
        model.b.weight[:, ::2] *= 1e-3  # what reads a, hardly; the norms of a's own filters do not tell
    chosen = select_channels(trace_channels(model, IMAGE), model, macs=0.5, align=1, method="function", inputs=[IMAGE])
    assert chosen.macs <= 0.5 * chosen.dense_macs
    assert chosen.warning is None
    assert (chosen.keep["a"] % 2 == 1).sum() >= len(chosen.keep["a"]) - 1


def test_by_function_a_group_that_nobody_can_be_seen_to_read_is_named() -> None:
    model = networks.Net(
        lambda n, x: n.fc(F.linear(F.relu(n.a(x)).mean((2, 3)), n.w.T)),
        a=networks.conv(3, 16), w=nn.Parameter(torch.randn(16, 12)), fc=nn.Linear(12, 5),
    )  # fmt: skip
    chosen = select_channels(trace_channels(model, IMAGE), model, macs=0.5, align=1, method="function", inputs=IMAGE)
    assert chosen.warning is not None
    assert chosen.warning.endswith("could be measured: a")
    with pytest.raises(HoyerExportError, match="needs inputs"):
        select_channels(trace_channels(model, IMAGE), model, macs=0.5, method="function")


def test_a_network_without_channels_to_remove_is_not_asked_for_more() -> None:
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(HoyerExportError, match="cannot be met: nothing in the network can be pruned exactly"):
        select_channels(trace_channels(layer, torch.ones(2, 3)), layer, macs=0.5)
