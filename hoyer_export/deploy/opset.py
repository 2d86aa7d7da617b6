"""Write a file for an opset below the least that torch writes: what opset 18 says in another way than 17."""

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from hoyer_export.errors import NetworkError


def lower_(proto: onnx.ModelProto, opset: int) -> None:
    """Change a model in place to ``opset``, where every operation of it is known there.

    Reductions took their axes as an attribute before 18; other attributes that came later say what held anyway.

    Raises:
        NetworkError: an operation, or what is asked of it, came with a later opset.
    """
    (entry,) = (entry for entry in proto.opset_import if entry.domain == "")
    newer, entry.version = entry.version, opset
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for node in _nodes(proto.graph):
        for attribute in (it for it in node.attribute if node.op_type == "Constant" and it.name == "value"):
            constants[node.output[0]] = onnx.numpy_helper.to_array(attribute.t)
        if node.domain == "" and not _lowered(node, constants, opset, newer):
            raise NetworkError(f"opset {opset} has no {node.op_type} as this network needs it; ask for {newer}")


def _lowered(node: onnx.NodeProto, constants: dict[str, NDArray[np.generic]], opset: int, newer: int) -> bool:
    """Change one node in place; return whether the opset has what it is then."""
    try:
        schema, later = (onnx.defs.get_schema(node.op_type, version) for version in (opset, newer))
    except onnx.defs.SchemaError:
        return False
    for attribute in [a for a in node.attribute if a.name not in schema.attributes]:
        if attribute.name not in ("num_outputs", "noop_with_empty_axes"):  # equal parts; axes are always given
            default = later.attributes[attribute.name].default_value
            if onnx.helper.get_attribute_value(attribute) != onnx.helper.get_attribute_value(default):
                return False
        node.attribute.remove(attribute)
    if any(a.name == "reduction" and a.s in (b"max", b"min") for a in node.attribute):  # of a scatter, since 18
        return False
    if len(node.input) > schema.max_input:
        axes = constants.get(node.input.pop())
        if axes is None or "axes" not in schema.attributes:
            return False
        node.attribute.append(onnx.helper.make_attribute("axes", axes.tolist()))
    return len(node.input) <= schema.max_input


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
