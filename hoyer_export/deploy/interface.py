"""Check that an ONNX file takes and returns what ``export_onnx`` writes: names, types, a batch that is dynamic."""

from pathlib import Path

import onnx
from torch import Tensor

from hoyer_export.deploy.export import input_names
from hoyer_export.errors import VerificationFailed


def check_interface(graph: onnx.GraphProto, path: str | Path, real: tuple[Tensor, ...]) -> None:
    """Raise VerificationFailed unless the file takes ``real`` with a dynamic batch and returns ``logits``."""
    found = [_signature(value) for value in graph.input]
    expected = [
        _signature(onnx.helper.make_tensor_value_info(name, _onnx_type(x), ["batch", *x.shape[1:]]))
        for name, x in zip(input_names(len(real)), real, strict=True)
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
