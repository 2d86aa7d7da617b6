"""What onnxruntime makes of a file on this machine, and how long each node of that takes, by its own profiler."""

import json
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import onnx

from hoyer_export.deploy.runtime.onnx_runtime import Loaded, session_options
from hoyer_export.deploy.runtime.protocol import Arrays

_TIMED = "_kernel_time"
_LEAST_RUNS = 3


@dataclass(frozen=True)
class Profile:
    """A file as it runs.

    Args:
        graph: after onnxruntime's optimisations.
        ms: node of that graph → median milliseconds a run, in the order in which they run.
        runs: that were timed.
    """

    graph: onnx.GraphProto
    ms: dict[str, float]
    runs: int


def profiled(model: onnx.ModelProto, feed: Arrays, threads: int, min_seconds: float) -> Profile:
    """Run a model for a while and time its nodes.

    Args:
        model: with its weights, every node under a name of its own.
        feed: input → array.
        threads: that one run uses.
        min_seconds: to measure.

    Raises:
        FileError: onnxruntime cannot load it.
        RunFailed: it does not run on this.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, optimised = Path(folder) / "named.onnx", Path(folder) / "optimised.onnx"
        path.write_bytes(model.SerializeToString())
        options = session_options(threads, optimise=True)
        options.optimized_model_filepath = str(optimised)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = Loaded(path, options)
        session.run(feed)  # the first one also takes memory
        runs, end = 0, time.perf_counter() + min_seconds
        while runs < _LEAST_RUNS or time.perf_counter() < end:
            session.run(feed)
            runs += 1
        events = json.loads(session.end_profiling().read_text(encoding="utf-8"))
        graph = onnx.load(optimised).graph
    taken: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_TIMED):
            taken[event["name"].removesuffix(_TIMED)].append(event["dur"] / 1000)
    # A node inside a loop has several times a run: what it takes in all is its sum.
    ms = {name: median(times[-runs:]) * (len(times) // (runs + 1) or 1) for name, times in taken.items()}
    return Profile(graph, ms, runs)
