"""The runtimes with a name; each is one file of this folder."""

from collections.abc import Callable

from hoyer_export.deploy.runtime.onnx_runtime import OnnxRuntime
from hoyer_export.deploy.runtime.openvino_runtime import OpenVino
from hoyer_export.deploy.runtime.protocol import Runtime
from hoyer_export.errors import HoyerExportError

DEFAULT = OnnxRuntime.name

RUNTIMES: dict[str, Callable[..., Runtime]] = {
    DEFAULT: OnnxRuntime,
    OpenVino.name: OpenVino,
}
"""Name → what makes it, of what stands behind a colon in the name chosen: ``onnxruntime:CUDAExecutionProvider``."""


def as_runtime(runtime: Runtime | str) -> Runtime:
    """Return the runtime of a name in ``RUNTIMES``, and one of one's own as it is.

    Raises:
        HoyerExportError: there is none of this name, it is not installed, or it is no runtime.
    """
    if isinstance(runtime, str):
        name, *options = runtime.split(":")
        if name in RUNTIMES and (not options or (name == DEFAULT and len(options) == 1)):
            return RUNTIMES[name](*options)
    elif isinstance(runtime, Runtime) and not isinstance(runtime, type):
        return runtime
    names = ", ".join((*RUNTIMES, f"{DEFAULT}:PROVIDER"))
    raise HoyerExportError(f"expected a runtime that is one of {names}, or a Runtime of your own, got {runtime!r}")
