"""A sweep as people see it on a terminal."""

from typing import TYPE_CHECKING

from rich.markup import escape

from hoyer_export.console.terminal import plain, print_rows, terminal
from hoyer_export.report.number_format import milliseconds, percent, share

if TYPE_CHECKING:
    from hoyer_export.report.sweep import SweepRecord, SweepRun


def print_sweep(found: "SweepRecord") -> None:
    """Print a row a run, how many are in which state, and why the failed ones failed."""
    console = terminal()
    columns = ["run", "state", "validation", "test", "MACs", "latency", "ms"]
    rows = [_row(run) for run in found.runs]
    print_rows(console, columns, rows, left=["run", "state"], least=["ms", "validation"])
    counts = {run.state: found.count(run.state) for run in found.runs}
    console.print(plain(", ".join(f"{count} {state}" for state, count in counts.items()) or "no run is planned"))
    for run in found.runs:
        if run.error is not None:
            console.print(f"[bold red]failed:[/] {escape(run.name)}: {escape(run.error)}", highlight=False)


def _row(run: "SweepRun") -> dict[str, str]:
    row = {"run": escape(run.name), "state": escape(run.state if run.at is None else f"{run.state}: {run.at}")}
    if (slim := run.file("slim")) is None:
        return row
    figures = {"test": percent(slim.accuracy), "validation": percent(run.validation_accuracy)}
    costs = {"MACs": share(slim.macs_share), "latency": share(slim.latency_share), "ms": milliseconds(slim.latency_ms)}
    return row | figures | costs
