"""Compare the weights in an ONNX file with the network's, where the outputs do not show them.

A weight that meets activations near zero hardly moves an output, whatever it is. The exporter is a function of the
network, so that what it writes now is what must be in the file: the same tensors, to rounding.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_model
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.deploy.departure import Departure, first_departure
from hoyer_export.deploy.export import OPSETS, export_onnx
from hoyer_export.deploy.macs import NodeMacs, count_macs
from hoyer_export.deploy.onnx_file import fed_inputs, read_onnx, tensors_of
from hoyer_export.deploy.runtime.protocol import Arrays, Runtime
from hoyer_export.deploy.weight_sizes import contraction_weights, plain_sizes
from hoyer_export.errors import NetworkError

WEIGHT_TOLERANCE = 1e-5
"""Of the largest value of a tensor: folding a norm into a convolution rounds."""
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)

Weights = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class FileWeights:
    """The weights of one file beside those of the network that it should hold.

    Args:
        path: the file.
        network: float32, in eval mode, on the CPU.
        call: with two examples.
    """

    path: Path
    network: nn.Module
    call: Call

    def wrong_sizes(self) -> int:
        """Return how many sizes of weights only one of the two has: the file's contractions or those that torch runs.

        Sizes, not weights: the exporter merges a module that is called twice on the same input. Where it writes a
        weight in another form than torch multiplies with, what counts is what it writes for this network.
        """
        in_file = _contraction_sizes(self.path, self.call)
        wrong = in_file ^ contraction_weights(self.network, self.call)
        if wrong and self._written is not None:
            wrong = in_file ^ self._written[1]
        return len(wrong)

    def wrong_values(self, sha256: str | None) -> int | None:
        """Return how many tensors of the file are not what the exporter writes for the network.

        None where the two cannot be compared: another exporter has put the file together.

        Args:
            sha256: of the file that the exporter wrote for this very network, if known: equal bytes are equal weights.
        """
        if sha256 is not None and hashlib.sha256(self.path.read_bytes()).hexdigest() == sha256:
            return 0
        weights = _weights(self.path)
        if _are_state(weights, self.network.state_dict()):
            return 0
        return None if self._written is None else _unmatched(weights, self._written[0])

    def first_departure(self, feed: Arrays, runtime: Runtime) -> Departure | None:
        """Return the first node that departs from what the exporter writes for the network; None where there is none.

        Args:
            feed: input of the file → array.
            runtime: runs the file.
        """
        with self._exported() as path:
            return None if path is None else first_departure(self.path, path, (feed, feed), runtime)

    @cached_property
    def _written(self) -> tuple[Weights, set[tuple[int, ...]]] | None:
        """The weights, and the sizes of the contractions' weights, of a file that is written now."""
        with self._exported() as path:
            return None if path is None else (_weights(path), _contraction_sizes(path, self.call))

    @contextmanager
    def _exported(self) -> Iterator[Path | None]:
        """Yield a file that is written now; None where something stops the exporter that did not when this was."""
        opset = next((it.version for it in read_onnx(self.path).opset_import if it.domain == ""), 0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "again.onnx"
            with suppress(NetworkError):
                export_onnx(self.network, self.call, path, opset=opset if opset in OPSETS else OPSETS[-1])
            yield path if path.exists() else None


def differing_weights(path: Path, reference: Path) -> int | None:
    """Return how many tensors of two files of the same operations differ; None where they are not comparable."""
    ours, other = read_onnx(path).graph, read_onnx(reference).graph
    if [node.op_type for node in ours.node] != [node.op_type for node in other.node]:
        return None
    return _unmatched(_weights(path), _weights(reference))


def _contraction_sizes(path: Path, call: Call) -> set[tuple[int, ...]]:
    sizes = set()
    for node in _nodes_at(path, call):
        if node.state_shape:  # it stacks its directions, which torch multiplies one by one
            sizes |= {plain_sizes(node.weight_shape[1:]), plain_sizes(node.state_shape[1:])}
        elif node.weight_shape:
            sizes.add(plain_sizes(node.weight_shape))
    return sizes


def _nodes_at(path: Path, call: Call) -> tuple[NodeMacs, ...]:
    """Return what is counted where the file's inputs, apart from the batch, have the sizes of ``call``."""
    values = [value.name for value in fed_inputs(read_onnx(path).graph)]
    shapes = {
        name: (1, *x.shape[1:]) if call.is_batched(x) else tuple(x.shape)
        for name, x in zip(values, call.tensors, strict=True)
    }
    return count_macs(path, shapes=shapes).nodes


def _weights(path: Path) -> Weights:
    """Return every floating-point tensor of the file, by its name or, for a constant without one, by its place."""
    model = read_onnx(path)
    load_external_data_for_model(model, str(path.parent))
    tensors = (tensor for tensor in tensors_of(model.graph) if tensor.data_type in _FLOATS)
    return {t.name or f"constant {i}": onnx.numpy_helper.to_array(t) for i, t in enumerate(tensors)}


def _are_state(weights: Weights, state: Mapping[str, Tensor]) -> bool:
    """Return whether every tensor is the network's parameter or buffer of that name, as it is or transposed.

    Numbers are no weights but part of the code, whose effect the outputs show. No norm is folded then, and the
    exporter, which takes its time, need not be asked.
    """

    def is_state(name: str, found: NDArray[np.generic]) -> bool:
        value = state[name].numpy() if name in state else None
        return value is not None and (_same(found, value) or (value.ndim == 2 and _same(found, value.T)))

    return all(is_state(name, found) for name, found in weights.items() if found.size > 1 or name in state)


def _unmatched(found: Weights, written: Weights) -> int | None:
    """Return how many tensors of the file have no equal among those that were written; None for other shapes."""
    if Counter(w.shape for w in found.values()) != Counter(w.shape for w in written.values()):
        return None
    named = {name for name, weight in found.items() if name in written and _same(weight, written[name])}
    left = [weight for name, weight in written.items() if name not in named]
    wrong = 0
    for weight in (weight for name, weight in found.items() if name not in named):
        match = next((at for at, candidate in enumerate(left) if _same(weight, candidate)), None)
        if match is None:
            wrong += 1
        else:
            del left[match]
    return wrong


def _same(found: NDArray[np.generic], expected: NDArray[np.generic]) -> bool:
    if found.shape != expected.shape:
        return False
    first, second = found.astype(np.float64), expected.astype(np.float64)
    limit = WEIGHT_TOLERANCE * np.abs(second).max(initial=0) + float(np.finfo(np.float32).tiny)  # a file may be flushed
    return bool((np.abs(first - second) <= limit).all())
