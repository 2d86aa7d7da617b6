"""Channel shuffles: every channel goes its own way, and what is left of them is put in order again after a cut."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import hoyer_export as hx
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import macs_of_keep
from hoyer_export.errors import FileError
from hoyer_export.surgery.perturb import perturb_
from hoyer_export.surgery.plan import PruningPlan, with_plan

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def by_view(x: Tensor) -> Tensor:
    b, c, h, w = x.size()
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def by_reshape(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    assert c % 2 == 0
    return x.reshape(b, 2, -1, h, w).permute(0, 2, 1, 3, 4).reshape(b, -1, h, w)


SHUFFLES: dict[str, Callable[[Tensor], Tensor]] = {
    "view": by_view,
    "reshape": by_reshape,
    "flatten": lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    "torch's": lambda x: F.channel_shuffle(x, 2),
    "torch's module": nn.ChannelShuffle(2),
}
HALVES: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "chunk": lambda x: x.chunk(2, 1),
    "split": lambda x: x.split(x.shape[1] // 2, 1),
    "slices": lambda x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
}


def layer(i: int, o: int, size: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, size, padding=size // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Unit(nn.Module):
    """ShuffleNet's: one half passes by."""

    def __init__(self, width: int, halves: str, shuffle: str, then: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.branch = nn.Sequential(layer(width // 2, width // 2), layer(width // 2, width // 2))
        self.halves, self.shuffle, self.then = HALVES[halves], copy.deepcopy(SHUFFLES[shuffle]), then

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.halves(x)
        x = self.shuffle(torch.cat([left, self.branch(right)], 1))
        return x if self.then is None else self.then(x)


def network(*units: nn.Module, width: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(layer(3, width, 3), *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)).eval()


@pytest.mark.parametrize(
    ("halves", "shuffle"), [*(("chunk", shuffle) for shuffle in SHUFFLES), ("split", "view"), ("slices", "view")]
)
def test_half_of_a_stages_channels_are_proved(halves: str, shuffle: str) -> None:
    tested = hx.self_test(network(*(Unit(12, halves, shuffle) for _ in range(4))), IMAGE)
    widths = {verdict.group: verdict.channels for verdict in tested.verdicts if verdict.verdict == "proved"}
    assert widths == {"0.0": 6, **{f"{unit}.branch.0.0": 6 for unit in range(1, 5)}}
    assert {found.reason for found in tested.channels.unprunable} == {
        "the model's output",
        "meets the model's input or a tensor of fixed size",
    }


@pytest.mark.parametrize("width", [12, 14])
def test_every_choice_of_channels_is_exact(width: int) -> None:
    model = network(*(Unit(width, "chunk", "view") for _ in range(3)), width=width)
    channels = hx.trace_channels(model, IMAGE)
    stage = channels.group("0.0")
    assert stage.width == width // 2
    for left in range(1, stage.width, 2):
        cut_to(model, channels, {"0.0": torch.randperm(stage.width)[:left].sort().values})


def cut_to(model: nn.Module | hx.SlimModel, channels: ChannelMap, keep: dict[str, Tensor]) -> hx.SlimModel:
    zeroed = copy.deepcopy(model)
    hx.zero_(zeroed.model if isinstance(zeroed, hx.SlimModel) else zeroed, channels, keep)
    return hx.cut(zeroed, channels, keep, IMAGE)


def any_half(channels: ChannelMap) -> dict[str, Tensor]:
    return {g.name: torch.randperm(g.width)[: g.width // 2].sort().values for g in channels.groups}


def test_a_slim_network_is_cut_further_and_its_plan_rebuilds_it() -> None:
    model = network(*(Unit(16, "chunk", "view") for _ in range(3)), width=16)
    perturb_(model, torch.Generator().manual_seed(0))
    channels = hx.trace_channels(model, IMAGE)
    first = cut_to(model, channels, any_half(channels))
    orders = [edit.order for edit in first.plan.edits]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert any(order != tuple(range(8)) for order in orders)
    further = hx.trace_channels(first.model, IMAGE)
    assert [group.width for group in further.groups] == [group.width // 2 for group in channels.groups]
    keep = any_half(further)
    second = cut_to(first, further, keep)
    assert [edit.module for edit in second.plan.edits] == ["1", "2", "3"]
    assert len(second.plan.edits[0].order) == 4
    plan = PruningPlan.from_dict(json.loads(json.dumps(second.plan.to_dict())), model)
    rebuilt = with_plan(model, plan)
    rebuilt.load_state_dict(second.model.state_dict())
    assert torch.equal(rebuilt(IMAGE), second.model(IMAGE))
    assert macs_of_keep(further, keep) == macs_of_keep(hx.trace_channels(second.model, IMAGE), {})


def test_a_shuffle_that_is_used_inside_its_module_stays_as_it_is() -> None:
    tested = hx.self_test(network(Unit(12, "chunk", "view", then=F.relu)), IMAGE)
    assert not tested.channels.shuffles
    assert "refuted" not in {verdict.verdict for verdict in tested.verdicts}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"module": "9", "order": [0]}, "does not have"),
        ({"module": "1", "order": [0, 0]}, "named twice or left out"),
        ({"module": "1", "order": [1, 2]}, "named twice or left out"),
    ],
)
def test_a_damaged_order_is_refused(edit: dict[str, object], said: str) -> None:
    plan = {"version": 1, "keep": {}, "edits": [{"kind": "order", "dim": 1, **edit}]}
    with pytest.raises(FileError, match=said):
        PruningPlan.from_dict(plan, network(Unit(12, "chunk", "view")))


def test_shufflenet_offers_every_pair_of_channels() -> None:
    channels = hx.trace_channels(torchvision.models.shufflenet_v2_x0_5(), torch.randn(1, 3, 64, 64))
    stages = [sum(g.width for g in channels.groups if g.name.startswith(f"stage{n}.0.branch")) for n in (2, 3, 4)]
    assert stages == [24 + 24, 48 + 48, 96 + 96]  # what leaves a stage, in pairs, and its first unit's inner channels
    assert sum(group.width for group in channels.groups) == 2080
