"""Energy of channels: the share that each brings to its readers, e_k = Σ over readers j of E[a_k²] ‖W_j[:, k]‖² / D_j.

D_j = Σ E[a_i²] ‖W_j[:, i]‖² over *all* input indices i of reader j; E is the mean over images and positions of the
reader's input, the raw second moment. Unlike the norm of a filter it does not depend on a scale that the next layer
undoes (a batch norm, a ReLU between two layers).

A reader is a convolution, linear layer or matrix product whose input slices a channel owns. Depthwise convolutions,
norms and pointwise operations are passed through to the next one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.tensors import named_tensors

Moments = dict[tuple[str, int], Tensor]
"""(Weight, the dimension that reads) → E[a_i²] of every input index i of the call, [I]."""

READING_DIM: dict[Callable[..., Any], int] = {
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d), 1),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 0),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), 0),
}
"""Calls f(input, weight, ...) → the dimension of the weight that reads the input's channels."""


class InputMoments(TorchFunctionMode):
    """Measures what readers read while a network runs: ``with moments: model(images)``, as often as one likes.

    It looks at the calls and not at modules, so functional ones count too, and shared weights add up. It needs
    one reduction of each reader's input and changes nothing: a network in training may run in it, say at every
    hundredth step.

    Args:
        channels: the channel map; only weights that read channels are measured.
        model: the traced network.
    """

    def __init__(self, channels: ChannelMap, model: nn.Module) -> None:
        super().__init__()
        readers = {m.parameter: m.dim for group in channels.groups for m in group.members if m.reads}
        self._names = {id(tensor): name for name, tensor in named_tensors(model).items() if name in readers}
        self._sums: dict[tuple[str, int], tuple[Tensor, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in READING_DIM:
            self._look(READING_DIM[func], *args, **(kwargs or {}))
        return output

    @torch.no_grad()
    def _look(self, dim: int, input: Tensor, weight: Tensor | None = None, *_: Any, **named: Any) -> None:
        weight = weight if weight is not None else named.get("other", named.get("mat2"))
        name = self._names.get(id(weight))
        if name is None or weight is None or weight.ndim < 2:
            return
        axis = input.ndim - 1 if weight.ndim == 2 else input.ndim - weight.ndim + 1
        rows = input.detach().movedim(axis, -1).reshape(-1, input.shape[axis])
        squares = torch.linalg.vector_norm(rows, dim=0, dtype=torch.promote_types(input.dtype, torch.float32)).square()
        total, count = self._sums.get((name, dim), (0, 0))
        self._sums[name, dim] = (total + squares, count + len(rows))

    def take(self) -> Moments:
        """Return the moments since the last time, and begin anew."""
        moments = {key: total / max(count, 1) for key, (total, count) in self._sums.items()}
        self._sums.clear()
        return moments


@torch.no_grad()
def energy_shares(channels: ChannelMap, tensors: Mapping[str, Tensor], moments: Moments) -> dict[str, Tensor]:
    """Return e_k of every channel that a measured reader reads.

    Args:
        channels: the channel map.
        tensors: every parameter by name.
        moments: of the readers' inputs.

    Returns:
        Group name → [width]; a group that no measured reader reads is left out. A reader adds at most 1 over all
        groups together.
    """
    shares = {key: _reader_shares(tensors[key[0]], key[1], moment) for key, moment in moments.items()}
    energies = {}
    for group in channels.groups:
        measured = [member for member in group.members if member.reads and (member.parameter, member.dim) in shares]
        if measured:
            brought = shares[measured[0].parameter, measured[0].dim]
            energy = brought.new_zeros(group.width)
            for member in measured:
                owner, share = member.owner.to(energy.device), shares[member.parameter, member.dim]
                energy.index_add_(0, owner[owner >= 0], share[owner >= 0].to(energy))
            energies[group.name] = energy
    return energies


def _reader_shares(weight: Tensor, dim: int, moment: Tensor) -> Tensor:
    """Return [size of ``dim``]: the share of a reader's energy that each of its input slices brings.

    A grouped convolution [O, I / groups, kernel] has one slice for an index of every group.
    """
    rows = weight.detach().to(moment.dtype).movedim(dim, 0).flatten(1)  # [size of dim, everything else]
    groups = len(moment) // len(rows)
    squares = rows.view(len(rows), groups, -1).square().sum(2) if dim == 1 else rows.square().sum(1, keepdim=True)
    energy = (moment.view(groups, -1).T * squares).sum(1)
    return energy / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny)
