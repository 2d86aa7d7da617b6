"""Find the first node of an ONNX file whose output departs from what another file computes on the same input.

Every value of both graphs is looked at, without the runtime's optimisations. A value agrees where the other graph has
it too, under whatever name: to 1e-5 of its largest magnitude. What is cut differently into nodes (a norm that is
folded, say) leaves values that only one file has, but agrees again further down. So the node that is named is the first
on a way of departing values that ends in a departing output; all that it reads agrees, or is a weight.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hoyer_export.deploy.macs import depends_on_input
from hoyer_export.deploy.onnx_file import whole_onnx
from hoyer_export.deploy.runtime import DEFAULT, as_runtime
from hoyer_export.deploy.runtime.protocol import Arrays, RunFailed, Runtime
from hoyer_export.errors import FileError

AGREES = 1e-5
"""Relative to the largest magnitude of a value: what rounding may do on the way there."""

Values = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Departure:
    """The first node that departs.

    Args:
        node: its name, or that of its first output where it has none.
        op: operator type.
        weights: names of the initialisers that it reads.
        error: largest difference from the other file's value of the same name, relative to that value's largest
            magnitude; None where there is none to compare with.
        output: whether its output departs; else only its weights do, which these inputs do not show.
    """

    node: str
    op: str
    weights: tuple[str, ...]
    error: float | None
    output: bool

    def __str__(self) -> str:
        reads = f", weights {', '.join(self.weights)}" if self.weights else ""
        off = "" if self.error is None else f", by {self.error:.2g} of its largest value"
        what = f"its output departs{off}" if self.output else "its weights differ"
        return f"{self.node} ({self.op}{reads}): {what}"


def first_departure(path: Path, reference: Path, feeds: tuple[Arrays, Arrays], runtime: Runtime) -> Departure | None:
    """Return the first node of the file ``path`` that departs from ``reference``; None where none can be named.

    Args:
        path: of the file that is suspected.
        reference: of the file that is right; outputs correspond by their place.
        feeds: what either is fed: the same arrays.
        runtime: runs the file; onnxruntime runs the reference.
    """
    runners = runtime, as_runtime(DEFAULT)
    try:
        models = whole_onnx(path), whole_onnx(reference)
        found, right = (_values(*each) for each in zip(models, feeds, runners, strict=True))
    except (FileError, RunFailed):  # too large to be opened up, or the runtime shows no values
        return None
    graph, reference_graph = (model.graph for model in models)
    outputs = zip(graph.output, reference_graph.output, strict=False)
    wrong = [ours.name for ours, other in outputs if not _same(found.get(ours.name), right.get(other.name))]
    node = _first_on_the_way(graph, wrong, _departing(found, right) & depends_on_input(graph))
    if node is not None:
        return _departure(node, graph, _error(node.output, found, right), output=True)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in reference_graph.initializer}
    differ = {
        it.name
        for it in graph.initializer
        if it.name in tensors and not _same(onnx.numpy_helper.to_array(it), tensors[it.name])
    }
    node = next((node for node in graph.node if differ & set(node.input)), None)
    return None if node is None or wrong else _departure(node, graph, None, output=False)


def _departure(node: onnx.NodeProto, graph: onnx.GraphProto, error: float | None, *, output: bool) -> Departure:
    initialisers = {tensor.name for tensor in graph.initializer}
    weights = tuple(name for name in node.input if name in initialisers)
    return Departure(node.name or node.output[0], node.op_type, weights, error, output)


def _values(model: onnx.ModelProto, feed: Arrays, runtime: Runtime) -> dict[str, NDArray[Any]]:
    """Return every array that the nodes of a graph give, and its own outputs."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {value.name for value in opened.graph.output}
    names = [name for node in opened.graph.node for name in node.output if name and name not in known]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)  # the runtime knows their types
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "opened.onnx"
        path.write_bytes(opened.SerializeToString())
        outputs = runtime.load(path, 1, optimise=False).run(feed)
    named = zip((value.name for value in opened.graph.output), outputs, strict=True)
    return {name: value for name, value in named if isinstance(value, np.ndarray)}


def _departing(found: Values, right: Values) -> set[str]:
    """Return the names of the values that the other file does not have."""
    of_shape = defaultdict(list)
    for value in right.values():
        if not _is_constant(value):  # two values of all zeros may mean anything
            of_shape[value.shape].append(value)
    return {
        name
        for name, value in found.items()
        if not _same(value, right.get(name)) and not any(_same(value, other) for other in of_shape[value.shape])
    }


def _first_on_the_way(graph: onnx.GraphProto, wrong: list[str], departing: set[str]) -> onnx.NodeProto | None:
    """Return the first node whose output departs and leads to an output that is ``wrong`` through others that do."""
    reached = set(wrong)
    first = None
    for node in reversed(graph.node):
        if not reached.isdisjoint(node.output):
            first = node
            reached.update(name for name in _read(node) if name in departing)
    return first


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, in its subgraphs too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield from _read(inner)


def _same(ours: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    if ours is None or other is None or ours.shape != other.shape:
        return False
    if not (_is_float(ours) and _is_float(other)):
        return bool(np.array_equal(ours, other))
    first, second = ours.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        close = np.abs(first - second) <= AGREES * _largest(second)
    return bool((close | (first == second) | (np.isnan(first) & np.isnan(second))).all())


def _error(names: Any, found: Values, right: Values) -> float | None:
    errors = []
    for name in names:
        ours, other = found.get(name), right.get(name)
        if ours is not None and other is not None and ours.shape == other.shape and _is_float(ours) and ours.size:
            with np.errstate(all="ignore"):
                errors.append(np.abs(ours.astype(np.float64) - other).max() / _largest(other.astype(np.float64)))
    return float(max(errors)) if errors and np.isfinite(errors).all() else None


def _largest(value: NDArray[np.float64]) -> float:
    finite = np.abs(value[np.isfinite(value)])
    return float(finite.max(initial=0))


def _is_float(value: NDArray[Any]) -> bool:
    return np.issubdtype(value.dtype, np.floating)


def _is_constant(value: NDArray[Any]) -> bool:
    return value.size == 0 or bool((value == value.flat[0]).all())
