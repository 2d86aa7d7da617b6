"""The answer of every verb as people see it: a table and a few lines."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hoyer_export.report.number_format import (
    count,
    exact,
    milliseconds,
    percent,
    points,
    share,
    size,
    small,
    times,
)

if TYPE_CHECKING:
    from hoyer_export.deploy.benchmark import BenchmarkRecord
    from hoyer_export.deploy.macs import MacsRecord
    from hoyer_export.pipeline.cut_report import CutReport, Moved
    from hoyer_export.pipeline.inspecting import GroupCost, Inspection
    from hoyer_export.report.record import Report
    from hoyer_export.surgery.self_test import Verdict

PLAIN_WIDTH = 120  # of a table that no terminal limits
NARROW = 100  # columns, below which a table leaves out what is asked for least
TOP_ROWS = 20  # of a table that would not fit on a screen
MOVED = 1e-5  # relative change of the outputs that asks for fine-tuning: what verification tolerates between runtimes


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


def print_inspection(found: "Inspection", *, everything: bool = False) -> None:
    """Print the channel groups, what is unprunable and why, and what can be reached.

    The heaviest groups come first; only ``everything`` prints more than a screen of them.
    """
    console = _console()
    shape = "×".join(map(str, found.input_shape))
    console.print(_plain(f"{found.network}, input {shape}: {count(found.params)} parameters, {count(found.macs)} MACs"))
    _print_groups(console, found, everything)
    if found.unprunable:
        _print_unprunable(console, found, everything)
    if found.verdicts is not None:
        _print_verdicts(console, found.verdicts)
    least = f"{share(found.least_macs)} of dense, with align = {found.align}"
    console.print(_plain(f"least MACs that can be reached: {least}"))
    for name, times_run in found.uncounted.items():
        console.print(_plain(f"not counted: {count(times_run)} {'' if name == 'MACs' else '× '}{name}"))
    if found.asked_macs is not None:
        verdict = "can be reached" if found.reachable else "cannot be reached; ask for more, or lower the alignment"
        if found.uncounted:
            verdict = "cannot be judged, for not everything that multiplies is counted"
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
    if found.cross_check_failed is not None:
        console.print(_plain(f"no second opinion: {found.cross_check_failed}"))


def _print_groups(console: Console, found: "Inspection", everything: bool) -> None:
    title = f"{len(found.groups)} channel group{'' if len(found.groups) == 1 else 's'}"
    # A line of its own: a title is folded to its table's width.
    console.print(_plain(title + ", the heaviest first; a layer between two counts in both"))
    table = Table()
    columns = ["group", "width", "MACs", "share", "params", "least"]
    if console.width < NARROW:
        columns.remove("params")  # names of groups are long, and are worth more
    for column in columns:
        table.add_column(column, justify="left" if column == "group" else "right", no_wrap=True)
    groups = sorted(found.groups, key=lambda group: -group.macs)
    shown = groups if everything else groups[:TOP_ROWS]
    rows = [_group_row(escape(group.name), [group]) for group in shown]
    if rest := groups[len(shown) :]:
        # Layers between two of them count twice, so that their shares may well add up to more than all.
        rows.append(_group_row(f"{len(rest)} more (--all)", rest) | {"share": ""})
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    console.print(table)


def _group_row(name: str, groups: "list[GroupCost]") -> dict[str, str]:
    """Return the numbers of one group, or of several summed up."""
    width, macs, part, params, least = (
        sum(getattr(it, key) for it in groups) for key in ("width", "macs", "share", "params", "least")
    )
    return {
        "group": name,
        "width": f"{width:,}",
        "MACs": count(macs),
        "share": share(part),
        "params": count(params),
        "least": f"{least:,}",
    }


def _print_unprunable(console: Console, found: "Inspection", everything: bool) -> None:
    table = Table(title="unprunable, left whole", title_justify="left")
    for column in ("why", "indices", "of"):
        table.add_column(column, justify="right" if column == "indices" else "left", overflow="fold")
    shown = found.unprunable if everything else found.unprunable[:TOP_ROWS]
    for reason in shown:
        first = ", ".join(reason.parameters[:3])
        more = f" and {len(reason.parameters) - 3} more" if len(reason.parameters) > 3 else ""
        table.add_row(escape(reason.reason), f"{reason.channels:,}", escape(first + more))
    if rest := found.unprunable[len(shown) :]:
        table.add_row(f"{len(rest)} more reasons (--all)", f"{sum(reason.channels for reason in rest):,}", "")
    console.print(table)


def _print_verdicts(console: Console, verdicts: "tuple[Verdict, ...]") -> None:
    proved = [verdict for verdict in verdicts if verdict.verdict == "proved"]
    unseen = [verdict for verdict in verdicts if verdict.verdict == "unseen"]
    refuted = [verdict for verdict in verdicts if verdict.verdict == "refuted"]
    error = max((verdict.max_rel_error or 0.0 for verdict in proved), default=0.0)
    agree = f"; zeroed and cut networks agree to {small(error)} in float64" if proved else ""
    tried = len(proved) + len(unseen) + len(refuted)
    console.print(_plain(f"self-test: {len(proved)} of {tried} groups proved{agree}"))
    for verdict in unseen:
        console.print(f"[yellow]not proved:[/] {escape(verdict.group)}: {escape(verdict.reason)}", highlight=False)
    for verdict in refuted:
        line = f"[bold red]refuted, left whole:[/] {escape(verdict.group)}: {escape(verdict.reason)}"
        console.print(line, highlight=False)


def print_cut(found: "CutReport", folder: Path) -> None:
    """Print dense beside slim, how exact the cut is, how far zeroing moved the outputs, and what to do next."""
    shape = "×".join(map(str, found.input_shape))
    table = Table(title=f"{found.network}, input {shape}", title_justify="left")
    for column in ("", "dense", "slim", "slim / dense"):
        table.add_column(column, justify="left" if not column else "right")
    dense, slim = found.dense, found.slim
    if dense.accuracy is not None and slim.accuracy is not None:
        change = points(slim.accuracy - dense.accuracy)
        table.add_row("test accuracy", percent(dense.accuracy), percent(slim.accuracy), change)
    for name, first, second, shown in (
        ("MACs", dense.macs, slim.macs, exact),
        ("params", dense.params, slim.params, exact),
        ("ONNX file, bytes", dense.onnx_bytes, slim.onnx_bytes, exact),
    ):
        table.add_row(name, shown(first), shown(second), share(second / max(first, 1)))
    console = _console()
    console.print(table)
    before, after = (sum(sizes[side] for sizes in found.widths.values()) for side in (0, 1))
    budget = " ".join(f"{key} = {value}" for key, value in found.asked.items())
    verdict = "met" if found.met else "CANNOT BE JUDGED" if "macs" in found.asked and found.uncounted else "MISSED"
    asked = f"{budget}, {verdict}; " if budget else ""
    console.print(
        _plain(f"{found.method}, align = {found.align}: {asked}{before - after:,} of {before:,} channels removed")
    )
    if found.dead_blocks:
        console.print(_plain(f"dead blocks, now their shortcuts: {', '.join(found.dead_blocks)}"))
    for layer, (features, read) in found.gathered.items():
        console.print(_plain(f"{layer} reads {read:,} of {features:,} input features"))
    rounded = found.delivered_rel_error
    shifts = f"; with its shifts in float32 to {small(rounded)}" if rounded > found.max_rel_error else ""
    agree = small(found.max_rel_error)
    console.print(_plain(f"cut: zeroed and slim network agree to {agree} (relative, float64){shifts}"))
    for moved in found.moved:
        console.print(_plain(_moved_words(moved)))
    for name, figures in (("dense.onnx", dense), ("slim.onnx", slim)):
        error = (
            "an error that is not finite" if figures.max_error is None else f"errors up to {small(figures.max_error)}"
        )
        if figures.failed:
            console.print(_plain(f"{name}: NOT VERIFIED, do not ship it: {', '.join(figures.failed)} failed, {error}"))
        else:
            left_open = (
                f" ({figures.left_open} comparisons left open: torch rounds as much)" if figures.left_open else ""
            )
            console.print(_plain(f"{name}: verified, {error}{left_open}"))
    cautions = [found.warning] if found.warning else []
    if found.uncounted:
        nodes = ", ".join(f"{count} × {op}" for op, count in found.uncounted.items())
        cautions.append(f"not counted among the MACs: {nodes}, which may multiply and accumulate")
    if found.weights is None:
        cautions.append("the weights are random (no --weights): MACs and sizes are right, outputs mean nothing")
    if found.align < 8 and after < before:
        cautions.append(
            "odd widths can be slower in onnxruntime than the dense ones (61 channels than 64): measure, or --align 16"
        )
    for caution in cautions:
        console.print(f"[yellow]note:[/] {escape(caution)}", highlight=False)
    if any(_is_moved(moved) for moved in found.moved):
        slim_file = folder / "slim.safetensors"
        console.print(_plain("next: fine-tune, for zeroing has changed what the network computes; cutting has not:"))
        console.print(_plain(f'      train hx.load_slim("{slim_file}").model, then hx.export_onnx it'))
    console.print(_plain(f"measure: hoyer-export bench {folder}/dense.onnx {folder}/slim.onnx"))
    console.print(_plain(f"files: {folder}/slim.onnx, dense.onnx, slim.safetensors, widths.json"))


def _is_moved(moved: "Moved") -> bool:
    if moved.max_change is None or moved.max_output is None:  # not finite: the files are not verified then
        return False
    return moved.max_change > MOVED * max(1.0, moved.max_output)


def _moved_words(moved: "Moved") -> str:
    images = f"{moved.count:,} images of noise" if moved.images == "noise" else f"{moved.count:,} {moved.images} images"
    if moved.max_change is None:
        return f"an output is not finite on {images}: nobody can say how far zeroing moved it"
    if moved.max_change == 0:
        return f"zeroing moved no output by a single bit on {images}"
    return f"zeroing moved outputs by up to {small(moved.max_change)} on {images}; they reach {small(moved.max_output)}"


def print_cut_stage(found: Mapping[str, Any], folder: Path) -> None:
    """Print every group's widths after the cut stage of a run."""
    table = Table()
    for column in ("group", "dense", "alive", "slim"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for row in found["widths"]:
        table.add_row(escape(row["group"]), *(str(row[key]) for key in ("dense", "alive", "slim")))
    console = _console()
    console.print(table)
    stay, alive = (share(found[key] / found["dense_macs"]) for key in ("macs", "alive_macs"))
    agree = small(found["max_rel_error"])
    console.print(_plain(f"{stay} of the MACs stay, {alive} before alignment; zeroed and slim agree to {agree}"))
    console.print(_plain(f"{'written' if found['changed'] else 'unchanged'}: {folder}/slim.safetensors, widths.json"))
    if found["changed"]:
        again = f"hoyer-export run {folder}/recipe.toml --out {folder} --resume"
        console.print(_plain(f"next, for slim.onnx, report and card are not of this cut yet: {again}"))


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
    cpu = "CPU p50 ms" if found.threads == 1 else "CPU p50 ms, all threads"
    for column in ("file", "p50 ms", "p90 ms", "p99 ms", "min ms", cpu, "GMAC/s", "runs", "speed-up (95 %)"):
        table.add_column(column, justify="left" if column == "file" else "right", overflow="fold")
    for index, file in enumerate(found.files):
        speed = ""
        if index:
            speedup = found.speedups[index - 1]
            within = "too noisy" if speedup.ci95 is None else f"{speedup.ci95[0]:.3g}–{speedup.ci95[1]:.3g}"
            speed = f"{times(speedup.median)} ({within})"
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
