"""The stages that ship: export → verify → bench, each from the files of the run folder."""

import json
import time
from dataclasses import asdict
from math import isfinite
from typing import Any

from torch import nn

from hoyer_export.deploy.benchmark import LatencyRecord, benchmark
from hoyer_export.deploy.explain import blocked_convolutions
from hoyer_export.deploy.export import ExportRecord, export_onnx
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.verify import Check, verify_onnx
from hoyer_export.environment import EnvironmentRecord
from hoyer_export.pipeline.inputs import Inputs, macs_in_torch
from hoyer_export.pipeline.phases import EVALUATION_BATCH
from hoyer_export.pipeline.progress import Progress
from hoyer_export.report.record import sample_quantiles
from hoyer_export.run_folder import RunFolder, read_stages, write_stage
from hoyer_export.sparsify.training import evaluate_accuracy
from hoyer_export.surgery.step import SlimModel
from hoyer_export.weights import load_weights


def export_files(
    inputs: Inputs, slim: SlimModel, folder: RunFolder, progress: Progress, *, again: bool = False
) -> dict[str, Any]:
    """Write dense.onnx and slim.onnx, and return their figures; what is done already is done over only ``again``."""
    if not again and "export" in read_stages(folder):
        return read_stages(folder)["export"]
    progress.headline("export: dense.onnx, slim.onnx")
    started = time.perf_counter()
    dense = _trained(inputs, folder, "dense")
    files = {"dense": (dense, folder.dense_onnx), "slim": (slim.model, folder.slim_onnx)}
    figures = {}
    for name, (model, path) in files.items():
        exported = export_onnx(
            model, inputs.example, path, opset=inputs.recipe.export.opset, metadata=_metadata(inputs, name)
        )
        figures[name] = _figures(model, exported)
    record = {"seconds": time.perf_counter() - started, **figures}
    write_stage(folder, "export", record)
    return record


def _figures(model: nn.Module, exported: ExportRecord) -> dict[str, Any]:
    counted = count_macs(exported.path)
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": counted.macs,
        "flops": counted.flops,
        "onnx_bytes": exported.size_bytes,
        "onnx_sha256": exported.sha256,
    }


def _metadata(inputs: Inputs, file: str) -> dict[str, str]:
    return {
        "network": inputs.recipe.network.name,
        "data": inputs.data.name,
        "file": file,
        "mean": json.dumps(inputs.data.mean),
        "std": json.dumps(inputs.data.std),
    }


def verify_files(
    inputs: Inputs, slim: SlimModel, folder: RunFolder, progress: Progress, *, again: bool = False
) -> dict[str, Any]:
    """Verify slim.onnx, and read every accuracy on the test set; no choice has looked at it before.

    What is done already is done over only ``again``; its record stays if that fails.

    Raises:
        VerificationFailed: slim.onnx cannot even be run; what can is in the record.
    """
    if not again and "verify" in read_stages(folder):
        return read_stages(folder)["verify"]
    progress.headline(f"verify: slim.onnx, {len(inputs.data.test):,} test images")
    started = time.perf_counter()
    example = next(inputs.data.validation.batches(max(inputs.recipe.verify.batches)))[0]
    found = verify_onnx(
        folder.slim_onnx,
        slim.model,
        example,
        batches=inputs.recipe.verify.batches,
        labelled=inputs.data.test.batches(EVALUATION_BATCH),
        # Asked for again, the weights are compared for themselves.
        sha256=None if again else read_stages(folder)["export"]["slim"]["onnx_sha256"],
    )
    checks = [*found.checks, *_same_macs(slim.model, inputs, folder)]
    accuracy = {
        "dense": _test_accuracy(inputs, _trained(inputs, folder, "dense")),
        "sparse": _test_accuracy(inputs, _trained(inputs, folder, "sparse")),
        "slim": found.torch_accuracy,
        "slim_onnx": found.onnx_accuracy,
    }
    record = {
        "seconds": time.perf_counter() - started,
        "passed": all(check.passed for check in checks),
        "checks": [_finite(asdict(check)) for check in checks],
        "onnx": [_finite(asdict(comparison)) for comparison in found.onnx],
        "accuracy": accuracy,
    }
    write_stage(folder, "verify", record)
    return record


def _same_macs(model: nn.Module, inputs: Inputs, folder: RunFolder) -> list[Check]:
    """Compare the MACs of slim.onnx with what torch multiplies; nothing where the file has more than can be counted."""
    counted = count_macs(folder.slim_onnx)
    if counted.uncounted:
        return []
    run = macs_in_torch(model, inputs.example)
    # The exporter may write once what the network computes twice.
    difference = min(abs(counted.macs - macs) for macs in (run.distinct, run.macs))
    return [Check("MACs, file against torch", difference, 0, difference == 0)]


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record that JSON can hold: a number that is not finite is null, and never passes."""
    return {key: None if isinstance(it, float) and not isfinite(it) else it for key, it in record.items()}


def _trained(inputs: Inputs, folder: RunFolder, phase: str) -> nn.Module:
    """Return the dense network with the weights that a phase left."""
    load_weights(inputs.network, folder.dense_weights if phase == "dense" else folder.sparse_weights)
    return inputs.network


def _test_accuracy(inputs: Inputs, model: nn.Module) -> float:
    return evaluate_accuracy(model, inputs.data.test.batches(EVALUATION_BATCH))


def bench_files(
    inputs: Inputs, folder: RunFolder, environment: EnvironmentRecord, progress: Progress
) -> dict[str, Any]:
    """Measure dense.onnx against slim.onnx, interleaved; ``environment`` is the machine as the run found it."""
    if "bench" in read_stages(folder):
        return read_stages(folder)["bench"]
    table = inputs.recipe.bench
    threads = f"{table.threads} thread{'' if table.threads == 1 else 's'}"
    progress.headline(f"bench: dense.onnx against slim.onnx, {threads}, batch {table.batch_size}")
    started = time.perf_counter()
    paths = {"dense": folder.dense_onnx, "slim": folder.slim_onnx}
    found = benchmark(
        tuple(paths.values()), threads=table.threads, batch_size=table.batch_size, min_seconds=table.min_seconds
    )
    blocked = {name: blocked_convolutions(path) for name, path in paths.items()}
    record = {
        "seconds": time.perf_counter() - started,
        "environment": asdict(environment),
        "threads": found.threads,
        "batch_size": found.batch_size,
        "dense_ms": _milliseconds(found.files[0]),
        "slim_ms": _milliseconds(found.files[1]),
        "speedup": asdict(found.speedups[0]),
        "blocked_convs": {name: {"blocked": it.blocked, "total": it.total} for name, it in blocked.items()},
        "block": blocked["slim"].block,
        "noise": found.noisy,
    }
    write_stage(folder, "bench", record)
    if found.noisy:
        progress.note(found.noisy)
    return record


def _milliseconds(latency: LatencyRecord) -> dict[str, Any]:
    return {
        "p50": latency.p50_ms,
        "p90": latency.p90_ms,
        "p99": latency.p99_ms,
        "min": latency.min_ms,
        "n": latency.n,
        "cpu_p50": latency.cpu_ms,
        "samples": sample_quantiles(latency.samples_ms),
    }
