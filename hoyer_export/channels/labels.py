"""Labels: integers that say whose channel an index is, and which of them live or die together.

Every index of every parameter dimension that the network's arithmetic touches gets a label of its own. Operations
*unite* labels (a residual sum, a consumer's input slice) or *fix* them with a reason (the model's output, layer_norm).
Label 0 is nobody's: the input image, a constant. What is united with it is fixed too. The classes of the union-find
are the channels.
"""

from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Vector = NDArray[np.int64]

NOBODY = 0
MEETS_NOBODY = "meets the model's input or a tensor of fixed size"


@dataclass(frozen=True)
class Slot:
    """One labelled dimension of one parameter or buffer: its index i has the label ``start + i``."""

    parameter: str
    dim: int
    start: int
    size: int


@dataclass(frozen=True)
class Classes:
    """The solved union-find.

    Args:
        of_label: int64 [labels], the class of every label.
        reasons: why something cannot be removed.
        reason_of_class: int64 [classes], place in ``reasons``; -1 where the class can be removed.
        reason_of_label: int64 [labels], what was said of the label itself; -1 where nothing was.
    """

    of_label: Vector
    reasons: list[str]
    reason_of_class: Vector
    reason_of_label: Vector

    def refuse(self, classes: Vector, reason: str) -> None:
        """Declare that whole classes cannot be removed."""
        self.reason_of_class[classes] = len(self.reasons)
        self.reasons.append(reason)

    def reason_of(self, labels: Vector) -> Vector:
        """Return the places in ``reasons``: what was said of the labels themselves before what of their class."""
        own = self.reason_of_label[labels]
        return np.where(own >= 0, own, self.reason_of_class[self.of_label[labels]])


@dataclass(frozen=True)
class _SameLength:
    """One axis was given the length of another, times ``times``, over ``over``: they must shrink in proportion."""

    source: Vector
    axis: Vector
    times: int
    over: int

    def holds(self, of_label: Vector) -> bool:
        """Whether every class takes as many positions of the one as of the other, so that the lengths always agree."""
        counts = [np.bincount(of_label[labels], minlength=of_label.max() + 1) for labels in (self.source, self.axis)]
        return bool(np.array_equal(counts[0] * self.times, counts[1] * self.over))

    def pairs(self) -> list[tuple[Vector, Vector]]:
        """The labels to unite so that it holds: c // g positions lose one where the source loses g, and so on."""
        runs = self.source.reshape(self.over, -1)
        rows = self.axis.reshape(-1, self.times)
        if bool((rows == rows[:, :1]).all()):  # copies in a row
            return [(runs[..., None], rows), (runs, runs[:1])]
        return [(runs[:1], self.axis.reshape(self.times, -1)), (runs, runs[:1])]


class Labels:
    """A union-find that collects pairs in batches and is solved once, at the end."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.count = 1
        self._pairs: list[tuple[Vector, Vector]] = [(np.zeros(1, np.int64), np.zeros(1, np.int64))]
        self._same_lengths: list[_SameLength] = []
        self._fixed: list[tuple[Vector, str]] = []
        self._fixed_slots: dict[tuple[str, int], str] = {}
        self._log: list[Vector] = []

    def new(self, parameter: str, dim: int, size: int) -> Vector:
        """Return ``size`` fresh labels, int64 [size], for one dimension of ``parameter``."""
        self.slots.append(Slot(parameter, dim, self.count, size))
        self.count += size
        return np.arange(self.count - size, self.count)

    def fixed(self, size: int, reason: str) -> Vector:
        """Return labels of no parameter that fix, with a reason of their own, whatever is united with them."""
        self.count += 1
        labels = np.full(size, self.count - 1)
        self.fix(labels[:1], reason)
        return labels

    def unite(self, first: Vector, second: Vector) -> None:
        """Declare that the labels at the same position of the two (broadcast) arrays live or die together."""
        self._pairs.append((first, second))
        self._log += (first, second)

    def same_length(self, source: Vector, axis: Vector, times: int = 1, over: int = 1) -> None:
        """Declare that ``axis`` must always have the length of ``source``, times ``times``, over ``over``."""
        self._log += (source, axis)
        shared = gcd(times, over)
        self._same_lengths.append(_SameLength(source, axis, times // shared, over // shared))

    def declared(self) -> int:
        """Return how much has been declared so far; see ``declared_since``."""
        return len(self._log)

    def declared_since(self, number: int) -> list[Vector]:
        """Return the labels of which something was declared after so much had been."""
        return self._log[number:]

    def fix(self, labels: Vector, reason: str) -> None:
        """Declare that ``labels`` cannot be removed, and why; the first reason of a channel is the one shown."""
        self._fixed.append((labels, reason))
        self._log.append(labels)

    def fix_slot(self, parameter: str, dim: int, reason: str) -> None:
        """Declare that a dimension of a parameter cannot be cut, whether or not it gets labels."""
        self._fixed_slots[parameter, dim] = reason

    def solve(self) -> Classes:
        """Return the class of every label, and for every class that is fixed the reason."""
        classes = self._classes()
        # Only lengths that would not agree anyway cost freedom. What is fixed stays, so it counts as one class.
        fixed = classes.reason_of_class[classes.of_label] >= 0
        of_label = np.where(fixed, classes.of_label[NOBODY], classes.of_label)
        if broken := [tie for tie in self._same_lengths if not tie.holds(of_label)]:
            self._pairs += [pair for tie in broken for pair in tie.pairs()]
            classes = self._classes()
        return classes

    def _classes(self) -> Classes:
        of_label, meets_nobody = self._components()
        slots = [(np.arange(s.start, s.start + s.size), (s.parameter, s.dim)) for s in self.slots]
        fixed_slots = [(labels, self._fixed_slots[key]) for labels, key in slots if key in self._fixed_slots]
        numbers: dict[str, int] = {}
        of_class, own = np.full(of_label.max() + 1, -1), np.full(self.count, -1)
        for labels, reason in [*self._fixed, *fixed_slots, (meets_nobody, MEETS_NOBODY)]:  # the first reason stays
            number = numbers.setdefault(reason, len(numbers))
            own[labels[own[labels] < 0]] = number
            classes = of_label[labels]
            of_class[classes[of_class[classes] < 0]] = number
        return Classes(of_label, list(numbers), of_class, own)

    def _components(self) -> tuple[Vector, Vector]:
        """Return the class of every label, and the labels that were united with nobody's, which unites nothing."""
        pairs = [np.stack(np.broadcast_arrays(a, b)).reshape(2, -1) for a, b in self._pairs]
        left, right = np.concatenate(pairs, axis=1)
        nobody = (left == NOBODY) | (right == NOBODY)
        meets_nobody = np.append(np.maximum(left, right)[nobody], NOBODY)
        apart = ~nobody & (left != right)
        left, right = left[apart], right[apart]
        graph = coo_array((np.ones(left.size, dtype=bool), (left, right)), shape=(self.count, self.count))
        return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64), meets_nobody
