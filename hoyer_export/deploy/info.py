"""What an ONNX file says of itself: metadata, inputs, outputs, who wrote it, what is in it. Nothing is run."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from hoyer_export.deploy.macs import weight_elements
from hoyer_export.deploy.onnx_file import fed_inputs, metadata_of, read_onnx, side_files


@dataclass(frozen=True)
class ValueInfo:
    """One input or output.

    Args:
        name: of the value.
        type: e.g. ``float32``.
        shape: sizes; a dynamic one by its name, ``?`` without one; None where the file gives no shape.
    """

    name: str
    type: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class FileInfo:
    """What is in a file.

    Args:
        file: its name.
        size_bytes: of it and of the files beside it that hold its weights.
        side_files: names of those.
        sha256: of the file alone.
        producer: who wrote it, with the version.
        ir_version: of the format.
        opsets: domain → version; ``ai.onnx`` is the standard one.
        inputs, outputs: in order.
        params: elements of its weights, as ``count_macs`` has them.
        nodes: operator → number of nodes, the most frequent first.
        metadata: key → text.
        description: of the model, by whoever wrote it.
    """

    file: str
    size_bytes: int
    side_files: tuple[str, ...]
    sha256: str
    producer: str
    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    params: int
    nodes: dict[str, int]
    metadata: dict[str, str]
    description: str


def file_info(path: str | Path) -> FileInfo:
    """Return what the ONNX file ``path`` says of itself.

    Raises:
        FileError: the file is missing or damaged.
    """
    path = Path(path)
    model = read_onnx(path)
    beside = sorted(side_files(model))
    return FileInfo(
        file=path.name,
        size_bytes=sum(file.stat().st_size for file in (path, *(path.parent / name for name in beside))),
        side_files=tuple(beside),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        ir_version=model.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        inputs=tuple(map(_value, fed_inputs(model.graph))),
        outputs=tuple(map(_value, model.graph.output)),
        params=sum(weight_elements(model.graph).values()),
        nodes=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        metadata=metadata_of(model),
        description=model.doc_string or model.graph.doc_string,
    )


def _value(value: onnx.ValueInfoProto) -> ValueInfo:
    if not value.type.HasField("tensor_type"):
        return ValueInfo(value.name, (value.type.WhichOneof("value") or "unknown").removesuffix("_type"), None)
    tensor = value.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    return ValueInfo(value.name, "float32" if kind == "float" else kind, shape if tensor.HasField("shape") else None)
