"""Prove that an ONNX file computes what the network computes, step by step; every step can fail.

    interface            names, float32, dynamic batch (else VerificationFailed: nothing further could run)
    outputs              max |onnxruntime − torch| ≤ 1e-5 · max(1, max |torch|), graph optimisations off, then all on;
                         batches 1, 2, 3 and 8; real images, zeros, ones, noise
    rows of a batch      row i of every batch equals the run of image i alone, within the same tolerance
    weight sizes         the weights of the file's convolutions and matrix products have the network's sizes
    subnormal weights    none
    top-1                onnxruntime's first class is torch's, wherever torch's two best logits are further apart
                         than the tolerance

Outputs are float32, their differences are taken in float64. An output that is not a number fails.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hoyer_export.deploy.export import as_float32, inference_copy
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.onnx_file import ORT_ERRORS, first_line, open_session, read_onnx, subnormals, tensors_of
from hoyer_export.deploy.weight_sizes import contraction_weights, plain_sizes
from hoyer_export.environment import usable_threads
from hoyer_export.errors import DataError, VerificationFailed

RELATIVE_TOLERANCE = 1e-5

Optimization = Literal["disabled", "all"]
Inputs = tuple[Tensor, ...]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One step: ``value`` may be at most ``tolerance``.

    Args:
        name: of the step, as in the list above.
        value: for outputs and rows the largest error in units of max(1, max |torch|); for the others how many weights,
            values or images are wrong. Infinite where something is not a number or has another shape.
        tolerance: in the same unit.
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
        tolerance: 1e-5 · max(1, max |torch|).
    """

    batch: int
    inputs: str
    optimization: Optimization
    max_abs_error: float
    tolerance: float


@dataclass(frozen=True)
class VerifyRecord:
    """What was found.

    Args:
        passed: every check passed.
        checks: in order.
        onnx: the comparisons behind the checks of the outputs.
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
) -> VerifyRecord:
    """Compare the ONNX file ``path`` with ``model``, which stays as it is (steps above).

    Args:
        path: a file that ``export_onnx`` wrote.
        model: the network that was exported; a float32 copy in eval mode on the CPU is what is compared.
        inputs: real images [N, ...], normalised, or a tuple of tensors for a network of several inputs; repeated where
            N is less than the largest batch.
        batches: batch sizes.
        labelled: batches of (inputs, classes int64 [N]), for the top-1.

    Raises:
        FileError: the file is missing, damaged, or beyond this onnxruntime.
        VerificationFailed: the file has another interface, or does not take these inputs.
        DataError: there are no images, or labels for a network whose output is not [N, classes].
    """
    real = as_float32(inputs)
    if any(len(x) == 0 for x in real) or not batches or min(batches) < 1:
        raise DataError(f"verification needs images and batches of at least 1, got {[list(x.shape) for x in real]}")
    file = read_onnx(path)
    _check_interface(file.graph, path, real)
    network = inference_copy(model)
    cases = _cases(real, max(2, *batches))
    sessions: dict[Optimization, Any] = {
        "disabled": open_session(path, optimize=False, threads=usable_threads()),
        "all": open_session(path, threads=usable_threads()),
    }

    comparisons = tuple(_comparisons(path, network, sessions, cases, batches))
    row_error = max(_row_error(path, session, cases["real"], batches) for session in sessions.values())
    checks = [
        _check("interface", 0, 0),
        _check("outputs, optimisation disabled", _worst(comparisons, "disabled"), RELATIVE_TOLERANCE),
        _check("outputs, optimisation all", _worst(comparisons, "all"), RELATIVE_TOLERANCE),
        _check("rows of a batch", row_error, RELATIVE_TOLERANCE),
        _check("weight sizes", _wrong_weight_sizes(path, network, _rows(cases["real"], 0, 2)), 0),
        _check("subnormal weights", sum(int(subnormals(tensor).sum()) for tensor in tensors_of(file.graph)), 0),
    ]
    agreement = None if labelled is None else _agreement(path, sessions["all"], network, labelled)
    if agreement is not None:
        checks.append(_check("top-1", agreement.clear_disagreements, 0))
    return VerifyRecord(
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
        onnx=comparisons,
        onnx_accuracy=None if agreement is None else agreement.onnx_accuracy,
        torch_accuracy=None if agreement is None else agreement.torch_accuracy,
    )


def _check(name: str, value: float, tolerance: float) -> Check:
    return Check(name, value, tolerance, value <= tolerance)


def _comparisons(
    path: str | Path,
    network: nn.Module,
    sessions: dict[Optimization, Any],
    cases: dict[str, Inputs],
    batches: Sequence[int],
) -> Iterator[OnnxComparison]:
    """Yield every kind of input at every batch size, through torch and through both sessions."""
    for kind, inputs in cases.items():
        for batch in batches:
            expected = _torch_output(network, _rows(inputs, 0, batch))
            tolerance = RELATIVE_TOLERANCE * _scale(expected)
            for optimization, session in sessions.items():
                error = _max_error(_ort_output(session, _rows(inputs, 0, batch), path), expected)
                yield OnnxComparison(batch, kind, optimization, error, tolerance)


def _worst(comparisons: Iterable[OnnxComparison], optimization: Optimization) -> float:
    """Return the largest error, in units of max(1, max |torch|)."""
    found = (c for c in comparisons if c.optimization == optimization)
    return max(RELATIVE_TOLERANCE * (c.max_abs_error / c.tolerance) for c in found)


def _row_error(path: str | Path, session: Any, images: Inputs, batches: Sequence[int]) -> float:
    """Return the largest difference of a batch's rows from the runs of single images, in the same unit."""
    alone = np.concatenate([_ort_output(session, _rows(images, i, i + 1), path) for i in range(max(batches))])
    together = (_ort_output(session, _rows(images, 0, batch), path) for batch in batches)
    return max(_max_error(output, alone[: len(output)]) / _scale(output) for output in together)


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


def _torch_output(network: nn.Module, inputs: Inputs) -> Floats:
    try:
        with torch.no_grad():
            output: Tensor = network(*(x.clone() for x in inputs))  # a network may write into its input
    except Exception as error:
        shapes = [list(x.shape) for x in inputs]
        raise DataError(f"the network does not run on inputs of shape {shapes} ({first_line(error)})") from error
    return output.double().numpy()


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


def _scale(output: Floats) -> float:
    """Return max(1, max |output|): the error's unit."""
    largest = float(np.abs(output).max(initial=0))
    return max(1.0, largest) if math.isfinite(largest) else 1.0


def _max_error(output: Floats, expected: Floats) -> float:
    if output.shape != expected.shape:
        return math.inf
    largest = float(np.abs(output - expected).max(initial=0))
    return largest if math.isfinite(largest) else math.inf  # NaN compares with nothing


def _check_interface(graph: onnx.GraphProto, path: str | Path, real: Inputs) -> None:
    """Raise VerificationFailed unless the file takes ``real`` with a dynamic batch and returns ``logits``."""
    found = [_signature(value) for value in graph.input]
    names = ["input", *(f"input_{i}" for i in range(1, len(real)))]
    expected = [
        _signature(onnx.helper.make_tensor_value_info(name, _onnx_type(x), ["batch", *x.shape[1:]]))
        for name, x in zip(names, real, strict=True)
    ]
    if found != expected:
        raise VerificationFailed(f"{path} takes {'; '.join(found)}, expected {'; '.join(expected)}; export it again")
    outputs = [_signature(value) for value in graph.output]
    if len(outputs) != 1 or not outputs[0].startswith("logits FLOAT [batch"):
        raise VerificationFailed(
            f"{path} returns {'; '.join(outputs)}, expected logits FLOAT [batch, ...]; export it again"
        )


def _signature(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = [dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim]
    return f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type)} [{', '.join(sizes)}]"


def _onnx_type(x: Tensor) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(x.numpy().dtype)


def _wrong_weight_sizes(path: str | Path, network: nn.Module, two: Inputs) -> int:
    """Return how many sizes of weights only one of the two has: the file's contractions or those that torch runs.

    Sizes, not weights: the exporter merges a module that is called twice on the same input.
    """
    in_file = {plain_sizes(node.weight_shape) for node in count_macs(path).nodes if node.weight_shape}
    return len(in_file ^ contraction_weights(network, two))


def _agreement(
    path: str | Path,
    session: Any,
    network: nn.Module,
    labelled: Iterable[tuple[Tensor | tuple[Tensor, ...], Tensor]],
) -> _Agreement:
    images = onnx_correct = torch_correct = disagreements = 0
    for inputs, targets in labelled:
        batch, classes = as_float32(inputs), targets.cpu().numpy()
        if classes.shape != (len(batch[0]),):
            raise DataError(
                f"top-1 needs one class an image, got labels {list(classes.shape)} of {len(batch[0])} images"
            )
        expected, output = _torch_output(network, batch), _ort_output(session, batch, path)
        if expected.ndim != 2 or expected.shape[1] < 2:
            raise DataError(f"top-1 needs logits [N, at least 2 classes], the network returns {list(expected.shape)}")
        second, best = np.sort(expected)[:, -2:].T
        clear = best - second > RELATIVE_TOLERANCE * _scale(expected)
        onnx_class, torch_class = output.argmax(1), expected.argmax(1)
        disagreements += int((clear & (onnx_class != torch_class)).sum())
        onnx_correct += int((onnx_class == classes).sum())
        torch_correct += int((torch_class == classes).sum())
        images += len(classes)
    if images == 0:
        raise DataError("top-1 needs labelled images, got none")
    return _Agreement(disagreements, 100 * onnx_correct / images, 100 * torch_correct / images)
