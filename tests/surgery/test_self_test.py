"""The self-test proves what can be cut, names what cannot, and touches nothing."""

import copy
import re
from collections.abc import Callable, Sequence

import networks
import pytest
import torch
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.channels.channel_map import Axis, ChannelMap, Contraction, SizeAttribute
from hoyer_export.channels.cost import dense_macs, macs_of_keep
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import CutRefused
from hoyer_export.networks import build_network
from hoyer_export.surgery import perturb
from hoyer_export.surgery import self_test as module
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.self_test import SelfTest, self_test, without_groups
from hoyer_export.surgery.zero import zero_

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def verdicts(found: SelfTest) -> dict[str, str]:
    return {verdict.group: verdict.verdict for verdict in found.verdicts if verdict.verdict != "unprunable"}


@pytest.mark.parametrize("wiring", networks.WIRINGS, ids=lambda wiring: wiring.__name__)
def test_every_wiring_is_proved(wiring: type[nn.Module]) -> None:
    torch.manual_seed(0)
    found = self_test(wiring(), IMAGE)
    tried = [verdict for verdict in found.verdicts if verdict.verdict != "unprunable"]
    assert [verdict.group for verdict in tried] == [group.name for group in found.channels.groups] != []
    # The end of that one's first layer is sliced off.
    unseen = {"a.weight": module.UNSEEN} if wiring is networks.Widths else {}
    assert {verdict.group: verdict.reason for verdict in tried if verdict.verdict == "unseen"} == unseen
    proved = [verdict for verdict in tried if verdict.group not in unseen]
    assert all(verdict.verdict == "proved" and verdict.max_rel_error <= 1e-9 for verdict in proved)
    assert len(tried) < len(found.verdicts)


def three_layers(hidden: Callable[[networks.Net], float]) -> networks.Net:
    """A chain a → b → c in which ``hidden`` scales what b gives to c."""
    torch.manual_seed(0)
    return networks.Net(
        lambda n, x: n.fc(n.c(n.b(n.a(x)).relu() * hidden(n)).mean((2, 3))),
        a=networks.conv(3, 6), b=networks.conv(6, 8), c=networks.conv(8, 7), fc=nn.Linear(7, 5),
    )  # fmt: skip


WIDTH = 8
ARITHMETIC = "an attribute in arithmetic"
HIDDEN = {
    ARITHMETIC: lambda n: networks.hidden_width(n.b) ** -0.5,
    "a loop over a range": lambda n: sum(1.1**i for i in range(n.b.out_channels)),
    "a number in a closure": lambda n: 1.0 if networks.hidden_width(n.b) == WIDTH else 2.0,
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_width_that_tracing_cannot_see_is_refuted_by_name(name: str) -> None:
    found = self_test(three_layers(HIDDEN[name]), IMAGE)
    assert verdicts(found) == {"a": "proved", "b": "refuted", "c": "proved"}
    reason = next(verdict.reason for verdict in found.verdicts if verdict.verdict == "refuted")
    assert re.search(r"depends on its width", reason)
    assert "\n" not in reason


def test_two_groups_that_meet_in_one_size_are_both_refuted() -> None:
    found = self_test(
        three_layers(lambda n: 1.0 + networks.hidden_width(n.a) * networks.hidden_width(n.b) / 1000), IMAGE
    )
    assert verdicts(found) == {"a": "refuted", "b": "refuted", "c": "proved"}


def test_what_is_proved_can_be_cut_and_what_is_refuted_stays_whole() -> None:
    model = three_layers(HIDDEN[ARITHMETIC])
    channels = self_test(model, IMAGE).channels
    assert [group.name for group in channels.groups] == ["a", "c"]
    moved = [entry for entry in channels.unprunable if entry.reason.startswith("refuted by the self-test: ")]
    assert {(entry.parameter, entry.dim) for entry in moved} == {("b.weight", 0), ("b.bias", 0), ("c.weight", 1)}
    assert all(entry.indices.tolist() == list(range(8)) for entry in moved)
    keep = {"a": torch.arange(2), "c": torch.arange(3)}
    zero_(model, channels, keep)
    assert cut(model, channels, keep, IMAGE).max_rel_error <= 1e-9
    traced = trace_channels(model, IMAGE)
    assert dense_macs(channels) == dense_macs(traced)
    assert macs_of_keep(channels, keep) == macs_of_keep(traced, keep)


def test_the_sizes_that_a_refuted_group_had_a_part_in_are_fixed() -> None:
    channels = ChannelMap(
        groups=tuple(trace_channels(networks.chain(), IMAGE).groups),
        unprunable=(),
        contractions=(Contraction("b", 9, (Axis(1, {"a": torch.ones(12), "b": torch.full((8,), 2)}), Axis(3))),),
        shapes={},
        attributes=(SizeAttribute("n", "heads", None, 12, Axis(0, {"a": torch.ones(12)})),),
    )
    left = without_groups(channels, {"a": "because"})
    assert [group.name for group in left.groups] == ["b"]
    assert (left.contractions[0].axes[0].fixed, list(left.contractions[0].axes[0].counts)) == (13, ["b"])
    assert (left.attributes[0].axis.fixed, left.attributes[0].axis.counts) == (12, {})
    assert {entry.reason for entry in left.unprunable} == {"because"}


def fails_where(*together: Sequence[str]) -> tuple[list[tuple[str, ...]], Callable[[Sequence[str]], float]]:
    """Return a stand-in for the cut that is refused where all of one of ``together`` are in it, and what was tried."""
    tried: list[tuple[str, ...]] = []

    def error_of(groups: Sequence[str]) -> float:
        tried.append(tuple(groups))
        if any(set(wrong) <= set(groups) for wrong in together):
            raise CutRefused("differs")
        return 1e-16

    return tried, error_of


GROUPS = [chr(ord("a") + at) for at in range(16)]


@pytest.mark.parametrize(
    ("together", "refuted"),
    [
        ([], ""),
        (["c"], "c"),
        (["a", "h", "p"], "ahp"),
        (["cd"], "d"),
        (["ap"], "p"),
        (["ap", "pc", "c"], "cp"),
        (["abc", "cd"], "c"),
        (GROUPS, "".join(GROUPS)),
        ([""], "".join(GROUPS)),
    ],
)
def test_what_is_left_was_tried_as_a_whole(together: list[str], refuted: str) -> None:
    tried, error_of = fails_where(*together)
    proved, wrong, error = module._prove_together(GROUPS, error_of)
    assert sorted(wrong) == sorted(refuted)
    assert proved == [name for name in GROUPS if name not in refuted]
    if proved:
        assert tuple(proved) in tried
        assert error == 1e-16
    assert set(wrong.values()) <= {"differs"}


@pytest.mark.parametrize(("together", "cuts"), [([], 1), ([""], 2), (["c"], 2 + 2 * 4)])
def test_one_cut_proves_all_and_each_refuted_group_costs_a_bisection(together: list[str], cuts: int) -> None:
    tried, error_of = fails_where(*together)
    module._prove_together(GROUPS, error_of)
    assert len(tried) == cuts


def test_a_network_that_runs_in_no_float64_is_refuted_at_once() -> None:
    model = networks.Net(
        lambda n, x: n.fc(n.b(n.a(x).float()).mean((2, 3))),
        a=networks.conv(3, 8), b=networks.conv(8, 6), fc=nn.Linear(6, 5),
    )  # fmt: skip
    found = self_test(model, IMAGE)
    assert verdicts(found) == {"a": "refuted", "b": "refuted"}
    assert all("does not run in float64" in v.reason for v in found.verdicts if v.verdict == "refuted")


def test_a_head_that_starts_at_zero_hides_nothing() -> None:
    model = three_layers(HIDDEN[ARITHMETIC])
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    assert verdicts(self_test(model, IMAGE)) == {"a": "proved", "b": "refuted", "c": "proved"}


def test_the_signal_of_an_untrained_network_is_not_lost_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def unseen() -> list[str]:
        torch.manual_seed(0)
        found = self_test(build_network("torchvision:mobilenet_v3_small"), torch.randn(2, 3, 64, 64))
        assert set(verdicts(found).values()) <= {"proved", "unseen"}
        return [verdict.group for verdict in found.verdicts if verdict.verdict == "unseen"]

    assert unseen() == []
    monkeypatch.setattr(perturb, "_measure_statistics_", lambda model, example_inputs: None)
    assert len(unseen()) >= 3


@pytest.mark.parametrize(
    ("parameter", "constant"),
    [
        (torch.full((96, 1, 1), 1e-6), True),  # a layer scale; its mean is not 1e-6 to the last bit
        (torch.zeros(5, 8), True),
        (torch.randn(8), True),
        (torch.randn(8, 1), False),
        (torch.zeros(0, 3), True),
    ],
)
def test_whatever_is_constant_is_moved(parameter: Tensor, constant: bool) -> None:
    assert perturb._is_constant(parameter) is constant
    moved = perturb.perturbed(
        nn.ParameterList([parameter]), Call((torch.zeros(1, 1),)), torch.Generator().manual_seed(0)
    )[0]
    assert bool((moved != parameter).all()) is constant


def test_channels_that_the_output_does_not_depend_on_are_said_to_be() -> None:
    torch.manual_seed(0)
    model = networks.Net(
        lambda n, x: n.fc((n.a(x) + n.c(n.b(x)).clamp(0, 0)).mean((2, 3))),
        a=networks.conv(3, 8), b=networks.conv(3, 6), c=networks.conv(6, 8), fc=nn.Linear(8, 5),
    )  # fmt: skip
    found = self_test(model, IMAGE)
    assert verdicts(found) == {"a": "proved", "b": "unseen"}
    assert [v.max_rel_error for v in found.verdicts if v.verdict == "unseen"] == [None]
    assert [group.name for group in found.channels.groups] == ["a", "b"]  # whatever reads b, no output hangs on it


def test_code_that_cannot_be_differentiated_is_seen_by_zeroing() -> None:
    torch.manual_seed(0)
    model = networks.Net(
        lambda n, x: (n.fc(n.a(x).mean((2, 3))) > 0.5).float(), a=networks.conv(3, 8), fc=nn.Linear(8, 500)
    )
    assert verdicts(self_test(model, IMAGE)) == {"a": "proved"}


def test_the_model_and_the_random_generators_are_as_they_were() -> None:
    torch.manual_seed(0)
    model = networks.chain()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    self_test(model, IMAGE)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_the_same_seed_draws_the_same_channels() -> None:
    def drawn(seed: int) -> dict[str, list[int]]:
        channels = trace_channels(networks.chain(), IMAGE)
        keep = module.random_keep(channels, torch.Generator().manual_seed(seed))
        return {name: kept.tolist() for name, kept in keep.items()}

    assert drawn(0) == drawn(0) != drawn(1)
    widths = {"a": 12, "b": 8}
    for seed in range(50):
        assert all(0 < len(kept) < widths[name] for name, kept in drawn(seed).items())


def test_unprunable_channels_are_named_by_module_and_reason() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.fc = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(self.a(x)))

    found = self_test(Normed(), torch.randn(2, 4))
    assert found.channels.groups == ()
    entries = {(verdict.group, verdict.channels) for verdict in found.verdicts if "layer_norm" in verdict.reason}
    assert ("a", 6) in entries
    assert {verdict.verdict for verdict in found.verdicts} == {"unprunable"}
