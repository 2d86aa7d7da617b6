"""docs/adding-a-cost.md does what it says: its blocks are run, one after the other, as a reader would."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import hoyer_export as hx
from hoyer_export.select.scores import channel_scores

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-cost.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def followed() -> dict[str, Any]:
    """Return what is defined after the page's blocks."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    return names


def blocked_ms(first: int, second: int) -> float:
    """The page's network at two widths, by hand: 256 positions of 9 kernel positions, and a linear layer."""
    in_blocks = [16 * -(-width // 16) for width in (3, first, second, 10)]
    sizes = [a * b for a, b in pairwise(in_blocks)]
    return (256 * 9 * sizes[0] + 256 * 9 * sizes[1] + sizes[2]) / 1e6


def widths(chosen: hx.Selection) -> tuple[int, ...]:
    return tuple(len(kept) for kept in chosen.keep.values())


def test_the_pages_cost_is_what_it_says(followed: dict[str, Any]) -> None:
    cost, channels = followed["cost"], followed["channels"]
    assert cost.of_keep(channels, {}) == pytest.approx(blocked_ms(64, 48))
    for name in ("half", "short"):
        assert cost.of_keep(channels, followed[name].keep) == pytest.approx(blocked_ms(*widths(followed[name])))


def test_a_cost_of_ones_own_is_a_budget_that_is_met_and_used(followed: dict[str, Any]) -> None:
    dense = blocked_ms(64, 48)
    for name, limit in (("half", dense / 2), ("short", 3.0)):
        chosen = followed[name]
        assert blocked_ms(*widths(chosen)) <= limit
        assert all(width % 8 == 0 for width in widths(chosen))
        scores = channel_scores(followed["channels"], followed["model"], "group-hs", None).of
        below = max(score for group in scores.values() for score in group.tolist() if score < chosen.threshold)
        looser = hx.select_channels(followed["channels"], followed["model"], threshold=below, align=8)
        assert blocked_ms(*widths(looser)) > limit


def test_what_cannot_be_reached_is_said_in_the_costs_own_unit(followed: dict[str, Any]) -> None:
    budget = hx.Budget(followed["cost"], at_most=0.5)
    least = blocked_ms(8, 8)
    with pytest.raises(hx.HoyerExportError, match=rf"at most 0\.500 ms cannot be met.*reached is {least:.3f} ms"):
        hx.select_channels(followed["channels"], followed["model"], budget=budget, align=8)
