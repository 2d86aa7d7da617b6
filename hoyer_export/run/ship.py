"""The stages that ship: export → verify → bench, each from the files of the run folder."""

import json
import time
from math import isfinite
from pathlib import Path

from pydantic import NonNegativeFloat
from torch import nn

from hoyer_export.deploy.benchmark import LatencyRecord, benchmark
from hoyer_export.deploy.explain import blocked_convolutions
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.verify import Check, verify_onnx
from hoyer_export.report.record import sample_quantiles
from hoyer_export.report.sections import BlockedConvs, BlockedConvsOfBoth, Environment, LatencyMs, Speedup
from hoyer_export.report.sections import Check as CheckSection
from hoyer_export.report.sections import OnnxComparison as OnnxSection
from hoyer_export.run.inputs import macs_in_torch
from hoyer_export.run.job import Job
from hoyer_export.run.records import Accuracies, ExportsRecord, FileRecord, MeasuredRecord, VerifiedRecord
from hoyer_export.run.stage import Stage, record_of
from hoyer_export.run.train import EVALUATION_BATCH
from hoyer_export.sparsify.training import evaluate_accuracy


def export_files(job: Job) -> ExportsRecord:
    """Write dense.onnx and slim.onnx."""
    job.progress.headline("export: dense.onnx, slim.onnx")
    started = time.perf_counter()
    networks = {"dense": (job.dense(), job.folder.dense_onnx), "slim": (job.slim().model, job.folder.slim_onnx)}
    files = {name: _exported(job, name, network, path) for name, (network, path) in networks.items()}
    return ExportsRecord(seconds=time.perf_counter() - started, **files)


def _exported(job: Job, name: str, network: nn.Module, path: Path) -> FileRecord:
    facts = {
        "network": job.recipe.network.name,
        "data": job.data.name,
        "file": name,
        "mean": json.dumps(job.data.mean),
        "std": json.dumps(job.data.std),
    }
    exported = export_onnx(network, job.example, path, opset=job.recipe.export.opset, metadata=facts)
    counted = count_macs(path)
    return FileRecord(
        params=sum(parameter.numel() for parameter in network.parameters()),
        macs=counted.macs,
        flops=counted.flops,
        onnx_bytes=exported.size_bytes,
        onnx_sha256=exported.sha256,
    )


def verify_files(job: Job) -> VerifiedRecord:
    """Verify slim.onnx, and read every accuracy on the test set; no choice has looked at it before.

    Raises:
        VerificationFailed: slim.onnx cannot even be run; what can is in the record.
    """
    job.progress.headline(f"verify: slim.onnx, {len(job.data.test):,} test images")
    started, slim = time.perf_counter(), job.slim().model
    batches = job.recipe.verify.batches
    found = verify_onnx(
        job.folder.slim_onnx,
        slim,
        next(job.data.validation.batches(max(batches)))[0],
        batches=batches,
        labelled=job.data.test.batches(EVALUATION_BATCH),
        sha256=record_of(EXPORT, job.folder).slim.onnx_sha256 if job.trusts_files else None,
    )
    checks = [*found.checks, *_same_macs(slim, job)]
    return VerifiedRecord(
        passed=all(check.passed for check in checks),
        checks=tuple(
            CheckSection(name=it.name, value=_finite(it.value), tolerance=it.tolerance, passed=it.passed)
            for it in checks
        ),
        onnx=tuple(
            OnnxSection(
                batch=it.batch,
                inputs=it.inputs,
                optimization=it.optimization,
                max_abs_error=_finite(it.max_abs_error),
                tolerance=it.tolerance,
            )
            for it in found.onnx
        ),
        accuracy=Accuracies(
            dense=_test_accuracy(job, job.dense()),
            sparse=_test_accuracy(job, job.sparse()),
            slim=found.torch_accuracy,
            slim_onnx=found.onnx_accuracy,
        ),
        seconds=time.perf_counter() - started,
    )


def _same_macs(slim: nn.Module, job: Job) -> list[Check]:
    """Compare the MACs of slim.onnx with what torch multiplies; nothing where the file has more than can be counted."""
    counted = count_macs(job.folder.slim_onnx)
    if counted.uncounted:
        return []
    run = macs_in_torch(slim, job.example)
    # The exporter may write once what the network computes twice.
    difference = min(abs(counted.macs - macs) for macs in (run.distinct, run.macs))
    return [Check("MACs, file against torch", difference, 0, difference == 0)]


def _finite(value: float) -> NonNegativeFloat | None:
    """Return a number that JSON can hold: one that is not finite is null, and never passes."""
    return value if isfinite(value) else None


def _test_accuracy(job: Job, model: nn.Module) -> float:
    return evaluate_accuracy(model, job.data.test.batches(EVALUATION_BATCH))


def bench_files(job: Job) -> MeasuredRecord:
    """Measure dense.onnx against slim.onnx, interleaved."""
    table = job.recipe.bench
    threads = f"{table.threads} thread{'' if table.threads == 1 else 's'}"
    job.progress.headline(f"bench: dense.onnx against slim.onnx, {threads}, batch {table.batch_size}")
    started = time.perf_counter()
    paths = (job.folder.dense_onnx, job.folder.slim_onnx)
    found = benchmark(paths, threads=table.threads, batch_size=table.batch_size, min_seconds=table.min_seconds)
    dense, slim = map(blocked_convolutions, paths)
    if found.noisy:
        job.progress.note(found.noisy)
    (speedup,) = found.speedups
    return MeasuredRecord(
        environment=Environment.model_validate(job.environment, from_attributes=True),
        threads=found.threads,
        batch_size=found.batch_size,
        dense_ms=_milliseconds(found.files[0]),
        slim_ms=_milliseconds(found.files[1]),
        speedup=Speedup(median=speedup.median, ci95=speedup.ci95),
        blocked_convs=BlockedConvsOfBoth(
            dense=BlockedConvs(blocked=dense.blocked, total=dense.total),
            slim=BlockedConvs(blocked=slim.blocked, total=slim.total),
        ),
        block=slim.block,
        noise=found.noisy,
        seconds=time.perf_counter() - started,
    )


def _milliseconds(latency: LatencyRecord) -> LatencyMs:
    return LatencyMs(
        p50=latency.p50_ms,
        p90=latency.p90_ms,
        p99=latency.p99_ms,
        min=latency.min_ms,
        n=latency.n,
        cpu_p50=latency.cpu_ms,
        samples=tuple(sample_quantiles(latency.samples_ms)),
    )


EXPORT = Stage(
    name="export",
    record=ExportsRecord,
    run=export_files,
    reads=("export",),
    needs=("finetune", "dense"),
    leaves=lambda folder: (folder.dense_onnx, folder.slim_onnx),
)
VERIFY = Stage(
    name="verify",
    record=VerifiedRecord,
    run=verify_files,
    reads=("verify",),
    needs=("export", "dense", "sparse", "finetune"),
)
BENCH = Stage(name="bench", record=MeasuredRecord, run=bench_files, reads=("bench",), needs=("export",))
