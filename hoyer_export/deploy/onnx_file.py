"""Read an ONNX file, or open an onnxruntime session on one; what is missing or damaged is said in one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from hoyer_export.errors import FileError

# onnxruntime's exceptions share no base class of their own.
ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """Return the model in the file ``path``, checked for being whole; weights in side files are not read.

    Raises:
        FileError: there is no such file, or it is not a whole and valid ONNX file.
    """
    path = Path(path)
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        # By name, not in memory: this is how the checker finds weights in side files, and files above 2 GB.
        onnx.checker.check_model(str(path))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}; give the path of an ONNX file") from error
    except (DecodeError, UnicodeDecodeError, onnx.checker.ValidationError) as error:
        raise FileError(f"{path} is not a whole ONNX file ({first_line(error)}); export it again") from error
    return model


def open_session(
    path: str | Path, *, optimize: bool = True, threads: int = 1, optimized_path: Path | None = None
) -> Any:
    """Return an onnxruntime session on the CPU: no spinning, no log, graph optimisations all or none.

    Threads that spin while they wait take the processor from other sessions of the process (microsoft/onnxruntime
    #17011: 106 ms instead of 16 ms), so that sessions that live side by side could not be compared.

    Args:
        path: the ONNX file.
        optimize: all graph optimisations (``ORT_ENABLE_ALL``), else none.
        threads: intra-op threads.
        optimized_path: where onnxruntime leaves the optimised graph, if anywhere.

    Raises:
        FileError: the file is missing, damaged, or beyond this onnxruntime.
    """
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: what goes wrong arrives as an exception
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise FileError(f"onnxruntime cannot load {path} ({first_line(error)}); export it again") from error


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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says something, without its full stop."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
