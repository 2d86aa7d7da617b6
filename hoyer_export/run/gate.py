"""The gate: a slim file against limits, of a run by its records, or of any two files by counting and measuring them.

MACs, parameters and bytes are shares of the dense file's, as budgets are; latency is 1 / the median of the paired
ratios; the drop is in points of top-1 through the runtime.
"""

from dataclasses import replace
from pathlib import Path

from hoyer_export.data import ImageOptions, load_data
from hoyer_export.deploy.accuracy import file_accuracy
from hoyer_export.deploy.benchmark import benchmark
from hoyer_export.deploy.input_sizes import Shapes, input_sizes
from hoyer_export.deploy.interface import METADATA_PREFIX
from hoyer_export.deploy.macs import MacsRecord, count_macs
from hoyer_export.deploy.onnx_file import fed_inputs, metadata_of, read_onnx
from hoyer_export.deploy.runtime import DEFAULT
from hoyer_export.errors import DataError, FileError
from hoyer_export.preprocessing import Preprocessing
from hoyer_export.recipe.tables import Data, Gate
from hoyer_export.report import stage_records as records
from hoyer_export.report.number_format import share
from hoyer_export.select.budget import is_within

_COUNTED = {"max_macs": "macs", "max_params": "params", "max_bytes": "size_bytes"}
Counted = records.FileRecord | MacsRecord


def gate_of(
    gate: Gate,
    exported: records.ExportsRecord,
    verified: records.VerifiedRecord,
    measured: records.MeasuredRecord,
) -> records.GateRecord:
    """Judge the slim file of a run."""
    dense, slim = exported.artifacts[:2]
    accuracies = [it.onnx_accuracy for it in verified.artifacts[:2]]
    lost = None if accuracies[0] is None or accuracies[1] is None else accuracies[0] - accuracies[1]
    speedup = measured.artifacts[1].speedup if measured.artifacts else None
    return _judged(gate, (dense, slim), speedup, measured.noise, lost)


def check_file(
    path: Path,
    against: Path,
    gate: Gate,
    *,
    shapes: Shapes | None = None,
    data: Data | None = None,
    threads: int = 1,
    batch_size: int | None = None,
    min_seconds: float = 5.0,
    runtime: str = DEFAULT,
) -> records.GateRecord:
    """Judge the ONNX file ``path`` against the file ``against``: only what there is a limit for is measured.

    Args:
        path: of the slim file.
        against: of the dense file.
        gate: the limits.
        shapes: input → sizes, where a file leaves more than the batch open.
        data: whose test images accuracy is read on.
        threads: of one run.
        batch_size: images a run; None: what the files fix, else 1.
        min_seconds: time to measure.
        runtime: what latency and accuracy are measured in.

    Raises:
        HoyerExportError: a file or the data is missing, damaged, or does not fit.
    """
    files = against, path
    counted = _an_image(against, shapes), _an_image(path, shapes)
    speedup = noise = lost = None
    if gate.max_accuracy_drop is not None:
        dense, slim = (_accuracy(file, data, shapes, runtime) for file in files)
        lost = dense - slim
    if gate.max_latency is not None:
        found = benchmark(
            files, threads=threads, batch_size=batch_size, shapes=shapes, min_seconds=min_seconds, runtime=runtime
        )
        noise = found.noisy
        speedup = records.Speedup(median=found.speedups[0].median, ci95=found.speedups[0].ci95)
    return _judged(gate, counted, speedup, noise, lost)


def _an_image(path: Path, shapes: Shapes | None) -> MacsRecord:
    """Return what one image costs, also where the file fixes a batch of several."""
    found = count_macs(path, shapes=shapes)
    return replace(found, macs=found.macs // found.batch)


def _accuracy(path: Path, table: Data | None, shapes: Shapes | None, runtime: str) -> float:
    """Return the accuracy on the test images, prepared as the table or else the file says."""
    if table is None:
        raise DataError("max_accuracy_drop is read on test images; name a data set: `data`")
    model = read_onnx(path)
    told = {key.removeprefix(METADATA_PREFIX): text for key, text in metadata_of(model).items()}
    try:
        as_told = Preprocessing.told_by(told)
    except ValueError as error:
        raise FileError(f"what the metadata of {path} say of images is damaged; export it again") from error
    side = input_sizes(model.graph, path, shapes).shapes[fed_inputs(model.graph)[0].name][-1]
    options = ImageOptions(**as_told.model_dump(include={"resize", "short_side", "interpolation", "class_names"}))
    data = load_data(
        table.name,
        root=None if table.root is None else Path(table.root),
        mean=table.mean or as_told.mean,
        std=table.std or as_told.std,
        image_size=side if table.name == "imagefolder" else None,
        options=options if table.name == "imagefolder" else None,
    )
    if data.classes is None:
        raise DataError(f"max_accuracy_drop needs labels, and {table.name} has none; name a data set with classes")
    return file_accuracy(path, data.test.batches, shapes=shapes, runtime=runtime)


def _judged(
    gate: Gate,
    counted: tuple[Counted, Counted],
    speedup: records.Speedup | None,
    noise: str | None,
    lost: float | None,
) -> records.GateRecord:
    """Return every limit with what was reached.

    Args:
        gate: the limits.
        counted: what the dense and the slim file cost.
        speedup: of the slim file.
        noise: why that cannot be trusted.
        lost: points of accuracy.
    """
    dense, slim = counted
    uncounted = ", ".join(dense.uncounted | slim.uncounted)
    limits = []
    for name, limit in gate.asked().items():
        note = ""
        if name in _COUNTED:
            reached = getattr(slim, _COUNTED[name]) / max(getattr(dense, _COUNTED[name]), 1)
            note = f"not counted: {uncounted}" if name == "max_macs" and uncounted else ""
        elif name == "max_latency":
            reached = None if speedup is None else 1 / speedup.median
            note = "not measured" if speedup is None else noise or _interval(speedup)
        else:
            reached = lost
            note = "not measured" if lost is None else ""
        passed = reached is not None and is_within(reached, limit) and not note.startswith("not counted")
        limits.append(records.LimitRecord(name=name, limit=limit, reached=reached, passed=passed, note=note))
    return records.GateRecord(passed=all(it.passed for it in limits), limits=tuple(limits))


def _interval(speedup: records.Speedup) -> str:
    """Return the 95 % interval of the share of the dense file's time."""
    low, high = speedup.ci95 or (speedup.median, speedup.median)
    return f"95 % interval {share(1 / high)} to {share(1 / low)}"
