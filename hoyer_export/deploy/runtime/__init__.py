"""The runtimes with a name; each is one file of this folder."""

from collections.abc import Callable

from hoyer_export.deploy.runtime.onnx_runtime import OnnxRuntime
from hoyer_export.deploy.runtime.protocol import Runtime
from hoyer_export.errors import HoyerExportError

DEFAULT = OnnxRuntime.name

RUNTIMES: dict[str, Callable[[], Runtime]] = {
    DEFAULT: OnnxRuntime,
}
"""Name → what makes it."""


def as_runtime(runtime: Runtime | str) -> Runtime:
    """Return the runtime of a name in ``RUNTIMES``, and one of one's own as it is.

    Raises:
        HoyerExportError: there is none of this name, or it is no runtime.
    """
    if isinstance(runtime, str) and runtime in RUNTIMES:
        return RUNTIMES[runtime]()
    if isinstance(runtime, Runtime) and not isinstance(runtime, type):
        return runtime
    raise HoyerExportError(
        f"expected a runtime that is one of {', '.join(RUNTIMES)}, or an object with `name`, `load` and `explain`, "
        f"got {runtime!r}"
    )
