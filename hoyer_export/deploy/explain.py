"""Why a file is not as fast as its multiply-accumulates promise: what became of each node here, how long it takes, and
in plain words what holds it back.

Times are of onnxruntime's profiler, node by node, MACs those of the file's own nodes: where several became one, it has
theirs. Rates are in 1e9 MACs a second.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from hoyer_export.deploy.feed import feed_of
from hoyer_export.deploy.input_sizes import Shapes, input_sizes
from hoyer_export.deploy.macs import NodeMacs, count_macs
from hoyer_export.deploy.onnx_file import read_onnx, subnormals, tensors_of, whole_onnx
from hoyer_export.deploy.runtime import DEFAULT, as_runtime
from hoyer_export.deploy.runtime.blocked_layout import padding, why_plain
from hoyer_export.deploy.runtime.onnx_runtime import block_size
from hoyer_export.deploy.runtime.profiler import Profile, profiled
from hoyer_export.deploy.runtime.protocol import BlockedConvolutions as BlockedConvolutions
from hoyer_export.deploy.runtime.protocol import RunFailed, Runtime
from hoyer_export.errors import FileError

Layout = Literal["blocked", "plain", ""]

_BLOCKED = "com.microsoft.nchwc"
_MULTIPLIES = re.compile("Conv|Gemm|MatMul|LSTM|GRU|RNN|Einsum|Attention|QGemm")
_NAMED_AFTER = re.compile(r"(_nchwc(_token_\d+)?|/.*Fusion/.*)$")
"""What onnxruntime adds to the name of what a node is made of."""
_ELEMENTWISE = frozenset(
    (
        *("BatchNormalization", "Relu", "LeakyRelu", "PRelu", "Elu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish"),
        *("QuickGelu", "Gelu", "FastGelu", "Tanh", "Mul", "Add", "Sub", "Div"),
    )
)
_IN_FLOAT = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_REORDERS = ("ReorderInput", "ReorderOutput")
_DEPTHWISE = "depthwise: few MACs for what it reads and writes"
_PADDED = "padded: "
_LEAST_TOLD = 0.01
"""Share of the time that is worth a line."""
_SLOW = 0.25
"""Of the best rate in the file: a convolution below it does not use what the processor has."""
_MANY = 3
"""Nodes, or operators, that a line names."""


@dataclass(frozen=True)
class NodeTime:
    """One node as it runs.

    Args:
        name: as in the file, where one node of it became this one; else what onnxruntime calls it.
        op: operator type.
        layout: of a convolution here.
        ms: median milliseconds a run.
        macs: of the nodes of the file that it computes.
        gmacs_per_second: 1e-6 · MACs / ms; None without MACs.
        why: what keeps it from being fast, where that is known.
        layer: the module whose weights it multiplies with, as the file calls them; empty where it has none.
    """

    name: str
    op: str
    layout: Layout
    ms: float
    macs: int
    gmacs_per_second: float | None
    why: str = ""
    layer: str = ""


@dataclass(frozen=True)
class Explanation:
    """Why a file takes the time that it takes.

    Args:
        file: its name.
        ms: of all nodes together, milliseconds a run.
        macs: of a run.
        gmacs_per_second: of the whole; None where nothing multiplies, or not all was counted.
        best_gmacs_per_second: of the node with the highest rate, among those that have a hundredth of the MACs.
        block: channels a block of the fast layout; None where this processor has none.
        findings: in plain words, a line each, what takes most time first; what holds for the weights comes last.
        nodes: in the order in which they run.
        uncounted: operator → number of nodes whose MACs are not counted.
        threads: that one run used.
        batch_size: images a run.
        runs: timed.
    """

    file: str
    ms: float
    macs: int
    gmacs_per_second: float | None
    best_gmacs_per_second: float | None
    block: int | None
    findings: tuple[str, ...]
    nodes: tuple[NodeTime, ...]
    uncounted: dict[str, int]
    threads: int
    batch_size: int
    runs: int


def blocked_convolutions(path: str | Path, *, runtime: Runtime | str = DEFAULT) -> BlockedConvolutions:
    """Return how many convolutions of the ONNX file ``path`` run blocked on this machine.

    Raises:
        FileError: the file is missing, damaged, or beyond this runtime.
    """
    return as_runtime(runtime).explain(Path(path))


def explain(
    path: str | Path,
    *,
    shapes: Shapes | None = None,
    batch_size: int | None = None,
    threads: int = 1,
    min_seconds: float = 2.0,
) -> Explanation:
    """Run the ONNX file ``path``, of any origin, in onnxruntime for a while, and say where its time goes and why.

    Args:
        path: of the file.
        shapes: input → sizes, where the file leaves more than the batch open.
        batch_size: images a run; None: what the file fixes, else 1.
        threads: that one run uses.
        min_seconds: to measure.

    Raises:
        FileError: the file is missing, damaged, beyond onnxruntime, above 2 GiB, leaves a size open that ``shapes``
            does not give, or does not run.
    """
    path = Path(path)
    sizes = input_sizes(read_onnx(path).graph, path, shapes, batch_size)
    counted = count_macs(path, shapes=sizes.shapes)
    model = whole_onnx(path)
    _name_all_(model.graph)
    try:
        profile = profiled(model, feed_of(model.graph, sizes), threads, min_seconds)
    except RunFailed as error:
        raise FileError(f"{path} does not run ({error}); integers are 0; give other sizes: `shapes`") from error
    nodes = tuple(_times(model.graph, profile, {node.name: node for node in counted.nodes}))
    total = sum(node.ms for node in nodes)
    rates = [it.gmacs_per_second for it in nodes if it.gmacs_per_second and it.macs >= counted.macs / 100]
    best = max(rates, default=None)
    known = counted.macs > 0 and not counted.uncounted
    return Explanation(
        file=path.name,
        ms=total,
        macs=counted.macs,
        gmacs_per_second=1e-6 * counted.macs / total if known else None,
        best_gmacs_per_second=best,
        block=block_size(),
        findings=tuple(_findings(nodes, profile.graph, model.graph, best)),
        nodes=nodes,
        uncounted=counted.uncounted,
        threads=threads,
        batch_size=sizes.batch,
        runs=profile.runs,
    )


def _name_all_(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own, by which its time can be found."""
    seen: set[str] = set()
    for index, node in enumerate(graph.node):
        name = node.name or node.output[0]
        node.name = name if name not in seen else f"{name}_{index}"
        seen.add(node.name)


def _times(graph: onnx.GraphProto, profile: Profile, macs: Mapping[str, NodeMacs]) -> Iterator[NodeTime]:
    """Yield the nodes as they run, with the MACs of those of ``graph`` that each is made of."""
    by_name = {node.name: node for node in graph.node}
    makers = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    running = {node.name: node for node in profile.graph.node}
    claimed: set[str] = set()
    for name, ms in profile.ms.items():
        node = running.get(name)
        source = None
        if node is not None and _MULTIPLIES.search(node.op_type):
            source = _source(node, by_name, makers, macs.keys() - claimed)
        counted = macs[source.name].macs if source is not None else 0
        claimed |= {source.name} if source is not None else set()
        op, layout, why = "" if node is None else node.op_type, _layout(node), ""
        if layout == "plain" and node is not None:
            conv = source if source is not None and source.op_type == "Conv" else node
            why = why_plain(conv, weights.get(conv.input[1]), block_size())
        elif source is not None and layout == "blocked":
            why = _why_blocked(source, weights.get(source.input[1], ()))
        rate = 1e-6 * counted / ms if counted and ms else None
        layer = next((it for it in source.input if it in weights), "") if source is not None else ""
        shown = source.name if source is not None else name
        yield NodeTime(shown, op, layout, ms, counted, rate, why, layer.removesuffix(".weight"))


def _layout(node: onnx.NodeProto | None) -> Layout:
    if node is None or node.op_type not in ("Conv", "FusedConv"):
        return ""
    return "blocked" if node.domain == _BLOCKED else "plain"


def _source(
    node: onnx.NodeProto,
    by_name: Mapping[str, onnx.NodeProto],
    makers: Mapping[str, onnx.NodeProto],
    free: set[str],
) -> onnx.NodeProto | None:
    """Return the node of the file, among those that are ``free``, whose products a node of the running graph computes.

    It has its name, or one made of it, or gives what an activation or a norm behind it gave.
    """
    names = node.name, _NAMED_AFTER.sub("", node.name), *node.output
    nearest = [found for name in names if (found := by_name.get(name) or makers.get(name)) is not None]
    seen: set[str] = set()
    while nearest:
        found = nearest.pop(0)
        if found.name in free:
            return found
        if found.name not in seen and not _MULTIPLIES.search(found.op_type):
            seen.add(found.name)
            nearest += [makers[name] for name in found.input if name in makers]
    return None


def _why_blocked(node: onnx.NodeProto, weight: Sequence[int]) -> str:
    """Return why a convolution need not be fast although it is blocked."""
    groups = next((it.i for it in node.attribute if it.name == "group"), 1)
    block = block_size()
    if node.op_type != "Conv" or len(weight) != 4 or block is None:
        return ""
    if groups > 1 and weight[1] == 1:
        return _DEPTHWISE
    filled = padding(node, weight, block)
    sizes = f"{weight[1] * groups} → {weight[0]} channels"
    return f"{_PADDED}{sizes} in whole blocks of {block}, {_percent(filled)} of it padding" if filled else ""


def _findings(
    nodes: Sequence[NodeTime], running: onnx.GraphProto, graph: onnx.GraphProto, best: float | None
) -> Iterator[str]:
    """Yield what holds the file back, what takes most time first; a convolution that is not blocked in any case."""
    total, macs = (sum(getattr(node, key) for node in nodes) or 1 for key in ("ms", "macs"))
    groups = sorted(_groups(nodes, running, best), key=lambda group: -sum(node.ms for node in group[1]))
    told = 0
    for text, which in groups:
        time, part = (sum(getattr(node, key) for node in which) for key in ("ms", "macs"))
        if time >= _LEAST_TOLD * total or which[0].layout == "plain":
            of_macs = f", {_percent(part / macs)} of the MACs" if part else ""
            yield f"{_percent(time / total)} of the time{of_macs}: {text}"
            told += 1
    tiny = {tensor.name: int(subnormals(tensor).sum()) for tensor in tensors_of(graph)}
    if wrong := {name: count for name, count in tiny.items() if count}:
        yield (
            f"{sum(wrong.values()):,} weights are subnormal, which takes processors up to 47 times as long: "
            f"{_some(wrong)}; set them to zero"
        )
    elif not told:
        yield "nothing in it holds it back: its time is that of its MACs"


def _groups(
    nodes: Sequence[NodeTime], running: onnx.GraphProto, best: float | None
) -> Iterator[tuple[str, list[NodeTime]]]:
    """Yield nodes that are slow for one reason, and the reason."""
    plain = defaultdict(list)
    for node in nodes:
        if node.layout == "plain":
            plain[node.why].append(node)
    for why, which in plain.items():
        yield f"{_counted(which, 'convolution')} in the plain layout ({_some(it.name for it in which)}): {why}", which
    if which := [node for node in nodes if node.why.startswith(_PADDED)]:
        sizes = _some(dict.fromkeys(f"{it.name} {it.why.removeprefix(_PADDED)}" for it in which))
        yield f"{_counted(which, 'convolution')} with channels that fill no whole blocks: {sizes}", which
    if which := [node for node in nodes if node.op in _REORDERS]:
        yield f"{_counted(which, 'reorder')} between the plain and the blocked layout", which
    if which := [node for node in nodes if node.why == _DEPTHWISE]:
        what = _counted(which, "depthwise convolution")
        yield f"{what}, bound by memory: few MACs for what is read and written", which
    unfused = _unfused(running)
    if which := [node for node in nodes if node.name in unfused]:
        yield f"not fused into the convolution before, bound by memory: {_ops(which)}", which
    other = [it for it in nodes if not _MULTIPLIES.search(it.op) and it.op not in _REORDERS and it.name not in unfused]
    if other:
        yield f"nodes that multiply nothing, bound by memory: {_ops(other)}", other
    slow = [it for it in nodes if best and it.gmacs_per_second and it.gmacs_per_second < _SLOW * best and not it.why]
    if slow:
        heavy = _some(node.name for node in sorted(slow, key=lambda node: -node.ms))
        rate = f"at less than a quarter of the best rate ({best:.3g} GMAC/s)"
        yield f"{_counted(slow, 'node')} {rate}, too few channels or places to fill the processor: {heavy}", slow
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in running.node) and (
        which := [node for node in nodes if node.op in _IN_FLOAT]
    ):
        yield f"{_counted(which, 'node')} of a quantised file in float: {_some(it.name for it in which)}", which


def _unfused(graph: onnx.GraphProto) -> set[str]:
    """Return the names of nodes that go through what one convolution gives, element by element."""
    makers = {name: node for node in graph.node for name in node.output}
    found = set()
    for node in graph.node:
        before = [makers[name] for name in node.input if name in makers]
        before = [makers.get(it.input[0], it) if it.op_type in _REORDERS else it for it in before]
        if node.op_type in _ELEMENTWISE and any(it.op_type in ("Conv", "FusedConv") for it in before):
            found.add(node.name)
    return found


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.01 else f"{100 * part:.1f} %"


def _counted(which: Sequence[NodeTime], what: str) -> str:
    return f"{len(which):,} {what}{'' if len(which) == 1 else 's'}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_MANY]) + (f" and {len(names) - _MANY} more" if len(names) > _MANY else "")


def _ops(which: Sequence[NodeTime]) -> str:
    """Return the operators that take most of the time, e.g. ``Add × 16, MaxPool``."""
    times: Counter[str] = Counter()
    for node in which:
        times[node.op] += node.ms  # type: ignore[assignment]
    count = Counter(node.op for node in which)
    return _some(f"{op} × {count[op]}" if count[op] > 1 else op for op, _ in times.most_common())
