"""What runs an ONNX file: the one shape of every runtime. ``docs/adding-a-runtime.md`` shows how to add one.

Verification, benchmark and explanation know no more of a runtime than what stands here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class BlockedConvolutions:
    """How many of the file's convolutions (``Conv`` nodes; transposed ones are never blocked) run blocked here.

    Args:
        blocked: convolutions in the blocked layout.
        total: convolutions.
        block: channels a block on this machine; None where there is no such layout.
    """

    blocked: int
    total: int
    block: int | None


class RunFailed(Exception):
    """A session does not take these inputs; the message is one line."""


class Session(Protocol):
    """One file, loaded."""

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Return the outputs in the graph's order.

        Args:
            inputs: the graph's input → array, in the type that the graph gives it.

        Raises:
            RunFailed: the file does not run on these.
        """


@runtime_checkable
class Runtime(Protocol):
    """Runs ONNX files on this machine."""

    name: str
    """The word by which it is chosen."""

    def load(self, path: Path, threads: int, optimise: bool) -> Session:
        """Load a file.

        Args:
            path: of the file; its side files lie beside it.
            threads: that one run may use.
            optimise: change the graph for speed as much as the runtime can, else as little as it can.

        Raises:
            FileError: the file is missing, damaged, or beyond this runtime.
        """

    def explain(self, path: Path) -> BlockedConvolutions:
        """Return what becomes of the file's convolutions here; FileError as for ``load``."""
