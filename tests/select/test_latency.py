"""Time as a cost, and widths by what it saves: tables here are formulas, so that the right answer is known."""

from collections.abc import Callable
from itertools import product

import networks
import numpy as np
import pytest
import torch
from torch import nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import dense_macs, macs_of_keep
from hoyer_export.channels.trace import trace_channels
from hoyer_export.deploy.layers import Layer, layers_of
from hoyer_export.deploy.time_table import TimeTable, grid
from hoyer_export.errors import HoyerExportError
from hoyer_export.select.budget import MACS, PARAMS, Budget, Cost
from hoyer_export.select.choose import select_channels
from hoyer_export.select.cut_and_refit import cut_and_refit
from hoyer_export.select.knapsack import Knapsack, energy
from hoyer_export.select.latency import Latency, distinct

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def wide() -> networks.Net:
    torch.manual_seed(0)
    return networks.Net(
        lambda n, x: n.fc(n.c(n.b(n.a(x).relu()).relu()).relu().mean((2, 3))),
        a=networks.conv(3, 64), b=networks.conv(64, 64), c=networks.conv(64, 64), fc=nn.Linear(64, 5),
    )  # fmt: skip


def by_macs(layer: Layer) -> float:
    return layer.macs * 1e-6


def latency_of(model: nn.Module, ms: Callable[[Layer], float] = by_macs) -> Latency:
    layers = layers_of(model, IMAGE)
    entries = {it: ms(it) for layer in distinct(layers) for it in grid(layer, 16)}
    return Latency(layers, TimeTable("formula", "", 1, 16, entries))


def widths(keep: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: len(kept) for name, kept in keep.items()}


@pytest.mark.parametrize(
    ("kept", "a", "b"), [(({}), 64, 64), ({"a": 32, "b": 48}, 32, 48), ({"a": 17, "b": 33}, 32, 48), ({"a": 5}, 8, 64)]
)
def test_time_is_that_of_all_layers_at_whole_blocks(kept: dict[str, int], a: int, b: int) -> None:
    model = wide()
    cost, channels = latency_of(model), trace_channels(model, IMAGE)
    keep = {name: torch.arange(width) for name, width in kept.items()}
    assert isinstance(cost, Cost)
    by_hand = 9 * 256 * (3 * a + a * b + b * 64) + 64 * 5
    assert cost.of_keep(channels, keep) == pytest.approx(by_hand * 1e-6)
    assert cost.describe(1.5) == "1.500 ms"


def test_the_axes_of_grouped_and_depthwise_layers_are_counted_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        networks.conv(3, 64), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.ReLU(),
        nn.Conv2d(64, 64, 1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    channels, cost = trace_channels(model, IMAGE), latency_of(model)
    assert cost.of_keep(channels, {}) == pytest.approx(dense_macs(channels) * 1e-6)
    half = {group.name: torch.arange(group.width // 2) for group in channels.groups}
    assert cost.of_keep(channels, half) == pytest.approx(macs_of_keep(channels, half) * 1e-6)


def test_what_no_layer_computes_counts_by_its_macs() -> None:
    model = wide()
    channels, whole = trace_channels(model, IMAGE), latency_of(model)
    partly = Latency({name: it for name, it in whole.layers.items() if name != "b"}, whole.table)
    keep = {"a": torch.arange(40)}
    for kept in ({}, keep):
        rounded = {"a": torch.arange(48)} if kept else {}
        assert partly.of_keep(channels, kept) == pytest.approx(
            whole.of_keep(channels, rounded) - 9 * 256 * 64 * (8 if kept else 0) * 1e-6
        )


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("cost", ["time", "macs", "params"])
def test_a_budget_is_met_and_used_at_whole_blocks(share: float, cost: str) -> None:
    model = wide()
    channels, latency = trace_channels(model, IMAGE), latency_of(model)
    budget = Budget({"time": latency, "macs": MACS, "params": PARAMS}[cost], share)
    chosen = select_channels(channels, model, budget=budget, align=latency)
    dense, left = (budget.cost.of_keep(channels, keep) for keep in ({}, chosen.keep))
    assert budget.is_met_by(left, dense)
    assert all(width in (8, 16, 32, 48, 64) for width in widths(chosen.keep).values())
    for name, kept in chosen.keep.items():  # one step wider is too much
        wider = chosen.keep | {name: torch.arange(min(it for it in (8, 16, 32, 48, 64, 80) if it > len(kept)))}
        assert len(wider[name]) == 80 or not budget.is_met_by(budget.cost.of_keep(channels, wider), dense)
    assert chosen.align == 16
    again = select_channels(channels, model, budget=Budget(latency, share))  # unset: by its own table
    assert cost != "time" or all(torch.equal(again.keep[name], kept) for name, kept in chosen.keep.items())


def test_the_weakest_channels_go_from_where_time_is() -> None:
    model = wide()
    with torch.no_grad():
        for layer in (model.a, model.b, model.c):
            layer.weight[:32] *= 0.01  # to go first, wherever that is
    channels = trace_channels(model, IMAGE)
    slow = latency_of(model, lambda layer: by_macs(layer) * (10 if layer.inputs == 3 else 1))
    keep = select_channels(channels, model, budget=Budget(slow, 0.5)).keep
    assert all(set(kept.tolist()) >= set(range(32, 64)) for kept in keep.values())  # the strong ones all stay
    assert len(keep["a"]) == 32


def brute(channels: ChannelMap, knapsack: Knapsack, budget: Budget) -> float:
    """Return the least importance that any widths within the budget lose."""
    dense = budget.cost.of_keep(channels, {})
    best = np.inf
    for chosen in product(*knapsack.choices.values()):
        at = dict(zip(knapsack.choices, map(int, chosen), strict=True))
        if budget.is_met_by(budget.cost.of_keep(channels, knapsack.keep(at)), dense):
            best = min(best, sum(float(knapsack.lost[name][width]) for name, width in at.items()))
    return best


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_no_widths_lose_much_less_within_the_same_time(share: float) -> None:
    model = wide()
    channels, latency = trace_channels(model, IMAGE), latency_of(model, lambda it: by_macs(it) + 0.05 * it.outputs)
    draw = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.width, generator=draw) for group in channels.groups}
    knapsack = Knapsack.of(channels, scores, energy(scores), latency)
    keep = knapsack.within(Budget(latency, share))
    assert keep is not None
    lost = sum(float(knapsack.lost[name][len(kept)]) for name, kept in keep.items())
    assert lost <= 1.15 * brute(channels, knapsack, Budget(latency, share))


def test_at_the_same_macs_what_is_slow_goes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        networks.conv(3, 64), nn.ReLU(), networks.conv(64, 64), nn.ReLU(), networks.conv(64, 64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    channels = trace_channels(model, IMAGE)
    first, second = (group.name for group in channels.groups[:2])
    scores = {group.name: torch.linspace(0.5, 1, group.width) for group in channels.groups}

    def left(slow_inputs: float) -> dict[str, int]:
        latency = latency_of(model, lambda it: by_macs(it) * (slow_inputs if it.inputs == 3 else 1))
        found = Knapsack.of(channels, scores, energy(scores), latency).within(Budget(MACS, 0.5))
        assert found is not None
        return widths(found)

    assert left(30)[first] < left(1)[first]
    assert left(30)[second] >= left(1)[second]


def test_widths_that_save_nothing_are_passed_over() -> None:
    model = wide()
    channels = trace_channels(model, IMAGE)

    def stairs(layer: Layer) -> float:  # 17 to 64 outputs take the same time
        return by_macs(layer.at(layer.inputs, 64 if layer.outputs > 16 else 16)) if layer.kernel else 1e-3

    latency = latency_of(model, stairs)
    found = widths(select_channels(channels, model, budget=Budget(latency, 0.9)).keep)
    assert found["c"] in (16, 64)  # it has no readers but one that takes no time


def test_a_budget_that_cannot_be_met_is_said_with_what_can() -> None:
    model = wide()
    channels, latency = trace_channels(model, IMAGE), latency_of(model)
    with pytest.raises(HoyerExportError, match=r"in blocks of 16 the least that can be reached is 0\.0[0-9]+"):
        select_channels(channels, model, budget=Budget(latency, 0.01))
    with pytest.raises(HoyerExportError, match=r"at most 0\.001 ms cannot be met: .* 0\.[0-9]{3} ms"):
        select_channels(channels, model, budget=Budget(latency, at_most=0.001))


def test_without_a_budget_widths_are_rounded_up_to_blocks_and_nothing_strong_goes() -> None:
    model = wide()
    with torch.no_grad():
        model.a.weight[20:] *= 0.01
        model.b.weight[:, 20:] *= 0.01
    channels, latency = trace_channels(model, IMAGE), latency_of(model)
    found = select_channels(channels, model, threshold=0.3, align=latency)
    assert len(found.unaligned["a"]) == 20
    assert widths(found.keep)["a"] == 32
    assert set(range(20)) <= set(found.keep["a"].tolist())
    assert found.align == 16


def test_steps_with_a_refit_choose_by_time_too() -> None:
    model = wide()
    shrunk = cut_and_refit(model, [IMAGE], macs=0.5, step=0.25, align=latency_of(model))
    assert shrunk.curve[-1].macs <= 0.5 * shrunk.curve[0].macs
    assert all(width in (8, 16, 32, 48, 64) for width in widths(shrunk.keep).values())
