"""Norms of channels: the weights → n_k = sqrt(Σ w² over the elements of channel k's weight members).

Biases and batch-norm parameters do not count. An element counts once for a channel, also when both of its dimensions
lie in it: element (i, j) of a convolution inside a residual stream belongs to the channels owner0[i] and owner1[j],
and once to their channel if these are equal.

All channels stand on one grid [G, K], G groups and K the largest width (places without a channel stay 0), so that a
whole network takes a few kernels a weight and none a channel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from hoyer_export.channels.channel_map import ChannelMap, weight_members
from hoyer_export.errors import NetworkError
from hoyer_export.tensors import WITHOUT_FLOAT64


class WeightPlaces(NamedTuple):
    """Where the elements of one weight count on the grid.

    Args:
        parameter: name of the weight.
        dims: the sliced dimension of each of its members.
        places: for each member, int64 [size of the dimension]: place on the flat grid, G·K for no channel.
        repeats: for each member, a mask over the sliced dimensions in ascending order: the element already counts at
            that place through an earlier member. None where no element does.
    """

    parameter: str
    dims: tuple[int, ...]
    places: tuple[Tensor, ...]
    repeats: tuple[Tensor | None, ...]

    @property
    def kept(self) -> list[int]:
        return sorted(set(self.dims))


@dataclass(frozen=True)
class ChannelGrid:
    """Every channel of a network at a place of a grid [G, K], and the weights that belong to it.

    Args:
        widths: int64 [G], the groups' numbers of channels.
        size: K, the largest width.
        weights: every weight that holds a slice of some channel.
        places: the places of all members of all weights, one after the other.
    """

    widths: Tensor
    size: int
    weights: tuple[WeightPlaces, ...]
    places: Tensor

    def to(self, device: torch.device) -> "ChannelGrid":
        """Return the grid with its indices on ``device``."""
        return ChannelGrid(**tree_map_only(Tensor, lambda tensor: tensor.to(device), vars(self)))

    def squares(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return Σ w² of every channel, [G, K], differentiable; ``tensors`` are the weights in the grid's order."""
        sums = [part for weight, tensor in zip(self.weights, tensors, strict=True) for part in _sums(weight, tensor)]
        cells = len(self.widths) * self.size
        if not sums:
            return self.places.new_zeros((len(self.widths), self.size), dtype=_precise(self.places.device))
        all_sums = torch.cat(sums)
        return all_sums.new_zeros(cells + 1).index_add(0, self.places, all_sums)[:cells].view(-1, self.size)

    def spread(self, values: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return for each weight a tensor that broadcasts to it: the sum of ``values`` over each element's channels.

        This is the transpose of ``squares``: ∂(Σ values · squares)/∂w = 2 · spread(values) · w.

        Args:
            values: [G, K].
            tensors: the weights in the grid's order.
        """
        cells = torch.cat([values.flatten(), values.new_zeros(1)])  # 0 where no channel is
        sizes = [place.numel() for weight in self.weights for place in weight.places]
        parts = iter(torch.split(cells[self.places], sizes))
        return [
            _spread(weight, [next(parts) for _ in weight.dims], tensor.ndim)
            for weight, tensor in zip(self.weights, tensors, strict=True)
        ]


def channel_grid(channels: ChannelMap) -> ChannelGrid:
    """Give every channel a place and find the elements that count there."""
    size = max((group.width for group in channels.groups), default=0)
    outside = len(channels.groups) * size
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for row, group in enumerate(channels.groups):
        for member in weight_members(group):
            places = torch.where(member.owner >= 0, member.owner + row * size, outside)
            found.setdefault(member.parameter, []).append((member.dim, places))
    weights = tuple(_weight_places(parameter, members, outside) for parameter, members in found.items())
    every = [place for weight in weights for place in weight.places]
    return ChannelGrid(
        widths=torch.tensor([group.width for group in channels.groups], dtype=torch.int64),
        size=size,
        weights=weights,
        places=torch.cat(every) if every else torch.zeros(0, dtype=torch.int64),
    )


def channel_norms(channels: ChannelMap, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the norm of every channel over its weight members.

    n_k = sqrt(Σ w²). Differentiable; where n_k = 0 the gradient is 0 (one of the subgradients, and the finite one).

    Args:
        channels: the channel map.
        parameters: name → tensor, e.g. ``dict(model.named_parameters())`` or ``model.state_dict()``; on one device.

    Returns:
        Group name → [width] in float64, which squares neither 1e20 to infinity nor 1e-20 to zero (float32 on devices
        without float64).

    Raises:
        NetworkError: a weight is missing or has another shape than in ``channels``.
    """
    grid = channel_grid(channels)
    tensors = [_fitting(weight, parameters) for weight in grid.weights]
    if tensors:
        grid = grid.to(tensors[0].device)
    norms = safe_sqrt(grid.squares(tensors))
    return {group.name: row[: group.width] for group, row in zip(channels.groups, norms, strict=True)}


def safe_sqrt(squares: Tensor) -> Tensor:
    """Return the square roots, with gradient 0 at 0, where the true one is infinite."""
    zero = squares == 0  # and not squares > 0, which would take NaN for 0
    return torch.where(zero, 0, torch.where(zero, 1, squares).sqrt())


def check_fits(weight: WeightPlaces, tensor: Tensor) -> None:
    """Raise NetworkError unless ``tensor`` has the sizes that its members were traced with."""
    for dim, places in zip(weight.dims, weight.places, strict=True):
        if dim >= tensor.ndim or tensor.shape[dim] != places.numel():
            raise NetworkError(
                f"{weight.parameter}: the channels expect {places.numel()} in dimension {dim}, the network has shape "
                f"{tuple(tensor.shape)}; trace the channels of this network (again after a cut)"
            )


def _fitting(weight: WeightPlaces, parameters: Mapping[str, Tensor]) -> Tensor:
    if weight.parameter not in parameters:
        raise NetworkError(f"{weight.parameter}: expected a weight of this name, got none; trace this very network")
    check_fits(weight, parameters[weight.parameter])
    return parameters[weight.parameter]


def _weight_places(parameter: str, members: list[tuple[int, Tensor]], outside: int) -> WeightPlaces:
    kept = sorted({dim for dim, _ in members})
    shaped = [place.view([-1 if dim == at else 1 for at in kept]) for dim, place in members]
    repeats: list[Tensor | None] = []
    for number, place in enumerate(shaped):
        repeat = torch.zeros([1] * len(kept), dtype=torch.bool)
        for earlier in shaped[:number]:
            # Most members share no channel: their mask would be large and empty.
            shared = torch.isin(place, earlier) & (place != outside)
            if shared.any():
                repeat = repeat | (shared & (place == earlier))
        repeats.append(repeat if repeat.any() else None)
    dims, places = zip(*members, strict=True)
    return WeightPlaces(parameter, dims, places, tuple(repeats))


def _sums(weight: WeightPlaces, tensor: Tensor) -> list[Tensor]:
    """Return for each member Σ w² over everything but its dimension, leaving out repeats."""
    squares = tensor.to(_precise(tensor.device)).square()
    others = [dim for dim in range(tensor.ndim) if dim not in weight.dims]
    if others:
        squares = squares.sum(others)
    sums = []
    for dim, repeat in zip(weight.dims, weight.repeats, strict=True):
        counted = squares if repeat is None else squares.masked_fill(repeat, 0)
        summed = [axis for axis, kept in enumerate(weight.kept) if kept != dim]
        sums.append(counted.sum(summed) if summed else counted)
    return sums


def _spread(weight: WeightPlaces, values: Sequence[Tensor], ndim: int) -> Tensor:
    total: Tensor | None = None
    for dim, repeat, value in zip(weight.dims, weight.repeats, values, strict=True):
        along = value.view([-1 if kept == dim else 1 for kept in weight.kept])
        if repeat is not None:
            along = along.expand(repeat.shape).masked_fill(repeat, 0)
        total = along if total is None else total + along
    assert total is not None, "a weight has at least one member"
    sizes = dict(zip(weight.kept, total.shape, strict=True))
    return total.reshape([sizes.get(dim, 1) for dim in range(ndim)])


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64
