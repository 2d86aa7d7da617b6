"""Read an ONNX file, and what is in it; what is missing or damaged is said in one line."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor, uses_external_data

from hoyer_export.errors import FileError
from hoyer_export.placeholder import refuse_placeholder

MAX_BYTES = 2**31 - 1
"""Of a protobuf message, hence of a file with its weights in it."""


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """Return the model in the file ``path``, checked for being whole; weights in side files are not read.

    Raises:
        FileError: there is no such file, or it is not a whole and valid ONNX file.
    """
    path = Path(path)
    refuse_placeholder(path)
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        if missing := [name for name in sorted(side_files(model)) if not (path.parent / name).is_file()]:
            raise FileError(
                f"{path} keeps weights in {', '.join(missing)}, missing there; put what belongs to it beside it"
            )
        for name in side_files(model):
            refuse_placeholder(path.parent / name)
        # By name, not in memory: this is how the checker finds weights in side files, and files above 2 GB.
        onnx.checker.check_model(str(path) if _has_shapes(model) else _with_shapes(model))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}; give the path of an ONNX file") from error
    except (DecodeError, UnicodeDecodeError, onnx.checker.ValidationError) as error:
        raise FileError(f"{path} is not a whole ONNX file ({first_line(error)}); export it again") from error
    return model


def whole_onnx(path: str | Path) -> onnx.ModelProto:
    """Return the model in the file ``path`` with the weights of its side files.

    Raises:
        FileError: as for ``read_onnx``, or it is too large for one message.
    """
    model, path = read_onnx(path), Path(path)
    if sum(file.stat().st_size for file in (path, *(path.parent / name for name in side_files(model)))) > MAX_BYTES:
        raise FileError(f"{path} holds more than 2 GiB, and cannot be looked into; give a smaller file")
    for tensor in tensors_of(model.graph):
        if uses_external_data(tensor):
            load_beside_(tensor, path)
    return model


def _has_shapes(model: onnx.ModelProto) -> bool:
    return all(
        value.type.tensor_type.HasField("shape")
        for value in (*model.graph.input, *model.graph.output)
        if value.type.HasField("tensor_type")
    )


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model as the checker wants it: it asks for shapes that runtimes do without."""
    shaped = onnx.ModelProto()
    shaped.CopyFrom(model)
    for value in (*shaped.graph.input, *shaped.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    for tensor in tensors_of(shaped.graph):
        if uses_external_data(tensor):  # looked for where the checker does not know of
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.dims[:] = [0]
    return shaped


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return what the file says of itself, e.g. ``hoyer_export.mean``: key → text."""
    return {entry.key: entry.value for entry in model.metadata_props}


def fed_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return what the caller feeds; old files list the initialisers among the inputs too."""
    initialisers = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in initialisers]


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that ``graph`` holds: initialisers, constants, and those of its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for subgraph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from tensors_of(subgraph)


def subnormals(tensor: onnx.TensorProto) -> NDArray[np.bool_]:
    """Return where a float32 tensor is neither zero nor at least 2⁻¹²⁶ in magnitude; an empty mask for other types.

    onnxruntime ran a layer with half its filters there up to 47 times slower than with exact zeros.
    """
    if tensor.data_type != onnx.TensorProto.FLOAT or uses_external_data(tensor):
        return np.zeros(0, bool)
    magnitude = np.abs(onnx.numpy_helper.to_array(tensor))
    tiny: NDArray[np.bool_] = (magnitude > 0) & (magnitude < np.finfo(np.float32).tiny)
    return tiny


def side_files(model: onnx.ModelProto) -> set[str]:
    """Return the names of the files, beside the model's own, that hold its weights."""
    return {ExternalDataInfo(t).location for t in tensors_of(model.graph) if uses_external_data(t)}


def load_beside_(tensor: onnx.TensorProto, path: Path) -> None:
    """Read a tensor of the model ``path`` from its side file.

    Raises:
        FileError: the side file is damaged.
    """
    try:
        load_external_data_for_tensor(tensor, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise FileError(f"the weights beside {path} are damaged ({first_line(error)}); copy them again") from error
    tensor.data_location = onnx.TensorProto.DEFAULT
    tensor.ClearField("external_data")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says something, without its full stop."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
