"""Labels: integers that say whose channel an index is, and which of them live or die together.

Every index of every parameter dimension that the network's arithmetic touches gets a label of its own. Operations
*unite* labels (a residual sum, a consumer's input slice) or *fix* them with a reason (the model's output, layer_norm).
Label 0 is nobody's: the input image, a constant. What is united with it is fixed too. The classes of the union-find
are the channels.
"""

from dataclasses import dataclass

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
        reasons: class → why its labels cannot be removed.
    """

    of_label: Vector
    reasons: dict[int, str]


class Labels:
    """A union-find that collects pairs in batches and is solved once, at the end."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.count = 1
        self._pairs: list[tuple[Vector, Vector]] = []
        self._fixed: list[tuple[Vector, str]] = []

    def new(self, parameter: str, dim: int, size: int) -> Vector:
        """Return ``size`` fresh labels, int64 [size], for one dimension of ``parameter``."""
        self.slots.append(Slot(parameter, dim, self.count, size))
        self.count += size
        return np.arange(self.count - size, self.count)

    def unite(self, first: Vector, second: Vector) -> None:
        """Declare that the labels at the same position of the two (broadcast) arrays live or die together."""
        self._pairs.append((first, second))

    def fix(self, labels: Vector, reason: str) -> None:
        """Declare that ``labels`` cannot be removed, and why; the first reason of a channel is the one shown."""
        self._fixed.append((labels, reason))

    def solve(self) -> Classes:
        """Return the class of every label, and for every class that is fixed the reason."""
        pairs = [np.stack(np.broadcast_arrays(a, b)).reshape(2, -1) for a, b in self._pairs]
        left, right = np.concatenate([np.zeros((2, 1), np.int64), *pairs], axis=1)
        graph = coo_array((np.ones(left.size, dtype=bool), (left, right)), shape=(self.count, self.count))
        _, of_label = connected_components(graph, directed=False)
        reasons: dict[int, str] = {}
        for labels, reason in self._fixed:
            for found in np.unique(of_label[labels]).tolist():
                reasons.setdefault(found, reason)
        # The class of label 0 itself is fixed whether or not anything met it.
        nobody = int(of_label[NOBODY])
        reasons[nobody] = MEETS_NOBODY
        return Classes(of_label.astype(np.int64), reasons)
