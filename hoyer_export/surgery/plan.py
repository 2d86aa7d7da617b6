"""The pruning plan: for every parameter the kept indices of each dimension, and how it is applied to dense code.

Format (JSON, version 1)::

    {"version": 1, "keep": {"conv1.weight": {"shape": [64, 3, 7, 7], "0": "0-15,18,20-63"}, ...}, "edits": []}

``shape`` is the dense shape, so that a plan says where it does not fit. ``edits`` lists whatever else was done to the
network (``edits.py``); removing channels alone leaves it empty.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from hoyer_export.channels.channel_map import Axis, ChannelMap, Shuffle, removed_channels
from hoyer_export.channels.layer_sizes import held_by, layer_sizes
from hoyer_export.errors import CutRefused, FileError
from hoyer_export.modules.equal import stand_in_
from hoyer_export.record import Record, first_complaint
from hoyer_export.surgery.attachments import carry_attributes, check_attachments
from hoyer_export.surgery.edits import (
    AttributeEdit,
    BiasEdit,
    Edit,
    GatherEdit,
    NarrowEdit,
    OrderEdit,
    apply_edit_,
    check_edit,
    size_in,
)
from hoyer_export.tensors import TensorRecord, named_tensors

VERSION = 1


@dataclass(frozen=True, eq=False, repr=False)
class PruningPlan(TensorRecord):
    """What rebuilds the slim network from the dense code.

    Args:
        kept: parameter or buffer → dimension → sorted int64 indices that stay.
        shapes: dense shape of every parameter in ``kept``.
        edits: whatever else was done, in this order, after the slices were taken out.
    """

    kept: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as what JSON holds, sorted by parameter."""
        keep = {
            name: {"shape": list(self.shapes[name]), **{str(dim): _as_ranges(kept) for dim, kept in dims.items()}}
            for name, dims in sorted(self.kept.items())
        }
        return {"version": VERSION, "keep": keep, "edits": [edit.model_dump(mode="json") for edit in self.edits]}

    @staticmethod
    def from_dict(plan: Any, dense: nn.Module) -> "PruningPlan":
        """Read a plan back for the network that it was made for.

        Args:
            plan: what ``to_dict`` returned, as JSON gives it back.
            dense: the network before the plan is applied.

        Raises:
            FileError: it is not a plan of this version, was made for other names, shapes, sizes or modules, or its
                indices are out of range, repeated or unsorted.
        """
        try:
            content = _PlanContent.model_validate(plan)
        except ValidationError as error:
            raise FileError(
                "the pruning plan is damaged, or holds an edit that this release does not know"
                f" ({first_complaint(error)}): make the slim file again, or upgrade"
            ) from error
        shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(dense).items()}
        for name, sliced in content.keep.items():
            # Shapes first: nothing is made that the network does not have room for.
            if name not in shapes:
                raise FileError(f"the pruning plan names {name!r}, which the network does not have")
            if sliced.shape != list(shapes[name]):
                found = str(sliced.shape)[:80]
                raise FileError(f"the pruning plan expects {name} of shape {found}, the network's is {shapes[name]}")
        kept = {name: sliced.indices() for name, sliced in content.keep.items()}
        for edit in content.edits:
            check_edit(dense, edit, kept)
        return PruningPlan(kept, {name: shapes[name] for name in kept}, tuple(content.edits))


_RANGES = "^[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*$"


class _Sliced(Record, extra="allow"):
    """What a plan's JSON says of one parameter: beside its dense shape, dimension → ranges of kept indices."""

    __pydantic_extra__: dict[str, Annotated[str, Field(pattern=_RANGES)]]
    shape: list[int]

    def indices(self) -> dict[int, Tensor]:
        """Return the kept indices of each dimension; FileError where they do not fit the shape."""
        sizes = {str(dim): size for dim, size in enumerate(self.shape)}
        for dim in self.__pydantic_extra__:
            if dim not in sizes:
                raise FileError(f"the pruning plan is damaged: {dim[:20]!r} is no dimension of {self.shape}")
        return {int(dim): _from_ranges(ranges, sizes[dim]) for dim, ranges in self.__pydantic_extra__.items()}


class _PlanContent(Record):
    """A plan's JSON."""

    version: Literal[1]
    keep: dict[str, _Sliced]
    edits: list[Edit]


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """Return the plan that does what ``first`` and then ``second``, made for the result of ``first``, do."""
    kept = {name: dict(dims) for name, dims in first.kept.items()}
    # A bias that was added is made at the slim size, and the dense network does not have it.
    added = {edit.bias for edit in first.edits if isinstance(edit, BiasEdit)}
    for name, dims in second.kept.items():
        for dim, indices in dims.items() if name not in added else ():
            earlier = kept.setdefault(name, {}).get(dim)
            kept[name][dim] = indices if earlier is None else earlier[indices]
    # These begin with what the code does itself, whatever was done to it before.
    again = {(edit.kind, edit.module) for edit in second.edits if isinstance(edit, OrderEdit | NarrowEdit | GatherEdit)}
    edits: list[Edit] = [edit for edit in first.edits if (edit.kind, edit.module) not in again]
    sizes = {edit.place: (at, edit) for at, edit in enumerate(edits) if isinstance(edit, AttributeEdit)}
    for edit in second.edits:
        if isinstance(edit, AttributeEdit) and edit.place in sizes:
            at, before = sizes[edit.place]
            edits[at] = edit.model_copy(update={"dense": before.dense})
        else:
            edits.append(edit)
    shapes = {**second.shapes, **first.shapes}
    return PruningPlan(kept, {name: shapes[name] for name in kept}, tuple(edits))


def checked_keep(channels: ChannelMap, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``keep`` with every group named and its indices on the CPU.

    Raises:
        CutRefused: a group that does not exist, no channel left, or indices that are repeated, unsorted or out of
            range.
    """
    widths = {group.name: group.width for group in channels.groups}
    for name, kept in keep.items():
        if not isinstance(kept, Tensor):
            raise CutRefused(f"keep[{name!r}] must be an int64 tensor of channels, got {type(kept).__name__}")
        if name not in widths:
            raise CutRefused(f"keep names the channel group {name!r}, which the network does not have")
        if kept.dtype != torch.int64 or kept.ndim != 1 or kept.numel() == 0:
            raise CutRefused(f"keep[{name!r}] must hold at least one int64 index, got {kept.dtype} {list(kept.shape)}")
        if bool((kept[1:] <= kept[:-1]).any()) or int(kept[0]) < 0 or int(kept[-1]) >= widths[name]:
            raise CutRefused(f"keep[{name!r}] must be sorted, without repeats, within 0..{widths[name] - 1}")
    return {name: keep[name].cpu() if name in keep else torch.arange(width) for name, width in widths.items()}


def check_fits(model: nn.Module, channels: ChannelMap) -> None:
    """Raise CutRefused unless every member and size has the name and value that it was traced with."""
    tensors = named_tensors(model)
    for group in channels.groups:
        for member in group.members:
            name, traced = member.parameter, channels.shapes[member.parameter]
            if name not in tensors or tuple(tensors[name].shape) != traced:
                found = f"has shape {tuple(tensors[name].shape)}" if name in tensors else "is not in the network"
                raise CutRefused(f"{name} {found}, but was traced with {traced}: trace the network again")
    modules = dict(model.named_modules(remove_duplicate=False))
    for size in channels.attributes:
        if size.module not in modules or size_in(modules[size.module], size.attribute, size.index) != size.dense:
            raise CutRefused(
                f"{size.module}.{size.attribute} is not the {size.dense} that it was traced with: trace the network"
                " again"
            )


def make_plan(channels: ChannelMap, keep: Mapping[str, Tensor]) -> PruningPlan:
    """Return the plan that removes every channel that is not in ``keep``."""
    stays: dict[tuple[str, int], Tensor] = {}
    for group in channels.groups:
        gone = removed_channels(group, keep.get(group.name, torch.arange(group.width)))
        for member in group.members:
            stay = ~torch.isin(member.owner, gone)
            stays[member.parameter, member.dim] = stays.get((member.parameter, member.dim), stay) & stay
    kept: dict[str, dict[int, Tensor]] = {}
    for (parameter, dim), mask in stays.items():
        if not bool(mask.all()):
            kept.setdefault(parameter, {})[dim] = mask.nonzero().flatten()
    edits = tuple(
        AttributeEdit(module=size.module, attribute=size.attribute, index=size.index, dense=size.dense, slim=slim)
        for size in channels.attributes
        if (slim := _size(size.axis, keep) * size.times) != size.dense
    )
    orders = (edit for shuffle in channels.shuffles if (edit := _order_after(shuffle, keep)))
    narrows = (
        NarrowEdit(module=it.module, layers=it.layers, width=width)
        for it in channels.lendings
        if (width := _size(it.axis, keep)) != it.axis.size({})
    )
    gathers = (
        edit
        for edit in (GatherEdit(module=group.gather) for group in channels.groups if group.gather)
        if 1 in kept.get(edit.weight, {})
    )
    return PruningPlan(kept, {name: channels.shapes[name] for name in kept}, (*edits, *orders, *narrows, *gathers))


def _order_after(shuffle: Shuffle, keep: Mapping[str, Tensor]) -> OrderEdit | None:
    """Return what puts the channels that stay in the order in which the dense network has them."""
    width = len(shuffle.order)
    stays = torch.ones(width, dtype=torch.bool)
    for group, owner in shuffle.owner.items():
        if group in keep:
            stays &= torch.isin(owner, keep[group]) | (owner < 0)
    if bool(stays.all()):
        return None
    left = stays.nonzero().flatten()
    placed = left.reshape(shuffle.shape).T.flatten()  # where the code takes them
    place_of = torch.empty(width, dtype=torch.int64)
    place_of[placed] = torch.arange(len(placed))
    order = place_of[shuffle.order[stays[shuffle.order]]]
    return OrderEdit(module=shuffle.module, dim=shuffle.dim, order=tuple(order.tolist()))


def _size(axis: Axis, keep: Mapping[str, Tensor]) -> int:
    counts = axis.counts.items()
    return axis.fixed + sum(int((count[keep[group]] if group in keep else count).sum()) for group, count in counts)


def with_plan(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return a copy of ``model`` that is sliced and edited by ``plan``, with whatever hangs on it (``attachments.py``).

    The copy's modules say its sizes; dtype, device, memory format, ``requires_grad`` and tied parameters stay.

    Args:
        model: the network that the plan was made for (``make_plan``) or read for (``PruningPlan.from_dict``).
        plan: what stays of it, and what else is done.

    Raises:
        CutRefused: something hangs on the model that a copy would lose.
        FileError: an edit does not fit what an earlier one left of the network.
    """
    check_attachments(model, plan.kept)
    # What deepcopy finds in its memo it takes as its copy: the dense tensors are never copied, and ties hold.
    dense = named_tensors(model)
    slim = copy.deepcopy(model, {id(dense[name]): _sliced(dense[name], dims) for name, dims in plan.kept.items()})
    for module in slim.modules():
        if type(module)._apply is not nn.Module._apply and not isinstance(module, torch.jit.ScriptModule):
            # As if it were moved: what it made of its weights and kept, it forgets.
            module._apply(lambda tensor: tensor)  # type: ignore[no-untyped-call]
    _mend_and_edit_(slim, plan)
    carry_attributes(model, slim)
    return slim


def _mend_and_edit_(slim: nn.Module, plan: PruningPlan) -> None:
    """Make the modules that hold slim tensors follow and state their sizes, then apply the plan's edits."""
    tensors = named_tensors(slim)
    kept_of = {id(tensors[name]): dims for name, dims in plan.kept.items()}
    resized = {edit.module for edit in plan.edits if isinstance(edit, AttributeEdit)}
    stand_in_(slim, lambda name, module: name in resized or any(id(x) in kept_of for x in module.parameters()))
    for module in slim.modules():
        if any(id(size.tensor) in kept_of for _, size in layer_sizes(module)):
            _mend_attributes(module, kept_of.get(id(held_by(module, "weight")), {}))
    for edit in plan.edits:
        apply_edit_(slim, edit, plan.kept)


def kept_slices(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """Return what stays of a tensor, detached; ``dims``: dimension → kept indices."""
    slim = tensor.detach()
    for dim, kept in dims.items():
        slim = slim.index_select(dim, kept.to(tensor.device))
    return slim


def _sliced(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    slim = kept_slices(tensor, dims)
    for layout in (torch.channels_last, torch.channels_last_3d):
        if tensor.ndim == (4 if layout is torch.channels_last else 5) and tensor.is_contiguous(memory_format=layout):
            slim = slim.contiguous(memory_format=layout)
    return nn.Parameter(slim, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else slim


def _mend_attributes(module: nn.Module, kept: Mapping[int, Tensor]) -> None:
    """Make the sizes that a module states agree with its tensors; ``kept`` is what stays of its weight."""
    if isinstance(module, nn.modules.conv._ConvNd) and 0 in kept:
        # A group goes with the last of its slices; several cuts may leave a grouped convolution depthwise.
        dense = module.in_channels if module.transposed else module.out_channels
        module.groups = len(set((kept[0] // (dense // module.groups)).tolist()))
    elif isinstance(module, nn.GroupNorm):  # whole normalisation groups go: their size stays
        module.num_groups = module.num_groups * len(module.weight) // module.num_channels
    vars(module).update((name, int(size)) for name, size in layer_sizes(module))


def _as_ranges(kept: Tensor) -> str:
    indices = kept.tolist()
    starts = [i for n, i in enumerate(indices) if n == 0 or indices[n - 1] != i - 1]
    ends = [i for n, i in enumerate(indices) if n == len(indices) - 1 or indices[n + 1] != i + 1]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _from_ranges(text: str, size: int) -> Tensor:
    indices: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        start, end = int(first), int(last or first)
        if not (indices[-1] if indices else -1) < start <= end < size:
            raise FileError(f"the pruning plan is damaged: indices {part} are out of order or beyond {size}")
        indices += range(start, end + 1)
    return torch.tensor(indices)
