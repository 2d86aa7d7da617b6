"""Prove that an ONNX file computes what the network computes, step by step; every step can fail.

    interface            names, float32, dynamic batch (else VerificationFailed: nothing further could run)
    outputs              max |runtime − torch| ≤ tolerance, graph optimisations off, then all on;
                         batches 1, 2, 3 and 8; real images, zeros, ones, noise
    inputs left open     not all: where the outputs differ, but torch's own rounding decides them, nothing follows
    rows of a batch      row i of every batch equals the run of image i alone, within the same tolerance
    weight sizes         the weights of the file's convolutions and matrix products have the network's sizes
    subnormal weights    none
    top-1                the runtime's first class is torch's, wherever torch's two best logits are further apart
                         than the tolerance
    outputs on test images  in the place of top-1 where another metric is read: as outputs
    weights              where all of that passes: the tensors of the file are those that the exporter writes for
                         the network, to 1e-5 of their largest value

The tolerance is 1e-5 · max(1, max |torch|), or more where torch itself rounds more (rounding.py). Outputs are
float32, their differences are taken in float64. An output that is not a number fails.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from hoyer_export.call import Call, ExampleInputs, ExampleKwargs
from hoyer_export.deploy.checks import (
    RELATIVE_TOLERANCE,
    Optimization,
    VerifyRecord,
    check,
    check_outputs,
    closest,
)
from hoyer_export.deploy.export import as_float32, inference_copy
from hoyer_export.deploy.file_weights import FileWeights
from hoyer_export.deploy.interface import check_interface, is_batched, larger, sizes_of
from hoyer_export.deploy.labelled import Agreement, Labelled, Run, agreement_on, measured
from hoyer_export.deploy.onnx_file import read_onnx, subnormals, tensors_of
from hoyer_export.deploy.rounding import MOST, Expected, Judged, Outputs, Rounding, max_error
from hoyer_export.deploy.runtime import DEFAULT, as_runtime
from hoyer_export.deploy.runtime.protocol import Arrays, RunFailed, Runtime, Session
from hoyer_export.environment import usable_threads
from hoyer_export.errors import DataError, VerificationFailed
from hoyer_export.metric import ACCURACY, Metric, as_metric


def verify_onnx(
    path: str | Path,
    model: nn.Module,
    inputs: ExampleInputs,
    *,
    example_kwargs: ExampleKwargs | None = None,
    batches: Sequence[int] = (1, 2, 3, 8),
    labelled: Labelled | None = None,
    sha256: str | None = None,
    tolerance: float = RELATIVE_TOLERANCE,
    runtime: Runtime | str = DEFAULT,
    metric: Metric | Any = None,
) -> VerifyRecord:
    """Compare the ONNX file ``path`` with ``model``, which stays as it is (steps above).

    Args:
        path: a file that ``export_onnx`` wrote.
        model: the network that was exported; a float32 copy in eval mode on the CPU is what is compared.
        inputs, example_kwargs: real images [N, ...], normalised, or whatever else the network is called with, as for
            ``trace_channels``; repeated where N is less than the largest batch.
        batches: batch sizes.
        labelled: batches of (inputs, classes int64 [N]), for the top-1.
        sha256: of what ``export_onnx`` wrote for this very model, if known: a file of the same bytes need not be
            compared with another export, which takes as long as the first.
        tolerance: largest |runtime − torch| in units of max(1, max |torch|), where torch itself rounds less.
        metric: read on the labelled images in the place of top-1: a ``Metric``, or what one is made of.
        runtime: what runs the file: a name in ``RUNTIMES``, or one of your own.

    Raises:
        FileError: the file is missing, damaged, or beyond this runtime.
        VerificationFailed: the file has another interface, or does not take these inputs.
        DataError: there are no images, or labels for a network whose output is not [N, classes].
    """
    real = as_float32(Call.of(model, inputs, example_kwargs))
    if not real.tensors or real.batch_size == 0 or not batches or min(batches) < 1:
        raise DataError(f"verification needs images and batches of at least 1, got {real.shapes or 'no tensor'}")
    file, network = read_onnx(path), inference_copy(model)
    names = check_interface(file, path, network, real)
    cases = input_cases(real, max(2, *batches))
    two = cases["real"].rows(slice(2))
    torchs = Rounding(network)
    with_rows = [is_batched(value) for value in file.graph.output]
    expected = _expected(torchs, cases, batches, all(with_rows))
    if any(len(sizes_of(value)) > 2 and isinstance(sizes_of(value)[2], str) for value in file.graph.input):
        expected["larger", 2] = torchs.expected(larger(two))
    runner, levels = as_runtime(runtime), get_args(Optimization)
    load = partial(runner.load, Path(path), usable_threads())
    runs = {level: partial(runtime_outputs, path, load(level == "all"), names) for level in levels}

    found = {(*key, level): run(it.call) for key, it in expected.items() for level, run in runs.items()}
    judged = {key: torchs.judge(of, (it := expected[key[:2]]).outputs, it, tolerance) for key, of in found.items()}
    comparisons, of_outputs = check_outputs(judged, [value.name for value in file.graph.output])
    weights = FileWeights(Path(path), network, two)
    checks = [
        check("interface", 0, 0),
        *of_outputs,
        closest("rows of a batch", _judged_rows(runs, torchs, cases, expected, found, tolerance, with_rows)),
        check("weight sizes", weights.wrong_sizes(), 0),
        check("subnormal weights", sum(int(subnormals(tensor).sum()) for tensor in tensors_of(file.graph)), 0),
    ]
    agreement, judge = Agreement(), as_metric(metric)
    if labelled is not None and judge is not ACCURACY:
        agreement, on_test = measured(runs["all"], torchs, network, labelled, judge, tolerance)
        checks.append(closest("outputs on test images", on_test))
    elif labelled is not None:
        relative = [c.tolerance / c.scale for c in comparisons if c.inputs == "real"]
        agreement = agreement_on(runs["all"], network, labelled, max(relative, default=MOST))
        checks.append(check("top-1", agreement.clear_disagreements, 0))
    if all(check.passed for check in checks) and (wrong := weights.wrong_values(sha256)) is not None:
        checks.append(check("weights", wrong, 0))
    passed = all(check.passed for check in checks)
    worst = max(judged, key=lambda key: max(it.error / it.tolerance for it in judged[key]))
    departure = None if passed else weights.first_departure(_feed(names, expected[worst[:2]].call), runner)
    of_test = agreement.onnx_accuracy, agreement.torch_accuracy, agreement.class_images, agreement.class_correct
    return VerifyRecord(passed, tuple(checks), comparisons, *of_test, departure)


def _expected(
    torchs: Rounding, cases: dict[str, Call], batches: Sequence[int], with_rows: bool
) -> dict[tuple[str, int], Expected]:
    """Return what torch gives for every kind of input and batch.

    Rows of the largest batch stand for the smaller ones, where a run of single images shows that torch has them alike:
    of a network that mixes the images of a batch each batch is run.
    """
    largest = {kind: torchs.expected(call.rows(slice(max(batches)))) for kind, call in cases.items()}
    whole, alone = largest["real"], torchs.expected(cases["real"].rows(slice(1)))
    alike = with_rows and all(
        max_error(one, of[:1]) <= RELATIVE_TOLERANCE * scale
        for one, of, scale in zip(alone.outputs, whole.outputs, whole.scales, strict=True)
    )
    return {
        (kind, batch): it.rows(batch) if alike else torchs.expected(call.rows(slice(batch)))
        for kind, call in cases.items()
        for it in [largest[kind]]
        for batch in batches
    }


def _judged_rows(
    runs: Mapping[Optimization, Run],
    torchs: Rounding,
    cases: dict[str, Call],
    expected: dict[tuple[str, int], Expected],
    found: Mapping[tuple[str, int, Optimization], Outputs],
    tolerance: float,
    with_rows: list[bool],
) -> list[list[Judged]]:
    """Compare every batch's rows with the runs of single images: real ones, or others where those are left open."""
    judged: list[list[Judged]] = []
    for kind, call in cases.items():
        batches = {batch: it for (of, batch), it in expected.items() if of == kind}
        for level, run in runs.items():
            alone = [run(call.rows(slice(i, i + 1))) for i in range(max(batches))]
            for batch, it in batches.items():
                whole, outputs = found[kind, batch, level], zip(*alone[:batch], strict=True)
                rows = [np.concatenate(of) if has else y for of, has, y in zip(outputs, with_rows, whole, strict=True)]
                judged.append(torchs.judge(whole, rows, it, tolerance))
        if not all(it.is_open for row in judged for it in row):
            break
    return judged


def input_cases(real: Call, count: int) -> dict[str, Call]:
    """Return ``count`` inputs of each kind; integer inputs are real ones everywhere: their range is the network's."""
    repeated = real.rows(torch.arange(count) % real.batch_size)
    generator = torch.Generator().manual_seed(0)

    def filled(values: Any) -> Call:
        return repeated.map(lambda x: values(x) if x.is_floating_point() and x.ndim else x)

    return {
        "real": repeated,
        "zeros": filled(torch.zeros_like),
        "ones": filled(torch.ones_like),
        "noise": filled(lambda x: torch.randn(x.shape, generator=generator)),
    }


def runtime_outputs(path: str | Path, session: Session, names: list[str], call: Call) -> Outputs:
    try:
        return [output.astype(np.float64) for output in session.run(_feed(names, call))]
    except RunFailed as error:
        raise VerificationFailed(f"{path} does not run on inputs {call.shapes} ({error}); export again") from error


def _feed(names: list[str], call: Call) -> Arrays:
    return dict(zip(names, (x.numpy() for x in call.tensors), strict=True))
