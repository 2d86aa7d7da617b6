"""Read onnxruntime's own nodes, which its optimised files hold, as the standard ones that ONNX knows the shapes of.

A fused activation goes: it multiplies nothing that is counted. In the blocked layout (NCHWc) channels are padded to
whole blocks, filters too, and that is what such a file multiplies; ``ReorderOutput`` takes the first ones out again.
"""

import numpy as np
import onnx

_BLOCKED = "com.microsoft.nchwc"
_FUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
_POOLS = ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
_AXIS, _START = "hoyer_export.axis", "hoyer_export.start"


def to_standard_(graph: onnx.GraphProto) -> None:
    """Rewrite the nodes of the domains ``com.microsoft`` and ``com.microsoft.nchwc`` that have a standard form."""
    before = len(graph.initializer)
    for node in graph.node:
        if node.domain == "com.microsoft" and node.op_type in _FUSED:
            _plain_(node, _FUSED[node.op_type])
        elif node.domain == _BLOCKED and node.op_type in ("Conv", *_POOLS):
            _plain_(node, node.op_type)
        elif node.domain != _BLOCKED or any(it.name == "channels_last" and it.i for it in node.attribute):
            continue
        elif node.op_type == "ReorderInput":
            node.domain, node.op_type = "", "Identity"  # padding changes no count: a convolution's is its filters'
            del node.attribute[:]
        elif node.op_type == "ReorderOutput":
            end = f"hoyer_export.{node.output[0]}"
            graph.initializer.append(_integer(end, onnx.helper.get_node_attr_value(node, "channels")))
            node.domain, node.op_type = "", "Slice"
            node.input.extend((_START, end, _AXIS))
            del node.attribute[:]
    if len(graph.initializer) > before:
        graph.initializer.extend((_integer(_START, 0), _integer(_AXIS, 1)))


def _plain_(node: onnx.NodeProto, op_type: str) -> None:
    """Take out the activation and the summand."""
    node.domain, node.op_type = "", op_type
    kept = [it for it in node.attribute if not it.name.startswith("activation")]
    del node.attribute[:]
    node.attribute.extend(kept)
    del node.input[3:]


def _integer(name: str, value: int) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.array([value]), name)
