"""The records that tracing makes and everything else reads: which slices of which parameters live or die together.

A **channel** is the set of parameter slices that must be removed together. A **channel group** holds the channels
that touch the same members; a **member** is one dimension of one parameter or buffer.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from math import prod

import torch
from torch import Tensor

from hoyer_export.tensors import TensorRecord

ORDER = "channel_order"
"""Name of the buffer by which a module puts its output's channels in order, see ``Shuffle``."""
SHOWN = 20
"""How many lines of a table are shown where a record is printed."""


@dataclass(frozen=True, eq=False, repr=False)
class Member(TensorRecord):
    """One dimension of one parameter or buffer, and whose channel each of its indices is.

    Args:
        parameter: name of the parameter or buffer in the model, e.g. ``layer1.0.conv1.weight``.
        dim: the dimension that is sliced.
        owner: int64, shape [size of ``dim``]: the channel (0..width-1) that index i belongs to, or -1 for none of
            this group's.
        is_weight: the parameter is the weight of a convolution, linear layer or matrix product; these make up a
            channel's norm (biases and batch-norm parameters do not).
        reads: the slices multiply the channel's activation in a contraction (a reader's input slices).
    """

    parameter: str
    dim: int
    owner: Tensor
    _: KW_ONLY
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
        gather: the linear layer whose input features these are, where they are nobody's to take away, as the network's
            input is: the layer then picks what stays by a ``Gather``. Empty: they are taken out where they are made.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    _: KW_ONLY
    only_read: bool = False
    gather: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Unprunable(TensorRecord):
    """Indices of one parameter dimension that cannot be removed exactly, and why."""

    parameter: str
    dim: int
    indices: Tensor
    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class Axis(TensorRecord):
    """One axis of a contraction: how many of its positions belong to no channel, and how many to each group's channels.

    Args:
        fixed: positions that are always there.
        counts: group name → int64 [width], the number of positions that each channel of the group takes.
    """

    fixed: int
    counts: dict[str, Tensor] = field(default_factory=dict)

    def size(self, shares: Mapping[str, Tensor]) -> float:
        """Return the number of positions when channel k of group g counts ``shares[g][k]``; a group left out, 1."""
        size = float(self.fixed)
        for name, counts in self.counts.items():
            share = shares.get(name)
            size += float(counts.sum()) if share is None else float(counts.double() @ share.cpu().double())
        return size


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

    def macs(self, shares: Mapping[str, Tensor]) -> float:
        """Return the MACs of one example at shares as for ``Axis.size``."""
        return self.constant * prod(axis.size(shares) for axis in self.axes)


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
    _: KW_ONLY
    times: int = 1


@dataclass(frozen=True)
class Lending:
    """A module that is to get a narrower input, because it takes the width of all its heads from it.

    Args:
        module: its name.
        layers: its children that read the whole input.
        axis: what the width follows.
    """

    module: str
    layers: tuple[str, ...]
    axis: Axis


@dataclass(frozen=True, eq=False, repr=False)
class Shuffle(TensorRecord):
    """Channels that a module shuffles and returns; after a cut they have to be put in order again.

    The code splits an axis in two, swaps both and joins them. With fewer channels that takes them to other places.

    Args:
        module: name of the module.
        dim: the axis of its output.
        shape: the two lengths, -1 for the one that shrinks.
        order: int64 [channels], which position of the axis before comes to each place.
        owner: group name → int64 [channels], whose channel each position before is, -1 for none of the group's.
    """

    module: str
    dim: int
    shape: tuple[int, int]
    order: Tensor
    owner: dict[str, Tensor]


@dataclass(frozen=True, repr=False)
class ChannelMap:
    """What lives or dies together in one network.

    Args:
        groups: in the order in which the network meets them.
        unprunable: everything labelled that cannot be removed, with the reason.
        contractions: the network's MACs, for costs at any widths.
        shapes: dense shape of every parameter and buffer.
        buffers: the names in ``shapes`` that are buffers: cut like parameters, not counted as such.
        attributes: sizes in modules' attributes that the cut rewrites.
        shuffles: where channels have to be put in order after the cut.
        lendings: modules whose input has to be made narrower.
    """

    groups: tuple[ChannelGroup, ...]
    unprunable: tuple[Unprunable, ...]
    contractions: tuple[Contraction, ...]
    shapes: dict[str, tuple[int, ...]]
    _: KW_ONLY
    buffers: frozenset[str] = frozenset()
    attributes: tuple[SizeAttribute, ...] = ()
    shuffles: tuple[Shuffle, ...] = ()
    lendings: tuple[Lending, ...] = ()

    def group(self, name: str) -> ChannelGroup:
        """Return the group called ``name``; KeyError if there is none."""
        return {group.name: group for group in self.groups}[name]

    def macs(self, shares: Mapping[str, Tensor]) -> float:
        """Return the MACs of one example at shares as for ``Axis.size``."""
        return sum(contraction.macs(shares) for contraction in self.contractions)

    def __repr__(self) -> str:
        """Return a table of the groups, with the MACs of the layers that write or read each, and of what must stay."""
        dense, total = self.macs({}), sum(group.width for group in self.groups)
        lines = [f"ChannelMap: {len(self.groups)} groups of {total} channels, {dense:,.0f} MACs"]
        without = (self.macs({group.name: torch.zeros(group.width)}) for group in self.groups)
        shares = [(dense - macs) / max(dense, 1) for macs in without]
        rows = [f"  {g.name:<32} {g.width:>5} {share:>7.1%}" for g, share in zip(self.groups, shares, strict=True)]
        reasons: Counter[str] = Counter()
        for entry in self.unprunable:
            reasons[entry.reason] += len(entry.indices)
        stay = [f"  {count:>6}  {reason}" for reason, count in reasons.most_common()]
        lines += _head([f"  {'group':<32} width    MACs", *rows]) if rows else []
        return "\n".join(lines + (_head(["unprunable slices, by reason:", *stay]) if stay else []))


def _head(lines: list[str]) -> list[str]:
    """Return a title and the first lines of a table, and how many more there are."""
    more = len(lines) - 1 - SHOWN
    return [*lines[: SHOWN + 1], f"  ... and {more} more"] if more > 0 else lines


def nothing_prunable(channels: ChannelMap) -> str:
    """Return that a network without channel groups has none, and the main reasons."""
    slices: Counter[str] = Counter()
    for entry in channels.unprunable:
        slices[entry.reason] += len(entry.indices)
    reasons = "; ".join(reason for reason, _ in slices.most_common(3)) or "no channels found"
    return f"nothing in the network can be pruned exactly ({reasons})"


def removed_channels(group: ChannelGroup, keep: Tensor) -> Tensor:
    """Return the sorted int64 channels of ``group`` that are not in ``keep``."""
    gone = torch.ones(group.width, dtype=torch.bool)
    gone[keep] = False
    return gone.nonzero().flatten()


def weight_members(group: ChannelGroup) -> Iterable[Member]:
    """Yield the members whose slices make up the channels' norms."""
    return (member for member in group.members if member.is_weight)
