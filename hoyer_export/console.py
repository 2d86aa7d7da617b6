"""The answer of every verb as people see it: a table and a few lines."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hoyer_export.report.number_format import (
    ABSENT,
    count,
    exact,
    milliseconds,
    percent,
    score,
    score_change,
    share,
    size,
    small,
    three_digits,
    times,
)

if TYPE_CHECKING:
    from hoyer_export.deploy.benchmark import BenchmarkRecord, Speedup
    from hoyer_export.deploy.explain import Explanation
    from hoyer_export.deploy.info import FileInfo, ValueInfo
    from hoyer_export.deploy.macs import MacsRecord
    from hoyer_export.report.report import Report
    from hoyer_export.report.stage_records import (
        CutRecord,
        ExportsRecord,
        FileVerification,
        GateRecord,
        Moved,
        VerifiedRecord,
    )
    from hoyer_export.run.inspecting import GroupCost, Inspection
    from hoyer_export.run.proposing import Proposal
    from hoyer_export.run.timing import Times
    from hoyer_export.surgery.self_test import Verdict

PLAIN_WIDTH = 80  # of a table that no terminal limits
TOP_ROWS = 20  # of a table that would not fit on a screen
MOVED = 1e-5  # relative change of the outputs that asks for fine-tuning: what verification tolerates between runtimes


def print_report(report: "Report", folder: Path) -> None:
    """Print the files side by side, how exact the cut is, what was verified, and what to do next."""
    from hoyer_export.report.making import cut_details, making
    from hoyer_export.report.summary import (
        budget_words,
        cautions,
        class_rows,
        gate_words,
        speedup_words,
        title,
        verification_steps,
    )

    network, data = title(report)
    on = f"on {data}" if report.inputs.data else f"input {'×'.join(map(str, report.inputs.shape))}"
    table = Table(title=f"{network} {on}", title_justify="left")
    for column in ("", *(it.file.name for it in report.artifacts), "slim / dense"):
        table.add_column(column, justify="left" if not column else "right")
    for name, *cells in _figures(report):
        table.add_row(name, *cells)
    console = _console()
    console.print(table)
    made, steps = making(report), verification_steps(report)
    removed = f"{made.before - made.after:,} of {made.before:,} channels removed"
    console.print(_plain(f"cut: {removed}, align = {report.cut.align or 1}; {_agreement_words(report.cut)}"))
    for line in cut_details(report.cut):
        console.print(_plain(line))
    if lost := [row for row in class_rows(report) if row.change < 0][:3]:
        worst = ", ".join(f"{row.name} {row.dense:.1f} → {percent(row.slim)}" for row in lost)
        console.print(_plain(f"classes that lost most: {worst}"))
    console.print(_plain(f"speed: {speedup_words(report)}"))
    console.print(_plain(f"budget: {budget_words(report)}"))
    for line in gate_words(report.gate):
        console.print(_plain(f"gate: {line}"))
    passed = sum(step.passed for step in steps)
    left_open = sum(int(step.value) for step in steps if step.name == "inputs left open")
    rounding = f"; {left_open} comparisons left open, for torch itself rounds as much" if left_open else ""
    console.print(_plain(f"verification: {passed} of {len(steps)} steps passed{rounding}"))
    for caution in cautions(report):
        style = "bold red" if caution.severe else "yellow"
        console.print(f"[{style}]{escape(caution.title)}:[/] {escape(caution.text)}", highlight=False)
    if any(_is_moved(moved) for moved in report.cut.moved) and not made.trained_after:
        console.print(
            _plain("next: fine-tune, for what was chosen has changed what the network computes; cutting has not:")
        )
        for line in _fine_tuning(report, folder):
            console.print(_plain(f"  {line}"), soft_wrap=True)  # to be copied
    console.print(_plain(f"files: {folder}/report.html, card.md, report.json, slim.onnx, slim.safetensors"))


def _fine_tuning(report: "Report", folder: Path) -> Iterator[str]:
    """Yield lines of Python, and of a shell, that train the slim network in a loop of the user's own and ship it."""
    from hoyer_export.networks import is_function_name

    told = dict(report.recipe["network"])  # type: ignore[arg-type]
    name, into, allowed = str(told["name"]), "", ""
    yield "import torch, hoyer_export as hx"
    if is_function_name(name):  # which load_slim never imports from the name in a file
        module, function = name.split(":")
        given = ", ".join(f"{key}={told[key]}" for key in ("in_channels", "classes") if told.get(key) is not None)
        yield f"from {module} import {function}"
        into, allowed = f", into={function}({given})", f" --allow-import {module.partition('.')[0]}"
    path = json.dumps(str(folder / "slim.safetensors"), ensure_ascii=False)
    yield f"slim = hx.load_slim({path}{into})"
    yield "...  # train slim.model"
    yield 'torch.save(slim.model.state_dict(), "finetuned.pth")'
    yield f"hoyer-export ship {shlex.quote(str(folder))} --weights finetuned.pth{allowed}"


def _figures(report: "Report") -> Iterator[list[str]]:
    """Yield the rows of the table: a name, one cell a file, slim beside dense."""
    from hoyer_export.report.summary import accuracy_change, of_dense

    shipped, dense, slim = report.artifacts, report.dense, report.slim
    if slim.accuracy is not None:
        change = score_change(accuracy_change(report), report.metric)
        yield [f"test {report.metric_name}", *(score(it.accuracy, report.metric) for it in shipped), change]
    for name, key, shown in (("MACs", "macs", exact), ("params", "params", exact), ("file", "size_bytes", size)):
        yield [name, *(shown(getattr(it.file, key)) for it in shipped), share(of_dense(report, key))]
    measured = report.bench.artifacts
    if measured and dense.latency is not None and slim.latency is not None:
        for quantile in ("p50", "p90"):
            first, second = (getattr(it.latency, quantile) for it in (dense, slim))
            cells = (milliseconds(getattr(it, quantile)) for it in measured)
            yield [f"latency {quantile}", *cells, share(second / first)]
        blocked = [it.blocked_convs for it in measured]
        if any(blocked):
            cells = (f"{it.blocked} of {it.total}" if it is not None else "" for it in blocked)
            yield ["blocked convolutions", *cells, ""]


def _agreement_words(cut: "CutRecord") -> str:
    rounded = cut.delivered_rel_error
    shifts = (
        f", with its shifts in float32 to {small(rounded)}" if rounded and rounded > (cut.max_rel_error or 0) else ""
    )
    return f"zeroed and slim network agree to {small(cut.max_rel_error)} (relative, {cut.dtype}){shifts}"


def print_proposal(found: "Proposal") -> None:
    """Print what was found, and the command that comes next, each on a line of its own."""
    for line in (*found.found, f"written: {found.recipe}", f"next: {found.next}"):
        _console().print(_plain(line), soft_wrap=True)


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
        console.print(_plain(found.export_failed or "torch.onnx exports it"))
    least = f"{share(found.least_macs)} of dense, with align = {found.align}"
    console.print(_plain(f"least MACs that can be reached: {least}"))
    for name, times_run in found.uncounted.items():
        console.print(_plain(f"not counted: {count(times_run)} {'' if name == 'MACs' else '× '}{name}"))
    if found.asked_macs is not None:
        verdict = "can be reached" if found.reachable else "cannot be reached; ask for more, or lower the alignment"
        if not found.groups:
            verdict = "cannot be reached: nothing can be pruned"
        elif found.uncounted:
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
    groups = sorted(found.groups, key=lambda group: -group.macs)
    shown = groups if everything else groups[:TOP_ROWS]
    rows = [_group_row(escape(group.name), [group]) for group in shown]
    if rest := groups[len(shown) :]:
        # Layers between two of them count twice, so that their shares may well add up to more than all.
        rows.append(_group_row(f"{len(rest)} more (--all)", rest) | {"share": ""})
    columns = ["group", "width", "MACs", "share", "params", "least"]
    _print_rows(console, columns, rows, left=["group"], least=["params"], no_wrap=True)  # names are worth more


def _print_rows(
    console: Console,
    columns: list[str],
    rows: list[dict[str, str]],
    *,
    left: list[str],
    least: list[str],
    no_wrap: bool = False,
) -> None:
    """Print a table without those of the columns ``least``, asked for least, that there is no room for."""
    wide = console.options.update(max_width=10_000)
    for dropped in range(len(least) + 1):
        shown = [column for column in columns if column not in least[:dropped]]
        table = Table()
        for column in shown:
            table.add_column(column, justify="left" if column in left else "right", overflow="fold", no_wrap=no_wrap)
        for row in rows:
            table.add_row(*(row.get(column, "") for column in shown))
        if console.measure(table, options=wide).maximum <= console.width:
            break
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


def _is_moved(moved: "Moved") -> bool:
    if moved.max_change is None or moved.max_output is None:  # not finite: the files are not verified then
        return False
    return moved.max_change > MOVED * max(1.0, moved.max_output)


def print_exports(found: "ExportsRecord", folder: Path) -> None:
    """Print the figures of every file."""
    table = Table()
    for column in ("file", "params", "MACs", "bytes", "sha256"):
        table.add_column(column, justify="left" if column in ("file", "sha256") else "right")
    for file in found.artifacts:
        figures = exact(file.params), exact(file.macs), exact(file.size_bytes), (file.sha256 or "")[:12]
        table.add_row(*map(escape, (f"{folder}/{file.file}", *figures)))
    _console().print(table)


def print_verification(found: "VerifiedRecord") -> None:
    """Print every check with its value and tolerance."""
    from hoyer_export.report.summary import value_words

    table = Table()
    for column in ("file", "check", "value", "tolerance", ""):
        table.add_column(column, justify="right" if column in ("value", "tolerance") else "left")
    for file in found.artifacts:
        for check in file.checks:
            cells = value_words(check.value), small(check.tolerance), _verdict(check.passed)
            table.add_row(escape(file.name), escape(check.name), *cells)
    console = _console()
    console.print(table)
    for file in found.artifacts:
        if file.departure is not None:
            console.print(_plain(f"{file.name}: the first node that departs is {file.departure}"))
    read = {f"{it.name}{kind}": value for it in found.artifacts for kind, value in _accuracies(it).items()}
    if found.sparse_accuracy is not None:
        read["before the cut"] = found.sparse_accuracy
    if read:
        console.print(_plain("test accuracy: " + ", ".join(f"{name} {percent(value)}" for name, value in read.items())))
    console.print(_plain("verified" if found.passed else "VERIFICATION FAILED: do not ship this file"))


def print_gate(found: "GateRecord") -> None:
    """Print every limit with what was reached."""
    from hoyer_export.report.summary import gate_words

    for line in gate_words(found):
        _console().print(_plain(line), soft_wrap=True)
    _console().print(_plain("gate passed" if found.passed else "GATE FAILED"))


def _accuracies(file: "FileVerification") -> dict[str, float]:
    found = {"": file.accuracy, ".onnx": file.onnx_accuracy}
    return {kind: value for kind, value in found.items() if value is not None}


def print_macs(found: "MacsRecord", *, everything: bool = False) -> None:
    """Print every node's MACs and parameters, the heaviest first, and the sums; only ``everything`` prints them all."""
    nodes = sorted(found.nodes, key=lambda node: (-node.macs, -node.params))
    shown = nodes if everything else nodes[:TOP_ROWS]
    rows = [
        {"node": escape(node.name), "op": escape(node.op)}
        | {"weight": "×".join(map(str, node.weight_shape)), "output": "×".join(map(str, node.output_shape))}
        | _macs_cells(found, node.macs, node.params)
        for node in shown
    ]
    if rest := nodes[len(shown) :]:
        sums = _macs_cells(found, sum(node.macs for node in rest), sum(node.params for node in rest))
        rows.append({"node": f"{len(rest)} more (--all)"} | sums)
    console, columns = _console(), ["node", "op", "weight", "output", "MACs", "share", "params"]
    _print_rows(console, columns, rows, left=["node", "op", "weight", "output"], least=["weight"])
    images = "one image" if found.batch == 1 else f"a batch of {found.batch}"
    console.print(_plain(f"{exact(found.macs)} MACs = {exact(found.flops)} FLOPs for {images}"))
    console.print(_plain(f"{exact(found.params)} params, {exact(found.size_bytes)} bytes"))
    for op, count_of in found.uncounted.items():
        console.print(f"[yellow]not counted:[/] {count_of} × {escape(op)}", highlight=False)


def _macs_cells(found: "MacsRecord", macs: int, params: int) -> dict[str, str]:
    return {"MACs": count(macs), "share": share(macs / found.macs if found.macs else 0), "params": count(params)}


def print_times(found: "Times", *, everything: bool = False) -> None:
    """Print the time of every kind of layer, the slowest first, how far times between are off, and where they are."""
    shown = found.layers if everything else found.layers[:TOP_ROWS]
    rows = [
        {"layer": escape(it.layer), "times": str(it.calls), "ms": three_digits(it.ms), "share": share(it.ms / found.ms)}
        | {"GMAC/s": three_digits(it.gmacs_per_second), "ms at half widths": three_digits(it.half_ms)}
        for it in shown
    ]
    if rest := found.layers[len(shown) :]:
        ms, half = sum(it.ms for it in rest), sum(it.half_ms for it in rest)
        rows.append(
            {"layer": f"{len(rest)} more (--all)", "times": str(sum(it.calls for it in rest)), "ms": three_digits(ms)}
            | {"share": share(ms / found.ms), "ms at half widths": three_digits(half)}
        )
    console = _console()
    _print_rows(
        console, ["layer", "times", "ms", "share", "GMAC/s", "ms at half widths"], rows, left=["layer"], least=[]
    )
    threads = f"{found.threads} thread{'' if found.threads == 1 else 's'}"
    blocks = f"blocks of {found.block} channels"
    console.print(
        _plain(f"{three_digits(found.ms)} ms in {found.runtime}, {threads}, batch {found.batch_size}, {blocks}")
    )
    if (off := found.interpolation) is not None:
        far = f"{share(off.median)} in the median, {share(off.largest)} at most"
        console.print(_plain(f"at {off.pairs} pairs of widths off the grid the table is off by {far}"))
    console.print(_plain(f"{found.entries:,} measurements are kept in {found.folder}"))


def print_explanation(found: "Explanation", *, everything: bool = False) -> None:
    """Print every node's time beside its MACs, the slowest first, and what holds the file back."""
    nodes = sorted(found.nodes, key=lambda node: -node.ms)
    shown = nodes if everything else nodes[:TOP_ROWS]
    rows = [
        {"node": escape(node.name), "op": escape(node.op), "layout": node.layout, "ms": three_digits(node.ms)}
        | {"share": share(node.ms / found.ms if found.ms else 0), "MACs": count(node.macs) if node.macs else ABSENT}
        | {"GMAC/s": ABSENT if node.gmacs_per_second is None else three_digits(node.gmacs_per_second)}
        for node in shown
    ]
    if rest := nodes[len(shown) :]:
        ms, macs = sum(node.ms for node in rest), sum(node.macs for node in rest)
        rows.append(
            {"node": f"{len(rest)} more (--all)", "ms": three_digits(ms), "share": share(ms / found.ms)}
            | {"MACs": count(macs) if macs else ABSENT}
        )
    console, columns = _console(), ["node", "op", "layout", "ms", "share", "MACs", "GMAC/s"]
    _print_rows(console, columns, rows, left=["node", "op", "layout"], least=["op"])
    rate = "" if found.gmacs_per_second is None else f", {three_digits(found.gmacs_per_second)} GMAC/s"
    best = (
        ""
        if found.best_gmacs_per_second is None
        else f"; the best node has {three_digits(found.best_gmacs_per_second)}"
    )
    how = f"threads {found.threads}, batch {found.batch_size}, {found.runs:,} runs, the sum of all nodes"
    console.print(_plain(f"{milliseconds(found.ms)} for {count(found.macs)} MACs{rate}{best} ({how})"), soft_wrap=True)
    for line in found.findings:
        console.print(_plain(f"* {line}"), soft_wrap=True)
    for op, count_of in found.uncounted.items():
        console.print(f"[yellow]not counted:[/] {count_of} × {escape(op)}", highlight=False)


def print_info(found: "FileInfo") -> None:
    """Print what the file says of itself, a line a fact."""
    console = _console()
    beside = f", with {', '.join(found.side_files)}" if found.side_files else ""
    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    lines = [
        ("file", f"{found.file}, {exact(found.size_bytes)} bytes{beside}"),
        ("sha256", found.sha256),
        ("producer", found.producer or ABSENT),
        ("format", f"IR version {found.ir_version}, opset {opsets}"),
        *(("input", _value_words(value)) for value in found.inputs),
        *(("output", _value_words(value)) for value in found.outputs),
        ("parameters", exact(found.params)),
        ("nodes", f"{sum(found.nodes.values()):,}: {', '.join(f'{n} × {op}' for op, n in found.nodes.items())}"),
        *([("description", found.description)] if found.description else []),
        *(("metadata", f"{key} = {value}") for key, value in found.metadata.items()),
    ]
    for name, text in lines:
        console.print(_plain(f"{name:<11} {text}"), soft_wrap=True)
    if not found.metadata:
        console.print(_plain("metadata    none"))


def _value_words(value: "ValueInfo") -> str:
    sizes = "any shape" if value.shape is None else f"[{', '.join(map(str, value.shape))}]"
    return f"{value.name} {value.type} {sizes}"


def print_benchmark(found: "BenchmarkRecord") -> None:
    """Print every file's latency, and how many times as fast as the first it is."""
    console = _console()
    cpu = "" if found.threads == 1 else "; CPU: sum over all threads"
    runtimes = list(dict.fromkeys(file.runtime for file in found.files))
    console.print(
        _plain(f"{' and '.join(runtimes)}, threads {found.threads}, batch {found.batch_size}, milliseconds{cpu}")
    )
    columns = [
        "file",
        *(["runtime"] if len(runtimes) > 1 else []),
        "p50",
        "p90",
        "p99",
        "min",
        "CPU p50",
        "GMAC/s",
        "runs",
        "speed-up (95 %)",
    ]
    rows = []
    for file, speedup in zip(found.files, (None, *found.speedups), strict=True):
        times_ms = {"p50": file.p50_ms, "p90": file.p90_ms, "p99": file.p99_ms, "min": file.min_ms}
        row = {name: three_digits(value) for name, value in (times_ms | {"CPU p50": file.cpu_ms}).items()}
        gmacs = file.gmacs_per_second
        row |= {
            "file": escape(file.file),
            "runtime": file.runtime,
            "GMAC/s": ABSENT if gmacs is None else three_digits(gmacs),
        }
        row |= {"runs": exact(file.n), "speed-up (95 %)": "" if speedup is None else _speedup_words(speedup)}
        rows.append(row)
    _print_rows(console, columns, rows, left=["file", "runtime"], least=["runs", "min", "p99"])
    for line in (found.noisy, *found.warnings):
        if line:
            console.print(f"[yellow]warning:[/] {escape(line)}", highlight=False)


def _speedup_words(speedup: "Speedup") -> str:
    within = "too noisy" if speedup.ci95 is None else "–".join(map(three_digits, speedup.ci95))
    return f"{times(speedup.median)} ({within})"


def _console() -> Console:
    """Return stdout; where it is no terminal, no terminal's width cuts a table."""
    # my_package:two: is no emoji
    return Console(emoji=False) if sys.stdout.isatty() else Console(width=PLAIN_WIDTH, emoji=False)


def _plain(text: str) -> Text:
    """Return text that is printed as it is: brackets of a name are no markup."""
    return Text(text)


def _verdict(passed: bool) -> str:
    return "[green]passed[/]" if passed else "[bold red]FAILED[/]"
