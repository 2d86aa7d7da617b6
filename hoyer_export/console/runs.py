"""The answers of the verbs for runs and networks as people see them: a table and a few lines."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hoyer_export.console.terminal import TOP_ROWS, outcome, plain, print_rows, terminal
from hoyer_export.report.number_format import (
    count,
    exact,
    milliseconds,
    percent,
    score,
    score_change,
    share,
    size,
    small,
)

if TYPE_CHECKING:
    from hoyer_export.report.report import Report
    from hoyer_export.report.stage_records import (
        CutRecord,
        ExportsRecord,
        FileVerification,
        GateRecord,
        LayerWeights,
        Moved,
        VerifiedRecord,
    )
    from hoyer_export.run.inspecting import GroupCost, Inspection
    from hoyer_export.run.proposing import Proposal
    from hoyer_export.surgery.self_test import Verdict

MOVED = 1e-5  # relative change of the outputs that asks for fine-tuning: what verification tolerates between runtimes


def print_report(report: "Report", folder: Path) -> None:
    """Print the files side by side, how exact the cut is, what was verified, and what to do next."""
    from hoyer_export.report.further import further_words
    from hoyer_export.report.making import cut_details, making
    from hoyer_export.report.sparsity import weights_words
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
    for column in ("", "dense", "slim", "slim / dense"):
        table.add_column(column, justify="left" if not column else "right")
    for name, *cells in _figures(report):
        table.add_row(name, *cells)
    console = terminal()
    console.print(table)
    made, steps = making(report), verification_steps(report)
    removed = f"{made.before - made.after:,} of {made.before:,} channels removed, align = {report.cut.align or 1}"
    if made.of_elements:
        removed = weights_words(report.export.weights)
    console.print(plain(f"cut: {removed}; {_agreement_words(report.cut)}"))
    _print_weights(console, report.export.weights)
    for line in cut_details(report.cut):
        console.print(plain(line))
    if lost := [row for row in class_rows(report) if row.change < 0][:3]:
        worst = ", ".join(f"{row.name} {row.dense:.1f} → {percent(row.slim)}" for row in lost)
        console.print(plain(f"classes that lost most: {worst}"))
    console.print(plain(f"speed: {speedup_words(report)}"))
    for line in further_words(report):
        console.print(plain(line))
    console.print(plain(f"budget: {budget_words(report)}"))
    for line in gate_words(report.gate):
        console.print(plain(f"gate: {line}"))
    passed = sum(step.passed for step in steps)
    left_open = sum(int(step.value) for step in steps if step.name == "inputs left open")
    rounding = f"; {left_open} comparisons left open, for torch itself rounds as much" if left_open else ""
    console.print(plain(f"verification: {passed} of {len(steps)} steps passed{rounding}"))
    for caution in cautions(report):
        style = "bold red" if caution.severe else "yellow"
        console.print(f"[{style}]{escape(caution.title)}:[/] {escape(caution.text)}", highlight=False)
    if any(_is_moved(moved) for moved in report.cut.moved) and not made.trained_after:
        console.print(
            plain("next: fine-tune, for what was chosen has changed what the network computes; cutting has not:")
        )
        for line in _fine_tuning(report, folder):
            console.print(plain(f"  {line}"), soft_wrap=True)  # to be copied
    console.print(plain(f"files: {folder}/report.html, card.md, report.json, slim.onnx, slim.safetensors"))


def _print_weights(console: Console, layers: "tuple[LayerWeights, ...]") -> None:
    rows = [
        {
            "layer": escape(it.name),
            "weights": exact(it.weights),
            "not zero": exact(it.nonzero),
            "share": percent(100 * it.nonzero / max(it.weights, 1)),
        }
        for it in layers
    ]
    if rows:
        print_rows(console, list(rows[0]), rows, left=["layer"], least=["weights"])


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
    if report.export.weights:
        yield "hx.hold_zeros_(slim.model, optimizer)  # what is zero stays so"
    yield "...  # train slim.model"
    yield 'torch.save(slim.model.state_dict(), "finetuned.pth")'
    yield f"hoyer-export ship {shlex.quote(str(folder))} --weights finetuned.pth{allowed}"


def _figures(report: "Report") -> Iterator[list[str]]:
    """Yield the rows of the table: a name, one cell a file, slim beside dense."""
    from hoyer_export.report.summary import accuracy_change, of_dense

    shipped = dense, slim = report.dense, report.slim
    if slim.accuracy is not None:
        change = score_change(accuracy_change(report), report.metric)
        yield [f"test {report.metric_name}", *(score(it.accuracy, report.metric) for it in shipped), change]
    for name, key, shown in (("MACs", "macs", exact), ("params", "params", exact), ("file", "size_bytes", size)):
        yield [name, *(shown(getattr(it.file, key)) for it in shipped), share(of_dense(report, key))]
    measured = report.bench.artifacts[:2]
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
        terminal().print(plain(line), soft_wrap=True)


def print_inspection(found: "Inspection", *, everything: bool = False) -> None:
    """Print the channel groups, what is unprunable and why, and what can be reached.

    The heaviest groups come first; only ``everything`` prints more than a screen of them.
    """
    console = terminal()
    shape = "×".join(map(str, found.input_shape))
    console.print(plain(f"{found.network}, input {shape}: {count(found.params)} parameters, {count(found.macs)} MACs"))
    _print_groups(console, found, everything)
    if found.unprunable:
        _print_unprunable(console, found, everything)
    if found.verdicts is not None:
        _print_verdicts(console, found.verdicts)
        console.print(plain(found.export_failed or "torch.onnx exports it"))
    least = f"{share(found.least_macs)} of dense, with align = {found.align}"
    console.print(plain(f"least MACs that can be reached: {least}"))
    for name, times_run in found.uncounted.items():
        console.print(plain(f"not counted: {count(times_run)} {'' if name == 'MACs' else '× '}{name}"))
    if found.asked_macs is not None:
        verdict = "can be reached" if found.reachable else "cannot be reached; ask for more, or lower the alignment"
        if not found.groups:
            verdict = "cannot be reached: nothing can be pruned"
        elif found.uncounted:
            verdict = "cannot be judged, for not everything that multiplies is counted"
        console.print(plain(f"macs = {found.asked_macs:g} {verdict}"))
    if (check := found.cross_check) is not None:
        channels = sum(group.width for group in found.groups)
        console.print(plain(f"torch-pruning couples {check.agreeing:,} of these {channels:,} channels in the same way"))
        if check.only_here:
            console.print(plain(f"it couples channels of {', '.join(check.only_here)} otherwise"))
        if check.only_there:
            console.print(plain(f"it would also remove channels of {', '.join(check.only_there)}"))
    if found.cross_check_failed is not None:
        console.print(plain(f"no second opinion: {found.cross_check_failed}"))


def _print_groups(console: Console, found: "Inspection", everything: bool) -> None:
    title = f"{len(found.groups)} channel group{'' if len(found.groups) == 1 else 's'}"
    # A line of its own: a title is folded to its table's width.
    console.print(plain(title + ", the heaviest first; a layer between two counts in both"))
    groups = sorted(found.groups, key=lambda group: -group.macs)
    shown = groups if everything else groups[:TOP_ROWS]
    rows = [_group_row(escape(group.name), [group]) for group in shown]
    if rest := groups[len(shown) :]:
        # Layers between two of them count twice, so that their shares may well add up to more than all.
        rows.append(_group_row(f"{len(rest)} more (--all)", rest) | {"share": ""})
    columns = ["group", "width", "MACs", "share", "params", "least"]
    print_rows(console, columns, rows, left=["group"], least=["params"], no_wrap=True)  # names are worth more


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
    console.print(plain(f"self-test: {len(proved)} of {tried} groups proved{agree}"))
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
    terminal().print(table)


def print_verification(found: "VerifiedRecord") -> None:
    """Print every check with its value and tolerance."""
    from hoyer_export.report.summary import value_words

    table = Table()
    for column in ("file", "check", "value", "tolerance", ""):
        table.add_column(column, justify="right" if column in ("value", "tolerance") else "left")
    for file in found.artifacts:
        for check in file.checks:
            limit = "" if check.tolerance is None else small(check.tolerance)
            cells = value_words(check.value), limit, outcome(check.passed)
            table.add_row(escape(file.name), escape(check.name), *cells)
    console = terminal()
    console.print(table)
    for file in found.artifacts:
        if file.departure is not None:
            console.print(plain(f"{file.name}: the first node that departs is {file.departure}"))
    read = {f"{it.name}{kind}": value for it in found.artifacts for kind, value in _accuracies(it).items()}
    if found.sparse_accuracy is not None:
        read["before the cut"] = found.sparse_accuracy
    if read:
        console.print(plain("test accuracy: " + ", ".join(f"{name} {percent(value)}" for name, value in read.items())))
    console.print(plain("verified" if found.passed else "VERIFICATION FAILED: do not ship this file"))


def print_gate(found: "GateRecord") -> None:
    """Print every limit with what was reached."""
    from hoyer_export.report.summary import gate_words

    for line in gate_words(found):
        terminal().print(plain(line), soft_wrap=True)
    terminal().print(plain("gate passed" if found.passed else "GATE FAILED"))


def _accuracies(file: "FileVerification") -> dict[str, float]:
    found = {"": file.accuracy, ".onnx": file.onnx_accuracy}
    return {kind: value for kind, value in found.items() if value is not None}
