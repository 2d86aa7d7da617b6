"""Does the cut hold on this network? Found out in seconds, before any training.

Random channels of a copy of the network are zeroed and cut, and the cut's own proof compares both in float64. All
groups go at once; only where that is refused are they taken in halves, down to the groups that cannot go along. Those
are refuted: something in the network depends on their width in a way that tracing cannot see.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from hoyer_export.call import Call, ExampleInputs, ExampleKwargs
from hoyer_export.channels.channel_map import Axis, ChannelMap, Member, Unprunable, removed_channels
from hoyer_export.channels.rules import Rules
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import CutRefused
from hoyer_export.surgery.attachments import check_attachments
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.perturb import perturbed
from hoyer_export.surgery.proof import proof_cases, run, shows_change
from hoyer_export.surgery.zero import zero_

LEAST_SEEN = 1e-6
"""Relative change of the output from which zeroing counts as seen: a thousand times what a cut tolerates."""

UNSEEN = "zeroing them changed no output, so that comparing the outputs shows nothing"


@dataclass(frozen=True)
class Verdict:
    """What the self-test found out about one channel group, or about slices that belong to none.

    Args:
        group: name of the group; of the module (or parameter) where the channels are unprunable.
        verdict: ``proved``: zeroed and cut networks agree, and zeroing was seen; ``unseen``: they agree, but zeroing
            moved no output, nor anything that one is decided from, so that nothing was shown; ``refuted``: they do not
            agree; ``unprunable``: not tried.
        channels: how many there are.
        reason: why they are not proved; empty where they are.
        max_rel_error: of the cut that proved the group, together with all the others; None where nothing is proved.
    """

    group: str
    verdict: Literal["proved", "unseen", "refuted", "unprunable"]
    channels: int
    reason: str = ""
    max_rel_error: float | None = None


@dataclass(frozen=True)
class SelfTest:
    """The verdicts on one network.

    Args:
        verdicts: one a group, in the network's order, then one a module and reason for what is unprunable.
        channels: the channel map without the refuted groups, whose slices are unprunable in it.
    """

    verdicts: tuple[Verdict, ...]
    channels: ChannelMap


@dataclass(frozen=True)
class _Probe:
    """What is cut: a network in float64 and eval mode whose weights hide nothing, and the channels that were drawn."""

    model: nn.Module
    channels: ChannelMap
    keep: Mapping[str, Tensor]
    call: Call

    def zeroed(self, groups: Iterable[str]) -> nn.Module:
        model = copy.deepcopy(self.model)
        zero_(model, self.channels, {name: self.keep[name] for name in groups})
        return model

    def error(self, groups: Sequence[str]) -> float:
        """Return the error of the cut that takes the drawn channels of ``groups``; CutRefused where it is too large."""
        keep = {name: self.keep[name] for name in groups}
        error = cut(self.zeroed(groups), self.channels, keep, self.call).max_rel_error
        assert error is not None
        return error


def self_test(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    example_kwargs: ExampleKwargs | None = None,
    rules: Rules | None = None,
    seed: int = 0,
) -> SelfTest:
    """Zero and cut random channels of ``model`` and compare in float64, group by group.

    Works on a copy whose constant parameters (a batch norm's γ and β, a head that starts at zero) are moved to random
    values, and whose batch norms have measured their statistics: next to a zero every removal looks exact. One cut
    proves all groups where nothing is wrong; each refuted group costs about 2 log₂(groups) further cuts.

    The proved groups are proved together: their very combination was cut. Of several groups that fail only together,
    those that come last are refuted.

    Args:
        model: any network that can be traced, trained or not; it is not touched.
        example_inputs, example_kwargs: what it is called with, as for ``trace_channels``.
        rules: as for ``trace_channels``.
        seed: of the channels and the values that are drawn.

    Returns:
        The verdicts, and the channel map in which the refuted groups are unprunable.

    Raises:
        NetworkError: the network cannot be traced.
        CutRefused: something hangs on the network that no cut can carry over.
    """
    channels = trace_channels(model, example_inputs, example_kwargs=example_kwargs, rules=rules)
    call = Call.of(model, example_inputs, example_kwargs)
    check_attachments(model, ())  # before a copy loses what it would refuse
    generator = torch.Generator().manual_seed(seed)
    other = perturbed(model, call, generator)
    probe = _Probe(other, channels, random_keep(channels, generator), call)
    proved, refuted, error = _prove_together([group.name for group in channels.groups], probe.error)
    unseen = _unseen(probe, proved)
    verdicts = {
        **{name: Verdict(name, "proved", channels.group(name).width, "", error) for name in proved},
        **{name: Verdict(name, "unseen", channels.group(name).width, UNSEEN) for name in unseen},
        **{name: Verdict(name, "refuted", channels.group(name).width, reason) for name, reason in refuted.items()},
    }
    in_order = (verdicts[group.name] for group in channels.groups)
    reasons = {name: f"refuted by the self-test: {reason}" for name, reason in refuted.items()}
    return SelfTest((*in_order, *_unprunable(channels)), without_groups(channels, reasons))


def without_groups(channels: ChannelMap, reasons: Mapping[str, str]) -> ChannelMap:
    """Return ``channels`` with the groups that ``reasons`` names left whole: their slices are unprunable.

    Args:
        channels: a channel map.
        reasons: group name → why its channels cannot be removed.
    """

    def fixed(axis: Axis) -> Axis:
        gone = sum(int(counts.sum()) for name, counts in axis.counts.items() if name in reasons)
        return Axis(axis.fixed + gone, {name: counts for name, counts in axis.counts.items() if name not in reasons})

    moved = [
        Unprunable(member.parameter, member.dim, (member.owner >= 0).nonzero().flatten(), reasons[group.name])
        for group in channels.groups
        if group.name in reasons
        for member in group.members
    ]
    return replace(
        channels,
        groups=tuple(group for group in channels.groups if group.name not in reasons),
        unprunable=(*channels.unprunable, *moved),
        contractions=tuple(replace(found, axes=tuple(map(fixed, found.axes))) for found in channels.contractions),
        attributes=tuple(replace(found, axis=fixed(found.axis)) for found in channels.attributes),
        lendings=tuple(replace(found, axis=fixed(found.axis)) for found in channels.lendings),
    )


def _prove_together(
    groups: Sequence[str], error_of: Callable[[Sequence[str]], float]
) -> tuple[list[str], dict[str, str], float | None]:
    """Return the groups that are proved, why each other is refuted, and the error of the cut that proved them all.

    A group joins the proved ones only in a cut of exactly that combination, so that whatever is returned as proved
    was tried as a whole; a group is refuted if it cannot join those before it.
    """
    proved: list[str] = []
    refuted: dict[str, str] = {}
    error: float | None = None

    def join(candidates: Sequence[str]) -> None:
        nonlocal error
        try:
            error = error_of([*proved, *candidates])
            proved.extend(candidates)
        except CutRefused as refusal:
            if len(candidates) == 1:
                refuted[candidates[0]] = str(refusal)
                return
            if len(candidates) == len(groups):
                error_of([])  # what fails even then is no group's fault: the network does not run in float64, for one
            middle = len(candidates) // 2
            join(candidates[:middle])
            join(candidates[middle:])

    try:
        join(groups)
    except CutRefused as refusal:
        return [], dict.fromkeys(groups, str(refusal)), None
    return proved, refuted, error


def random_keep(channels: ChannelMap, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw the channels that stay: a share drawn for each group, at least one that stays and one that goes.

    Equal shares everywhere cannot see a missing tie between the widths of two groups.
    """
    keep = {}
    for group in channels.groups:
        stay = int(torch.randint(1, group.width, (), generator=generator))
        keep[group.name] = torch.randperm(group.width, generator=generator)[:stay].sort().values
    return keep


def _unseen(probe: _Probe, groups: Sequence[str]) -> set[str]:
    """Return the groups whose drawn channels can be zeroed with no change of the output.

    One backward run clears nearly all groups; the others are zeroed one by one.
    """
    _, noise, _ = proof_cases(probe.call)
    seen = _seen_by_gradient(probe, noise)
    suspects = [name for name in groups if name not in seen]
    if not suspects:
        return set()
    with torch.no_grad():
        before = run(probe.model, noise)
        zeroed = {name: run(probe.zeroed([name]), noise) for name in suspects}
        return {name for name, after in zeroed.items() if not shows_change(before, after, LEAST_SEEN)}


def _seen_by_gradient(probe: _Probe, case: Call) -> set[str]:
    """Return the groups whose drawn slices w change the output to first order: |Σ gradient · w| > least · |output|."""
    model = copy.deepcopy(probe.model)
    try:
        with torch.enable_grad():
            outputs = [y.abs().sum() for y in run(model.requires_grad_(True), case).outputs if y.requires_grad]
            total = torch.stack(outputs).sum()
        total.backward()  # type: ignore[no-untyped-call]
    except Exception:  # code that cannot be differentiated says nothing about the cut
        return set()
    parameters, least = dict(model.named_parameters()), LEAST_SEEN * float(total.detach())
    return {
        group.name
        for group in probe.channels.groups
        if any(
            _influence(parameters[member.parameter], member, removed_channels(group, probe.keep[group.name])) > least
            for member in group.members
            if member.parameter in parameters
        )
    }


def _influence(parameter: Tensor, member: Member, gone: Tensor) -> float:
    if parameter.grad is None:
        return 0.0
    slices = torch.isin(member.owner, gone).nonzero().flatten().to(parameter.device)
    return float((parameter.detach() * parameter.grad).index_select(member.dim, slices).sum().abs())


def _unprunable(channels: ChannelMap) -> list[Verdict]:
    """Return one verdict a module and reason: its longest dimension counts, not the sum over its parameters."""
    longest: dict[tuple[str, str], int] = {}
    for entry in channels.unprunable:
        key = entry.parameter.rpartition(".")[0] or entry.parameter, entry.reason
        longest[key] = max(longest.get(key, 0), len(entry.indices))
    return [Verdict(module, "unprunable", count, reason) for (module, reason), count in longest.items()]
