"""A union-find over labels: integers that say whose channel an index is, and which of them live or die together.

Every index of every parameter dimension that the network's arithmetic touches gets a label of its own. Operations
*unite* labels (a residual sum, a reader's input slice), *tie* the lengths of two axes, or *fix* labels with a reason
(the model's output, layer_norm). Label 0 belongs to no channel: the input image, a constant. What is united with it is
fixed too. The components are the channels.
"""

from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Vector = NDArray[np.int64]

NO_CHANNEL = 0
MEETS_NO_CHANNEL = "meets the model's input or a tensor of fixed size"


@dataclass(frozen=True)
class Slot:
    """One labelled dimension of one parameter or buffer: its index i has the label ``start + i``."""

    parameter: str
    dim: int
    start: int
    size: int

    @property
    def span(self) -> slice:
        """Where the slot's labels lie among all labels."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True, eq=False)
class Components:
    """The solved union-find.

    Args:
        of_label: int64 [labels], the component of every label.
        reasons: why something cannot be removed.
        reason_of_component: int64 [components], place in ``reasons``; -1 where the component can be removed.
        reason_of_label: int64 [labels], what was said of the label itself; -1 where nothing was.
    """

    of_label: Vector
    reasons: list[str]
    reason_of_component: Vector
    reason_of_label: Vector

    def fix(self, components: Vector, reason: str) -> None:
        """Declare that whole components cannot be removed."""
        self.reason_of_component[components] = len(self.reasons)
        self.reasons.append(reason)

    def reason_of(self, labels: Vector) -> Vector:
        """Return the places in ``reasons``: what was said of the labels themselves before what of their component."""
        own = self.reason_of_label[labels]
        return np.where(own >= 0, own, self.reason_of_component[self.of_label[labels]])


@dataclass(frozen=True, eq=False)
class _Tie:
    """One axis has the length of another, times ``times``, over ``over``: they must shrink in proportion."""

    source: Vector
    axis: Vector
    times: int
    over: int

    def holds(self, of_label: Vector) -> bool:
        """Whether every component takes as many positions of the one as of the other: the lengths always agree."""
        counts = [np.bincount(of_label[labels], minlength=of_label.max() + 1) for labels in (self.source, self.axis)]
        return bool(np.array_equal(counts[0] * self.times, counts[1] * self.over))

    def matched(self, of_label: Vector, depth: Vector) -> tuple[Vector, Vector] | None:
        """Return labels to unite so that it holds: of components that take too many, and of those that take too few.

        Only the lengths have to agree, so that any two may go together. Where some have been matched before (depth),
        they go with those that have not: then all grow alike.
        """
        labels = np.concatenate([self.source, self.axis])
        counts = [np.bincount(of_label[x], minlength=len(depth)) for x in (self.source, self.axis)]
        excess = counts[0] * self.times - counts[1] * self.over
        found, first = np.unique(of_label[labels], return_index=True)
        order = np.argsort(first)
        found, first = found[order], labels[first[order]]
        more, less = (excess[found] > 0), (excess[found] < 0)
        sides = []
        for side, sign in ((more, 1), (less, -1)):
            by = np.lexsort((sign * depth[found[side]], sign * excess[found[side]]))
            sides.append((first[side][by], excess[found[side]][by]))
        (one, too_many), (other, too_few) = sides
        return (one, other) if np.array_equal(too_many, -too_few) else None

    def pairs(self) -> list[tuple[Vector, Vector]]:
        """The labels to unite so that it holds: c // g positions lose one where the source loses g, and so on."""
        runs = self.source.reshape(self.over, -1)
        rows = self.axis.reshape(-1, self.times)
        if bool((rows == rows[:, :1]).all()):  # copies in a row
            return [(runs[..., None], rows), (runs, runs[:1])]
        return [(runs[:1], self.axis.reshape(self.times, -1)), (runs, runs[:1])]


@dataclass(frozen=True, eq=False)
class _Whole:
    """An axis stays divisible by ``parts``."""

    axis: Vector
    parts: int

    def holds(self, of_label: Vector) -> bool:
        """Whether every component that may go takes a multiple of positions."""
        counts = np.bincount(of_label[self.axis], minlength=of_label.max() + 1)
        counts[of_label[NO_CHANNEL]] = 0
        return not bool((counts % self.parts).any())

    def matched(self, of_label: Vector, depth: Vector) -> tuple[Vector, Vector] | None:
        """Return labels to unite so that it holds, two and two of components that take an odd number.

        What is fixed may be one of the two: then the other stays as well.
        """
        if self.parts != 2:
            return None
        found, first = np.unique(of_label[self.axis], return_index=True)
        odd = np.sort(first[np.bincount(of_label[self.axis])[found] % 2 == 1])
        labels = self.axis[odd[np.argsort(depth[of_label[self.axis[odd]]], kind="stable")]]
        return labels[: len(odd) // 2], labels[len(odd) // 2 :]

    def pairs(self) -> list[tuple[Vector, Vector]]:
        """The labels to unite so that it holds: one position of each of ``parts`` equal blocks."""
        rows = self.axis.reshape(self.parts, -1)
        return [(rows, rows[:1])]


class UnionFind:
    """Collects in batches what is declared of labels, and is solved once, at the end.

    Attributes:
        slots: every labelled dimension.
        count: number of labels.
        declared: the labels of which something was declared, in order.
    """

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.count = 1
        self.declared: list[Vector] = []
        self._pairs: list[tuple[Vector, Vector]] = [(np.zeros(1, np.int64), np.zeros(1, np.int64))]
        self._ties: list[_Tie] = []
        self._whole: list[_Whole] = []
        self._fixed: list[tuple[Vector, str]] = []

    def new(self, parameter: str, dim: int, size: int) -> Vector:
        """Return ``size`` fresh labels, int64 [size], for one dimension of ``parameter``."""
        self.slots.append(Slot(parameter, dim, self.count, size))
        return self.new_apart(size)

    def new_for_none(self, size: int) -> Vector:
        """Return one fresh label, ``size`` times, that is no parameter's."""
        self.count += 1
        return np.full(size, self.count - 1)

    def new_apart(self, size: int) -> Vector:
        """Return ``size`` fresh labels, int64 [size], that are no parameter's."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def unite(self, first: Vector, second: Vector) -> None:
        """Declare that the labels at the same position of the two (broadcast) arrays live or die together."""
        np.broadcast_shapes(first.shape, second.shape)  # raises here, where one sees whose rule it is
        self._pairs.append((first, second))
        self.declared += (first, second)

    def tie(self, source: Vector, axis: Vector, times: int = 1, over: int = 1) -> None:
        """Declare that ``axis`` must always have the length of ``source``, times ``times``, over ``over``."""
        shared = gcd(times, over)
        self._ties.append(_Tie(source, axis, times // shared, over // shared))
        self.declared += (source, axis)

    def keep_divisible(self, axis: Vector, parts: int) -> None:
        """Declare that the length of ``axis`` must always be divisible by ``parts``."""
        self._whole.append(_Whole(axis, parts))
        self.declared.append(axis)

    def fix(self, labels: Vector, reason: str) -> None:
        """Declare that ``labels`` cannot be removed, and why; the first reason of a channel is the one shown."""
        self._fixed.append((labels, reason))
        self.declared.append(labels)

    def solve(self) -> Components:
        """Return the component of every label, and for every component that is fixed the reason."""
        components = self._solve_pairs()
        # Only lengths that would not agree anyway cost freedom. What is fixed stays, so it counts as one component.
        fixed = components.reason_of_component[components.of_label] >= 0
        of_label = np.where(fixed, components.of_label[NO_CHANNEL], components.of_label)
        depth = np.zeros(len(components.reason_of_component), np.int64)
        pairs: list[tuple[Vector, Vector]] = []
        constraints: list[_Tie | _Whole] = [*self._ties, *self._whole]
        for constraint in constraints:
            if constraint.holds(of_label):
                continue
            if (matched := constraint.matched(of_label, depth)) is None:
                pairs += constraint.pairs()
                continue
            pairs.append(matched)
            one, other = of_label[matched[0]], of_label[matched[1]]
            same = np.arange(len(depth))
            same[one], depth[other] = other, np.maximum(depth[one], depth[other]) + 1
            of_label = same[of_label]
        if pairs:
            self._pairs += pairs
            components = self._solve_pairs()
        return components

    def _solve_pairs(self) -> Components:
        pairs = [np.stack(np.broadcast_arrays(a, b)).reshape(2, -1) for a, b in self._pairs]
        left, right = np.concatenate(pairs, axis=1)
        with_none = (left == NO_CHANNEL) | (right == NO_CHANNEL)  # that fixes, and unites nothing
        meets_none = np.append(np.maximum(left, right)[with_none], NO_CHANNEL)
        apart = ~with_none & (left != right)
        left, right = left[apart], right[apart]
        graph = coo_array((np.ones(left.size, dtype=bool), (left, right)), shape=(self.count, self.count))
        of_label = np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
        numbers: dict[str, int] = {}
        of_component, own = np.full(of_label.max() + 1, -1), np.full(self.count, -1)
        for labels, reason in [*self._fixed, (meets_none, MEETS_NO_CHANNEL)]:  # the first reason stays
            number = numbers.setdefault(reason, len(numbers))
            own[labels[own[labels] < 0]] = number
            components = of_label[labels]
            of_component[components[of_component[components] < 0]] = number
        return Components(of_label, list(numbers), of_component, own)
