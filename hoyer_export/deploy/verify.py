"""Prove that an ONNX file computes what the network computes, step by step; every step can fail.

    interface            names, float32, dynamic batch (else VerificationFailed: nothing further could run)
    outputs              max |onnxruntime − torch| ≤ tolerance, graph optimisations off, then all on;
                         batches 1, 2, 3 and 8; real images, zeros, ones, noise
    inputs left open     not all of them: inputs on which torch's own float32 is further from its float64 than
                         can be allowed for are not compared
    rows of a batch      row i of every batch equals the run of image i alone, within the same tolerance
    weight sizes         the weights of the file's convolutions and matrix products have the network's sizes
    subnormal weights    none
    top-1                onnxruntime's first class is torch's, wherever torch's two best logits are further apart
                         than the tolerance
    weights              where all of that passes: the tensors of the file are those that the exporter writes for
                         the network, to 1e-5 of their largest value

The tolerance is 1e-5 · max(1, max |torch|), or more where torch itself rounds more (sensitivity.py). Outputs are
float32, their differences are taken in float64. An output that is not a number fails.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hoyer_export.deploy.export import as_float32, inference_copy
from hoyer_export.deploy.file_weights import FileWeights
from hoyer_export.deploy.interface import check_interface
from hoyer_export.deploy.onnx_file import ORT_ERRORS, first_line, open_session, read_onnx, subnormals, tensors_of
from hoyer_export.deploy.sensitivity import (
    MOST,
    Expected,
    Floats,
    Inputs,
    expected_output,
    float64_copy,
    max_error,
    scale_of,
    torch_output,
)
from hoyer_export.environment import usable_threads
from hoyer_export.errors import DataError, VerificationFailed

RELATIVE_TOLERANCE = 1e-5
"""What two runtimes that round differently may differ by, where torch itself is no less certain."""

Optimization = Literal["disabled", "all"]


@dataclass(frozen=True)
class Check:
    """One step: ``value`` may be at most ``tolerance``.

    Args:
        name: of the step, as in the list above.
        value: for outputs and rows the error that comes closest to its tolerance or exceeds it most, in units of
            max(1, max |torch|); for the others how many inputs, weights, values or images are wrong. Infinite where
            something is not a number or has another shape.
        tolerance: in the same unit; for outputs and rows the one of the same comparison.
        passed: value ≤ tolerance.
    """

    name: str
    value: float
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class OnnxComparison:
    """One batch through onnxruntime and through torch.

    Args:
        batch: number of images.
        inputs: ``real``, ``zeros``, ``ones`` or ``noise`` (normal, variance 1).
        optimization: ``disabled`` or ``all`` of onnxruntime's graph optimisations.
        max_abs_error: max |onnxruntime − torch|.
        tolerance: largest difference of a right file, at least 1e-5 · max(1, max |torch|).
        scale: max(1, max |torch|).
    """

    batch: int
    inputs: str
    optimization: Optimization
    max_abs_error: float
    tolerance: float
    scale: float


@dataclass(frozen=True)
class VerifyRecord:
    """What was found.

    Args:
        passed: every check passed.
        checks: in order.
        onnx: the comparisons behind the checks of the outputs, on all inputs that torch does not leave open.
        onnx_accuracy: top-1 of the labelled images through onnxruntime in percent; None without any.
        torch_accuracy: the same through torch.
    """

    passed: bool
    checks: tuple[Check, ...]
    onnx: tuple[OnnxComparison, ...]
    onnx_accuracy: float | None
    torch_accuracy: float | None


@dataclass(frozen=True)
class _Agreement:
    """Top-1 over the labelled images."""

    clear_disagreements: int
    onnx_accuracy: float
    torch_accuracy: float


def verify_onnx(
    path: str | Path,
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    *,
    batches: Sequence[int] = (1, 2, 3, 8),
    labelled: Iterable[tuple[Tensor | tuple[Tensor, ...], Tensor]] | None = None,
    sha256: str | None = None,
) -> VerifyRecord:
    """Compare the ONNX file ``path`` with ``model``, which stays as it is (steps above).

    Args:
        path: a file that ``export_onnx`` wrote.
        model: the network that was exported; a float32 copy in eval mode on the CPU is what is compared.
        inputs: real images [N, ...], normalised, or a tuple of tensors for a network of several inputs; repeated where
            N is less than the largest batch.
        batches: batch sizes.
        labelled: batches of (inputs, classes int64 [N]), for the top-1.
        sha256: of what ``export_onnx`` wrote for this very model, if known: a file of the same bytes need not be
            compared with another export, which takes as long as the first.

    Raises:
        FileError: the file is missing, damaged, or beyond this onnxruntime.
        VerificationFailed: the file has another interface, or does not take these inputs.
        DataError: there are no images, or labels for a network whose output is not [N, classes].
    """
    real = as_float32(inputs)
    if any(len(x) == 0 for x in real) or not batches or min(batches) < 1:
        raise DataError(f"verification needs images and batches of at least 1, got {[list(x.shape) for x in real]}")
    file = read_onnx(path)
    check_interface(file.graph, path, real)
    network = inference_copy(model)
    cases = _cases(real, max(2, *batches))
    two = _rows(cases["real"], 0, 2)
    exact = float64_copy(network, two)
    expected = {
        (kind, batch): expected_output(network, exact, _rows(inputs, 0, batch), RELATIVE_TOLERANCE)
        for kind, inputs in cases.items()
        for batch in batches
    }
    sessions: dict[Optimization, Any] = {
        "disabled": open_session(path, optimize=False, threads=usable_threads()),
        "all": open_session(path, threads=usable_threads()),
    }

    comparisons = tuple(_comparisons(path, sessions, cases, expected))
    left_open = sum(it.tolerance is None for it in expected.values())
    weights = FileWeights(Path(path), network, two)
    checks = [
        _check("interface", 0, 0),
        _closest("outputs, optimisation disabled", [_error(c) for c in comparisons if c.optimization == "disabled"]),
        _closest("outputs, optimisation all", [_error(c) for c in comparisons if c.optimization == "all"]),
        *([_check("inputs left open", left_open, len(expected) - 1)] if left_open else []),
        _closest("rows of a batch", list(_row_errors(path, sessions, cases, expected))),
        _check("weight sizes", weights.wrong_sizes(), 0),
        _check("subnormal weights", sum(int(subnormals(tensor).sum()) for tensor in tensors_of(file.graph)), 0),
    ]
    agreement = None
    if labelled is not None:
        relative = [c.tolerance / c.scale for c in comparisons if c.inputs == "real"]
        agreement = _agreement(path, sessions["all"], network, labelled, max(relative, default=MOST))
        checks.append(_check("top-1", agreement.clear_disagreements, 0))
    if all(check.passed for check in checks) and (wrong := weights.wrong_values(sha256)) is not None:
        checks.append(_check("weights", wrong, 0))
    return VerifyRecord(
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
        onnx=comparisons,
        onnx_accuracy=None if agreement is None else agreement.onnx_accuracy,
        torch_accuracy=None if agreement is None else agreement.torch_accuracy,
    )


def _check(name: str, value: float, tolerance: float) -> Check:
    return Check(name, value, tolerance, value <= tolerance)


@dataclass(frozen=True)
class _Error:
    """One difference, beside what it may be and its unit."""

    value: float
    tolerance: float
    scale: float


def _error(comparison: OnnxComparison) -> _Error:
    return _Error(comparison.max_abs_error, comparison.tolerance, comparison.scale)


def _closest(name: str, errors: list[_Error]) -> Check:
    """Return the check of the error that is largest beside its tolerance; without any nothing was shown."""
    worst = max(errors, key=lambda it: it.value / it.tolerance, default=_Error(math.inf, RELATIVE_TOLERANCE, 1.0))
    return _check(name, worst.value / worst.scale, worst.tolerance / worst.scale)


def _comparisons(
    path: str | Path,
    sessions: dict[Optimization, Any],
    cases: dict[str, Inputs],
    expected: dict[tuple[str, int], Expected],
) -> Iterator[OnnxComparison]:
    """Yield every kind of input at every batch size that torch does not leave open, through both sessions."""
    for (kind, batch), torchs in expected.items():
        if torchs.tolerance is not None:
            for optimization, session in sessions.items():
                output = _ort_output(session, _rows(cases[kind], 0, batch), path)
                error = max_error(output, torchs.output)
                yield OnnxComparison(batch, kind, optimization, error, torchs.tolerance, torchs.scale)


def _row_errors(
    path: str | Path,
    sessions: dict[Optimization, Any],
    cases: dict[str, Inputs],
    expected: dict[tuple[str, int], Expected],
) -> Iterator[_Error]:
    """Yield the differences of a batch's rows from the runs of single images: real ones, or others if they are open."""
    batches = {
        kind: {batch: it for (of, batch), it in expected.items() if of == kind and it.tolerance is not None}
        for kind in cases
    }
    kind = max(cases, key=lambda of: len(batches[of]))
    for session in sessions.values():
        rows = range(max(batches[kind], default=0))
        alone = [_ort_output(session, _rows(cases[kind], i, i + 1), path) for i in rows]
        for batch, torchs in batches[kind].items():
            together = _ort_output(session, _rows(cases[kind], 0, batch), path)
            assert torchs.tolerance is not None
            yield _Error(max_error(together, np.concatenate(alone[:batch])), torchs.tolerance, torchs.scale)


def _cases(real: Inputs, count: int) -> dict[str, Inputs]:
    """Return ``count`` inputs of each kind; integer inputs are real ones everywhere: their range is the network's."""
    repeated = tuple(x[torch.arange(count) % len(x)] for x in real)
    generator = torch.Generator().manual_seed(0)

    def filled(values: Any) -> Inputs:
        return tuple(values(x) if x.is_floating_point() else x for x in repeated)

    return {
        "real": repeated,
        "zeros": filled(torch.zeros_like),
        "ones": filled(torch.ones_like),
        "noise": filled(lambda x: torch.randn(x.shape, generator=generator)),
    }


def _rows(inputs: Inputs, start: int, stop: int) -> Inputs:
    return tuple(x[start:stop] for x in inputs)


def _ort_output(session: Any, inputs: Inputs, path: str | Path) -> Floats:
    feed = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    try:
        output: Floats = session.run(["logits"], feed)[0].astype(np.float64)
    except ORT_ERRORS as error:
        shapes = [list(x.shape) for x in inputs]
        raise VerificationFailed(
            f"{path} does not run on inputs {shapes} ({first_line(error)}); export again"
        ) from error
    return output


def _agreement(
    path: str | Path,
    session: Any,
    network: nn.Module,
    labelled: Iterable[tuple[Tensor | tuple[Tensor, ...], Tensor]],
    tolerance: float,
) -> _Agreement:
    """Compare first classes; two logits that are closer than ``tolerance``, relative, may change places."""
    images = onnx_correct = torch_correct = disagreements = 0
    for inputs, targets in labelled:
        batch, classes = as_float32(inputs), targets.cpu().numpy()
        if classes.shape != (len(batch[0]),):
            raise DataError(
                f"top-1 needs one class an image, got labels {list(classes.shape)} of {len(batch[0])} images"
            )
        expected, output = torch_output(network, batch), _ort_output(session, batch, path)
        if expected.ndim != 2 or expected.shape[1] < 2:
            raise DataError(f"top-1 needs logits [N, at least 2 classes], the network returns {list(expected.shape)}")
        second, best = np.sort(expected)[:, -2:].T
        clear = best - second > tolerance * scale_of(expected)
        onnx_class, torch_class = output.argmax(1), expected.argmax(1)
        # What is not a number is no answer.
        numbers = np.isfinite(expected).all(1) & np.isfinite(output).all(1)
        disagreements += int((~numbers | (clear & (onnx_class != torch_class))).sum())
        onnx_correct += int((onnx_class == classes).sum())
        torch_correct += int((torch_class == classes).sum())
        images += len(classes)
    if images == 0:
        raise DataError("top-1 needs labelled images, got none")
    return _Agreement(disagreements, 100 * onnx_correct / images, 100 * torch_correct / images)
