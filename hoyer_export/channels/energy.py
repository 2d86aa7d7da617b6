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

from hoyer_export import parallel
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.reading import Key, LayerCall, Watch

Moments = dict[tuple[str, int], Tensor]
"""(Weight, the dimension that reads) → E[a_i²] of every input index i of the call, [I]."""

_PRODUCTS: tuple[Callable[..., Any], ...] = (
    torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm,
)  # fmt: skip


class InputMoments(Watch):
    """Measures what readers read while a network runs: ``with moments: model(images)``, as often as one likes.

    It looks at the calls and not at modules, so functional ones count too, and shared weights add up. It needs
    one reduction of each reader's input and changes nothing: a network in training may run in it, say at every
    hundredth step.

    Args:
        channels: the channel map; only weights that read channels are measured.
        model: the traced network.
    """

    def __init__(self, channels: ChannelMap, model: nn.Module) -> None:
        super().__init__(model, after=self._layer, other=self._product)
        self._readers = {(m.parameter, m.dim) for group in channels.groups for m in group.members if m.reads}
        self._sums: dict[tuple[str, int], tuple[Tensor, int]] = {}

    def _layer(self, key: Key, call: LayerCall, output: Tensor) -> None:
        self._look(key[0], call.reading_dim, call.spread(call.input).transpose(0, 1))

    def _product(self, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        if func in _PRODUCTS:
            input, weight = (*args, *kwargs.values())[:2]
            if weight.ndim == 2:
                self._look(self.names.get(id(weight), ""), 0, input.movedim(-1, 0))

    @torch.no_grad()
    def _look(self, name: str, dim: int, read: Tensor) -> None:
        """Add what a weight reads, [I, ...]."""
        if (name, dim) in self._readers:
            rows = read.detach().reshape(len(read), -1)
            wide = torch.promote_types(read.dtype, torch.float32)
            squares = torch.linalg.vector_norm(rows, dim=1, dtype=wide).square()
            total, count = self._sums.get((name, dim), (0, 0))
            self._sums[name, dim] = (total + squares, count + rows.shape[1])

    def take(self, *, of_all: bool = False) -> Moments:
        """Return the moments since the last time, and begin anew; ``of_all``: over what all processes have measured."""
        sums, self._sums = self._sums, {}
        if of_all and parallel.size() > 1:
            for key in sorted(sums):
                total, count = sums[key]
                *found, seen = parallel.summed(torch.cat([total.double(), total.new_tensor([count]).double()]))
                sums[key] = torch.stack(found).to(total), int(seen)
        return {key: total / max(count, 1) for key, (total, count) in sums.items()}


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
