"""The records that tracing makes and everything else reads: which slices of which parameters live or die together.

A **channel** is the set of parameter slices that must be removed together. A **channel group** holds the channels
that touch the same members; a **member** is one dimension of one parameter or buffer.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer, and whose channel each of its indices is.

    Args:
        parameter: name of the parameter or buffer in the model, e.g. ``layer1.0.conv1.weight``.
        dim: the dimension that is sliced.
        owner: int64, shape [size of ``dim``]: the channel (0..width-1) that index i belongs to, or -1 for none of
            this group's.
        is_weight: the parameter is the weight of a convolution, linear layer or matrix product; these make up a
            channel's norm (biases and batch-norm parameters do not).
        reads: the slices multiply the channel's activation in a contraction (a consumer's input slices).
    """

    parameter: str
    dim: int
    owner: Tensor
    is_weight: bool = False
    reads: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that touch the same members.

    Args:
        name: the first module whose output these channels are.
        width: K, the number of channels.
        members: every parameter dimension that the channels own a slice of.
        only_read: everything that depends on the channels' activations gets them through members that read; where
            all of those are zero, nobody can tell what a channel's activation is. False where activations are also
            summed up or multiplied with each other.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    only_read: bool = False


@dataclass(frozen=True)
class Unprunable:
    """Indices of one parameter dimension that cannot be removed exactly, and why."""

    parameter: str
    dim: int
    indices: Tensor
    reason: str


@dataclass(frozen=True)
class Axis:
    """One axis of a contraction: how many of its positions belong to nobody, and how many to each group's channels.

    Args:
        fixed: positions that are always there.
        counts: group name → int64 [width], the number of positions that each channel of the group takes.
    """

    fixed: int
    counts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Contraction:
    """A convolution, linear layer or matrix product: MACs = constant · Π over axes of the axis' size, batch 1.

    Args:
        name: the module (or the operation, where no module owns it) that computes it.
        constant: everything that channels do not change: output positions × kernel positions.
        axes: output and input channels; the size of each depends on what is kept.
    """

    name: str
    constant: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class SizeAttribute:
    """A size that a module keeps in an attribute and that has to follow the cut: ``self.num_heads``, ``self.split[1]``.

    Args:
        module: name of the module.
        attribute: its attribute.
        index: position in the attribute, where that is a list or tuple of sizes.
        dense: the size now.
        axis: what it follows; the size is ``times`` · size of the axis.
        times: how many such axes it is the length of, e.g. 2 where the code uses ``self.width // 2``.
    """

    module: str
    attribute: str
    index: int | None
    dense: int
    axis: Axis
    times: int = 1


@dataclass(frozen=True)
class ChannelMap:
    """What lives or dies together in one network.

    Args:
        groups: in the order in which the network meets them.
        unprunable: everything labelled that cannot be removed, with the reason.
        contractions: the network's MACs, for costs at any widths.
        shapes: dense shape of every parameter and buffer.
        buffers: the names in ``shapes`` that are buffers: cut like parameters, not counted as such.
        attributes: sizes in modules' attributes that the cut rewrites.
    """

    groups: tuple[ChannelGroup, ...]
    unprunable: tuple[Unprunable, ...]
    contractions: tuple[Contraction, ...]
    shapes: dict[str, tuple[int, ...]]
    buffers: frozenset[str] = frozenset()
    attributes: tuple[SizeAttribute, ...] = ()

    def group(self, name: str) -> ChannelGroup:
        """Return the group called ``name``; KeyError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


def removed_channels(group: ChannelGroup, keep: Tensor) -> Tensor:
    """Return the sorted int64 channels of ``group`` that are not in ``keep``."""
    gone = torch.ones(group.width, dtype=torch.bool)
    gone[keep] = False
    return gone.nonzero().flatten()


def weight_members(group: ChannelGroup) -> Iterable[Member]:
    """Yield the members whose slices make up the channels' norms."""
    return (member for member in group.members if member.is_weight)
