"""Write a network as one ONNX file that depends on nothing but the network: same network, same versions, same bytes.

What is written is a float32 copy in eval mode, on the CPU, with a dynamic batch. The exporter folds batch norms into
convolutions. Stack traces, paths and the exporter's notes are taken out; what a user of the file needs is put in, under
``hoyer_export.`` in ``metadata_props``.
"""

import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.parameter import is_lazy

from hoyer_export.deploy.onnx_file import first_line, subnormals, tensors_of
from hoyer_export.errors import FileError, NetworkError
from hoyer_export.run_folder import whole_file

METADATA_PREFIX = "hoyer_export."
# Below 18 torch silently gives 18; above 20 not all runtimes in use follow.
OPSETS = (18, 19, 20)
# A protobuf message, hence a one-file ONNX, ends at 2 GiB; the graph needs a little of that.
_MAX_WEIGHT_BYTES = 2**31 - 2**24


@dataclass(frozen=True)
class ExportRecord:
    """The file that was written.

    Args:
        path: where.
        opset: of the standard operators.
        size_bytes: of the file.
        sha256: of the file, hexadecimal.
        flushed: subnormal values of the file's tensors that were set to zero.
    """

    path: Path
    opset: int
    size_bytes: int
    sha256: str
    flushed: int


def export_onnx(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    path: str | Path,
    *,
    opset: int = 20,
    metadata: Mapping[str, str] | None = None,
) -> ExportRecord:
    """Write ``model`` to the ONNX file ``path``, whole or not at all; the model itself stays as it is.

    The input is called ``input`` (further ones ``input_1``, ``input_2``, ...), the output ``logits``; the first
    dimension of each is ``batch``. The file's ``metadata_props`` hold ``hoyer_export.inputs``, as JSON the name of
    every input and its shape without the batch, and whatever ``metadata`` adds.

    Args:
        model: any network whose output is one tensor [N, ...].
        example_inputs: tensor [N, ...], or a tuple of them; N and the values do not matter.
        path: the file; it is replaced if it exists.
        opset: 18, 19 or 20.
        metadata: key → text (JSON for anything but text), such as ``mean`` and ``std``, without the prefix.

    Raises:
        NetworkError: the network cannot be exported, does not keep the batch dynamic, or is too large for one file.
        FileError: ``path`` cannot be written, or the opset is none of these.
    """
    path = Path(path)
    if opset not in OPSETS:
        raise FileError(f"opset must be one of {', '.join(map(str, OPSETS))}, got {opset}; leave it out for 20")
    examples = _pair_of_examples(example_inputs)
    proto = _exported(inference_copy(model), examples, opset)
    inputs = {value.name: list(example.shape[1:]) for value, example in zip(proto.graph.input, examples, strict=True)}
    flushed = sum(map(_flush_tensor_, tensors_of(proto.graph)))
    _strip_(proto)
    facts = {**(metadata or {}), "inputs": json.dumps(inputs)}
    for key, value in facts.items():
        if not isinstance(value, str):
            raise FileError(f"metadata {key!r} must be text, got {type(value).__name__}: give it as JSON")
    onnx.helper.set_model_props(proto, {METADATA_PREFIX + key: facts[key] for key in sorted(facts)})
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise NetworkError(
            f"torch.onnx wrote {type(model).__name__} with operations that ONNX does not have ({first_line(error)}); "
            "change that in its forward: bfloat16 or float16 inside (autocast), say"
        ) from error

    content = proto.SerializeToString(deterministic=True)
    with whole_file(path) as part:
        part.write_bytes(content)
    return ExportRecord(path, opset, len(content), hashlib.sha256(content).hexdigest(), flushed)


def input_names(count: int) -> list[str]:
    """Return what the file's inputs are called."""
    return ["input", *(f"input_{i}" for i in range(1, count))]


def inference_copy(model: nn.Module) -> nn.Module:
    """Return what is shipped: a float32 copy of ``model`` on the CPU, contiguous, in eval mode, without gradients."""
    # Types of one's own for weights cannot always be copied; a copy computes with their numbers.
    memo: dict[int, Any] = {
        id(p): nn.Parameter(_plain(p.detach()).clone()) for p in model.parameters() if _is_dressed(p)
    }
    memo |= {id(b): _plain(b.detach()).clone() for b in model.buffers() if _is_dressed(b)}
    shipped = copy.deepcopy(model, memo).cpu().float().to(memory_format=torch.contiguous_format)
    result: nn.Module = shipped.eval().requires_grad_(False)
    return result


def as_float32(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return inputs as a tuple of plain tensors on the CPU, contiguous, floating-point ones in float32."""
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple(_plain((x.float() if x.is_floating_point() else x).detach().cpu().contiguous()) for x in tensors)


def _is_dressed(tensor: Tensor) -> bool:
    """Return whether a tensor is of a type of one's own that holds its numbers as any tensor does."""
    own = type(tensor) not in (Tensor, nn.Parameter) and not is_lazy(tensor)
    return own and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor) if _is_dressed(tensor) else tensor


def _pair_of_examples(example_inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs with a batch of two: the exporter takes a batch of one for a constant."""
    examples = as_float32(example_inputs)
    shapes = [list(x.shape) for x in examples]
    if not examples or any(x.ndim == 0 or len(x) != len(examples[0]) or len(x) == 0 for x in examples):
        raise NetworkError(
            f"example inputs must share a first dimension, the batch, of at least 1, got shapes {shapes}"
        )
    return tuple(torch.cat([x, x])[:2] for x in examples)


def _exported(model: nn.Module, examples: tuple[Tensor, ...], opset: int) -> onnx.ModelProto:
    """Return the exporter's result; its batch is dynamic, its output one tensor."""
    name = type(model).__name__
    weight_bytes = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if weight_bytes > _MAX_WEIGHT_BYTES:
        raise NetworkError(
            f"{name} has {weight_bytes / 2**30:.1f} GiB of weights, one ONNX file holds at most 2; cut more"
        )
    try:
        with torch.no_grad():
            output = model(*examples)
    except Exception as error:  # whatever the user's forward raises
        shapes = ", ".join(str(list(x.shape)) for x in examples)
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise NetworkError(f"{name} does not run on a batch of two, {shapes} ({reason}); correct the shape") from error
    if not isinstance(output, Tensor):
        raise NetworkError(
            f"{name} returns a {type(output).__name__}, expected one tensor; wrap it to return the logits"
        )
    batch = Dim("batch")
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                model,
                examples,
                dynamo=True,
                opset_version=opset,
                input_names=input_names(len(examples)),
                output_names=["logits"],
                dynamic_shapes=tuple({0: batch} for _ in examples),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
        raise NetworkError(f"torch.onnx cannot export {name} ({reason}); change that in its forward") from error
    assert program is not None  # only the old exporter returns nothing
    proto: onnx.ModelProto = program.model_proto
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        if not dims or dims[0].dim_param != "batch":
            sizes = ", ".join(d.dim_param or str(d.dim_value) for d in dims)
            raise NetworkError(
                f"{name} fixes the batch in its {value.name}: expected [batch, ...], got [{sizes}]; "
                "take the batch from x.shape[0] in its forward"
            )
    found = next(entry.version for entry in proto.opset_import if entry.domain == "")
    if found != opset:
        raise NetworkError(f"torch.onnx wrote {name} with opset {found} instead of {opset}; ask for {found}")
    return proto


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence logs and prints for a moment: a failed export shows whole graphs, which the error's line replaces."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
            # Said where several inputs share the batch, which is what is asked for.
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
            warnings.simplefilter("ignore", FutureWarning)  # torch's own code, of itself: for an LSTM
            yield
    finally:
        logging.disable(before)


def _strip_(proto: onnx.ModelProto) -> None:
    """Remove stack traces, paths, doc strings and the exporter's notes, at every depth."""

    def strip(message: Any) -> None:
        for field, value in message.ListFields():
            if field.name in ("doc_string", "metadata_props"):
                message.ClearField(field.name)
            elif field.message_type is not None and field.name not in ("initializer", "t", "tensors"):
                for child in (value,) if hasattr(value, "ListFields") else value:
                    strip(child)

    strip(proto)
    for tensor in tensors_of(proto.graph):  # apart: their numbers need no walk
        tensor.ClearField("doc_string")
        del tensor.metadata_props[:]


def _flush_tensor_(tensor: onnx.TensorProto) -> int:
    """Set a tensor's subnormals to zero: regularised weights end there, and folding a batch norm makes new ones.

    Processors take up to 47 times as long for them: a dense file that keeps them looks slow and fakes the speed-up. The
    change is below 2⁻¹²⁶ a value.
    """
    tiny = subnormals(tensor)
    if tiny.any():
        values = np.where(tiny, np.float32(0), onnx.numpy_helper.to_array(tensor))
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return int(tiny.sum())
