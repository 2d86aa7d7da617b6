"""The answers of the verbs for files and for this machine: a table, the most first, and a few lines."""

from typing import TYPE_CHECKING

from rich.markup import escape

from hoyer_export.console.terminal import TOP_ROWS, plain, print_rows, terminal
from hoyer_export.report.number_format import (
    ABSENT,
    count,
    exact,
    milliseconds,
    share,
    three_digits,
    times,
)

if TYPE_CHECKING:
    from hoyer_export.deploy.benchmark import BenchmarkRecord, Speedup
    from hoyer_export.deploy.explain import Explanation
    from hoyer_export.deploy.info import FileInfo, ValueInfo
    from hoyer_export.deploy.macs import MacsRecord
    from hoyer_export.run.timing import Times


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
    console, columns = terminal(), ["node", "op", "weight", "output", "MACs", "share", "params"]
    print_rows(console, columns, rows, left=["node", "op", "weight", "output"], least=["weight"])
    images = "one image" if found.batch == 1 else f"a batch of {found.batch}"
    console.print(plain(f"{exact(found.macs)} MACs = {exact(found.flops)} FLOPs for {images}"))
    console.print(plain(f"{exact(found.params)} params, {exact(found.size_bytes)} bytes"))
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
    console = terminal()
    print_rows(
        console, ["layer", "times", "ms", "share", "GMAC/s", "ms at half widths"], rows, left=["layer"], least=[]
    )
    threads = f"{found.threads} thread{'' if found.threads == 1 else 's'}"
    blocks = f"blocks of {found.block} channels"
    console.print(
        plain(f"{three_digits(found.ms)} ms in {found.runtime}, {threads}, batch {found.batch_size}, {blocks}")
    )
    if (off := found.interpolation) is not None:
        far = f"{share(off.median)} in the median, {share(off.largest)} at most"
        console.print(plain(f"at {off.pairs} pairs of widths off the grid the table is off by {far}"))
    console.print(plain(f"{found.entries:,} measurements are kept in {found.folder}"))


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
    console, columns = terminal(), ["node", "op", "layout", "ms", "share", "MACs", "GMAC/s"]
    print_rows(console, columns, rows, left=["node", "op", "layout"], least=["op"])
    rate = "" if found.gmacs_per_second is None else f", {three_digits(found.gmacs_per_second)} GMAC/s"
    best = (
        ""
        if found.best_gmacs_per_second is None
        else f"; the best node has {three_digits(found.best_gmacs_per_second)}"
    )
    how = f"threads {found.threads}, batch {found.batch_size}, {found.runs:,} runs, the sum of all nodes"
    console.print(plain(f"{milliseconds(found.ms)} for {count(found.macs)} MACs{rate}{best} ({how})"), soft_wrap=True)
    for line in found.findings:
        console.print(plain(f"* {line}"), soft_wrap=True)
    for op, count_of in found.uncounted.items():
        console.print(f"[yellow]not counted:[/] {count_of} × {escape(op)}", highlight=False)


def print_info(found: "FileInfo") -> None:
    """Print what the file says of itself, a line a fact."""
    console = terminal()
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
        console.print(plain(f"{name:<11} {text}"), soft_wrap=True)
    if not found.metadata:
        console.print(plain("metadata    none"))


def _value_words(value: "ValueInfo") -> str:
    sizes = "any shape" if value.shape is None else f"[{', '.join(map(str, value.shape))}]"
    return f"{value.name} {value.type} {sizes}"


def print_benchmark(found: "BenchmarkRecord") -> None:
    """Print every file's latency, and how many times as fast as the first it is."""
    console = terminal()
    cpu = "" if found.threads == 1 else "; CPU: sum over all threads"
    runtimes = list(dict.fromkeys(file.runtime for file in found.files))
    console.print(
        plain(f"{' and '.join(runtimes)}, threads {found.threads}, batch {found.batch_size}, milliseconds{cpu}")
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
    print_rows(console, columns, rows, left=["file", "runtime"], least=["runs", "min", "p99"])
    for line in (found.noisy, *found.warnings):
        if line:
            console.print(f"[yellow]warning:[/] {escape(line)}", highlight=False)


def _speedup_words(speedup: "Speedup") -> str:
    within = "too noisy" if speedup.ci95 is None else "–".join(map(three_digits, speedup.ci95))
    return f"{times(speedup.median)} ({within})"
