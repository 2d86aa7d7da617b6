"""The pruning plan: for every parameter the kept indices of each dimension, and how it is applied to dense code.

Format (JSON, version 1)::

    {"version": 1, "keep": {"conv1.weight": {"shape": [64, 3, 7, 7], "0": "0-15,18,20-63"}, ...}, "edits": []}

``shape`` is the dense shape, so that a plan says where it does not fit. ``edits`` lists whatever else was done to the
network; removing channels alone leaves it empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.errors import CutRefused, FileError

VERSION = 1


@dataclass(frozen=True)
class PruningPlan:
    """What rebuilds the slim network from the dense code.

    Args:
        keep: parameter or buffer → dimension → sorted int64 indices that stay.
        shapes: dense shape of every parameter in ``keep``.
    """

    keep: dict[str, dict[int, Tensor]]
    shapes: dict[str, tuple[int, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as what JSON holds, sorted by parameter."""
        keep = {
            name: {"shape": list(self.shapes[name]), **{str(dim): _as_ranges(kept) for dim, kept in dims.items()}}
            for name, dims in sorted(self.keep.items())
        }
        return {"version": VERSION, "keep": keep, "edits": []}

    @staticmethod
    def from_dict(plan: Any, dense_shapes: Mapping[str, tuple[int, ...]]) -> "PruningPlan":
        """Read a plan back for the network whose parameters and buffers have ``dense_shapes``.

        Raises:
            FileError: it is not a plan of this version, was made for other names or shapes, or its indices are out of
                range, repeated or unsorted.
        """
        try:
            if plan["version"] != VERSION or plan["edits"] != []:
                raise FileError(f"the pruning plan is not of version {VERSION}, which this release reads: upgrade it")
            keep: dict[str, dict[int, Tensor]] = {}
            for name, entry in plan["keep"].items():
                # Shapes first: nothing is made that the network does not have room for.
                if name not in dense_shapes:
                    raise FileError(f"the pruning plan names {name}, which the network does not have")
                shape = dense_shapes[name]
                if entry["shape"] != list(shape):
                    raise FileError(
                        f"the pruning plan expects {name} of shape {entry['shape']}, the network's is {shape}"
                    )
                sizes = {str(dim): size for dim, size in enumerate(shape)}
                ranges = {dim: kept for dim, kept in entry.items() if dim != "shape"}
                keep[name] = {int(dim): _from_ranges(kept, sizes[dim]) for dim, kept in ranges.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileError(f"the pruning plan is damaged ({error}): make the slim file again") from error
        return PruningPlan(keep, {name: dense_shapes[name] for name in keep})


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
    """Raise CutRefused unless every member has the name and shape that it was traced with."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for group in channels.groups:
        for member in group.members:
            name, traced = member.parameter, channels.shapes[member.parameter]
            if name not in tensors or tuple(tensors[name].shape) != traced:
                found = f"has shape {tuple(tensors[name].shape)}" if name in tensors else "is not in the network"
                raise CutRefused(f"{name} {found}, but was traced with {traced}: trace the network again")


def make_plan(channels: ChannelMap, keep: Mapping[str, Tensor]) -> PruningPlan:
    """Return the plan that removes every channel that is not in ``keep``."""
    stays: dict[tuple[str, int], Tensor] = {}
    for group in channels.groups:
        gone = torch.ones(group.width, dtype=torch.bool)
        gone[keep.get(group.name, torch.arange(group.width))] = False
        for member in group.members:
            mask = stays.setdefault((member.parameter, member.dim), torch.ones(len(member.owner), dtype=torch.bool))
            owned = member.owner >= 0
            mask[owned] &= ~gone[member.owner[owned]]
    kept: dict[str, dict[int, Tensor]] = {}
    for (parameter, dim), mask in stays.items():
        if not bool(mask.all()):
            kept.setdefault(parameter, {})[dim] = mask.nonzero().flatten()
    return PruningPlan(kept, {name: channels.shapes[name] for name in kept})


def apply_plan_(model: nn.Module, plan: PruningPlan) -> None:
    """Slice the parameters and buffers of ``model`` in place and make its modules' attributes agree with them.

    Keeps dtype, device, memory format, ``requires_grad`` and tied parameters.
    The plan must be of this very network: ``make_plan`` of its channel map, or ``PruningPlan.from_dict``.
    """
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    slim = {id(tensors[name]): _sliced(tensors[name], dims) for name, dims in plan.keep.items()}
    touched: dict[nn.Module, None] = {}
    for name, tensor in tensors.items():
        if id(tensor) in slim:  # every name that a tied parameter goes by
            owner, _, attribute = name.rpartition(".")
            module = model.get_submodule(owner)
            if isinstance(tensor, nn.Parameter):
                module._parameters[attribute] = slim[id(tensor)]  # type: ignore[assignment]
            else:
                module._buffers[attribute] = slim[id(tensor)]
            touched[module] = None
    for module in touched:
        _mend_attributes(module)


def _sliced(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    slim = tensor.detach()
    for dim, kept in dims.items():
        slim = slim.index_select(dim, kept.to(tensor.device))
    for layout in (torch.channels_last, torch.channels_last_3d):
        if tensor.ndim == (4 if layout is torch.channels_last else 5) and tensor.is_contiguous(memory_format=layout):
            slim = slim.contiguous(memory_format=layout)
    return nn.Parameter(slim, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else slim


def _mend_attributes(module: nn.Module) -> None:
    """Make the sizes that a module states agree with its tensors."""
    if isinstance(module, nn.modules.conv._ConvNd):
        _mend_convolution(module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        vector = next(v for v in (module.weight, module.running_mean) if v is not None)
        module.num_features = len(vector)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


def _mend_convolution(module: nn.modules.conv._ConvNd) -> None:
    first, second = module.weight.shape[:2]
    if module.transposed:
        if module.groups == module.in_channels:  # depthwise
            module.groups = first
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        if module.groups == module.in_channels > 1:  # depthwise: out_channels // groups filters an input
            module.groups = first * module.groups // module.out_channels
        module.out_channels, module.in_channels = first, second * module.groups


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
            raise ValueError(f"indices {part!r} are out of order or beyond {size}")
        indices += range(start, end + 1)
    return torch.tensor(indices)
