"""OpenVINO on the CPU, which reads the ONNX file itself (``pip install 'hoyer-export[openvino]'``).

It computes in float32: left to itself it takes bfloat16 where the processor has it, and what was verified would not be
what is measured. A network of fixed sizes is faster than one of open ones (ResNet-20: 1.5 times), and who ships one
knows them; so sizes are fixed to what is fed, except where the graph shall run as it was written.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hoyer_export.deploy.onnx_file import read_onnx
from hoyer_export.deploy.runtime.protocol import Arrays, BlockedConvolutions, RunFailed
from hoyer_export.errors import FileError, HoyerExportError


class OpenVino:
    """OpenVINO with its CPU device: one stream, threads that are tied to no processor."""

    name = "openvino"

    def __init__(self) -> None:
        try:
            import openvino
        except ImportError as error:
            raise HoyerExportError(
                f"runtime openvino needs OpenVINO, which cannot be imported ({error}); pip install openvino"
            ) from error
        self._core = openvino.Core()

    def load(self, path: Path, threads: int, optimise: bool) -> "Loaded":
        """Read a file; see ``Runtime.load``."""
        try:
            return Loaded(self._core, self._core.read_model(path), threads, optimise)
        except RuntimeError as error:
            raise FileError(f"openvino cannot load {path} ({_last_line(error)}); export it again") from error

    def explain(self, path: Path) -> BlockedConvolutions:
        """Count the convolutions: OpenVINO has a fast kernel for every width, and no layout that one falls off."""
        total = sum(node.op_type == "Conv" for node in read_onnx(path).graph.node)
        return BlockedConvolutions(blocked=0, total=total, block=None)


class Loaded:
    """One file; compiled as it is written, or once for all sizes that come."""

    def __init__(self, core: Any, model: Any, threads: int, optimise: bool) -> None:
        self._core, self._model = core, model
        self._settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
        }
        self._as_written = None if optimise else self._compiled(model)
        self._fixed: dict[tuple[tuple[int, ...], ...], Any] = {}

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        try:
            request = self._as_written or self._for_sizes(inputs)
            # Shared, sizes are checked; a copy would resize the request's own array, and write where nothing is.
            outputs = request.infer(dict(inputs), share_inputs=True)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RunFailed(_last_line(error)) from error
        return [np.asarray(outputs[i]) for i in range(len(request.model_outputs))]

    def _for_sizes(self, inputs: Arrays) -> Any:
        sizes = tuple(array.shape for array in inputs.values())
        if sizes not in self._fixed:
            model = self._model.clone()
            model.reshape({name: array.shape for name, array in inputs.items()})
            self._fixed[sizes] = self._compiled(model)
        return self._fixed[sizes]

    def _compiled(self, model: Any) -> Any:
        return self._core.compile_model(model, "CPU", self._settings).create_infer_request()


def _last_line(error: BaseException) -> str:
    """Return the last line of a message: above it OpenVINO lists where in its own code it was."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
