"""Measure the latency of ONNX files against each other, so that a noisy machine cannot decide.

All files are loaded at once and run in turn, A, B, A, B, ..., so that whatever slows the machine down slows down all of
them. Each timed run follows an untimed one of the same file: who ships a model runs it again and again, and straight
after another file every run would first fetch its weights from memory (a ResNet-50 cut to half its MACs then gained
0.94 of the MACs reduction instead of 0.95).

CPU time is that of the whole process: of all of a session's threads, and of whatever else the process does meanwhile.
It is summed up by its median, as the wall time is: a mean counts every interruption, and would not be comparable.

The speed-up is the median over the rounds of A's time / B's time. Its 95 % interval is a percentile bootstrap over
*blocks* of consecutive rounds, because neighbouring rounds share their disturbances and are no independent draws
(E. Carlstein 1986, The use of subseries values for estimating the variance of a general statistic from a stationary
sequence, Ann. Statist. 14:1171).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from hoyer_export.deploy.feed import feed_of
from hoyer_export.deploy.input_sizes import InputSizes, Shapes, check_names, fixed_batch, input_sizes
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.onnx_file import read_onnx
from hoyer_export.deploy.runtime import DEFAULT, as_runtime
from hoyer_export.deploy.runtime.protocol import Arrays, RunFailed, Runtime, Session
from hoyer_export.environment import usable_threads
from hoyer_export.errors import FileError, HoyerExportError

MIN_ROUNDS = 10
MAX_THREADS = 1024  # more stop the machine before they measure anything
_BLOCKS = 50
_RESAMPLES = 1000

# pyperf calls a benchmark unstable when its standard deviation is at least a tenth of its mean (V. Stinner,
# https://github.com/psf/pyperf, pyperf/_cli.py, format_checks). The same tenth serves for the interval, because a
# speed-up known to ±5 % still tells a good layout from a bad one (1.2 to 2 times), and for the share of the time that
# the process had no processor, because alone on a core it has next to none.
MAX_NOISE = 0.10


@dataclass(frozen=True)
class LatencyRecord:
    """One file's latency for one batch.

    Args:
        file: its name, with as many of its folders as tell it from the others.
        p50_ms, p90_ms, p99_ms, min_ms: quantiles of the wall time, milliseconds a batch.
        n: runs measured.
        cpu_ms: processor time of all threads, median milliseconds a batch: with several threads up to that many times
            the wall time. 0 where the system counts in ticks that are longer than a run.
        gmacs_per_second: 1e-9 · MACs of the batch / p50: falls when a file has fewer MACs and is not faster. None where
            not all MACs could be counted.
        samples_ms: wall time of every run, in order; sample i of every file belongs to the same round.
        runtime: what ran it.
    """

    file: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    n: int
    cpu_ms: float
    gmacs_per_second: float | None
    samples_ms: tuple[float, ...]
    runtime: str = DEFAULT


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as the first file another is.

    Args:
        median: over rounds, of first / other.
        ci95: its 95 % interval; None where the machine was too noisy to say.
    """

    median: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class BenchmarkRecord:
    """Latency of several files side by side.

    Args:
        files: one record a file, in the order given.
        speedups: of every file but the first, over the first.
        threads: that one run uses.
        batch_size: images a run.
        noisy: why the machine was too busy to trust the figures; None where it was quiet. No interval stands beside it:
            it would say how far the rounds of this measurement agree, and not how far the next one will.
        steady: as ``speedups``, by what noise moves least: CPU time on one thread; with intervals whatever the noise.
        warnings: what else to know, a line each: MACs that could not be counted, more threads than processors.
    """

    files: tuple[LatencyRecord, ...]
    speedups: tuple[Speedup, ...]
    threads: int
    batch_size: int
    noisy: str | None
    warnings: tuple[str, ...] = ()
    steady: tuple[Speedup, ...] = ()

    def ms(self, file: int) -> float:
        """Return the milliseconds of a run of a file: CPU time on one thread, where the system counts it."""
        latency = self.files[file]
        return latency.cpu_ms if self.threads == 1 and latency.cpu_ms > 0 else latency.p50_ms


def benchmark(
    paths: Sequence[str | Path],
    *,
    threads: int = 1,
    batch_size: int | None = None,
    shapes: Shapes | None = None,
    min_seconds: float = 5.0,
    runtime: Runtime | str | Sequence[Runtime | str] = DEFAULT,
) -> BenchmarkRecord:
    """Run the ONNX files ``paths`` in turn on the CPU and time every run.

    ``noisy`` is set where one of these holds: a file's spread, 1.4826 · median |t − p50| (the standard deviation, if
    the times were normal), is above 10 % of its p50; the 95 % interval of a speed-up is wider than 10 % of its median;
    with one thread, the process waited for a processor more than 10 % of the time.

    Args:
        paths: one file or more; the first is the reference of the speed-ups.
        threads: that one run uses; 1 is steadier and what per-core throughput depends on.
        batch_size: images a run; None: what the files fix, else 1.
        shapes: input → sizes, where a file leaves more than the batch open.
        min_seconds: time to measure, all files together, after a warm-up of a tenth of it; at least 10 rounds.
        runtime: one for all files, or one a file.

    Raises:
        FileError: a file is missing, damaged, leaves a size open that ``shapes`` does not give, or does not run.
        HoyerExportError: a number of files, threads, images or seconds that makes no sense, or an unknown runtime.
    """
    if not paths or not 1 <= threads <= MAX_THREADS or (batch_size is not None and batch_size < 1) or min_seconds <= 0:
        raise HoyerExportError(
            f"a benchmark needs at least one file, 1 to {MAX_THREADS:,} threads, a batch size of at least 1 and a "
            f"positive time, got {len(paths)} files, {threads} threads, batch size {batch_size}, {min_seconds} s"
        )
    named = [runtime] * len(paths) if isinstance(runtime, str) or not isinstance(runtime, Sequence) else runtime
    if len(named) != len(paths):
        raise HoyerExportError(f"expected one runtime, or one for each of {len(paths)} files, got {len(named)}")
    runtimes, names = [as_runtime(one) for one in named], distinct_names(paths)
    graphs = [read_onnx(path).graph for path in paths]
    sizes = _sizes(dict(zip(map(str, paths), graphs, strict=True)), batch_size, shapes)
    sessions = [one.load(Path(path), threads, True) for one, path in zip(runtimes, paths, strict=True)]
    feeds = [feed_of(graph, sizes[str(path)]) for graph, path in zip(graphs, paths, strict=True)]
    for session, feed, path in zip(sessions, feeds, paths, strict=True):
        try:
            session.run(feed)
        except RunFailed as error:
            fed = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise FileError(
                f"{path} does not run on {fed} ({error}); integers are 0; give other sizes: `shapes`"
            ) from error
    warnings, macs = [] if threads <= usable_threads() else [_crowded(threads)], []
    for path, name in zip(paths, names, strict=True):
        counted, why = _macs(path, sizes[str(path)])
        macs.append(counted)
        warnings += [f"no GMAC/s for {name}: {why}"] if why else []

    _rounds(sessions, feeds, min_seconds / 10, 1)
    wall_ms, cpu_ms = _rounds(sessions, feeds, min_seconds, MIN_ROUNDS)
    quantiles = np.percentile(wall_ms, (50, 90, 99, 0), axis=0).T.tolist()
    files = tuple(
        LatencyRecord(
            names[i],
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            min_ms=least,
            n=len(wall_ms),
            cpu_ms=float(np.median(cpu_ms[:, i])),
            gmacs_per_second=None if (counted := macs[i]) is None else 1e-6 * counted / p50,
            samples_ms=tuple(wall_ms[:, i].tolist()),
            runtime=runtimes[i].name,
        )
        for i, (p50, p90, p99, least) in enumerate(quantiles)
    )
    speedups = tuple(paired_speedup(wall_ms[:, 0], wall_ms[:, i]) for i in range(1, len(files)))
    waiting = 1 - cpu_ms.sum() / wall_ms.sum() if threads == 1 else 0.0
    noisy = noise(wall_ms, speedups, waiting)
    if noisy is not None:
        speedups = tuple(replace(speedup, ci95=None) for speedup in speedups)
    steadier = (
        cpu_ms if threads == 1 and (cpu_ms > 0).all() else wall_ms
    )  # it is of all threads, 0 where ticks are long
    steady = tuple(paired_speedup(steadier[:, 0], steadier[:, i]) for i in range(1, len(files)))
    batch, told = sizes[str(paths[0])].batch, tuple(dict.fromkeys(warnings))
    return BenchmarkRecord(files, speedups, threads, batch, noisy, told, steady)


def distinct_names(paths: Sequence[str | Path]) -> list[str]:
    """Return each file's name, with as many of its folders as tell it from the other files."""
    files = [Path(path).resolve().parts for path in paths]

    def name(file: tuple[str, ...]) -> str:
        others = set(files) - {file}
        length = next(n for n in range(1, len(file) + 1) if all(file[-n:] != other[-n:] for other in others))
        return "/".join(file[-length:])

    return [name(file) for file in files]


def paired_speedup(reference_ms: NDArray[np.float64], other_ms: NDArray[np.float64]) -> Speedup:
    """Return the median of reference / other over rounds, and its 95 % interval by bootstrap over blocks of rounds.

    Args:
        reference_ms, other_ms: shape [rounds], one round's two times at the same place.
    """
    ratios = reference_ms / other_ms
    count = min(_BLOCKS, len(ratios))
    blocks = ratios[: len(ratios) // count * count].reshape(count, -1)
    generator = np.random.default_rng(0)  # fixed: the same times give the same interval
    medians = [np.median(blocks[generator.integers(count, size=count)]) for _ in range(_RESAMPLES)]
    low, high = np.percentile(medians, (2.5, 97.5))
    return Speedup(float(np.median(ratios)), (float(low), float(high)))


def noise(wall_ms: NDArray[np.float64], speedups: Sequence[Speedup], waiting: float) -> str | None:
    """Return why the figures cannot be trusted, if so: the three criteria of ``benchmark``.

    Args:
        wall_ms: shape [rounds, files].
        speedups: of every file but the first.
        waiting: share of the wall time without a processor.
    """
    p50 = np.median(wall_ms, axis=0)
    spread = float((1.4826 * np.median(np.abs(wall_ms - p50), axis=0) / p50).max())
    interval = max(((s.ci95[1] - s.ci95[0]) / s.median for s in speedups if s.ci95 is not None), default=0.0)
    found = {
        f"times spread by {spread:.0%} of their median": spread,
        f"the speed-up's 95 % interval is {interval:.0%} wide": interval,
        f"the process waited for a processor {waiting:.0%} of the time": waiting,
    }
    reasons = [reason for reason, share in found.items() if share > MAX_NOISE]
    if not reasons:
        return None
    return f"too noisy to say: {', '.join(reasons)} (limit {MAX_NOISE:.0%} each); measure again on an idle machine"


def _rounds(
    sessions: Sequence[Session], feeds: Sequence[Arrays], min_seconds: float, min_rounds: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return wall and CPU milliseconds, shape [rounds, files] each, of running all sessions in turn, warm."""
    rounds: list[list[tuple[int, int]]] = []
    end = time.perf_counter() + min_seconds
    while time.perf_counter() < end or len(rounds) < min_rounds:
        rounds.append([_timed(session, feed) for session, feed in zip(sessions, feeds, strict=True)])
    wall, cpu = np.moveaxis(np.array(rounds) * 1e-6, -1, 0)
    return wall, cpu


def _timed(session: Session, feed: Arrays) -> tuple[int, int]:
    """Return wall and CPU nanoseconds of a run that follows an untimed one."""
    session.run(feed)
    cpu_start, start = time.process_time_ns(), time.perf_counter_ns()
    session.run(feed)
    return time.perf_counter_ns() - start, time.process_time_ns() - cpu_start


def _sizes(graphs: Mapping[str, onnx.GraphProto], batch: int | None, shapes: Shapes | None) -> dict[str, InputSizes]:
    """Return each file's sizes, of one batch for all."""
    check_names(graphs, shapes)
    fixed = {path: fixed_batch(graph, path, shapes) for path, graph in graphs.items()}
    if batch is None:
        batch = next((own for own in fixed.values() if own is not None), 1)
    return {path: input_sizes(graph, path, shapes, batch) for path, graph in graphs.items()}


def _macs(path: str | Path, sizes: InputSizes) -> tuple[int | None, str]:
    """Return the MACs of a run, or None and why they cannot be counted."""
    try:
        found = count_macs(path, shapes=sizes.shapes)
    except FileError as error:
        return None, str(error)
    if found.uncounted:
        return None, f"not counted: {', '.join(f'{count} × {op}' for op, count in found.uncounted.items())}"
    return found.macs, ""


def _crowded(threads: int) -> str:
    usable = usable_threads()
    processors = f"{usable} processor{'' if usable == 1 else 's'}"
    return f"{threads} threads share {processors} and wait for each other; measure with at most {usable}"
