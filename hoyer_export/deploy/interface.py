"""What an ONNX file takes and returns: the names, and the sizes that are dynamic."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from hoyer_export.call import Call
from hoyer_export.errors import NetworkError, VerificationFailed
from hoyer_export.tensors import named_leaves

BATCH = "batch"
METADATA_PREFIX = "hoyer_export."

DynamicAxes = tuple[dict[int, Dim] | None, ...]


def input_names(network: nn.Module, call: Call, given: Sequence[str] | None = None) -> list[str]:
    """Return what the file's inputs are called: as asked, else as the network's arguments are.

    Raises:
        NetworkError: there are more or fewer of them than were given.
    """
    return _names("input", call.names(network), given, [])


def output_names(returned: Any, taken: Sequence[str], given: Sequence[str] | None = None) -> list[str]:
    """Return what its outputs are called: as asked, else by keys, fields and positions; ``logits`` for a lone tensor.

    Args:
        returned: what the network returns.
        taken: names of the inputs.
        given: what is asked for.

    Raises:
        NetworkError: there are more or fewer of them than were given, or one is an input's.
    """
    names = [name for name, leaf in named_leaves(returned) if isinstance(leaf, Tensor)]
    found = [f"output_{name}" if name[:1].isdigit() else name or "logits" for name in names]
    return _names("output", found, given, taken)


def _names(kind: str, found: list[str], given: Sequence[str] | None, taken: Sequence[str]) -> list[str]:
    if given is not None:
        names = [given] if isinstance(given, str) else list(given)
        if len(names) != len(found) or len({*names, *taken}) < len(names) + len(taken):
            raise NetworkError(
                f"{kind}_names: expected {len(found)} different names, for {', '.join(found)}; got {names}"
            )
        return names
    names = []
    for name in found:
        while name in (*names, *taken):
            name += f"_{kind}"
        names.append(name)
    return names


def dynamic_axes(call: Call, names: Sequence[str], *, size: bool) -> DynamicAxes:
    """Return which axes of every input are dynamic, and what they are called.

    Args:
        call: what the network is called with.
        names: of the inputs.
        size: height and width of images [N, C, H, W] are dynamic too.
    """
    batch, images = Dim(BATCH), sum(x.ndim == 4 for x in call.tensors)

    def axes(name: str, x: Tensor) -> dict[int, Dim] | None:
        of = "" if images == 1 else f"{name}_"
        sizes = {2: Dim(f"{of}height"), 3: Dim(f"{of}width")} if size and x.ndim == 4 else {}
        return {**({0: batch} if call.is_batched(x) else {}), **sizes} or None

    return tuple(map(axes, names, call.tensors))


def larger(call: Call) -> Call:
    """Return a call with images [N, C, H, W] of twice the height; the width stays, so that one shows for the other."""
    return call.map(lambda x: torch.cat([x, x.flip(2)], 2) if x.ndim == 4 else x)


def check_interface(file: onnx.ModelProto, path: str | Path, network: nn.Module, real: Call) -> list[str]:
    """Return the names of the inputs of a file that ``export_onnx`` wrote, in the order of the tensors of ``real``.

    Raises:
        VerificationFailed: it does not take ``real`` with a dynamic batch, or does not return what it was made for.
    """
    facts = {prop.key: json.loads(prop.value) for prop in file.metadata_props if prop.key in map(_key, _FACTS)}
    names = list(facts.get(_key("inputs"), {})) or input_names(network, real)
    expected = [_expected(name, x, real) for name, x in zip(names, real.tensors, strict=False)]
    found = list(file.graph.input)
    pairs = zip(found, expected, strict=False)
    if len(found) != len(real.tensors) or len(names) != len(found) or not all(_fits(*pair) for pair in pairs):
        came, wanted = ("; ".join(map(signature, values)) for values in (found, expected))
        raise VerificationFailed(f"{path} takes {came}, expected {wanted}; export it again")
    outputs = facts.get(_key("outputs"), ["logits"])
    returned = list(file.graph.output)
    if [value.name for value in returned] != outputs or not any(map(is_batched, returned)):
        raise VerificationFailed(
            f"{path} returns {'; '.join(map(signature, returned))}, expected {', '.join(outputs)} [batch, ...]; "
            "export it again"
        )
    return names


_FACTS = ("inputs", "outputs")


def _key(fact: str) -> str:
    return METADATA_PREFIX + fact


def is_batched(value: onnx.ValueInfoProto) -> bool:
    """Return whether an input or output of a file has a row for every example."""
    return sizes_of(value)[:1] == [BATCH]


def sizes_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """Return the sizes of an input or output: numbers, or names of those that are dynamic."""
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _expected(name: str, x: Tensor, real: Call) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.numpy().dtype)
    return onnx.helper.make_tensor_value_info(name, kind, [BATCH, *x.shape[1:]] if real.is_batched(x) else x.shape)


def _fits(found: onnx.ValueInfoProto, expected: onnx.ValueInfoProto) -> bool:
    """Return whether an input is what is expected; a size, but not the batch, may be dynamic where a number is."""
    kinds, (ours, theirs) = (
        {value.type.tensor_type.elem_type for value in (found, expected)},
        map(sizes_of, (found, expected)),
    )
    same = [a == b or (axis and isinstance(a, str)) for axis, (a, b) in enumerate(zip(ours, theirs, strict=False))]
    return found.name == expected.name and len(kinds) == 1 and len(ours) == len(theirs) and all(same)


def signature(value: onnx.ValueInfoProto) -> str:
    """Return an input or output in words: name, type and sizes."""
    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    return f"{value.name} {kind} [{', '.join(str(size or '?') for size in sizes_of(value))}]"
