"""A channel map compares with another, and is a short table where it is printed."""

import copy
from collections.abc import Callable
from dataclasses import replace

import networks
import pytest
import torch

import hoyer_export as hx
from hoyer_export.channels.channel_map import SHOWN, Axis, ChannelGroup, ChannelMap, Contraction, Member, Unprunable

IMAGE = torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize("wiring", networks.WIRINGS, ids=lambda it: it.__name__)
def test_two_traces_of_one_network_are_equal(wiring: Callable[[], networks.Net]) -> None:
    model = wiring()
    first, second = hx.trace_channels(model, IMAGE), hx.trace_channels(copy.deepcopy(model), IMAGE)
    assert first == second
    assert first.groups[0].members == second.groups[0].members
    assert first.unprunable == second.unprunable
    assert replace(first, groups=first.groups[:-1]) != second


def test_one_other_owner_makes_another_map() -> None:
    channels = hx.trace_channels(networks.chain(), IMAGE)
    group = channels.groups[0]
    member = replace(group.members[0], owner=group.members[0].owner.flip(0))
    assert member != group.members[0]
    changed = replace(group, members=(member, *group.members[1:]))
    assert replace(channels, groups=(changed, *channels.groups[1:])) != channels


def test_a_channel_map_is_a_table_of_groups_macs_and_reasons() -> None:
    """8 · 3 · 100 + 4 · 8 · 100 + 5 · 4 MACs: without ``a`` all but the last 20 go, without ``b`` all but the first."""
    a, b = Axis(0, {"a": torch.ones(8, dtype=torch.int64)}), Axis(0, {"b": torch.ones(4, dtype=torch.int64)})
    contractions = (
        Contraction("a", 100, (a, Axis(3))),
        Contraction("b", 100, (b, a)),
        Contraction("c", 1, (Axis(5), b)),
    )
    weight = Member("a.weight", 0, torch.arange(8), is_weight=True)
    channels = ChannelMap(
        (ChannelGroup("a", 8, (weight,)), ChannelGroup("b", 4, ())),
        (
            Unprunable("c.weight", 0, torch.arange(5), "the model's output"),
            Unprunable("a.weight", 1, torch.arange(3), "why"),
        ),
        contractions,
        {"a.weight": (8, 3)},
    )
    assert repr(channels).splitlines() == [
        "ChannelMap: 2 groups of 12 channels, 5,620 MACs",
        "  group                            width    MACs",
        f"  a                                    8   {5600 / 5620:.1%}",
        f"  b                                    4   {3220 / 5620:.1%}",
        "unprunable slices, by reason:",
        "       5  the model's output",
        "       3  why",
    ]


def test_a_long_table_is_cut_short_and_an_empty_one_is_a_line() -> None:
    groups = tuple(ChannelGroup(f"layer{n}", 2, ()) for n in range(SHOWN + 7))
    assert repr(ChannelMap(groups, (), (), {})).splitlines()[-1] == "  ... and 7 more"
    assert len(repr(ChannelMap(groups, (), (), {})).splitlines()) == SHOWN + 3
    assert repr(ChannelMap((), (), (), {})) == "ChannelMap: 0 groups of 0 channels, 0 MACs"


def test_the_fields_that_say_yes_or_no_are_named() -> None:
    with pytest.raises(TypeError, match="positional"):
        Member("a.weight", 0, torch.arange(8), True)  # type: ignore[misc]
