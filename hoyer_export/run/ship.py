"""The stages that ship: export → verify → bench, each from the files of the run folder and for every artifact."""

import hashlib
import tempfile
import time
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from hoyer_export.deploy.benchmark import LatencyRecord, Speedup, benchmark
from hoyer_export.deploy.checks import Check, VerifyRecord, check
from hoyer_export.deploy.explain import BlockedConvolutions, blocked_convolutions
from hoyer_export.deploy.interface import METADATA_PREFIX
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.onnx_file import metadata_of, read_onnx
from hoyer_export.deploy.runtime import DEFAULT
from hoyer_export.deploy.runtime.fresh import fresh
from hoyer_export.deploy.runtime.protocol import Runtime
from hoyer_export.errors import VerificationFailed
from hoyer_export.metric import evaluate
from hoyer_export.report import stage_records as records
from hoyer_export.report.sparsity import nonzero_share
from hoyer_export.run.artifacts import ARTIFACTS, Artifact, artifacts_of, write_float32
from hoyer_export.run.cut import CUT
from hoyer_export.run.elements import layer_weights
from hoyer_export.run.explaining import explained
from hoyer_export.run.exporting import sizes_of_run
from hoyer_export.run.inputs import macs_in_torch
from hoyer_export.run.job import Job
from hoyer_export.run.stage import Stage, record_of
from hoyer_export.run.time_budget import judged
from hoyer_export.run.train import EVALUATION_BATCH
from hoyer_export.select.budget import COSTS, Budget, is_within


def export_files(job: Job) -> records.ExportsRecord:
    """Write every artifact."""
    wanted = artifacts_of(job.recipe)
    job.progress.headline(f"export: {', '.join(it.path(job.folder).name for it in wanted.values())}")
    started = time.perf_counter()
    for artifact in (it for name, it in ARTIFACTS.items() if name not in wanted):  # of the recipe before
        artifact.path(job.folder).unlink(missing_ok=True)
        artifact.rejected(job.folder).unlink(missing_ok=True)
    files = tuple(_exported(job, artifact) for artifact in wanted.values())
    weights = layer_weights(job.slim().model) if job.recipe.cut.of_elements else ()
    return records.ExportsRecord(
        seconds=time.perf_counter() - started,
        artifacts=files,
        budget=_judged(job, {file.name: file for file in files}, weights),
        weights=weights,
    )


def _exported(job: Job, artifact: Artifact) -> records.FileRecord:
    path = artifact.path(job.folder)
    artifact.write(artifact, job, path)
    artifact.rejected(job.folder).unlink(missing_ok=True)
    of_graph = ARTIFACTS[artifact.counted or artifact.name].found(job.folder)
    counted, content = count_macs(of_graph, shapes=sizes_of_run(of_graph, job)), path.read_bytes()
    return records.FileRecord(
        name=artifact.name,
        file=path.name,
        kind=artifact.kind,
        params=sum(parameter.numel() for parameter in artifact.network(job).parameters()),
        macs=counted.macs,
        flops=counted.flops,
        uncounted=counted.uncounted,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _judged(
    job: Job, files: dict[str, records.FileRecord], weights: Sequence[records.LayerWeights]
) -> records.BudgetRecord:
    """Return what the slim file reaches of the dense one; MACs cannot be met where more multiplies than is counted.

    What may be lost is met by the way that the cut went, and reached where that ended.
    """
    dense, slim = files["dense"], files["slim"]
    reached: dict[str, float] = {}
    asked, met = job.recipe.cut.asked(), True
    refit = record_of(CUT, job.folder).refit
    ends = [step.lost for step in refit.steps if step.within and step.lost is not None] if refit else []
    for key, share in asked.items():
        if key in ("max_drop", "max_change"):
            reached[key] = ends[-1] if ends else 0.0
        if isinstance(share, float) and key == "weights":
            reached[key] = nonzero_share(weights)
            met &= is_within(reached[key], share)
        if isinstance(share, float) and key in ("macs", "params"):
            whole, left = getattr(dense, key), getattr(slim, key)
            reached[key] = left / max(whole, 1)
            met &= Budget(COSTS[key], share).is_met_by(left, whole)
            met &= key != "macs" or not (dense.uncounted or slim.uncounted)
    return records.BudgetRecord(asked=asked, met=met, reached=reached)


def verify_files(job: Job) -> records.VerifiedRecord:
    """Verify every artifact, and read every accuracy on the test set; no choice has looked at it before.

    Raises:
        VerificationFailed: a file cannot even be run.
    """
    images = f", {len(job.data.test):,} test images" if job.has_labels else ""
    wanted = artifacts_of(job.recipe)
    job.progress.headline(f"verify: {', '.join(it.path(job.folder).name for it in wanted.values())}{images}")
    started = time.perf_counter()
    known = {file.name: file.sha256 for file in record_of(EXPORT, job.folder).artifacts}
    if not job.trusts_files:  # verify_onnx itself compares the weights with those that write_float32 would write
        known = {name: _written_now(job, it) for name, it in wanted.items() if it.write is not write_float32}
    with fresh(job.recipe.bench.runtime) as runtime:
        found = {name: _settled(job, artifact, known.get(name), runtime) for name, artifact in wanted.items()}
    before = found["dense"].accuracy
    if job.has_labels and job.recipe.sparse.epochs:
        before = evaluate(job.sparse(), job.data.test.batches(EVALUATION_BATCH), job.metric)
    return records.VerifiedRecord(
        passed=all(it.passed for it in found.values()),
        artifacts=tuple(found.values()),
        sparse_accuracy=before,
        seconds=time.perf_counter() - started,
    )


def _written_now(job: Job, artifact: Artifact) -> str:
    """Return the sha256 of the file as it is written now."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / artifact.path(job.folder).name
        artifact.write(artifact, job, path)
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _settled(job: Job, artifact: Artifact, sha256: str | None, runtime: Runtime) -> records.FileVerification:
    """Verify one file, which goes by the name that it deserves from then on."""
    path, deserved = artifact.found(job.folder), artifact.rejected(job.folder)
    try:
        found = _verified(job, artifact, sha256, runtime)
    except VerificationFailed:
        path.replace(deserved)
        raise
    path.replace(artifact.path(job.folder) if found.passed else deserved)
    return found


def _verified(job: Job, artifact: Artifact, sha256: str | None, runtime: Runtime) -> records.FileVerification:
    path = artifact.found(job.folder)
    found = artifact.verify(artifact, job, path, sha256, runtime)
    of_own_graph = [] if artifact.counted else [*_same_macs(path, artifact, job), *_same_preprocessing(path, job)]
    return as_record(artifact.name, found, of_own_graph)


def as_record(name: str, found: VerifyRecord, more: Sequence[Check] = ()) -> records.FileVerification:
    """Return what was found of a file, with ``more`` checks than those of ``verify_onnx``."""
    checks = [*found.checks, *more]
    return records.FileVerification(
        name=name,
        passed=all(check.passed for check in checks),
        checks=tuple(
            records.Check(name=it.name, value=_finite(it.value), tolerance=it.tolerance, passed=it.passed)
            for it in checks
        ),
        onnx=tuple(
            records.OnnxComparison(
                output=it.output,
                batch=it.batch,
                inputs=it.inputs,
                optimization=it.optimization,
                max_abs_error=_finite(it.max_abs_error),
                tolerance=it.tolerance,
            )
            for it in found.onnx
        ),
        accuracy=found.torch_accuracy,
        onnx_accuracy=found.onnx_accuracy,
        by_class=tuple(
            records.ClassTally(images=images, correct=correct)
            for images, correct in zip(found.class_images, found.class_correct, strict=True)
        ),
        departure=None if found.departure is None else str(found.departure),
    )


def _same_preprocessing(path: Path, job: Job) -> list[Check]:
    """Compare what the file tells its client of images with what its network was trained on."""
    if not job.has_data:
        return []
    told, expected = metadata_of(read_onnx(path)), job.data.preprocessing.metadata()
    wrong = sum(told.get(METADATA_PREFIX + key) != text for key, text in expected.items())
    return [check("preprocessing in the file", wrong, 0)]


def _same_macs(path: Path, artifact: Artifact, job: Job) -> list[Check]:
    """Compare the MACs of the file with what torch multiplies; nothing where it has more than can be counted."""
    counted = count_macs(path, shapes=sizes_of_run(path, job))
    if counted.uncounted:
        return []
    run = macs_in_torch(artifact.network(job), job.example)
    # The exporter may write once what the network computes twice.
    difference = min(abs(counted.macs - macs) for macs in (run.distinct, run.macs))
    return [Check("MACs, file against torch", difference, 0, difference == 0)]


def _finite(value: float) -> float | None:
    """Return a number that JSON can hold: one that is not finite is null, and never passes."""
    return value if isfinite(value) else None


def bench_files(job: Job) -> records.MeasuredRecord:
    """Measure all artifacts, interleaved; nothing where the recipe gives it no time."""
    table = job.recipe.bench
    wanted = {name: it for name, it in artifacts_of(job.recipe).items() if it.path(job.folder).suffix == ".onnx"}
    started, files, noise, block, budget = time.perf_counter(), [], None, None, None
    if table.min_seconds:
        threads = f"{table.threads} thread{'' if table.threads == 1 else 's'}"
        job.progress.headline(f"bench: {' against '.join(wanted)}, {threads}, batch {table.batch_size}")
        paths = [artifact.found(job.folder) for artifact in wanted.values()]
        shapes = dict(sizes_of_run(paths[0], job, table.batch_size) or {})
        for artifact in wanted.values():
            shapes |= artifact.sizes(job)
        found = benchmark(
            paths,
            threads=table.threads,
            batch_size=table.batch_size,
            shapes=shapes,
            min_seconds=table.min_seconds,
            runtime=table.runtime,
        )
        blocked = [blocked_convolutions(path, runtime=table.runtime) for path in paths]
        noise, block, budget = found.noisy, blocked[-1].block, judged(job, found)
        for line in (noise, *found.warnings):
            if line:
                job.progress.note(line)
        files = [
            _latency(name, latency, convs, speedup, noise)
            for name, latency, convs, speedup in zip(wanted, found.files, blocked, (None, *found.speedups), strict=True)
        ]
        if table.runtime == DEFAULT:  # whose profiler it asks
            files = [explained(it, path, table, shapes) for it, path in zip(files, paths, strict=True)]
    return records.MeasuredRecord(
        environment=records.Environment.model_validate(job.environment, from_attributes=True),
        runtime=table.runtime,
        threads=table.threads,
        batch_size=table.batch_size,
        artifacts=tuple(files),
        block=block,
        noise=noise,
        budget=budget,
        seconds=time.perf_counter() - started,
    )


def _latency(
    name: str,
    latency: LatencyRecord,
    convs: BlockedConvolutions,
    speedup: Speedup | None,
    noise: str | None,
) -> records.FileLatency:
    return records.FileLatency(
        name=name,
        p50=latency.p50_ms,
        p90=latency.p90_ms,
        p99=latency.p99_ms,
        min=latency.min_ms,
        n=latency.n,
        cpu_p50=latency.cpu_ms,
        samples=tuple(sample_quantiles(latency.samples_ms)),
        blocked_convs=records.BlockedConvs(blocked=convs.blocked, total=convs.total) if convs.block else None,
        # An interval beside "too noisy to say" would say it all the same.
        speedup=None
        if speedup is None
        else records.Speedup(median=speedup.median, ci95=None if noise else speedup.ci95),
    )


def sample_quantiles(samples: Sequence[float], most: int = records.MOST_SAMPLES) -> list[float]:
    """Return the sorted samples, thinned to ``most`` evenly spaced ranks; the smallest and largest are among them."""
    ordered = sorted(samples)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(rank * (len(ordered) - 1) / (most - 1))] for rank in range(most)]


EXPORT = Stage(
    name="export",
    record=records.ExportsRecord,
    run=export_files,
    reads=("export",),
    needs=("finetune", "dense"),
    leaves=lambda job: tuple(artifact.found(job.folder) for artifact in artifacts_of(job.recipe).values()),
)
VERIFY = Stage(
    name="verify",
    record=records.VerifiedRecord,
    run=verify_files,
    reads=("verify", "bench.runtime"),
    needs=("export", "dense", "sparse", "finetune"),
)
BENCH = Stage(name="bench", record=records.MeasuredRecord, run=bench_files, reads=("bench",), needs=("export",))
