"""Why a file is fast or slow: how many of its convolutions the runtime runs in its blocked layout."""

from pathlib import Path

from hoyer_export.deploy.runtime import DEFAULT, as_runtime
from hoyer_export.deploy.runtime.protocol import BlockedConvolutions as BlockedConvolutions
from hoyer_export.deploy.runtime.protocol import Runtime


def blocked_convolutions(path: str | Path, *, runtime: Runtime | str = DEFAULT) -> BlockedConvolutions:
    """Return how many convolutions of the ONNX file ``path`` run blocked on this machine.

    Raises:
        FileError: the file is missing, damaged, or beyond this runtime.
    """
    return as_runtime(runtime).explain(Path(path))
