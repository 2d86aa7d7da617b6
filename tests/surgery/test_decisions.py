"""A network that returns decisions is proved by what it decides from; a tie that rounding turns over is no error."""

import copy
import time
from collections.abc import Callable

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import CutRefused
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.decisions import Decision, Decisions, difference, evidence_difference
from hoyer_export.surgery.self_test import random_keep, self_test
from hoyer_export.surgery.zero import zero_

IMAGE = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
KEEP = {"a": torch.arange(3), "b": torch.arange(4)}


def boxes_of(y: Tensor) -> Tensor:
    """Four numbers of each example as a box."""
    corner = y[:, :2].sigmoid()
    return torch.cat([corner, corner + 0.2 + y[:, 2:4].sigmoid()], 1)


def score_filter(y: Tensor) -> tuple[Tensor, Tensor]:
    keep = y[:, 4] > 100  # nothing is ever that sure
    return boxes_of(y)[keep], y[:, 4][keep]


def count_above(y: Tensor) -> Tensor:
    total = 0
    for row in y:
        if float(row.detach().sum()) > 1000:
            total += 1
    return torch.tensor(total)


def places_of_maxima(y: Tensor) -> Tensor:
    image = y.repeat(1, 4)[:, None, :, None].expand(-1, 1, 24, 24)
    return F.max_pool2d(image, 8, return_indices=True)[1]


def in_numpy(y: Tensor) -> Tensor:
    return torch.from_numpy(np.argmax(y.detach().numpy(), 1))


LAST: dict[str, Callable[[Tensor], object]] = {
    "argmax": lambda y: y.argmax(1),
    "topk indices": lambda y: y.topk(2, 1).indices,
    "a mask": lambda y: y > 1000,
    "sort order": lambda y: y.argsort(1),
    "maximum's index": lambda y: {"label": y.max(1).indices},
    "a score filter": score_filter,
    "NMS": lambda y: torchvision.ops.nms(boxes_of(y), y[:, 4].sigmoid(), 0.5),
    "8-bit numbers": lambda y: (y.sigmoid() * 0.01).mul(255).to(torch.uint8),
    "rounded": lambda y: (y * 1e-4).round(),
    "sign": lambda y: (y - 1000).sign(),
    "in place": lambda y: y.clone().gt_(1000),
    "one hot": lambda y: F.one_hot(y.argmax(1), 6),
    "a code book": lambda y: torch.arange(6.0).to(y)[(y[:, :, None] - 1e3).abs().argmin(1)],
    "drawn": lambda y: torch.multinomial((y / 100).softmax(1), 1),
    "numbers in Python": count_above,
    "numbers in numpy": in_numpy,
    "places of maxima": places_of_maxima,
    "a plain if": lambda y: torch.zeros(1) if bool((y.mean() > 1e6).item()) else torch.ones(1),
}  # fmt: skip


def verdicts(model: nn.Module) -> dict[str, str]:
    return {v.group: v.verdict for v in self_test(model, IMAGE).verdicts if v.verdict != "unprunable"}


def deciding(last: Callable[[Tensor], object], hidden: bool) -> networks.Net:
    """A chain a → b → fc that returns a decision; with ``hidden`` its logits hang on the width of b."""
    torch.manual_seed(0)
    model = networks.Net(
        lambda n, x: last(
            n.fc(n.b(n.a(x).relu()).relu().mean((2, 3))) * (networks.hidden_width(n.b) ** -0.5 if hidden else 1.0)
        ),
        a=networks.conv(3, 8), b=networks.conv(8, 10), fc=nn.Linear(10, 6),
    )  # fmt: skip
    return networks.perturbed(model)


@pytest.mark.parametrize("name", LAST)
def test_a_hidden_width_shows_in_front_of_the_last_decision(name: str) -> None:
    model = deciding(LAST[name], hidden=True)
    channels = trace_channels(model, IMAGE)
    zero_(model, channels, KEEP)
    with pytest.raises(CutRefused, match=r"what it decides from \(`\w+`\) differs by .*depends on its width"):
        cut(model, channels, KEEP, IMAGE)
    found = verdicts(deciding(LAST[name], hidden=True))
    assert (found["a"], found["b"]) == ("proved", "refuted")


@pytest.mark.parametrize("name", LAST)
def test_a_right_cut_in_front_of_a_decision_is_accepted(name: str) -> None:
    model = deciding(LAST[name], hidden=False)
    assert set(verdicts(model).values()) == {"proved"}
    channels = trace_channels(model, IMAGE)
    zero_(model, channels, KEEP)
    slim = cut(model, channels, KEEP, IMAGE)
    assert slim.max_rel_error <= 1e-9
    assert slim.model.b.out_channels == 4


THRESHOLDS: dict[str, Callable[[networks.Net, Tensor], Tensor]] = {
    "a threshold": lambda n, y: y > 100 + 1.0 / networks.hidden_width(n.b),
    "k": lambda n, y: y.topk(2 if networks.hidden_width(n.b) > 5 else 1, 1).indices[:, 0],
    "a number of an integer": lambda n, y: y.argmax(1) // (6 + networks.hidden_width(n.b)),
    "a bound of an integer": lambda n, y: y.argmax(1).clamp(max=6 + networks.hidden_width(n.b)),
    "an overlap": lambda n, y: torchvision.ops.nms(boxes_of(y), y[:, 4], 0.999 - 0.001 * networks.hidden_width(n.b)),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_decision_by_a_number_made_from_the_width_is_refused(name: str) -> None:
    torch.manual_seed(0)
    model = networks.perturbed(networks.Net(
        lambda n, x: THRESHOLDS[name](n, n.fc(n.b(n.a(x).relu()).relu().mean((2, 3)))),
        a=networks.conv(3, 8), b=networks.conv(8, 10), fc=nn.Linear(10, 6),
    ))  # fmt: skip
    channels = trace_channels(model, IMAGE)
    zero_(model, channels, KEEP)
    with pytest.raises(CutRefused, match=r"decides \(`\w+`\) by other numbers"):
        cut(model, channels, KEEP, IMAGE)


def by_width(n: networks.Net) -> int:
    return networks.hidden_width(n.b)


def by_experts(y: Tensor, wrong: float) -> Tensor:
    """Route each example to one of four experts, of which only the last is wrong."""
    return y * torch.tensor([1.0, 1.0, 1.0, wrong]).to(y)[(y[:, :4] - torch.arange(4).to(y) * 1e6).argmax(1)][:, None]


BEHIND: dict[str, Callable[[int, Tensor], object]] = {
    "fewer classes": lambda c, y: y[:, : c // 2 + 1].argmax(1),
    "the last classes": lambda c, y: y[:, -(c // 2 + 1) :].topk(2, 1).indices,
    "fewer classes on two axes": lambda c, y: (y[:, :, None] * y[:, None])[:, : c // 2 + 1, : c // 2 + 1].gt(5).any(),
    "boxes behind a filter": lambda c, y: boxes_of(y)[y[:, 0] > 1000] * (1 + 1 / c),
    "a second stage": lambda c, y: (y[y[:, 0] > 1000] * torch.linspace(1, c, 6).to(y)).argmax(1),
    "selected numbers": lambda c, y: (y * c).masked_select(y > 1000),
    "a large mask": lambda c, y: (y + torch.arange(6).to(y) / c).masked_fill(y > y.mean(), -1e9).argmax(1),
    "the largest mask": lambda c, y: (y * (1 + 1 / c)).masked_fill(y > y.mean(), torch.finfo(y.dtype).min),
    "a loop": lambda c, y: sum((y[:, i % 6] > 1000 * (i + 1)).long() for i in range(c)),
    "a branch": lambda c, y: y if bool((y[:, 0].max() < 1000).item()) else y * (1 + 1 / c),
    "a branch to labels": lambda c, y: y.argmax(1) if bool((y.max() < 1000).item()) else (y * c).argmax(1) + c,
    "an expert": lambda c, y: by_experts(y, 1 / c),
    "a column of a mask": lambda c, y: (y > 1000)[:, c % 4 + 1],
    "a filled place": lambda c, y: y.masked_fill(y > 1000, c),
    "numbers beside a tensor": lambda c, y: {"label": y.argmax(1), "score": float(y.detach().mean()) * c},
    "labels in Python": lambda c, y: ([label + c for label in y.argmax(1).tolist()], y),
    "text": lambda c, y: {"text": f"{c} wide", "y": y},
    "a filtered list": lambda c, y: torch.tensor([k for k in y.argmax(1).tolist() if k != c % 4 + 1]),
    "a threshold in numpy": lambda c, y: torch.from_numpy(y.detach().numpy() * c > 20),
    "a threshold in Python": lambda c, y: torch.tensor([int(v.item() * c > 20) for v in y.detach().amax(1)]),
    "a number cut in Python": lambda c, y: torch.tensor(int(float(y.detach().mean()) * c)),
    "masks added": lambda c, y: torch.add((y > 1000).long(), (y > 1000).long(), alpha=c),
    "a power": lambda c, y: (2 * c) ** (y > 1000).long(),
    "places shifted": lambda c, y: (y > 1000).nonzero() + torch.tensor([0, c]),
    "shrunk hard": lambda c, y: (F.hardshrink(y * c, 1e4), y.argmax(1)),
    "rounded down": lambda c, y: torch.div(y * c, 1e6, rounding_mode="floor"),
}  # fmt: skip
AROUND: dict[str, Callable[[int, Tensor, Tensor], object]] = {
    "a check": lambda c, x, y: y * c if bool(x.isfinite().all()) else x,
    "a second output": lambda c, x, y: (y * c, x.mean((2, 3))),
    "a grid": lambda c, x, y: (y * c, torch.linspace(0, 1, 5)),
    "a mask": lambda c, x, y: (x * (x > 0)).mean() + y * c,
}


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("hidden", [True, False])
def test_what_lies_behind_a_decision_is_compared(name: str, hidden: bool) -> None:
    torch.manual_seed(0)
    model = networks.perturbed(networks.Net(
        lambda n, x: BEHIND[name](by_width(n) if hidden else 10, n.fc(n.b(n.a(x).relu()).relu().mean((2, 3)))),
        a=networks.conv(3, 8), b=networks.conv(8, 10), fc=nn.Linear(10, 6),
    ))  # fmt: skip
    found = verdicts(model)
    channels = trace_channels(model, IMAGE)
    zero_(model, channels, {name: KEEP.get(name, torch.arange(2)) for name in found})
    keep = {name: KEEP.get(name, torch.arange(2)) for name in found}
    if hidden:
        assert found["b"] == "refuted"
        with pytest.raises(CutRefused):
            cut(model, channels, keep, IMAGE)
    else:
        assert (found["a"], found["b"]) == ("proved", "proved")
        assert cut(model, channels, keep, IMAGE).max_rel_error <= 1e-9


@pytest.mark.parametrize("name", AROUND)
def test_a_head_of_zeros_hides_nothing_whatever_stands_beside_it(name: str) -> None:
    torch.manual_seed(0)
    model = networks.perturbed(networks.Net(
        lambda n, x: AROUND[name](by_width(n), x, n.fc(n.b(n.a(x).relu()).relu().mean((2, 3)))),
        a=networks.conv(3, 8), b=networks.conv(8, 10), fc=nn.Linear(10, 6),
    ))  # fmt: skip
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    channels = trace_channels(model, IMAGE)
    zero_(model, channels, KEEP)
    with pytest.raises(CutRefused, match="depends on its width"):
        cut(model, channels, KEEP, IMAGE)


RIGHT: dict[str, Callable[[Tensor], object]] = {
    "dropout at test time": lambda y: F.dropout(y, 0.5, True),
    "drawn in place": lambda y: y * torch.empty_like(y).bernoulli_(0.5),
    "into fresh memory": lambda y: torch.floor(y, out=torch.empty_like(y)),
    "a large mask": lambda y: y.masked_fill(torch.arange(6) > 3, -1e9).argmax(1),
    "the largest mask": lambda y: y.masked_fill(torch.arange(6) > 3, torch.finfo(y.dtype).min),
    "a sparse output": lambda y: y.to_sparse().coalesce().values(),
    "an infinite mask": lambda y: y.masked_fill(torch.arange(6) > 3, -torch.inf).argmax(1),
    "masked logits": lambda y: y.masked_fill(torch.arange(6) > 3, -torch.inf),
    "places of equal maxima": lambda y: F.max_pool2d((y > 0).to(y)[:, None, :, None], (2, 1), return_indices=True)[1],
    "unique numbers": lambda y: y.round().unique(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_not_refused(name: str) -> None:
    assert verdicts(deciding(RIGHT[name], hidden=False)) == {"a": "proved", "b": "proved"}


def test_a_mask_on_many_channels_takes_no_time_to_speak_of() -> None:
    torch.manual_seed(0)
    many = torch.randn(5, 20_000, 2)
    many[:, ::2] = 0
    started = time.perf_counter()
    assert evidence_difference(many, many[:, 1::2]) == 0.0
    assert time.perf_counter() - started < 5  # a walk over the slices takes minutes


def test_a_tie_that_rounding_turns_over_is_no_error() -> None:
    class Tied(nn.Module):
        """Two heads of the same sum, in another order: which of both is larger is a matter of the last bit."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = networks.conv(3, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu().mean((2, 3))
            first, second = self.fc(y), (y[:, None] * self.fc.weight).sum(2) + self.fc.bias
            order = torch.stack([first[:, 0], second[:, 0]], 1).argsort(1)
            return torch.tensor([1.0, 100.0]).to(y)[order] + first.sum(1, keepdim=True)

    torch.manual_seed(0)
    model = Tied()
    keep = {"a": torch.randperm(64)[:29].sort().values}
    images = torch.randn(64, 3, 8, 8)
    channels = trace_channels(model, images)
    zero_(model, channels, keep)
    slim = cut(model, channels, keep, images)
    first, second = copy.deepcopy(model).double(), copy.deepcopy(slim.model).double()
    assert not torch.allclose(first(images.double()), second(images.double()))  # the orders do differ
    assert slim.max_rel_error <= 1e-9


def test_an_output_that_never_changes_proves_nothing() -> None:
    torch.manual_seed(0)
    model = networks.Net(lambda n, x: n.fc(n.a(x).mean((2, 3))).clamp(0, 0), a=networks.conv(3, 8), fc=nn.Linear(8, 5))
    channels = trace_channels(model, IMAGE)
    zero_(model, channels, {"a": torch.arange(3)})
    with pytest.raises(CutRefused, match="nothing was proved"):
        cut(model, channels, {"a": torch.arange(3)}, IMAGE)


def test_an_input_that_the_network_does_not_take_is_no_crash() -> None:
    torch.manual_seed(0)

    def forward(n: networks.Net, x: Tensor) -> tuple[Tensor, Tensor]:
        if bool((x.abs() > 6).any()):
            raise ValueError("out of range")
        return n.fc(n.a(x).relu().mean((2, 3))), torch.zeros(1)

    model = networks.Net(forward, a=networks.conv(3, 8), fc=nn.Linear(8, 5))
    channels = trace_channels(model, IMAGE)
    zero_(model, channels, {"a": torch.arange(3)})
    # The constant output looks blind, so that other inputs are tried: three times as large ones are refused.
    assert cut(model, channels, {"a": torch.arange(3)}, IMAGE).max_rel_error <= 1e-9


@pytest.mark.parametrize("hidden", [False, True])
def test_a_head_of_zeros_is_proved_by_other_weights(hidden: bool) -> None:
    model = deciding(lambda y: y, hidden)
    nn.init.zeros_(model.fc.weight)
    channels = trace_channels(model, IMAGE)
    zero_(model, channels, KEEP)
    if hidden:
        with pytest.raises(CutRefused, match="depends on its width"):
            cut(model, channels, KEEP, IMAGE)
    else:
        assert cut(model, channels, KEEP, IMAGE).model.a.out_channels == 3


def test_a_detector_whose_boxes_reorder_is_cut() -> None:
    torch.manual_seed(0)
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    )
    networks.perturbed(model)
    image = torch.rand(1, 3, 96, 96)
    channels = trace_channels(model, image)
    keep = random_keep(channels, torch.Generator().manual_seed(0))
    zero_(model, channels, keep)
    assert cut(model, channels, keep, image).max_rel_error <= 1e-9


T = torch.tensor


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        (T([1.0, 2.0]), T([1.0, 2.5]), 0.25),
        (T([1.0, float("inf")]), T([1.0, float("inf")]), 0.0),
        (T([1.0, float("inf")]), T([1.0, -float("inf")]), float("inf")),
        (T([1.0, float("nan")]), T([1.0, float("nan")]), 0.0),
        (T([1.0, float("nan")]), T([1.0, 0.0]), float("inf")),
        (T([1.0, 0.0]), T([1.0, float("nan")]), float("inf")),
        (T([float("inf")]), T([0.0]), float("inf")),
        (T([1, 2]), T([1, 2]), 0.0),
        (T([1, 2]), T([1, 3]), float("inf")),
        (T([1.0]), T([1.0, 1.0]), float("inf")),
        (torch.zeros(0, 4), torch.zeros(0, 4), 0.0),
        (torch.zeros(0, 4), torch.zeros(1, 4), float("inf")),
        (T([3 + 4j]), T([3 + 5j]), 0.25),
    ],
)
def test_a_difference_is_relative_to_the_largest_number(expected: Tensor, found: Tensor, error: float) -> None:
    assert difference(expected, found) == error


ZEROED = torch.arange(24.0).reshape(2, 4, 3) * torch.tensor([1.0, 0, 1, 0])[:, None]
"""Of four channels two hold one number."""


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (ZEROED, 0.0),
        (ZEROED[:, [0, 2]], 0.0),
        (ZEROED[:, [0, 1, 2]], 0.0),
        (ZEROED[:, [2, 0]], 6 / 20),
        (ZEROED[:, [0, 2]] + 1, 1 / 20),
        (ZEROED[:, [0]], float("inf")),  # what is gone held more than one number
        (ZEROED[:, :0], float("inf")),
        (ZEROED[:, [0, 2]][:, :, :2], float("inf")),
        (ZEROED[..., None], float("inf")),
        (torch.cat([ZEROED, ZEROED]), float("inf")),
    ],
)
def test_what_is_gone_of_a_cut_tensor_held_one_number(found: Tensor, error: float) -> None:
    assert evidence_difference(ZEROED, found) == pytest.approx(error)


def test_a_channel_of_one_number_an_example_is_compared_too() -> None:
    pooled = torch.tensor([[1.0, 0.0, 3.0, 0.0]])
    assert evidence_difference(pooled, pooled[:, [0, 2]]) == 0.0
    assert evidence_difference(pooled, pooled[:, [0, 1]]) == float("inf")
    both = pooled[:, :, None] * pooled[:, None]
    assert evidence_difference(both, both[:, [0, 2]][:, :, [0, 2]]) == 0.0
    assert evidence_difference(both, both[:, [0, 2]][:, :, [0, 2]] * 1.5) == pytest.approx(0.5)


def test_a_mask_sets_no_scale() -> None:
    masked = torch.tensor([-1e9, 1.0, 2.0])
    assert difference(masked, masked + torch.tensor([0, 0, 0.5])) > 1e-7
    assert difference(masked, masked * 1.5) == pytest.approx(0.5)


def test_decisions_of_a_part_that_is_gone_are_skipped_and_others_are_not() -> None:
    first, second = (Decision("gt", (0,), (T([x]),), (T([x > 0]),)) for x in (1.0, -2.0))
    following = Decisions(followed=[first, second], skips=True)
    assert following.note(Decision("gt", (0,), (T([-2.0]),), (T([False]),))) is second
    with pytest.raises(CutRefused, match="`gt`"):
        following.note(Decision("gt", (0,), (T([1.0]),), (T([True]),)))
    with pytest.raises(CutRefused, match="differs by 3"):
        Decisions(followed=[first, second]).note(second)
    with pytest.raises(CutRefused, match="does not make a decision"), Decisions(followed=[first]).watch():
        pass
    with pytest.raises(CutRefused, match="other numbers: 1 instead of 0"):
        Decisions(followed=[first]).note(Decision("gt", (1,), (T([1.0]),), (T([True]),)))
    with pytest.raises(CutRefused, match="does not make"):
        Decisions(followed=[first]).note(Decision("lt", (0,), (T([1.0]),), (T([True]),)))
