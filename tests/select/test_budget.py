"""A budget is a cost and a share or a number; one place says whether it is met."""

import re
from dataclasses import replace
from typing import Any

import networks
import numpy as np
import pytest
import torch

from hoyer_export.channels.trace import trace_channels
from hoyer_export.choices import METHODS, WITHOUT_BUDGET
from hoyer_export.errors import HoyerExportError
from hoyer_export.select.budget import BYTES, MACS, PARAMS, Budget, Cost
from hoyer_export.select.choose import Selection, select_channels

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
KEEP = {"a": torch.arange(5), "b": torch.tensor([0, 7])}
# The chain 3 → a → 12 → b → 8 → 5, its batch norm behind a, on 16 × 16 positions.
MACS_AT = {(12, 8): 256 * 9 * (3 * 12 + 12 * 8) + 8 * 5, (5, 2): 256 * 9 * (3 * 5 + 5 * 2) + 2 * 5}
PARAMS_AT = {(a, b): a * (27 + 1 + 2) + b * (a * 9 + 1) + 5 * (b + 1) for a, b in MACS_AT}


@pytest.mark.parametrize(
    ("cost", "expected", "shown"),
    [
        (MACS, MACS_AT, "57,610 MACs"),
        (PARAMS, PARAMS_AT, "257 parameters"),
        (BYTES, {widths: 4 * params for widths, params in PARAMS_AT.items()}, "1,028 bytes"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_costs_are_counted_as_by_hand(cost: Cost, expected: dict[tuple[int, int], int], shown: str) -> None:
    channels = trace_channels(networks.chain(), IMAGE)
    assert cost.of_keep(channels, {}) == expected[12, 8]
    assert cost.of_keep(channels, KEEP) == expected[5, 2]
    assert cost.describe(expected[5, 2]) == shown


def test_bytes_are_what_the_file_of_a_network_holds() -> None:
    model = networks.chain()
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert BYTES.of_keep(trace_channels(model, IMAGE), {}) == held


@pytest.mark.parametrize(
    ("budget", "value", "dense", "met"),
    [
        (Budget(MACS, 0.5), 50, 100, True),
        (Budget(MACS, 0.5), 51, 100, False),
        (Budget(MACS, 0.1), 3 * 0.1, 3, True),  # 0.30000000000000004
        (Budget(MACS, 0.7), 0.7 * 3 / 3, 1, True),
        (Budget(MACS, 1), 100, 100, True),
        (Budget(MACS, 1), 101, 100, False),
        (Budget(MACS, np.float32(0.5)), 50, 100, True),
        (Budget(BYTES, at_most=1000), 1000, 10, True),
        (Budget(BYTES, at_most=1000), 1000.1, 10**9, False),
    ],
)
def test_a_budget_is_met_up_to_the_last_bit(budget: Budget, value: float, dense: float, met: bool) -> None:
    assert budget.is_met_by(value, dense) is met


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "a budget of macs is a share of the dense network or at_most a number: give one"),
        ({"share": 0.5, "at_most": 7}, "give one"),
        ({"share": 0}, "macs is a share of the dense network, above 0 and at most 1, got 0"),
        ({"share": 1.1}, "got 1.1"),
        ({"share": "half"}, "got 'half'"),
        ({"share": float("nan")}, "got nan"),
        ({"at_most": 0}, "at_most is a number of macs above 0, got 0"),
        ({"at_most": True}, "got True"),
        ({"at_most": float("inf")}, "got inf"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(HoyerExportError, match=message):
        Budget(MACS, **request_)


def chosen(**request: Any) -> Selection:
    torch.manual_seed(0)
    model = networks.perturbed(networks.chain())
    return select_channels(trace_channels(model, IMAGE), model, **{"align": 1, **request})


def test_a_share_by_name_is_the_budget_of_that_cost() -> None:
    assert chosen(macs=0.5) == chosen(budget=Budget(MACS, 0.5))
    assert chosen(params=0.5) == chosen(budget=Budget(PARAMS, 0.5)) == chosen(budget=Budget(BYTES, 0.5))
    assert chosen(macs=0.5) != chosen(macs=0.3)
    assert chosen(macs=0.5) == chosen(budget=Budget(MACS, at_most=MACS_AT[12, 8] / 2))


def test_a_number_that_cannot_be_reached_is_told_with_its_unit() -> None:
    with pytest.raises(HoyerExportError, match=r"at most 100 bytes cannot be met.* that can be reached is \d{3} bytes"):
        chosen(budget=Budget(BYTES, at_most=100))
    with pytest.raises(HoyerExportError, match="got macs and budget"):
        chosen(macs=0.5, budget=Budget(BYTES, 0.5))


def test_what_is_no_budget_or_no_cost_is_refused() -> None:
    with pytest.raises(HoyerExportError, match=r"must be a Budget, e\.g\. Budget\(MACS, 0\.5\), got 0\.5"):
        chosen(budget=0.5)
    with pytest.raises(HoyerExportError, match=r"with name, of_keep and describe, e\.g\. MACS, got 'macs'"):
        Budget("macs", 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_the_list_chooses(method: str) -> None:
    request = {} if method in WITHOUT_BUDGET else {"macs": 0.5}
    assert set(chosen(method=method, inputs=IMAGE, **request).keep) == {"a", "b"}


def test_a_selection_is_shown_as_a_short_table() -> None:
    found = chosen(macs=0.5, align=4)
    first, header, *rows = repr(found).splitlines()
    assert re.fullmatch(r"Selection: [\d,]+ of 304,168 MACs \(\d+\.\d%\), align = 4, threshold [\d.]+", first)
    assert header.split() == ["group", "width", "unaligned"]
    widths = [[name, str(len(kept)), str(len(found.unaligned[name]))] for name, kept in found.keep.items()]
    assert [row.split() for row in rows] == widths
    names = [f"g{number}" for number in range(30)]
    many = replace(found, keep=dict.fromkeys(names, torch.arange(3)), unaligned=dict.fromkeys(names, torch.arange(2)))
    assert repr(many).splitlines()[-1].strip() == "... and 10 more"
