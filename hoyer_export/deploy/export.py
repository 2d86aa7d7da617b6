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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hoyer_export.call import Call, ExampleInputs, ExampleKwargs
from hoyer_export.channels.wrappers import check_wrappers
from hoyer_export.deploy import interface
from hoyer_export.deploy.interface import (
    BATCH,
    METADATA_PREFIX,
    DynamicAxes,
    dynamic_axes,
    is_batched,
    larger,
    sizes_of,
)
from hoyer_export.deploy.onnx_file import first_line, subnormals, tensors_of
from hoyer_export.deploy.opset import lower_
from hoyer_export.deploy.users_code import root_cause, users_line
from hoyer_export.errors import FileError, NetworkError
from hoyer_export.run_folder import whole_file
from hoyer_export.tensors import tensors_in

# Below 18 torch gives 18; onnxruntime 1.32 runs what it gives up to 25. 20 is what all runtimes in use follow.
OPSETS = range(17, 26)
_LEAST_OF_TORCH = 18
_ROWS = 2
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
    example_inputs: ExampleInputs,
    path: str | Path,
    *,
    example_kwargs: ExampleKwargs | None = None,
    opset: int = 20,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_size: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> ExportRecord:
    """Write ``model`` to the ONNX file ``path``, whole or not at all; the model itself stays as it is.

    A lone tensor that goes in is called ``input``, one that comes out ``logits``; several as the network's arguments
    are, and by the keys, fields and positions in what it returns. What has a row for every example has ``batch`` as its
    first dimension. Numbers and flags among the arguments become part of the file. Its ``metadata_props`` hold
    ``hoyer_export.inputs``, as JSON the name of every input and its shape without the batch,
    ``hoyer_export.outputs``, a list of names, where these are others than ``logits``, and whatever ``metadata`` adds.

    Args:
        model: any network that returns tensors, in tuples, lists, dicts or dataclasses; at least one is [N, ...].
        example_inputs, example_kwargs: what it is called with, as for ``trace_channels``; how many examples N there
            are does not matter, nor do the values.
        path: the file; it is replaced if it exists.
        opset: from 17 to 25, as far as the installed torch and onnx go.
        input_names: one a tensor that goes in.
        output_names: one a tensor that comes out.
        dynamic_size: height and width of inputs [N, C, H, W] are dynamic too.
        metadata: key → text (JSON for anything but text), such as ``mean`` and ``std``, without the prefix.

    Raises:
        NetworkError: the network cannot be exported, does not keep the batch dynamic, or is too large for one file;
            names that do not fit it.
        FileError: ``path`` cannot be written, or the opset is none of these.
    """
    path = Path(path)
    if opset not in OPSETS:
        raise FileError(f"opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {opset}; leave it out for 20")
    network, call = inference_copy(model), as_float32(Call.of(model, example_inputs, example_kwargs))
    if not call.tensors or call.batch_size < 1:
        raise NetworkError(f"example inputs must begin with a batch of at least 1, got shapes {call.shapes or 'none'}")
    call = call.rows(torch.arange(_ROWS) % call.batch_size)  # the exporter takes a batch of one for a constant
    weight_bytes = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    if weight_bytes > _MAX_WEIGHT_BYTES:
        size = f"{weight_bytes / 2**30:.1f} GiB of weights, one ONNX file holds at most 2; cut more"
        raise NetworkError(f"{type(model).__name__} has {size}")
    returned = _returned(network, call, "a batch of two")
    if dynamic_size and not any(x.ndim == 4 for x in call.tensors):
        raise NetworkError(f"dynamic_size is for images [N, C, H, W], got shapes {call.shapes}; leave it out")
    if dynamic_size:  # the exporter believes a network that flattens its images
        _returned(network, larger(call), "larger images")
    if not any(True for _ in tensors_in(returned)):
        raise NetworkError(f"{type(model).__name__} returns a {type(returned).__name__} without a tensor; return some")
    inputs = interface.input_names(network, call, input_names)
    outputs = interface.output_names(returned, inputs, output_names)
    proto = _exported(network, call, returned, inputs, outputs, opset, dynamic_size)
    flushed = sum(map(_flush_tensor_, tensors_of(proto.graph)))
    _strip_(proto)
    sizes = {it.name: sizes_of(it)[is_batched(it) :] for it in proto.graph.input}
    facts = {**(metadata or {}), "inputs": json.dumps(sizes)}
    if outputs != ["logits"]:
        facts["outputs"] = json.dumps(outputs)
    for key, value in facts.items():
        if not isinstance(value, str):
            raise FileError(f"metadata {key!r} must be text, got {type(value).__name__}: give it as JSON")
    onnx.helper.set_model_props(proto, {METADATA_PREFIX + key: facts[key] for key in sorted(facts)})
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise NetworkError(
            f"torch.onnx wrote {type(model).__name__} with operations that ONNX does not have ({first_line(error)}); "
            "change that in its forward: of an autocast inside, say, make it `enabled=self.training`"
        ) from error

    content = proto.SerializeToString(deterministic=True)
    with whole_file(path) as part:
        part.write_bytes(content)
    return ExportRecord(path, opset, len(content), hashlib.sha256(content).hexdigest(), flushed)


def inference_copy(model: nn.Module) -> nn.Module:
    """Return what is shipped: a float32 copy of ``model`` on the CPU, contiguous, in eval mode, without gradients.

    Raises:
        NetworkError: ``model`` is wrapped, quantised or lazy.
    """
    check_wrappers(model)
    # Types of one's own for weights cannot always be copied; a copy computes with their numbers.
    memo: dict[int, Any] = {
        id(p): nn.Parameter(_plain(p.detach()).clone()) for p in model.parameters() if _is_dressed(p)
    }
    memo |= {id(b): _plain(b.detach()).clone() for b in model.buffers() if _is_dressed(b)}
    shipped = copy.deepcopy(model, memo).cpu().float().to(memory_format=torch.contiguous_format)
    result: nn.Module = shipped.eval().requires_grad_(False)
    return result


def as_float32(call: Call) -> Call:
    """Return a call with plain tensors on the CPU, contiguous, floating-point ones in float32."""
    return call.map(lambda x: _plain((x.float() if x.is_floating_point() else x).detach().cpu().contiguous()))


def _is_dressed(tensor: Tensor) -> bool:
    """Return whether a tensor is of a type of one's own that holds its numbers as any tensor does."""
    own = type(tensor) not in (Tensor, nn.Parameter) and not is_lazy(tensor)
    return own and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor) if _is_dressed(tensor) else tensor


class _Flat(nn.Module):
    """A network that takes its tensors one after the other, and returns those in its result in a row."""

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network, self._call = network, call

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        call = self._call.with_tensors(tensors)
        return list(tensors_in(self.network(*call.args, **call.kwargs)))


def _returned(model: nn.Module, call: Call, what: str) -> Any:
    """Return what a network returns for an example that is called ``what``."""
    try:
        with torch.no_grad():
            return call.on(model)
    except Exception as error:  # whatever the user's forward raises
        name, reason = type(model).__name__, f"{type(error).__name__}: {first_line(error)}"
        raise NetworkError(
            f"{name} does not run on {what}, {call.shapes}{users_line(error)} ({reason}); correct the shape"
        ) from error


def _exported(
    model: nn.Module, call: Call, returned: Any, inputs: list[str], outputs: list[str], opset: int, dynamic_size: bool
) -> onnx.ModelProto:
    """Return the exporter's result; its batch is dynamic."""
    name, axes = type(model).__name__, dynamic_axes(call, inputs, size=dynamic_size)
    # As it is where it takes and returns plain tensors.
    is_plain = not call.kwargs and all(isinstance(it, Tensor) for it in (*call.args, returned))
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                model if is_plain else _Flat(model, call).eval(),
                call.tensors,
                dynamo=True,
                opset_version=max(opset, _LEAST_OF_TORCH),
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=axes if is_plain else (axes,),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = first_line(root_cause(error))
        raise NetworkError(f"torch.onnx cannot export {name}{users_line(error)} ({reason}); change that") from error
    assert program is not None  # only the old exporter returns nothing
    for weight in () if is_plain else list(program.model.graph.initializers.values()):
        weight.name = (weight.name or "").removeprefix("network.")
    proto: onnx.ModelProto = program.model_proto
    found = next(entry.version for entry in proto.opset_import if entry.domain == "")
    if found != max(opset, _LEAST_OF_TORCH):
        raise NetworkError(f"torch.onnx wrote {name} with opset {found} instead of {opset}; ask for {found}")
    if opset < found:
        lower_(proto, opset)
    _check_axes(proto.graph, model, call, returned, axes)
    return proto


def _check_axes(graph: onnx.GraphProto, model: nn.Module, call: Call, returned: Any, axes: DynamicAxes) -> None:
    """Refuse a graph in which a size is a constant that is none in torch."""
    fixed = [
        (value, dim.__name__)
        for value, dims in zip(graph.input, axes, strict=True)
        for axis, dim in (dims or {}).items()
        if not isinstance(sizes_of(value)[axis], str)
    ]
    if not any(map(is_batched, graph.output)):
        fixed += [(value, BATCH) for value in graph.output[:1]]
    suspects = [at for at, value in enumerate(graph.output) if sizes_of(value)[:1] == [_ROWS]]
    if suspects and not fixed:
        three = list(tensors_in(_returned(model, call.rows(torch.arange(_ROWS + 1) % _ROWS), "a batch of three")))
        fixed += [(graph.output[at], BATCH) for at in suspects if len(three[at]) != _ROWS]
    for value, what in fixed:
        expected = "batch, ..." if what == BATCH else f"..., {what}, ..."
        raise NetworkError(
            f"{type(model).__name__} fixes the {what} in its {value.name}: expected [{expected}], got "
            f"[{', '.join(map(str, sizes_of(value)))}]; take it from x.shape in its forward"
        )


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
