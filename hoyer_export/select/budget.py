"""What a network may cost: a cost, and a share of the dense network's or a number of one's own.

docs/adding-a-cost.md adds a cost.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from numbers import Real
from typing import Protocol, runtime_checkable

from torch import Tensor

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import macs_of_keep, params_of_keep
from hoyer_export.errors import HoyerExportError

_LAST_BIT = 1e-12
"""Relative: what was met as slim ≤ share · dense may differ from slim / dense ≤ share in the last bit."""


@runtime_checkable
class Cost(Protocol):
    """What a network costs at given widths: never more where channels are taken away."""

    @property
    def name(self) -> str:
        """The word by which it is asked for, e.g. ``macs``."""

    def of_keep(self, channels: ChannelMap, keep: Mapping[str, Tensor]) -> float:
        """Return the cost once only the channels in ``keep`` are left; a group that is not named stays whole."""

    def describe(self, value: float) -> str:
        """Return a cost with its unit, e.g. ``1,266,496 MACs``."""


@dataclass(frozen=True)
class _Count:
    """A cost that is counted in whole ``unit``s by ``of_keep``."""

    name: str
    unit: str
    of_keep: Callable[[ChannelMap, Mapping[str, Tensor]], float]

    def describe(self, value: float) -> str:
        return f"{value:,.0f} {self.unit}"


MACS = _Count("macs", "MACs", macs_of_keep)
PARAMS = _Count("params", "parameters", params_of_keep)
BYTES = _Count("bytes", "bytes", lambda channels, keep: 4 * params_of_keep(channels, keep))
"""Of the parameters in float32."""

COSTS: dict[str, Cost] = {cost.name: cost for cost in (MACS, PARAMS, BYTES)}


@dataclass(frozen=True)
class Budget:
    """The most that a network may cost.

    Args:
        cost: what is counted.
        share: of the dense network's cost, above 0 and at most 1.
        at_most: the number itself, in the cost's unit; exactly one of the two is given.

    Raises:
        HoyerExportError: ``cost`` is none; no number or both are given, or one is out of range.
    """

    cost: Cost
    share: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.cost, Cost):
            raise HoyerExportError(
                f"a cost is an object with name, of_keep and describe, e.g. MACS, got {self.cost!r:.60}"
            )
        name, share, at_most = self.cost.name, self.share, self.at_most
        if (share is None) == (at_most is None):
            raise HoyerExportError(f"a budget of {name} is a share of the dense network or at_most a number: give one")
        if share is not None and not (_is_number(share) and 0 < share <= 1):
            raise HoyerExportError(f"{name} is a share of the dense network, above 0 and at most 1, got {share!r}")
        if at_most is not None and not (_is_number(at_most) and 0 < at_most < inf):
            raise HoyerExportError(f"at_most is a number of {name} above 0, got {at_most!r}")

    def __str__(self) -> str:
        if self.at_most is not None:
            return f"at most {self.cost.describe(self.at_most)}"
        return f"{self.cost.name} = {self.share}"

    def is_met_by(self, value: float, dense: float) -> bool:
        """Return whether a network that costs ``value`` meets the budget, where the dense one costs ``dense``."""
        limit = self.at_most if self.share is None else float(self.share) * dense
        return limit is not None and is_within(value, limit)


def is_within(value: float, limit: float) -> bool:
    """Return whether a figure meets its limit, but for its last bit."""
    return bool(value <= limit * (1 + _LAST_BIT))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
