"""What people see while they wait: live progress on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from hoyer_export.report.number_format import duration, percent, score, share

if TYPE_CHECKING:
    from hoyer_export.run.progress import Progress
    from hoyer_export.sparsify.phase import EpochRecord, StepProgress


@contextmanager
def progress() -> Iterator["Progress"]:
    """Yield somebody who shows progress on stderr: one line a headline and an epoch; on a terminal a bar below them."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield Shown(bars)


class Shown:
    """Lines, above one bar for the phase that trains."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._started = time.perf_counter()

    def headline(self, text: str) -> None:
        """Say which stage begins, and when."""
        self._end_bar()
        passed = duration(time.perf_counter() - self._started)
        self._bars.console.print(f"[dim]\\[{passed}][/] [bold]{escape(text)}[/]")

    def note(self, text: str) -> None:
        """Say it."""
        self._bars.console.print(f"  [yellow]{escape(text)}[/]")

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
        self._bars.console.print(f"  [dim]{escape(_epoch_line(epoch, epochs))}[/]")
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
        *([] if epoch.train_accuracy is None else [f"train {percent(epoch.train_accuracy)}"]),
        f"validation {epoch.metric or ''}".strip() + f" {score(epoch.validation_accuracy, epoch.metric)}",
    ]
    if epoch.phase == "sparse" and epoch.effective_macs is not None:
        said += [f"effective MACs {share(epoch.effective_macs)}", f"alive {share(epoch.alive_macs)}"]
    return "  ".join([*said, duration(epoch.seconds)])
