"""Measure how long layers take on this machine, once: what is measured is kept in the user's cache folder.

There is a file for each processor, runtime with its version, and number of threads. A layer's time is that of copies of
it side by side, less that of what stands around them, over their number; the fastest run counts.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path

import numpy as np

from hoyer_export.deploy.layers import Layer, model_of, noise
from hoyer_export.deploy.runtime import DEFAULT, as_runtime
from hoyer_export.deploy.runtime.protocol import RunFailed, Runtime
from hoyer_export.deploy.time_table import BLOCK, TimeTable, grid, held_out
from hoyer_export.environment import environment_record
from hoyer_export.errors import CannotWrite, FileError, one_line
from hoyer_export.run_folder import write_whole

_MACS = 30e6
"""Of all copies of a layer that are measured together: the more, the less counts what is around them."""
_MOST_COPIES = 8
_RUNS, _SECONDS = 4, 0.02
"""Of a measurement, at least; the fastest run counts, because whatever else the machine does only ever adds."""
_EVERY = 1.0
"""Seconds after which what was measured is written down."""
_LEAST_MS = 1e-5

Told = Callable[[int], None]


def time_table(
    layers: Iterable[Layer],
    *,
    runtime: Runtime | str = DEFAULT,
    threads: int = 1,
    told: Told = lambda missing: None,
) -> TimeTable:
    """Measure what the cache does not hold of these layers; what was measured when interrupted is kept.

    Args:
        layers: as wide as they are in the dense network.
        runtime: that is asked.
        threads: that one run may use.
        told: is told how many measurements are missing, before they are made; not where none is.

    Raises:
        FileError: the runtime does not take a layer.
        CannotWrite: the cache folder cannot be written.
    """
    one = as_runtime(runtime)
    path, table = _cached(one, threads)
    layers = tuple(dict.fromkeys(layers))
    wanted = dict.fromkeys(it for layer in layers for it in grid(layer, table.block))
    wanted |= dict.fromkeys(held for _, held in held_out(layers, table.block))
    missing = [layer for layer in wanted if layer not in table.entries]
    around: dict[Layer, float] = {}
    if missing:
        told(len(missing))
    with _kept(path, table) as keep:
        for layer in missing:
            table.entries[layer] = _measured(layer, one, threads, around)
            keep()
    return table


def _measured(layer: Layer, runtime: Runtime, threads: int, around: dict[Layer, float]) -> float:
    """Return milliseconds of one layer, without what is around it."""
    bare = layer.at(layer.inputs, layer.inputs)
    if bare not in around:
        around[bare] = _fastest(layer, 0, runtime, threads) if layer.kernel else 0.0
    copies = int(min(max(_MACS / max(layer.macs, 1), 1), _MOST_COPIES))
    return max((_fastest(layer, copies, runtime, threads) - around[bare]) / copies, _LEAST_MS)


def _fastest(layer: Layer, copies: int, runtime: Runtime, threads: int) -> float:
    # With one thread, time without a processor does not count.
    clocks = (time.perf_counter, time.process_time) if threads == 1 else (time.perf_counter,)
    feed, best, runs = {"images": noise(layer.input_shape)}, np.inf, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        path.write_bytes(model_of(layer, copies))
        session = runtime.load(path, threads, True)
        try:
            session.run(feed)
        except RunFailed as error:
            raise FileError(f"{runtime.name} does not run a layer ({layer}): {error}") from error
        end = time.perf_counter() + _SECONDS
        while runs < _RUNS or time.perf_counter() < end:
            starts = [clock() for clock in clocks]
            session.run(feed)
            taken = [clock() - start for clock, start in zip(clocks, starts, strict=True)]
            best, runs = min([best, *(it for it in taken if it > 0)]), runs + 1  # 0 where ticks are long
    return 1000 * float(best)


def cache_folder() -> Path:
    """Return the user's folder for what can be made again (XDG Base Directory Specification; on Windows its own)."""
    given = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    return Path(given or Path.home() / ".cache") / "hoyer-export"


def _cached(runtime: Runtime, threads: int) -> tuple[Path, TimeTable]:
    """Return where the table of this machine is kept, and what it holds; nothing where that cannot be read."""
    machine = environment_record()
    name, number = runtime.name, _version(runtime)
    facts = {"cpu": machine.cpu, "flags": list(machine.flags), "runtime": name, "version": number, "threads": threads}
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = one_line(error)
        raise CannotWrite(
            f"times of layers are kept in {folder}, which cannot be made ({why}); set XDG_CACHE_HOME"
        ) from error
    path = folder / f"times-{name.replace(':', '-')}-{threads}-{key}.json"
    block, entries = _read(path)
    return path, TimeTable(name, number, threads, block or _block(runtime), entries)


def _read(path: Path) -> tuple[int, dict[Layer, float]]:
    """Return what a file holds, the block first; 0 and nothing where it cannot be read, and is measured again."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        block, entries = int(kept["block"]), {_layer_of(it): float(it["ms"]) for it in kept["layers"]}
        if block < 1 or not all(isfinite(ms) and ms > 0 for ms in entries.values()):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        return 0, {}
    return block, entries


def _version(runtime: Runtime) -> str:
    try:
        return version(runtime.name.partition(":")[0])
    except PackageNotFoundError:
        return ""


def _block(runtime: Runtime) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        path.write_bytes(model_of(Layer(64, 64, (1, 8, 8), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), 1))
        return runtime.explain(path).block or BLOCK


def _layer_of(entry: Mapping[str, int | list[int]]) -> Layer:
    facts = {name: tuple(it) if isinstance(it, list) else it for name, it in entry.items() if name != "ms"}
    return Layer(**facts)  # type: ignore[arg-type]


@contextmanager
def _kept(path: Path, table: TimeTable) -> Iterator[Callable[[], None]]:
    """Yield what writes the table down now and then, and do it at the end, whatever happens."""
    written, size = time.monotonic(), len(table.entries)

    def write() -> None:
        nonlocal written, size
        entries = _read(path)[1] | table.entries  # another process may have measured meanwhile
        layers = [vars(layer) | {"ms": ms} for layer, ms in entries.items()]
        own = path.with_suffix(f".{os.getpid()}")
        write_whole(own, json.dumps({"block": table.block, "layers": layers}))
        os.replace(own, path)
        written, size = time.monotonic(), len(table.entries)

    def keep() -> None:
        if time.monotonic() - written > _EVERY:
            write()

    try:
        yield keep
    finally:
        if len(table.entries) > size:
            write()
