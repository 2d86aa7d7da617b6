"""Top-1 of an ONNX file, of any origin, on labelled images."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor

from hoyer_export.deploy.input_sizes import Shapes, fixed_batch
from hoyer_export.deploy.onnx_file import fed_inputs, read_onnx
from hoyer_export.deploy.runtime import DEFAULT, as_runtime
from hoyer_export.deploy.runtime.protocol import RunFailed, Runtime
from hoyer_export.environment import usable_threads
from hoyer_export.errors import DataError, FileError

BATCH = 64
"""Images a run, unless the file fixes another number."""

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]


def file_accuracy(
    path: Path, batches: Batches, *, shapes: Shapes | None = None, runtime: Runtime | str = DEFAULT
) -> float:
    """Return the percentage of images whose largest output, of the first that the file has, is their class.

    Args:
        path: of the file.
        batches: batch size → batches of (images, normalised; classes int64 [N]).
        shapes: input → sizes, where the file leaves more than the batch open.
        runtime: what runs it.

    Raises:
        FileError: the file is missing, damaged, or takes more than images.
        DataError: there are no images, it does not run on them, or does not return [N, classes].
    """
    graph = read_onnx(path).graph
    inputs = fed_inputs(graph)
    if len(inputs) != 1:
        raise FileError(f"{path} takes {', '.join(it.name for it in inputs)}; accuracy needs one input, the images")
    kind = onnx.helper.tensor_dtype_to_np_dtype(inputs[0].type.tensor_type.elem_type)
    fixed = fixed_batch(graph, path, shapes)
    size, session = fixed or BATCH, as_runtime(runtime).load(path, usable_threads(), True)
    images = correct = 0
    for batch, targets in batches(size):
        array, classes = batch.numpy().astype(kind), targets.numpy()
        if fixed:  # the last batch is filled up
            array = np.resize(array, (size, *array.shape[1:]))
        try:
            output = session.run({inputs[0].name: array})[0][: len(classes)]
        except RunFailed as error:
            raise DataError(f"{path} does not run on images {list(array.shape)} ({error})") from error
        if output.ndim != 2 or output.shape[1] <= classes.max():
            raise DataError(
                f"accuracy needs [N, at least {classes.max() + 1} classes], {path} returns {list(output.shape)}"
            )
        answers = np.where(np.isfinite(output).all(1), output.argmax(1), -1)  # what is not a number is no answer
        images, correct = images + len(classes), correct + int((answers == classes).sum())
    if not images:
        raise DataError("accuracy needs labelled images, got none")
    return 100 * correct / images
