"""Where the time goes: what every layer takes in dense and in slim, beside the MACs that it has there."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hoyer_export.report.report import Report
from hoyer_export.report.stage_records import NodeLatency

MOST_ROWS = 32


@dataclass(frozen=True)
class LayerTime:
    """One layer, or all nodes with one operator that multiply nothing.

    Args:
        name: of the layer, or the operator.
        multiplies: whether it is a layer.
        dense, slim: milliseconds a run; None where the file has no such node.
        macs: share of the dense layer's MACs that is left; None where nothing is counted.
        dense_length, slim_length: of the bars, in per cent of the slowest.
    """

    name: str
    multiplies: bool
    dense: float | None
    slim: float | None
    macs: float | None
    dense_length: float
    slim_length: float

    @property
    def left(self) -> float | None:
        """Share of the dense time that is left."""
        return self.slim / self.dense if self.dense and self.slim is not None else None

    @property
    def slowest(self) -> float:
        """Milliseconds in the file where it takes longer."""
        return max(self.dense or 0.0, self.slim or 0.0)


def in_view(rows: Sequence[LayerTime]) -> tuple[Sequence[LayerTime], Sequence[LayerTime]]:
    """Return the rows that take most time, where there are many, and all others; both in the order of the network."""
    if len(rows) <= MOST_ROWS:
        return rows, ()
    least = sorted((row.slowest for row in rows), reverse=True)[MOST_ROWS - 1]
    return [row for row in rows if row.slowest >= least], [row for row in rows if row.slowest < least]


def time_by_layer(report: Report) -> tuple[LayerTime, ...]:
    """Return every layer in the order in which they run, what multiplies nothing at the end; none without a profile."""
    if report.dense.latency is None or report.slim.latency is None:
        return ()
    before, after = _summed(report.dense.latency.nodes), _summed(report.slim.latency.nodes)
    if not before or not after:
        return ()
    longest = max(ms for ms, _ in (*before.values(), *after.values())) or 1.0
    rows = []
    for multiplies, name in sorted(dict.fromkeys((*before, *after)), key=lambda it: not it[0]):
        dense, slim = before.get((multiplies, name)), after.get((multiplies, name))
        rows.append(
            LayerTime(
                name=name,
                multiplies=multiplies,
                dense=None if dense is None else dense[0],
                slim=None if slim is None else slim[0],
                macs=slim[1] / dense[1] if dense and slim and dense[1] else None,
                dense_length=round(100 * (dense or (0.0, 0))[0] / longest, 1),
                slim_length=round(100 * (slim or (0.0, 0))[0] / longest, 1),
            )
        )
    return tuple(rows)


def _summed(nodes: Sequence[NodeLatency]) -> dict[tuple[bool, str], tuple[float, int]]:
    """Return (multiplies, name) → milliseconds and MACs: a layer that runs twice has both."""
    found: dict[tuple[bool, str], tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for node in nodes:
        key = (bool(node.layer), node.layer or node.op)
        found[key] = (found[key][0] + node.ms, found[key][1] + node.macs)
    return dict(found)
