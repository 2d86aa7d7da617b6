"""docs/adding-a-rule.md does what it says: its blocks are run, one after the other, as a reader would."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import hoyer_export as hx
from hoyer_export.channels import rules

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-rule.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what is defined after the page's blocks, run where the rule that it adds is missing."""
    built_in = {function: rule for function, rule in hx.rules.BUILT_IN.items() if function is not torch.fft.rfft2}
    monkeypatch.setattr(rules, "BUILT_IN", built_in)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block, names)
    return names


def groups(channels: hx.ChannelMap) -> dict[str, int]:
    return {group.name: group.width for group in channels.groups}


def test_the_page_offers_the_group_that_was_lost(followed: dict[str, Any]) -> None:
    model, images = followed["model"], followed["images"]
    before = hx.trace_channels(model, images)
    assert groups(before) == {"mix": 8}
    assert {entry.reason for entry in before.unprunable} >= {"unknown op `fft.rfft2`"}
    assert groups(followed["channels"]) == {"stem": 16, "mix": 8}


def test_what_the_page_offers_is_proved(followed: dict[str, Any]) -> None:
    found = hx.self_test(followed["model"], followed["images"], rules=followed["spectrum"])
    offered = [(verdict.group, verdict.verdict) for verdict in found.verdicts if verdict.verdict != "unprunable"]
    assert offered == [("stem", "proved"), ("mix", "proved")]


def test_the_rule_on_the_page_says_what_the_built_in_one_says(followed: dict[str, Any]) -> None:
    model, images = followed["model"], followed["images"]
    channels = hx.trace_channels(model, images, rules={torch.fft.rfft2: hx.rules.BUILT_IN[torch.fft.irfft2]})
    assert groups(channels) == groups(followed["channels"])
    reasons = [
        [(entry.parameter, entry.dim, entry.reason) for entry in it.unprunable]
        for it in (channels, followed["channels"])
    ]
    assert reasons[0] == reasons[1]


def test_every_call_in_the_pages_tables_exists_with_so_many_arguments() -> None:
    owners = {"tracer": (hx.rules.Tracer, [None]), "side": (hx.rules.AxisLabels, [None]), "hx.rules": (hx.rules, [])}
    calls = re.findall(r"^\| `([\w.]+)\.(\w+)\((.*?)\)`", PAGE, re.MULTILINE)
    assert {owner for owner, _, _ in calls} == owners.keys()
    assert len(calls) >= 16
    for owner, name, arguments in calls:
        holder, first = owners[owner]
        signature = inspect.signature(getattr(holder, name))
        signature.bind(*first, *filter(None, arguments.replace("*", "").split(", ")))
    assert isinstance(inspect.getattr_static(hx.rules.AxisLabels, "zero"), property)


def test_page_and_example_import_nothing_internal() -> None:
    example = (Path(__file__).parents[2] / "examples" / "03_your_own_network.py").read_text(encoding="utf-8")
    for source in (*BLOCKS, example):
        assert "hoyer_export." not in source
