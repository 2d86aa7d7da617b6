"""Count the multiply-accumulates of an ONNX graph exactly, from the shapes in the graph alone.

One image (batch 1), and only what multiplies by weights or by other activations in sums; everything else is 0:

    Conv            N · O · Π out · (I / groups) · Π kernel         out: positions written
    ConvTranspose   N · I · Π in · (O / groups) · Π kernel          in: positions read
    Gemm            M · N · K
    MatMul          Π output · K
    Einsum          Π of the sizes of all letters; two operands that share a letter which is summed over
    LSTM, GRU, RNN  T · D · G · H · (I + H)                         T steps, D directions, G = 4, 3, 1 gates

The integer products of quantised files (QLinearConv, MatMulInteger, ...) and onnxruntime's fused ones (FusedConv, ...)
count alike. FLOPs = 2 · MACs. Padding counts like image: the multiplications with it are carried out. So does what is
computed for every image from no image, such as a state that starts as zeros; what is computed from weights alone does
not.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx.external_data_helper import uses_external_data
from onnx.inliner import inline_local_functions

from hoyer_export.deploy.input_sizes import Shape, Shapes, check_names, fix_sizes_, input_sizes
from hoyer_export.deploy.onnx_file import fed_inputs, first_line, load_beside_, read_onnx, side_files, tensors_of
from hoyer_export.deploy.onnxruntime_nodes import to_standard_
from hoyer_export.errors import FileError

# Operators that multiply and accumulate, but not in a way this file knows: returned and shown, never passed over.
_BEYOND = frozenset(("DeformConv", "Attention", "If", "Loop", "Scan"))
# Operators of the domain com.microsoft that do not. All others of a foreign domain may.
_ELEMENTWISE = frozenset(
    (
        *("BiasAdd", "BiasGelu", "BiasSoftmax", "FastGelu", "Gelu", "QuickGelu", "SkipLayerNormalization"),
        *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "QuantizeLinear", "DequantizeLinear"),
        *("QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"),
        *("QLinearAveragePool", "QLinearGlobalAveragePool"),
    )
)
# Operator → the places of its two operands.
_CONVOLUTIONS = {"Conv": (0, 1), "ConvInteger": (0, 1), "QLinearConv": (0, 3)}
_PRODUCTS = {
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger", "FusedMatMul", "TransposeMatMul"), (0, 1)),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul"), (0, 1)),
    **dict.fromkeys(("QLinearMatMul", "QGemm"), (0, 3)),
}
_OPERANDS = _CONVOLUTIONS | _PRODUCTS | {"ConvTranspose": (0, 1), "Einsum": (0, 1)}
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_RECURRENT = frozenset(("LSTM", "GRU", "RNN"))
# Integers hold shapes, indices and sums of int8 products: no weights.
_NO_WEIGHTS = frozenset(
    (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)
)

# Shape inference reads the values of small tensors only: sizes, scales, axes.
_MAX_SHAPE_ELEMENTS = 1024


@dataclass(frozen=True)
class NodeMacs:
    """One node of the graph.

    Args:
        name: the node's name, or that of its first output where it has none.
        op: operator type.
        output_shape: at batch 1; () where shape inference does not know it and nothing depends on it.
        macs: multiply-accumulates.
        params: elements of the weights that it is the first to read, as in ``MacsRecord.params``.
        weight_shape: of the operand that does not depend on the graph's input; () where both do, or for other nodes.
        state_shape: of the weight that a recurrent node multiplies its state with, [D, G · H, H]; () for other nodes.
    """

    name: str
    op: str
    output_shape: Shape
    macs: int
    params: int
    weight_shape: Shape
    state_shape: Shape = ()


@dataclass(frozen=True)
class MacsRecord:
    """What one image costs.

    Args:
        macs: multiply-accumulates.
        flops: 2 · macs.
        params: elements of all initialisers and constants of at least one dimension that are not int32, int64, bool
            or string. So weights, biases and norms as they stand in the file, where batch norms are mostly folded
            away; scalars and shapes do not count.
        size_bytes: of the file, and of the files beside it that hold its weights.
        nodes: every node that has MACs or params, in the graph's order.
        batch: how many images the numbers are for: 1, unless the file or the caller fixes another number.
        uncounted: operator type → number of nodes that may multiply and accumulate and are counted as 0; with
            ``of unknown size`` where a size that the count depends on cannot be inferred.
    """

    macs: int
    flops: int
    params: int
    size_bytes: int
    nodes: tuple[NodeMacs, ...]
    batch: int
    uncounted: dict[str, int]


def count_macs(path: str | Path, *, shapes: Shapes | None = None) -> MacsRecord:
    """Count MACs, FLOPs, params and bytes of the ONNX file ``path`` (formulas above).

    Args:
        path: of the file.
        shapes: input → sizes, where the file leaves more than the batch open.

    Raises:
        FileError: the file is missing or damaged, an input has a dynamic size other than the batch that ``shapes``
            does not give, or does not take the sizes given.
    """
    path = Path(path)
    model = read_onnx(path)
    size_bytes = sum(file.stat().st_size for file in (path, *(path.parent / name for name in side_files(model))))
    check_names({str(path): model.graph}, shapes)
    batch, model = _with_known_sizes(model, path, shapes)
    graph = model.graph
    shapes_of = _known_shapes(graph)
    weights = weight_elements(graph)
    params = sum(weights.values())
    fed, run = depends_on_input(graph), depends_on_input(graph, or_its_size=True)

    counted = [_is_counted(node) and not run.isdisjoint(node.output) for node in graph.node]
    needed = {name for node, counts in zip(graph.node, counted, strict=True) if counts for name in _needed(node)}
    if needed - shapes_of.keys():
        shapes_of = _computed_shapes(model) | shapes_of

    nodes, uncounted = [], Counter(node.op_type for node in graph.node if _is_beyond(node))
    for node, counts in zip(graph.node, counted, strict=True):
        if counts and not all(name in shapes_of for name in _needed(node)):
            uncounted[f"{node.op_type} of unknown size"] += 1
            counts = False
        macs, weight_shape, state_shape = _count(node, shapes_of, fed) if counts else (0, (), ())
        read = sum(weights.pop(name, 0) for name in node.input)
        if (macs or read) and node.op_type != "Constant":
            name, shape = node.name or node.output[0], shapes_of.get(node.output[0], ())
            nodes.append(NodeMacs(name, node.op_type, shape, macs, read, weight_shape, state_shape))
    macs = sum(node.macs for node in nodes)
    return MacsRecord(macs, 2 * macs, params, size_bytes, tuple(nodes), batch, dict(uncounted))


def _with_known_sizes(model: onnx.ModelProto, path: Path, shapes: Shapes | None) -> tuple[int, onnx.ModelProto]:
    """Return the batch, and the model with the sizes of its values, as far as they follow from those of its inputs."""
    for tensor in tensors_of(model.graph):
        if prod(tensor.dims) > _MAX_SHAPE_ELEMENTS and tensor.data_type not in _NO_WEIGHTS:  # those may hold indices
            tensor.ClearField("raw_data")  # 6 times as fast for a VGG: every pass copies the model
        elif uses_external_data(tensor):
            load_beside_(tensor, path)
    model = inline_local_functions(model)
    to_standard_(model.graph)
    sizes = input_sizes(model.graph, path, shapes)
    fix_sizes_(model.graph, sizes)
    try:
        # data_prop: sizes that the graph itself computes (Shape → Gather → Concat → Reshape)
        return sizes.batch, onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise FileError(f"the shapes in {path} contradict each other ({first_line(error)}); export it again") from error


def _is_counted(node: onnx.NodeProto) -> bool:
    if node.domain not in _DOMAINS or node.op_type not in _OPERANDS.keys() | _RECURRENT:
        return False
    return node.op_type != "Einsum" or (len(node.input) == 2 and not _is_hard_einsum(node))


def _is_beyond(node: onnx.NodeProto) -> bool:
    if node.domain in ("", "ai.onnx"):
        return node.op_type in _BEYOND or _is_hard_einsum(node)
    return not (_is_counted(node) or node.op_type in _ELEMENTWISE)


def _needed(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the values whose sizes make up a counted node's MACs."""
    if node.op_type in _RECURRENT:  # X, W, R; it need not return its first output
        return tuple(node.input[:3])
    return (*(node.input[place] for place in _OPERANDS[node.op_type]), node.output[0])


def _count(node: onnx.NodeProto, shapes: dict[str, Shape], fed: set[str]) -> tuple[int, Shape, Shape]:
    """Return one node's MACs, the shape of its weight, and of the weight that multiplies its state."""
    needed = _needed(node)
    first, second, third = (shapes[name] for name in needed)
    if node.op_type in _RECURRENT:  # X [T, N, I], W [D, G · H, I], R [D, G · H, H]
        return prod(first[:-1]) * (prod(second) + prod(third)), second, third
    if node.op_type in _CONVOLUTIONS:  # second: [O, I / groups, *kernel]; third: the output
        macs = prod(third) * prod(second[1:])
    elif node.op_type == "ConvTranspose":  # second: [I, O / groups, *kernel]
        macs = prod(first) * prod(second[1:])
    elif node.op_type in _PRODUCTS:
        macs = prod(third) * first[-2 if any(a.name == "transA" and a.i for a in node.attribute) else -1]
    else:
        macs = _einsum_macs(_equation(node), first, second)
    not_fed = [shape for name, shape in zip(needed, (first, second), strict=False) if name not in fed]
    return macs, not_fed[0] if len(not_fed) == 1 else (), ()


def _einsum_macs(equation: str, first: Shape, second: Shape) -> int:
    left, right, output = equation.replace("->", ",").split(",")
    if set(left) & set(right) <= set(output):  # products only
        return 0
    return prod(dict(zip(left + right, first + second, strict=True)).values())


def _is_hard_einsum(node: onnx.NodeProto) -> bool:
    """Return whether a node is an Einsum of more than two operands, with an ellipsis or without ``->``."""
    if node.op_type != "Einsum" or len(node.input) == 1:
        return False
    equation = _equation(node)
    return len(node.input) > 2 or "." in equation or "->" not in equation


def _equation(node: onnx.NodeProto) -> str:
    equation: bytes = onnx.helper.get_node_attr_value(node, "equation")
    return equation.decode().replace(" ", "")


def _known_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes.setdefault(value.name, tuple(dim.dim_value for dim in tensor.shape.dim))
    return shapes


def _computed_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Return the shapes that follow also where the graph computes them in ways that ONNX' own inference gives up on.

    Stacked bidirectional layers do: Shape → Slice → Mul → Reshape.
    """
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference  # with sympy: most of a second

    log = logging.getLogger("onnxruntime.tools.symbolic_shape_infer")
    silent, log.disabled = log.disabled, True
    try:
        return _known_shapes(SymbolicShapeInference.infer_shapes(model, auto_merge=False).graph)
    except Exception:  # it gives up in many ways; what is missing is named by whoever needs it
        return {}
    finally:
        log.disabled = silent


def weight_elements(graph: onnx.GraphProto) -> dict[str, int]:
    """Return initialiser or constant → number of elements, for those that hold weights."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return {name: prod(t.dims) for name, t in tensors.items() if t.dims and t.data_type not in _NO_WEIGHTS}


def depends_on_input(graph: onnx.GraphProto, *, or_its_size: bool = False) -> set[str]:
    """Return the names of all values that depend on the values of the graph's inputs, ``or_its_size``: also on those.

    A size that is left in the graph is the batch's: what depends on it is computed anew for every image.
    """
    fed = {value.name for value in fed_inputs(graph)}
    for node in graph.node:  # in topological order: the checker made sure
        if (or_its_size or node.op_type not in ("Shape", "Size")) and not fed.isdisjoint(node.input):
            fed.update(name for name in node.output if name)
    return fed
