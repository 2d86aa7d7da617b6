"""A plan's edits are read back for the network that they fit, and for no other; plans of two steps are one plan."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.channels.channel_map import Axis, ChannelMap, SizeAttribute
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import CutRefused, FileError
from hoyer_export.store.slim_file import load_slim, save_slim
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.edits import AttributeEdit, BiasEdit, ShortcutEdit
from hoyer_export.surgery.plan import PruningPlan, check_fits, compose, make_plan, with_plan
from hoyer_export.surgery.step import SlimModel
from hoyer_export.surgery.zero import zero_

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Split(nn.Module):
    """Keeps the widths of its parts in attributes, one alone and two in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = networks.conv(3, 9), networks.conv(4, 6), networks.conv(5, 6)
        self.first, self.parts = 4, [4, 5]
        self.fc = nn.Linear(6, 5, bias=False)
        self.code_ran = 0

    @property
    def size(self) -> int:
        self.code_ran += 1
        return 4

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        left, right = y[:, : self.first], y.split(self.parts, 1)[1]
        return self.fc((self.b(left) + self.c(right)).mean((2, 3)))


def edit_plan(*edits: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "keep": {}, "edits": list(edits)}


def attribute(**changes: Any) -> dict[str, Any]:
    fields = {"kind": "attribute", "module": "", "attribute": "first", "index": None, "dense": 4, "slim": 3}
    return {**fields, **changes}


def by_hand() -> ChannelMap:
    """The map of ``a`` as two groups whose channels are counted by the attributes."""
    channels = trace_channels(
        networks.Net(lambda n, x: n.fc(n.a(x).mean((2, 3))), a=networks.conv(3, 9), fc=nn.Linear(9, 5)), IMAGE
    )
    ones = {"a": torch.tensor([1] * 4 + [0] * 5)}, {"a": torch.tensor([0] * 4 + [1] * 5)}
    attributes = (
        SizeAttribute("", "first", None, 4, Axis(0, ones[0])),
        SizeAttribute("", "parts", 0, 8, Axis(0, ones[0]), times=2),
        SizeAttribute("", "parts", 1, 5, Axis(2, {"a": torch.tensor([0] * 6 + [1] * 3)})),
    )
    return ChannelMap(channels.groups, (), (), channels.shapes, attributes=attributes)


def test_sizes_in_attributes_follow_what_is_kept() -> None:
    plan = make_plan(by_hand(), {"a": torch.tensor([0, 2, 3, 5, 6, 8])})
    assert plan.edits == (
        AttributeEdit(module="", attribute="first", index=None, dense=4, slim=3),
        AttributeEdit(module="", attribute="parts", index=0, dense=8, slim=6),
        AttributeEdit(module="", attribute="parts", index=1, dense=5, slim=4),
    )
    model = Split()
    model.parts = [8, 5]
    slim = with_plan(model, PruningPlan({}, {}, plan.edits))
    assert (slim.first, slim.parts) == (3, [6, 4])
    assert (model.first, model.parts) == (4, [8, 5])
    model.parts = (8, 5)
    assert with_plan(model, PruningPlan({}, {}, plan.edits[1:])).parts == (6, 4)


def test_a_network_with_sizes_in_attributes_is_cut_exactly() -> None:
    model = networks.perturbed(Split())
    channels = trace_channels(model, IMAGE)
    assert channels.attributes
    keep = {group.name: torch.arange(group.width - 1) for group in channels.groups}
    zero_(model, channels, keep)
    slim = cut(model, channels, keep, IMAGE)
    assert any(isinstance(edit, AttributeEdit) for edit in slim.plan.edits)
    assert slim.model.first == slim.model.parts[0] == 3
    assert (model.first, model.parts) == (4, [4, 5])


def test_a_part_of_which_nothing_is_left_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, image = networks.perturbed(networks.Widths()), torch.randn(2, 3, 16, 16)
    channels = trace_channels(model, image)
    keep = {"b": torch.arange(3)}
    zero_(model, channels, keep)
    slim = cut(model, channels, keep, image)
    assert 0 in slim.model.parts
    save_slim(slim, tmp_path / "slim.safetensors")
    loaded = load_slim(tmp_path / "slim.safetensors", into=networks.Widths().eval())
    assert loaded.plan == slim.plan
    assert torch.equal(loaded.model(image), slim.model(image))


def test_plans_are_equal_if_they_do_the_same() -> None:
    first, again, other = (
        PruningPlan({"a.weight": {0: torch.tensor([0, last])}}, {"a.weight": (9, 3, 3, 3)}) for last in (1, 1, 2)
    )
    assert first == again != other
    assert first != PruningPlan(first.kept, first.shapes, (BiasEdit(module="fc"),))
    assert "int64[2]" in repr(first)


def test_a_slim_model_is_shown_in_one_line() -> None:
    model = networks.chain()
    shown = repr(SlimModel(model, PruningPlan({"a.weight": {0: torch.tensor([0])}}, {"a.weight": (12, 3, 3, 3)})))
    assert re.fullmatch(r"SlimModel\(Net of [\d,]+ parameters, 1 tensors sliced, 0 edits, max_rel_error=None\)", shown)


def test_a_size_that_changed_after_tracing_is_refused() -> None:
    model = networks.Net(lambda n, x: x, a=networks.conv(3, 9), fc=nn.Linear(9, 5))
    model.first, model.parts = 4, [8, 5]
    check_fits(model, by_hand())
    model.parts = [7, 5]
    with pytest.raises(CutRefused, match="parts is not the 8 that it was traced with: trace the network again"):
        check_fits(model, by_hand())


@pytest.mark.parametrize(
    "edit",
    [
        AttributeEdit(module="", attribute="parts", index=1, dense=5, slim=2),
        BiasEdit(module="fc"),
        ShortcutEdit(module="layer", children=("b", "d"), relu=True),
    ],
)
def test_an_edit_comes_back_from_json(edit: AttributeEdit | BiasEdit | ShortcutEdit) -> None:
    model = Split()
    model.layer = nn.ModuleDict({"b": nn.Conv2d(1, 1, 1), "c": nn.Conv2d(1, 1, 1), "d": nn.SiLU()})
    written = json.loads(json.dumps(PruningPlan({}, {}, (edit,)).to_dict()))
    assert PruningPlan.from_dict(written, model).edits == (edit,)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"kind": "exec", "module": "fc"}, "an edit that this release does not know"),
        ({"kind": ["bias"]}, "damaged"),
        ("bias", "an edit that this release does not know"),
        ({"kind": "bias"}, "is damaged"),
        ({"kind": "bias", "module": "fc", "code": "import os"}, "is damaged"),
        ({"kind": "bias", "module": 3}, "is damaged"),
        ({"kind": "bias", "module": "nowhere"}, "edits 'nowhere', which the network does not have"),
        ({"kind": "bias", "module": "a"}, "gives a a bias, but it has one"),
        ({"kind": "bias", "module": ""}, "or takes none"),
        (attribute(attribute="second"), "makes .second 3, down from 4, but the network's is None"),
        (attribute(attribute="size"), "but the network's is None"),
        (attribute(attribute="training", dense=1, slim=1), "but the network's is True"),
        (attribute(dense=5), "but the network's is 4"),
        (attribute(slim=5), "5, down from 4"),
        (attribute(slim=-1), "is damaged"),
        (attribute(slim=True), "is damaged"),
        (attribute(slim=2**40), "is damaged"),
        (attribute(slim="3"), "is damaged"),
        (attribute(attribute="parts", index=2), r"parts\[2\]"),
        (attribute(attribute="parts", index=-1), "is damaged"),
        (attribute(attribute="parts"), r"the network's is \[4, 5\]"),
        ({"kind": "shortcut", "module": "", "children": [], "relu": False}, "which it does not have"),
        ({"kind": "shortcut", "module": "a", "children": ["x"], "relu": False}, "which it does not have"),
        ({"kind": "shortcut", "module": "a", "children": ["weight"], "relu": False}, "which it does not have"),
        ({"kind": "shortcut", "module": "a", "children": ["x", "x"], "relu": False}, "is damaged"),
        ({"kind": "shortcut", "module": "a", "children": "xy", "relu": False}, "is damaged"),
        ({"kind": "shortcut", "module": "a", "children": [], "relu": 1}, "is damaged"),
        ({"kind": "gather", "module": "fc"}, "gathers the inputs of fc, which is no such linear layer"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused_in_one_line(edit: Any, message: str) -> None:
    model = Split()
    with pytest.raises(FileError, match=message) as caught:
        PruningPlan.from_dict(edit_plan(edit), model)
    assert "\n" not in str(caught.value)
    assert model.code_ran == 0


def test_edits_that_contradict_each_other_are_refused() -> None:
    model = networks.perturbed(nn.Sequential(nn.Sequential(nn.Linear(3, 3, bias=False)), nn.Linear(3, 3)))
    plan = edit_plan(
        {"kind": "shortcut", "module": "0", "children": [], "relu": False}, {"kind": "bias", "module": "0.0"}
    )
    with pytest.raises(FileError, match=r"edits '0\.0', which the network does not have"):
        with_plan(model, PruningPlan.from_dict(plan, model))


@pytest.mark.parametrize("edits", [None, {}, "no", 3])
def test_edits_that_are_no_list_are_refused(edits: Any) -> None:
    with pytest.raises(FileError):
        PruningPlan.from_dict({"version": 1, "keep": {}, "edits": edits}, Split())


def test_two_cuts_are_one_plan() -> None:
    dense = networks.perturbed(Split())
    slim = copy.deepcopy(dense)
    plans = []
    for _ in range(2):
        channels = trace_channels(slim, IMAGE)
        keep = {group.name: torch.arange(1, group.width) for group in channels.groups}
        zero_(slim, channels, keep)
        plans.append(make_plan(channels, keep))
        slim = cut(slim, channels, keep, IMAGE).model
    both = compose(*plans)
    assert both.shapes["a.weight"] == (9, 3, 3, 3)
    assert both.kept["a.weight"][0].tolist() == [2, 3, 6, 7, 8]
    assert AttributeEdit(module="", attribute="first", index=None, dense=4, slim=2) in both.edits
    rebuilt = with_plan(dense, PruningPlan.from_dict(json.loads(json.dumps(both.to_dict())), dense))
    assert {n: p.shape for n, p in rebuilt.named_parameters()} == {n: p.shape for n, p in slim.named_parameters()}
    assert rebuilt.parts == slim.parts == [2, 3]


def test_cutting_a_slim_model_further_goes_on_with_its_plan() -> None:
    dense = networks.perturbed(networks.chain())
    channels = trace_channels(dense, IMAGE)
    zero_(dense, channels, {"a": torch.arange(3, 12)})
    slim = cut(dense, channels, {"a": torch.arange(3, 12)}, IMAGE)
    channels = trace_channels(slim.model, IMAGE)
    zero_(slim.model, channels, {"a": torch.arange(0, 9, 2)})
    slimmer = cut(slim, channels, {"a": torch.arange(0, 9, 2)}, IMAGE)
    assert slimmer.plan.kept["bn.bias"][0].tolist() == [3, 5, 7, 9, 11]
    assert slimmer.plan.shapes["bn.bias"] == (12,)


def test_the_modules_say_what_their_tensors_are() -> None:
    model = nn.Sequential(nn.GroupNorm(4, 12), nn.Embedding(10, 6))
    keep = {
        "0.weight": {0: torch.tensor([0, 1, 2, 9, 10, 11])},
        "0.bias": {0: torch.tensor([0, 1, 2, 9, 10, 11])},
        "1.weight": {1: torch.tensor([1, 4])},
    }
    model = with_plan(model, PruningPlan(keep, {}))
    assert (model[0].num_groups, model[0].num_channels) == (2, 6)
    assert model[1].embedding_dim == 2
    x = torch.randn(2, 6, 4)
    torch.testing.assert_close(model[0](x), F.group_norm(x, 2, model[0].weight, model[0].bias))


def test_a_plan_of_another_networks_sizes_says_where() -> None:
    plan = PruningPlan({"a.weight": {0: torch.tensor([0])}}, {"a.weight": (9, 3, 3, 3)}).to_dict()
    PruningPlan.from_dict(plan, Split())
    other = Split()
    other.a = networks.conv(3, 8)
    with pytest.raises(FileError, match=r"a\.weight of shape \[9, 3, 3, 3\], the network's is \(8, 3, 3, 3\)"):
        PruningPlan.from_dict(plan, other)


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_grouped_convolution_cut_to_depthwise_and_then_by_whole_groups_loads(layer: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    dense = networks.Net(
        lambda n, x: n.fc(n.b(F.relu(n.a(x))).mean((2, 3))),
        a=networks.conv(3, 12), b=layer(12, 9, 3, padding=1, groups=3), fc=nn.Linear(9, 5),
    )  # fmt: skip
    slim = SlimModel(dense, PruningPlan({}, {}))
    for kept in ([1], [0, 2]):
        channels = trace_channels(slim.model, IMAGE)
        keep = {channels.groups[0].name: torch.tensor(kept)}
        zeroed = copy.deepcopy(slim.model)
        zero_(zeroed, channels, keep)
        slim = cut(SlimModel(zeroed, slim.plan), channels, keep, IMAGE)
    save_slim(slim, tmp_path / "slim.safetensors")
    loaded = load_slim(tmp_path / "slim.safetensors", into=dense).model
    assert torch.equal(loaded(IMAGE), slim.model(IMAGE))
