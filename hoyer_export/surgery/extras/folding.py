"""Channels whose output is a constant c: fold it into what reads them, and then they are unread.

Before: the channel's filter is zero, or the γ right behind it, so that no input can show in it; its shift may be
anything, so c ≠ 0. After: every reader y = W ∗ x + b has the channel's part of the sum in its bias instead,

    b += Σ over the channel's slices and kernel positions of W · c,

or, where the reader has no bias but a batch norm right behind it, that norm's running mean is lowered by as much; a
reader with neither gains a bias. That is exact where the constant meets the same weights everywhere: in linear layers
and unpadded convolutions. A padded convolution sees zeros beside the constant at the border, and only c = 0 is folded.

Batch norms keep learning after that: in training mode they subtract the batch's mean, which the constant is part of
with or without the folding, so nothing that they gather has to be corrected.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hoyer_export.call import Call, ExampleInputs
from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap, Member, removed_channels
from hoyer_export.errors import CutRefused
from hoyer_export.surgery.edits import BiasEdit
from hoyer_export.surgery.extras.observing import CONVOLUTIONS, TRANSPOSED, InputRange, input_ranges
from hoyer_export.surgery.plan import PruningPlan, check_fits, checked_keep
from hoyer_export.surgery.proof import in_float64
from hoyer_export.surgery.step import SlimModel, as_slim, proved_step
from hoyer_export.surgery.zero import live_channels, zero_slices
from hoyer_export.tensors import TensorRecord, named_tensors


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Folding(TensorRecord):
    """A model in which constants moved from channels into what read them; it computes the same.

    Args:
        model: the new model.
        plan: the biases that layers gained.
        channels: the channel map, with these biases.
        keep: what is to stay: the given one and the channels in ``left``.
        left: group → channel → why it has to stay.
        max_rel_error: of the new model in float64, before its shifts were rounded to the model's own type.
        delivered_rel_error: of ``model`` as it is, with its shifts rounded, also computed in float64.
    """

    model: nn.Module
    plan: PruningPlan
    channels: ChannelMap
    keep: dict[str, Tensor]
    left: dict[str, dict[int, str]]
    max_rel_error: float
    delivered_rel_error: float


def fold_constants(
    model: nn.Module, channels: ChannelMap, keep: Mapping[str, Tensor], example_inputs: ExampleInputs
) -> Folding:
    """Make the constant channels outside ``keep`` unread, by folding their constants into what reads them.

    ``model`` is not changed. Shifts are computed and proved in float64, and rounded once to the model's own type.

    Args:
        model: the traced model; filters, or the batch-norm γ behind them, are zero on the channels to be removed.
        channels: its channel map.
        keep: group name → sorted int64 indices of the channels that are to stay.
        example_inputs: what the model is called with, as for ``trace_channels``, or a ``Call``.

    Returns:
        The folded model and what can be removed from it: ``cut(folding.model, folding.channels, folding.keep, …)``;
        ``cut(..., fold=True)`` does both.

    Raises:
        CutRefused: ``keep`` or the model does not fit the channel map, or the folded model computes something else.
    """
    keep = checked_keep(channels, keep)
    check_fits(model, channels)
    call = Call.of(model, example_inputs)
    tensors = named_tensors(model)
    live = {g.name: live_channels(g, removed_channels(g, keep[g.name]), tensors) for g in channels.groups}
    step = SlimModel(model, PruningPlan())
    left: dict[str, dict[int, str]] = {}
    if any(live.values()):
        network = _network(model, call)
        slices: list[tuple[Member, Tensor]] = []
        for group in channels.groups:
            reasons = {channel: _why_not(network, group, channel) for channel in live[group.name]}
            stay = {channel: reason for channel, reason in reasons.items() if reason is not None}
            if stay:
                left[group.name] = stay
                keep[group.name] = torch.cat([keep[group.name], torch.tensor(list(stay))]).sort().values
            if len(stay) < len(reasons):
                folded = torch.tensor([channel for channel in reasons if channel not in stay])
                slices += [(member, torch.isin(member.owner, folded)) for member in group.members if member.reads]
        try:
            step = _folded(model, network, slices, call, into_batch_norms=True)
        except CutRefused:  # more than a batch norm reads what its layer puts out: only the layer's bias is right
            step = _folded(model, network, slices, call, into_batch_norms=False)
    return Folding(
        model=step.model,
        plan=step.plan,
        channels=_with_biases(channels, step.plan),
        keep=keep,
        left=left,
        max_rel_error=step.max_rel_error or 0.0,
        delivered_rel_error=step.delivered_rel_error or 0.0,
    )


@dataclass(frozen=True)
class _Network:
    """A network in float64 and what is known about it.

    Args:
        model: the copy in float64.
        tensors: its parameters and buffers.
        ranges: what its layers read.
        shared: first names of the parameters that several modules hold.
    """

    model: nn.Module
    tensors: Mapping[str, Tensor]
    ranges: Mapping[str, InputRange]
    shared: frozenset[str]


def _network(model: nn.Module, call: Call) -> _Network:
    wide = in_float64(model)
    tensors = named_tensors(wide)
    names = [name for name, _ in wide.named_parameters(remove_duplicate=False)]
    aliased = {id(wide.get_parameter(name)) for name in names if name not in tensors}
    shared = frozenset(name for name, tensor in tensors.items() if id(tensor) in aliased)
    return _Network(wide, tensors, input_ranges(wide, call), shared)


def _why_not(network: _Network, group: ChannelGroup, channel: int) -> str | None:
    """Return why a channel's constant cannot be folded; None if it can."""
    if not group.only_read:
        return "its activation is also summed up or multiplied, not only read"
    for member in group.members:
        if not member.reads and (index := _way_in(network, member, channel)) is not None:
            return f"{member.parameter}[index {index} of dim {member.dim}] is not zero: the input shows in the channel"
    for member in group.members:
        if member.reads and (reason := _why_not_into(network, member, channel)):
            return reason
    return None


def _way_in(network: _Network, member: Member, channel: int) -> int | None:
    """Return an index of a producer's filters by which the input reaches the channel; None if there is none."""
    layer = _owner(member.parameter)
    module, weight = network.model.get_submodule(layer), network.tensors[member.parameter]
    depthwise = type(module) in (*CONVOLUTIONS, *TRANSPOSED) and module.groups == module.in_channels > 1  # type: ignore[operator]
    # A shift or scale (one number a channel) lets no input in, and a depthwise filter none that was not there before.
    if depthwise or (not member.is_weight and weight.numel() == weight.shape[member.dim]):
        return None
    indices = (member.owner == channel).nonzero().flatten()
    closed = zero_slices(weight, member.dim, indices)
    batch_norm = network.ranges[layer].batch_norm if layer in network.ranges and member.dim == 0 else None
    if (gamma := network.tensors.get(f"{batch_norm}.weight")) is not None:
        closed |= zero_slices(gamma, 0, indices)
    return None if bool(closed.all()) else int(indices[~closed][0])


def _why_not_into(network: _Network, member: Member, channel: int) -> str | None:
    """Return why a reader cannot take the channel's constant over; None if it can."""
    indices = (member.owner == channel).nonzero().flatten()
    if bool(zero_slices(network.tensors[member.parameter], member.dim, indices).all()):
        return None
    layer = _owner(member.parameter)
    if layer not in network.ranges or member.parameter != _child(layer, "weight"):
        return f"{member.parameter}, which reads it, is not the weight of a plain convolution or linear layer"
    if member.parameter in network.shared:
        return f"{member.parameter}, which reads it, is shared by several layers"
    module = network.model.get_submodule(layer)
    constant = network.ranges[layer].constant.cpu()[_input_channels(module, member.owner == channel)]
    if bool(constant.isnan().any()):
        return f"its activation is not one constant where {layer} reads it"
    if bool((constant != 0).any()) and not _is_same_everywhere(module):
        return f"it is a constant other than zero, and {layer}, which reads it, is padded with zeros or transposed"
    return None


def _is_same_everywhere(module: nn.Module) -> bool:
    """Return whether a constant input channel adds one constant to every position of the output."""
    if isinstance(module, nn.Linear):
        return True
    assert isinstance(module, nn.modules.conv._ConvNd)
    return not module.transposed and (
        module.padding_mode != "zeros" or not any(module._reversed_padding_repeated_twice)
    )


def _input_channels(module: nn.Module, slices: Tensor) -> Tensor:
    """Return bool [I]: the input channels that slices of a weight read; a grouped one reads one in every group."""
    return slices.repeat(int(module.groups)) if isinstance(module, CONVOLUTIONS) else slices


def _shifts(network: _Network, slices: Iterable[tuple[Member, Tensor]], *, into_batch_norms: bool) -> dict[str, Tensor]:
    """Return bias or running mean → what is added to it: what the readers' folded slices add to their outputs."""
    shifts = {}
    for layer in dict.fromkeys(_owner(member.parameter) for member, _ in slices):
        module = network.model.get_submodule(layer)
        if layer not in network.ranges or not _is_same_everywhere(module):
            continue  # the folded slices are zero, or the constant is
        read = network.ranges[layer]
        masks = [mask for member, mask in slices if member.parameter == _child(layer, "weight")]
        mask = _input_channels(module, torch.stack(masks).any(0)).to(read.low.device)
        # Where the slices are zero the channel may vary.
        constant = torch.where(mask, read.constant.nan_to_num(0), 0)  # [I]
        if not bool(constant.any()):
            continue
        weight = module.get_parameter("weight").detach()  # [O, I / G, kernel]
        groups = 1 if isinstance(module, nn.Linear) else int(module.groups)  # type: ignore[arg-type]
        summed = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).sum(3)  # [G, O / G, I / G]
        by = torch.einsum("goi,gi->go", summed, constant.reshape(groups, -1)).flatten()  # [O]
        if module.bias is None and read.batch_norm is not None and into_batch_norms:
            shifts[f"{read.batch_norm}.running_mean"] = -by
        else:
            shifts[_child(layer, "bias")] = by
    return shifts


def _folded(
    model: nn.Module,
    network: _Network,
    slices: list[tuple[Member, Tensor]],
    call: Call,
    *,
    into_batch_norms: bool,
) -> SlimModel:
    """Return the folded copy of ``model``, and the biases that it gained as its plan."""
    shifts = _shifts(network, slices, into_batch_norms=into_batch_norms)
    new = (_owner(vector) for vector in shifts if vector not in network.tensors)

    def fill_(target: nn.Module) -> None:
        tensors = named_tensors(target)
        with torch.no_grad():
            for vector, by in shifts.items():
                tensors[vector].copy_(tensors[vector].double() + by)
            for member, mask in slices:
                weight = tensors[member.parameter]
                weight.index_fill_(member.dim, mask.nonzero().flatten().to(weight.device), 0)

    return proved_step(
        as_slim(model),
        PruningPlan(edits=tuple(BiasEdit(module=layer) for layer in new)),
        call,
        cause="a channel that looked constant is none, or is read unseen",
        fill_=fill_,
    )


def _with_biases(channels: ChannelMap, plan: PruningPlan) -> ChannelMap:
    """Return the channel map of the network whose layers have the biases that ``plan`` gave them."""
    biases = {_child(edit.module, "weight"): _child(edit.module, "bias") for edit in plan.edits}

    def widened(group: ChannelGroup) -> ChannelGroup:
        layers = (member for member in group.members if member.dim == 0 and member.parameter in biases)
        added = (Member(biases[member.parameter], 0, member.owner) for member in layers)
        return replace(group, members=(*group.members, *added))

    groups = tuple(map(widened, channels.groups))
    shapes = {bias: channels.shapes[weight][:1] for weight, bias in biases.items()}
    return replace(channels, groups=groups, shapes={**channels.shapes, **shapes})


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _child(module: str, name: str) -> str:
    return f"{module}.{name}".lstrip(".")
