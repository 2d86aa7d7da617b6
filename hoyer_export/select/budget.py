"""What a network may cost: a cost, and a share of the dense network's or an absolute number.

A cost is anything with a name, ``of_keep`` and ``describe``; docs/adding-a-cost.md adds one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from numbers import Real
from typing import Protocol

from torch import Tensor

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import macs_of_keep, params_of_keep
from hoyer_export.errors import HoyerExportError

_LAST_BIT = 1e-12
"""Relative: slim ≤ share · dense and slim / dense ≤ share may differ in the last bit of a float64."""


class Cost(Protocol):
    """What a network costs at given widths. It must not rise where channels are taken away."""

    @property
    def name(self) -> str:
        """The word by which it is asked for, e.g. ``macs``."""

    def of_keep(self, channels: ChannelMap, keep: Mapping[str, Tensor]) -> float:
        """Return the cost once only the channels in ``keep`` are left; a group that is not named stays whole."""

    def describe(self, value: float) -> str:
        """Return a cost with its unit, e.g. ``1,266,496 MACs``."""


@dataclass(frozen=True)
class CountedCost:
    """A cost that is counted on the channel map.

    Args:
        name: the word by which it is asked for.
        unit: of one of them.
        count: as ``Cost.of_keep``.
    """

    name: str
    unit: str
    count: Callable[[ChannelMap, Mapping[str, Tensor]], float]

    def of_keep(self, channels: ChannelMap, keep: Mapping[str, Tensor]) -> float:
        """Return the count once only the channels in ``keep`` are left."""
        return self.count(channels, keep)

    def describe(self, value: float) -> str:
        """Return a count with its unit."""
        return f"{value:,.0f} {self.unit}"


MACS = CountedCost("macs", "MACs", macs_of_keep)
PARAMS = CountedCost("params", "parameters", params_of_keep)
BYTES = CountedCost("bytes", "bytes", lambda channels, keep: 4 * params_of_keep(channels, keep))
"""Of the parameters in float32."""


@dataclass(frozen=True)
class Budget:
    """The most that a network may cost.

    Args:
        cost: what is counted.
        share: of the dense network's cost, above 0 and at most 1.
        at_most: the number itself, in the cost's unit; exactly one of the two is given.

    Raises:
        HoyerExportError: none or both are given, or one is out of range.
    """

    cost: Cost
    share: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        name, share, at_most = self.cost.name, self.share, self.at_most
        if (share is None) == (at_most is None):
            raise HoyerExportError(f"a budget of {name} is a share of the dense network or at_most a number: give one")
        if share is not None and (not _is_number(share) or not 0 < share <= 1):
            raise HoyerExportError(f"{name} is a share of the dense network, above 0 and at most 1, got {share!r}")
        if at_most is not None and (not _is_number(at_most) or not 0 < at_most < inf):
            raise HoyerExportError(f"at_most is a number of {name} above 0, got {at_most!r}")

    def __str__(self) -> str:
        return (
            f"{self.cost.name} = {self.share}"
            if self.at_most is None
            else f"at most {self.cost.describe(self.at_most)}"
        )

    def is_met_by(self, value: float, dense: float) -> bool:
        """Return whether a network that costs ``value`` meets the budget, where the dense one costs ``dense``."""
        limit = self.share * dense if self.share is not None else self.at_most
        assert limit is not None
        return value <= limit * (1 + _LAST_BIT)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
