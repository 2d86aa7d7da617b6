"""What labelled images say of a file beside its network: top-1, or another metric, through the runtime and torch."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hoyer_export.call import Call, ExampleInputs
from hoyer_export.deploy.export import as_float32
from hoyer_export.deploy.rounding import Judged, Outputs, Rounding, torch_outputs
from hoyer_export.errors import DataError
from hoyer_export.metric import Metric, Tally
from hoyer_export.tensors import tensors_in

Labelled = Iterable[tuple[ExampleInputs, Any]]
Run = Callable[[Call], Outputs]


@dataclass(frozen=True)
class Agreement:
    """Top-1 over the labelled images."""

    clear_disagreements: int = 0
    onnx_accuracy: float | None = None
    torch_accuracy: float | None = None
    class_images: tuple[int, ...] = ()
    class_correct: tuple[int, ...] = ()
    onnx_class_correct: tuple[int, ...] = ()


def measured(
    run: Run, torchs: Rounding, network: nn.Module, labelled: Labelled, metric: Metric, tolerance: float
) -> tuple[Agreement, list[list[Judged]]]:
    """Read a metric through the runtime and through torch, and compare the outputs that it is made of."""
    through_torch, through_runtime, judged = Tally(metric), Tally(metric), []
    for inputs, targets in labelled:
        batch = as_float32(Call.of(network, inputs, collated=True))
        with torch.no_grad():
            outputs = batch.on(network)
        expected, found = torchs.expected(batch), run(batch)
        judged.append(torchs.judge(found, expected.outputs, expected, tolerance))
        through_torch.add(outputs, targets)
        pairs = zip(tensors_in(outputs), found, strict=True)
        # What deepcopy finds in its memo it takes as its copy: the same containers, with the runtime's numbers.
        memo: dict[int, Any] = {id(tensor): torch.from_numpy(numbers).to(tensor.dtype) for tensor, numbers in pairs}
        through_runtime.add(copy.deepcopy(outputs, memo), targets)
    return Agreement(0, through_runtime.value(), through_torch.value()), judged


def agreement_on(run: Run, network: nn.Module, labelled: Labelled, tolerance: float) -> Agreement:
    """Compare first classes; two logits that are closer than ``tolerance``, relative, may change places."""
    tallies, seen, right, right_in_file = [], [], [], []
    for inputs, targets in labelled:
        batch, classes = as_float32(Call.of(network, inputs, collated=True)), targets.cpu().numpy()
        if classes.shape != (batch.batch_size,):
            came = f"labels {list(classes.shape)} of {batch.batch_size} images"
            raise DataError(f"top-1 needs one class an image, got {came}")
        expected, output = torch_outputs(network, batch)[0], run(batch)[0]
        if expected.ndim != 2 or expected.shape[1] < 2:
            raise DataError(f"top-1 needs logits [N, at least 2 classes], the network returns {list(expected.shape)}")
        second, best = np.sort(expected)[:, -2:].T
        with np.errstate(invalid="ignore"):  # inf - inf
            clear = best - second > tolerance * max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0))
        onnx_class, torch_class = output.argmax(1), expected.argmax(1)
        # What is not a number is no answer.
        numbers = np.isfinite(expected).all(1) & np.isfinite(output).all(1)
        wrong = ~numbers | (clear & (onnx_class != torch_class))
        tallies.append([len(classes), wrong.sum(), (onnx_class == classes).sum(), (torch_class == classes).sum()])
        seen.append(classes)
        right.append(classes[torch_class == classes])
        right_in_file.append(classes[onnx_class == classes])
    images, disagreements, onnx_correct, torch_correct = np.sum(tallies or [[0] * 4], axis=0).tolist()
    if images == 0:
        raise DataError("top-1 needs labelled images, got none")
    count = np.bincount(np.concatenate(seen))
    correct = (np.bincount(np.concatenate(it), minlength=len(count)) for it in (right, right_in_file))
    by_class = (tuple(it.tolist()) for it in (count, *correct))
    return Agreement(disagreements, 100 * onnx_correct / images, 100 * torch_correct / images, *by_class)
