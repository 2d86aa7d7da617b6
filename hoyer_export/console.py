"""What people see: live progress on a terminal, plain lines elsewhere, and a table for every verb's answer."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from hoyer_export.report.number_format import count, duration, exact, milliseconds, percent, share, size, small, times

if TYPE_CHECKING:
    from hoyer_export.deploy.benchmark import BenchmarkRecord
    from hoyer_export.deploy.macs import MacsRecord
    from hoyer_export.pipeline.inspecting import Inspection
    from hoyer_export.pipeline.progress import Progress
    from hoyer_export.report.record import Report
    from hoyer_export.sparsify.training import EpochRecord, StepProgress

PLAIN_WIDTH = 120  # of a table that no terminal limits


@contextmanager
def progress() -> Iterator["Progress"]:
    """Yield somebody who shows progress on stderr: live on a terminal, one line an epoch elsewhere."""
    if not sys.stderr.isatty():
        yield PlainProgress()
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        yield LiveProgress(bars)


class PlainProgress:
    """One line a headline, one an epoch."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def headline(self, text: str) -> None:
        """Say which stage begins, and when."""
        self._line(f"[{duration(time.perf_counter() - self._started)}] {text}")

    def note(self, text: str) -> None:
        """Say it."""
        self._line(f"  {text}")

    def step(self, step: "StepProgress") -> None:
        """Say nothing."""

    def epoch(self, epoch: "EpochRecord", epochs: int) -> None:
        """Say what the epoch brought."""
        self._line(f"  {_epoch_line(epoch, epochs)}")

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class LiveProgress:
    """The same lines above one bar for the phase that trains."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._started = time.perf_counter()

    def headline(self, text: str) -> None:
        """Say which stage begins."""
        self._end_bar()
        passed = duration(time.perf_counter() - self._started)
        self._bars.console.print(f"[bold]{escape(text)}[/]  [dim]{passed}[/]", highlight=False)

    def note(self, text: str) -> None:
        """Say it."""
        self._bars.console.print(f"  [yellow]{escape(text)}[/]", highlight=False)

    def step(self, step: "StepProgress") -> None:
        """Move the bar."""
        total = step.epochs * step.steps
        if self._task is None:
            self._task = self._bars.add_task(step.phase, total=total, said="")
        self._bars.update(
            self._task,
            total=total,
            completed=step.epoch * step.steps + step.step,
            said=f"epoch {step.epoch + 1}/{step.epochs}  loss {step.loss:.4f}",
        )

    def epoch(self, epoch: "EpochRecord", epochs: int) -> None:
        """Say what the epoch brought."""
        self._bars.console.print(f"  [dim]{escape(_epoch_line(epoch, epochs))}[/]", highlight=False)
        if epoch.epoch + 1 == epochs:
            self._end_bar()

    def _end_bar(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


def _epoch_line(epoch: "EpochRecord", epochs: int) -> str:
    said = [
        f"{epoch.phase} {epoch.epoch + 1}/{epochs}",
        f"loss {epoch.loss:.4f}",
        f"train {percent(epoch.train_accuracy)}",
        f"validation {percent(epoch.validation_accuracy)}",
    ]
    if epoch.phase == "sparse":
        said += [f"effective MACs {share(epoch.effective_macs)}", f"alive {share(epoch.alive_macs)}"]
    return "  ".join([*said, duration(epoch.seconds)])


def print_report(report: "Report", folder: Path) -> None:
    """Print dense beside slim, what was verified, and where the files are."""
    from hoyer_export.report.summary import budget_words, cautions, speedup_words, title, verification_steps

    network, data = title(report)
    dense, slim = report.dense, report.slim
    table = Table(title=f"{network} on {data}", title_justify="left")
    for column in ("", "dense", "slim", "slim / dense"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(
        "test accuracy",
        percent(dense.accuracy),
        percent(slim.accuracy),
        f"{slim.accuracy - dense.accuracy:+.2f} points",
    )
    for name, first, second, shown in (
        ("MACs", dense.macs, slim.macs, count),
        ("params", dense.params, slim.params, count),
        ("ONNX file", dense.onnx_bytes, slim.onnx_bytes, size),
    ):
        table.add_row(name, shown(first), shown(second), share(second / first))
    if report.latency is not None:
        ms = report.latency.dense_ms, report.latency.slim_ms
        for quantile in ("p50", "p90"):
            first_ms, second_ms = (getattr(it, quantile) for it in ms)
            name = f"latency {quantile}"
            table.add_row(name, milliseconds(first_ms), milliseconds(second_ms), share(second_ms / first_ms))
        blocked = report.latency.blocked_convs
        table.add_row(
            "blocked convolutions",
            f"{blocked.dense.blocked} of {blocked.dense.total}",
            f"{blocked.slim.blocked} of {blocked.slim.total}",
            "",
        )
    console = _console()
    console.print(table)
    steps = verification_steps(report)
    passed = sum(step.passed for step in steps)
    console.print(_plain(f"speed: {speedup_words(report)}"))
    console.print(_plain(f"budget: {budget_words(report)}"))
    console.print(_plain(f"verification: {passed} of {len(steps)} steps passed"))
    for caution in cautions(report):
        style = "bold red" if caution.severe else "yellow"
        console.print(f"[{style}]{escape(caution.title)}:[/] {escape(caution.text)}", highlight=False)
    console.print(_plain(f"files: {folder}/report.html, card.md, report.json, slim.onnx, slim.safetensors"))


def print_inspection(found: "Inspection") -> None:
    """Print the channel groups, what is unprunable and why, and what can be reached."""
    console = _console()
    shape = "×".join(map(str, found.input_shape))
    console.print(_plain(f"{found.network}, input {shape}: {count(found.params)} parameters, {count(found.macs)} MACs"))
    groups = Table(
        title=f"{len(found.groups)} channel group{'' if len(found.groups) == 1 else 's'}", title_justify="left"
    )
    for column in ("group", "width", "MACs it carries", "share", f"least (align {found.align})"):
        groups.add_column(column, justify="left" if column == "group" else "right", overflow="fold")
    for group in found.groups:
        groups.add_row(escape(group.name), str(group.width), count(group.macs), share(group.share), str(group.least))
    console.print(groups)
    if found.unprunable:
        table = Table(title="unprunable, left whole", title_justify="left")
        for column in ("why", "indices", "of"):
            table.add_column(column, justify="right" if column == "indices" else "left", overflow="fold")
        for reason in found.unprunable:
            first = ", ".join(reason.parameters[:3])
            more = f" and {len(reason.parameters) - 3} more" if len(reason.parameters) > 3 else ""
            table.add_row(escape(reason.reason), str(reason.channels), escape(first + more))
        console.print(table)
    console.print(_plain(f"least MACs that can be reached: {share(found.least_macs)} of dense"))
    if found.asked_macs is not None:
        verdict = "can be reached" if found.reachable else "cannot be reached"
        console.print(_plain(f"macs = {found.asked_macs:g} {verdict}"))
    if (check := found.cross_check) is not None:
        channels = sum(group.width for group in found.groups)
        console.print(
            _plain(f"torch-pruning couples {check.agreeing:,} of these {channels:,} channels in the same way")
        )
        if check.only_here:
            console.print(_plain(f"it couples channels of {', '.join(check.only_here)} otherwise"))
        if check.only_there:
            console.print(_plain(f"it would also remove channels of {', '.join(check.only_there)}"))


def print_exports(found: Mapping[str, Any], folder: Path) -> None:
    """Print the figures of both files."""
    table = Table()
    for column in ("file", "params", "MACs", "bytes", "sha256"):
        table.add_column(column, justify="left" if column in ("file", "sha256") else "right")
    for name in ("dense", "slim"):
        figures = found[name]
        macs, params = exact(figures["macs"]), exact(figures["params"])
        row = (f"{folder}/{name}.onnx", params, macs, exact(figures["onnx_bytes"]), figures["onnx_sha256"][:12])
        table.add_row(*map(escape, row))
    _console().print(table)


def print_verification(found: Mapping[str, Any]) -> None:
    """Print every check with its value and tolerance."""
    table = Table()
    for column in ("check", "value", "tolerance", ""):
        table.add_column(column, justify="right" if column in ("value", "tolerance") else "left")
    for check in found["checks"]:
        table.add_row(
            escape(check["name"]), small(check["value"]), small(check["tolerance"]), _verdict(check["passed"])
        )
    console = _console()
    console.print(table)
    accuracy = found["accuracy"]
    names = {"dense": "dense", "sparse": "sparse", "slim": "slim", "slim_onnx": "slim.onnx"}
    console.print(_plain("test accuracy: " + ", ".join(f"{names[key]} {percent(accuracy[key])}" for key in names)))
    console.print(_plain("verified" if found["passed"] else "VERIFICATION FAILED: do not ship this file"))


def print_macs(found: "MacsRecord") -> None:
    """Print every node's MACs and parameters, and the sums."""
    table = Table()
    for column in ("node", "op", "weight", "output", "MACs", "share", "params"):
        table.add_column(column, justify="right" if column in ("MACs", "share", "params") else "left", overflow="fold")
    for node in found.nodes:
        shapes = ("×".join(map(str, shape)) for shape in (node.weight_shape, node.output_shape))
        part = share(node.macs / found.macs if found.macs else 0)
        table.add_row(escape(node.name), node.op, *shapes, exact(node.macs), part, exact(node.params))
    console = _console()
    console.print(table)
    images = "one image" if found.batch == 1 else f"a batch of {found.batch}, which the file fixes"
    console.print(
        _plain(
            f"{exact(found.macs)} MACs = {exact(found.flops)} FLOPs for {images}; {exact(found.params)} params, "
            f"{exact(found.size_bytes)} bytes"
        )
    )
    for op, nodes in found.uncounted.items():
        console.print(f"[yellow]not counted:[/] {nodes} × {escape(op)}", highlight=False)


def print_benchmark(found: "BenchmarkRecord") -> None:
    """Print every file's latency, and how many times as fast as the first it is."""
    table = Table(title=f"onnxruntime, threads {found.threads}, batch {found.batch_size}", title_justify="left")
    for column in ("file", "p50 ms", "p90 ms", "p99 ms", "min ms", "CPU ms", "GMAC/s", "runs", "speed-up (95 %)"):
        table.add_column(column, justify="left" if column == "file" else "right", overflow="fold")
    for index, file in enumerate(found.files):
        speed = ""
        if index:
            speedup = found.speedups[index - 1]
            speed = f"{times(speedup.median)} ({speedup.ci95[0]:.3g}–{speedup.ci95[1]:.3g})"
        numbers = (file.p50_ms, file.p90_ms, file.p99_ms, file.min_ms, file.cpu_ms, file.gmacs_per_second)
        table.add_row(escape(file.file), *(f"{number:.3g}" for number in numbers), exact(file.n), speed)
    console = _console()
    console.print(table)
    if found.noisy:
        console.print(f"[yellow]warning:[/] {escape(found.noisy)}", highlight=False)


def _console() -> Console:
    """Return stdout; where it is no terminal, no terminal's width cuts a table."""
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


def _plain(text: str) -> Text:
    """Return text that is printed as it is: brackets of a name are no markup."""
    return Text(text)


def _verdict(passed: bool) -> str:
    return "[green]passed[/]" if passed else "[bold red]FAILED[/]"
