"""``verify`` for files that belong to no run: an ONNX file against another, or against a network's weights."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from hoyer_export.deploy.checks import RELATIVE_TOLERANCE
from hoyer_export.deploy.feed import feed_of
from hoyer_export.deploy.input_sizes import Shapes, input_sizes
from hoyer_export.deploy.onnx_file import read_onnx
from hoyer_export.deploy.runtime import DEFAULT
from hoyer_export.deploy.verify import verify_onnx
from hoyer_export.deploy.verify_files import verify_files
from hoyer_export.errors import FileError, NetworkError
from hoyer_export.networks import build_network, default_input_shape, is_function_name
from hoyer_export.report.stage_records import VerifiedRecord
from hoyer_export.run.ship import as_record
from hoyer_export.store.slim_file import load_slim
from hoyer_export.tensors_file import METADATA_KEY, read_about
from hoyer_export.weights import load_weights

BATCH = 8
"""Images of noise that a network and its file are compared on."""


def verify_file(
    path: Path,
    against: Path,
    *,
    network: str | None = None,
    classes: int | None = None,
    weights_key: str | None = None,
    shapes: Shapes | None = None,
    tolerance: float = RELATIVE_TOLERANCE,
    runtime: str = DEFAULT,
    allow_import: Sequence[str] = (),
) -> VerifiedRecord:
    """Compare the ONNX file ``path`` with what it should compute.

    Args:
        path: of the file.
        against: an ONNX file, slim.safetensors, or the weights of ``network``.
        network: name of the network; a slim file names its own.
        classes: outputs of the network; those of the file where None.
        weights_key: where in the file the weights are, as for ``load_weights``.
        shapes: input → sizes, where the file leaves more than the batch open.
        tolerance, runtime: as for ``verify_onnx``.
        allow_import: packages that may be imported for a network ``package.module:function``.

    Raises:
        HoyerExportError: something is missing, damaged or does not fit; the file takes or returns something else.
    """
    started = time.perf_counter()
    if against.suffix == ".onnx":
        found = verify_files(path, against, shapes=shapes, tolerance=tolerance, runtime=runtime)
    else:
        graph = read_onnx(path).graph
        sizes = input_sizes(graph, path, shapes, BATCH)
        inputs = tuple(torch.from_numpy(array) for array in feed_of(graph, sizes).values())
        dims = [value.dim_value for value in graph.output[0].type.tensor_type.shape.dim]
        classes = classes or (dims[1] if len(dims) == 2 else None) or None
        model = _network(network, against, inputs[0].shape[1:], classes, weights_key, allow_import)
        found = verify_onnx(path, model, inputs, tolerance=tolerance, runtime=runtime)
    file = as_record(path.stem, found)
    return VerifiedRecord(
        seconds=time.perf_counter() - started, passed=file.passed, artifacts=(file,), sparse_accuracy=None
    )


def _network(
    name: str | None,
    weights: Path,
    shape: Sequence[int],
    classes: int | None,
    key: str | None,
    allow_import: Sequence[str],
) -> nn.Module:
    """Return the network with its weights, built for inputs of this shape without the batch."""
    is_slim = _is_slim(weights)
    if name is None:
        if not is_slim:
            raise NetworkError(f"{weights} does not say which network it belongs to; name that: `network`")
        return load_slim(weights).model
    usual, own = default_input_shape(name), is_function_name(name)
    channels = shape[0] if not own and usual and shape and shape[0] != usual[0] else None
    network = build_network(name, in_channels=channels, classes=None if own else classes, allow_import=allow_import)
    if is_slim:
        return load_slim(weights, into=network).model
    load_weights(network, weights, key=key)
    return network


def _is_slim(weights: Path) -> bool:
    try:
        read_about(weights, METADATA_KEY, kind="slim file", advice="")
    except FileError:  # whoever reads it as something else says what is wrong with it
        return False
    return True
