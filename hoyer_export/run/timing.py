"""The times of a recipe's network, layer by layer, as the table of this machine has them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hoyer_export.deploy.layer_times import cache_folder
from hoyer_export.deploy.time_table import Interpolation, interpolation_error
from hoyer_export.recipe.tables import Recipe
from hoyer_export.run.job import Job
from hoyer_export.run.progress import Progress
from hoyer_export.run_folder import RunFolder
from hoyer_export.select.latency import Latency, distinct, measured_latency


@dataclass(frozen=True)
class LayerTime:
    """One kind of layer.

    Args:
        layer: in words.
        calls: how often a run computes it.
        ms: of all of them, as wide as they are.
        half_ms: of all of them at half of their inputs and outputs, in whole blocks.
        gmacs_per_second: as wide as they are.
    """

    layer: str
    calls: int
    ms: float
    half_ms: float
    gmacs_per_second: float


@dataclass(frozen=True)
class Times:
    """What the table says of a network.

    Args:
        network: its name.
        runtime: that was measured, with its version.
        threads: that one run used.
        batch_size: images a run.
        block: channels that the runtime computes together.
        layers: that differ, the slowest first.
        ms: of all layers together.
        entries: measurements in the table, of all networks.
        interpolation: how far times between those are off; None where no layer has room to tell.
        folder: where the table is kept.
    """

    network: str
    runtime: str
    threads: int
    batch_size: int
    block: int
    layers: tuple[LayerTime, ...]
    ms: float
    entries: int
    interpolation: Interpolation | None
    folder: str


TIMED_WITH = ("bench.runtime", "bench.threads", "bench.batch_size")
"""The keys of the recipe on which times hang."""


def job_latency(job: Job) -> Latency:
    """Return what a job's network costs at any widths, at the threads and batch of its [bench]; measured if need be."""
    return measured_latency(
        job.network(),
        job.example,
        threads=job.recipe.bench.threads,
        batch_size=job.recipe.bench.batch_size,
        runtime=job.recipe.bench.runtime,
        told=lambda missing: job.progress.note(
            f"{missing:,} times of layers to be measured on this machine, once; they are kept in {cache_folder()}"
        ),
    )


def recipe_times(recipe: Recipe, *, allow_import: Sequence[str] = (), progress: Progress) -> Times:
    """Measure what the table lacks of a recipe's network, and return what it says of it.

    Args:
        recipe: its network, and runtime, threads and batch size of its [bench].
        allow_import: packages that may be imported for ``package.module:function``.
        progress: is told how much is to be measured.

    Raises:
        HoyerExportError: the network cannot be built or run, or the table cannot be kept.
    """
    job, bench = Job(recipe, RunFolder(Path()), progress, allow_import), recipe.bench  # nothing is written there
    latency = job_latency(job)
    table = latency.table
    calls = Counter(layer for of_module in latency.layers.values() for layer in of_module)
    rows = []
    for layer, count in calls.items():
        ms = count * float(table.ms(layer, layer.inputs, layer.outputs))
        half = count * float(table.ms(layer, layer.inputs / 2, layer.outputs / 2))
        rows.append(LayerTime(str(layer), count, ms, half, 1e-6 * count * layer.macs / ms))
    return Times(
        network=recipe.network.name,
        runtime=f"{table.runtime} {table.version}".strip(),
        threads=bench.threads,
        batch_size=bench.batch_size,
        block=table.block,
        layers=tuple(sorted(rows, key=lambda row: -row.ms)),
        ms=sum(row.ms for row in rows),
        entries=len(table.entries),
        interpolation=interpolation_error(distinct(latency.layers), table),
        folder=str(cache_folder()),
    )
