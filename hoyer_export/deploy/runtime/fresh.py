"""Any runtime in a Python of its own, which has done nothing but load files: what the process that exported them has
set, patched or left behind can hide no fault of theirs.

It costs that Python's start, 0.2 s of CPU time on an AMD EPYC. The two talk through pipes: a line of JSON, and the
bytes of the arrays behind it.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hoyer_export.deploy.runtime import as_runtime
from hoyer_export.deploy.runtime.protocol import Arrays, BlockedConvolutions, RunFailed
from hoyer_export.errors import FileError, HoyerExportError


@contextmanager
def fresh(runtime: str) -> Iterator["Fresh"]:
    """Yield the runtime of that name, in a process that lives as long.

    Raises:
        HoyerExportError: there is none.
    """
    as_runtime(runtime)
    # Not the working directory: what lies there must not be imported.
    command = [sys.executable, "-P", "-m", __name__, runtime]
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    ) as process:
        try:
            yield Fresh(runtime, process)
        finally:
            process.kill()


class Fresh:
    """A runtime in another process."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        self.name, self._process = name, process

    def load(self, path: Path, threads: int, optimise: bool) -> "FreshSession":
        """Load a file there; see ``Runtime.load``."""
        answer, _ = self.ask({"load": str(path.absolute()), "threads": threads, "optimise": optimise}, {})
        if "error" in answer:
            raise FileError(answer["error"])
        return FreshSession(self, answer["session"])

    def explain(self, path: Path) -> BlockedConvolutions:
        """See ``Runtime.explain``: nothing of it hangs on the process."""
        return as_runtime(self.name).explain(path)

    def ask(self, question: Mapping[str, object], arrays: Arrays) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Send a question, and return the answer.

        Raises:
            FileError: the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, question, arrays)
            answer, found = _receive(self._process.stdout)
        except (OSError, ValueError) as error:
            code = self._process.wait()
            raise FileError(f"{self.name} ended (exit code {code}) on a file of this run; is memory short?") from error
        return answer, list(found.values())


class FreshSession:
    """One file, loaded there."""

    def __init__(self, runtime: Fresh, number: int) -> None:
        self._runtime, self._number = runtime, number

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        answer, outputs = self._runtime.ask({"session": self._number}, inputs)
        if "error" in answer:
            raise RunFailed(answer["error"])
        return outputs


def _send(stream: IO[bytes], about: Mapping[str, object], arrays: Arrays) -> None:
    shown = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    stream.write(json.dumps({**about, "arrays": shown}).encode() + b"\n")
    for array in arrays.values():
        stream.write(np.ascontiguousarray(array).tobytes())
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return a message and its arrays; ValueError where the stream has ended."""
    about = json.loads(stream.readline())
    arrays = {}
    for name, kind, shape in about["arrays"]:
        array = np.empty(shape, kind)
        array.reshape(-1).view(np.uint8)[:] = np.frombuffer(stream.read(array.nbytes), np.uint8)
        arrays[name] = array
    return about, arrays


def _serve(name: str) -> None:
    """Answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks ends this
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    runtime, sessions = as_runtime(name), []
    while True:
        try:
            question, arrays = _receive(sys.stdin.buffer)
        except ValueError:
            return
        outputs: dict[str, NDArray[Any]] = {}
        answer: dict[str, object] = {}
        try:
            if "load" in question:
                path, threads = Path(question["load"]), question["threads"]
                sessions.append(runtime.load(path, threads, question["optimise"]))
                answer = {"session": len(sessions) - 1}
            else:
                found = sessions[question["session"]].run(arrays)
                outputs = {str(at): np.asarray(output) for at, output in enumerate(found)}
        except (HoyerExportError, RunFailed) as error:
            answer = {"error": str(error)}
        _send(out, answer, outputs)


if __name__ == "__main__":
    _serve(sys.argv[1])
