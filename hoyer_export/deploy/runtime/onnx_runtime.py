"""onnxruntime, and how many convolutions it runs on the CPU in its blocked layout.

Another of its execution providers may be named: those that ``get_available_providers`` finds in the wheel that is
installed. What it cannot run the CPU runs, as everywhere in onnxruntime.

On x86 onnxruntime turns convolutions to the layout NCHWc, blocks of 16 channels (AVX-512) or 8 (AVX2), if their channel
counts allow it: the input's below one block or a multiple of 4 (``nchwc_transformer.cc``). The others keep the plain
layout and lose up to half of the speed, besides the reordering between the two. ARM has no such layout: 0 of n.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from hoyer_export.deploy.onnx_file import first_line, read_onnx
from hoyer_export.deploy.runtime.protocol import Arrays, BlockedConvolutions, RunFailed
from hoyer_export.errors import FileError, HoyerExportError

CPU = "CPUExecutionProvider"

# onnxruntime's exceptions share no base class of their own.
_ERRORS: tuple[type[Exception], ...] = (
    *(ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph, ort_errors.InvalidProtobuf),
    *(ort_errors.NoModel, ort_errors.NoSuchFile, ort_errors.NotImplemented, ort_errors.RuntimeException),
)
# What its Python side says of arrays that it cannot take.
_RUN_ERRORS: tuple[type[Exception], ...] = (*_ERRORS, RuntimeError, ValueError)
_NCHWC = "com.microsoft.nchwc"
_PROBE = """<ir_version: 8, opset_import: ["": 18]>
probe (float[1, 64, 8, 8] image) => (float[1, 1, 8, 8] output) {
    sizes = Constant <value_ints = [1, 64, 3, 3]> ()
    weight = ConstantOfShape (sizes)
    output = Conv <pads = [1, 1, 1, 1]> (image, weight)
}"""


class OnnxRuntime:
    """onnxruntime: no spinning, no log.

    Args:
        provider: that runs what it can.

    Raises:
        HoyerExportError: it is not in the onnxruntime that is installed.
    """

    name = "onnxruntime"

    def __init__(self, provider: str = CPU) -> None:
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise HoyerExportError(
                f"the onnxruntime installed here has no {provider}, only {', '.join(available)}; name one of them, or "
                "install a wheel with it in the place of onnxruntime"
            )
        self._provider = provider
        if provider != CPU:
            self.name = f"{self.name}:{provider}"

    def load(self, path: Path, threads: int, optimise: bool) -> "Loaded":
        """Open a session; see ``Runtime.load``."""
        return Loaded(path, session_options(threads, optimise), self._provider)

    def explain(self, path: Path) -> BlockedConvolutions:
        """Let onnxruntime optimise the file for this machine, and look at what became of its convolutions."""
        total = sum(node.op_type == "Conv" for node in read_onnx(path).graph.node)
        if self._provider != CPU:
            return BlockedConvolutions(blocked=0, total=total, block=None)
        blocked = sum(_is_blocked(node) for node in _optimised(path).graph.node)
        return BlockedConvolutions(blocked, total, block_size())


class Loaded:
    """One file in a session of onnxruntime; FileError where it cannot be loaded, or not with this provider."""

    def __init__(self, path: Path, options: onnxruntime.SessionOptions, provider: str = CPU) -> None:
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=list({provider: 0, CPU: 0}))
        except _ERRORS as error:
            raise FileError(f"onnxruntime cannot load {path} ({first_line(error)}); export it again") from error
        if provider not in self._session.get_providers():  # it says so in its log alone, and takes the CPU
            raise FileError(
                f"onnxruntime cannot start {provider} for {path}: a driver or library that it needs is missing, or of "
                "another version; install what onnxruntime's page on that provider asks for"
            )

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        try:
            outputs: list[NDArray[Any]] = self._session.run(None, {name: _fed(it) for name, it in inputs.items()})
        except _RUN_ERRORS as error:
            raise RunFailed(first_line(error)) from error
        return outputs

    def end_profiling(self) -> Path:
        """Return the file with the times of all nodes, of a session that was told to take them."""
        return Path(self._session.end_profiling())


def _fed(array: NDArray[Any]) -> NDArray[Any] | onnxruntime.OrtValue:
    """Return what onnxruntime takes: of a type that numpy itself lacks, bfloat16 say, the bits and what they mean."""
    if array.dtype.kind != "V":
        return array
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.itemsize}"), kind)


def session_options(threads: int, optimise: bool) -> onnxruntime.SessionOptions:
    """Return options without spinning.

    Threads that spin while they wait take the processor from other sessions of the process (microsoft/onnxruntime
    #17011: 106 ms instead of 16 ms), so that sessions that live side by side could not be compared.
    """
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: what goes wrong arrives as an exception
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _is_blocked(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and node.domain == _NCHWC


def _optimised(path: Path) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(1, optimise=True)
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        Loaded(path, options)
        return onnx.load(options.optimized_model_filepath)


@cache
def block_size() -> int | None:
    """Return the channels of a block on this machine; None where it has no such layout.

    They show in a convolution with one filter: onnxruntime pads its filters to a whole block.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(onnx.parser.parse_model(_PROBE), path)
        graph = _optimised(path).graph
    sizes = {tensor.name: tensor.dims[0] for tensor in graph.initializer}
    return next((sizes[node.input[1]] for node in graph.node if _is_blocked(node)), None)
