"""``slim.safetensors``: the weights of a slim network, with its plan and the network's name in the metadata.

Loading builds the dense network (by name, or the one that the caller passes), applies the plan and fills in the
weights. Nothing in the file is ever executed or imported, and its sizes are checked before memory is taken for them.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field, JsonValue, ValidationError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hoyer_export.errors import FileError, NetworkError, one_line
from hoyer_export.networks import build_network, is_function_name
from hoyer_export.record import Record, read_record
from hoyer_export.surgery.plan import PruningPlan, with_plan
from hoyer_export.surgery.step import SlimModel
from hoyer_export.tensors import named_tensors
from hoyer_export.tensors_file import METADATA_KEY, read_about, read_tensors, write_tensors

_Format = Literal["hoyer-export-slim/1"]
(FORMAT,) = get_args(_Format)
MAX_SIZE = 100_000
"""Classes or input channels that a file may ask for."""
MAX_NAME = 200
"""Letters of a network's name."""
MAX_NUMBERS = 2**30
"""Parameters of the dense network that a file may ask for: 4 GiB in float32. torchvision's largest has 645 million."""

_Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]


class _Network(Record):
    """How the dense network is built."""

    name: str | None = None
    in_channels: _Size | None = None
    classes: _Size | None = None


class _About(Record):
    """What the metadata say; network and plan are looked at when they are needed."""

    format: _Format
    network: JsonValue
    plan: JsonValue


def save_slim(
    slim: SlimModel,
    path: str | Path,
    *,
    network: str | None = None,
    in_channels: int | None = None,
    classes: int | None = None,
) -> None:
    """Write a slim model to one safetensors file, whole or not at all.

    Args:
        slim: what ``cut`` returned; its model may have been trained further.
        path: the file.
        network: name by which ``load_slim`` can build the dense network again.
        in_channels: of that network.
        classes: of that network.
    """
    built = {"name": network, "in_channels": in_channels, "classes": classes}
    about = {"format": FORMAT, "network": built, "plan": slim.plan.to_dict()}
    write_tensors(Path(path), _state(slim.model), json.dumps(about), METADATA_KEY)


def is_slim_file(path: Path) -> bool:
    """Return whether a file is one that ``save_slim`` wrote."""
    try:
        read_about(path, METADATA_KEY, kind="slim file", advice="")
    except FileError:
        return False
    return True


def load_slim(path: str | Path, into: nn.Module | None = None) -> SlimModel:
    """Rebuild a slim model from its file.

    Args:
        path: what ``save_slim`` wrote.
        into: the dense network, which is not changed; by default it is built from the name in the file. A network of
            your own is never imported from the file: pass it.

    Returns:
        The slim model, on the CPU, bit for bit as it was saved, in the training mode of ``into``.

    Raises:
        FileError: the file is missing or damaged, or does not fit the network.
        NetworkError: the file names no network that can be built.
        CutRefused: something hangs on ``into`` that a copy would lose.
    """
    path = Path(path)
    advice = "give the file that save_slim wrote"
    text, weights = read_tensors(path, METADATA_KEY, kind="slim file", advice=advice)
    about = read_record(_About, text, path, advice)
    if into is None:
        build = _builder(path, about.network)
        _check_size(path, build, about.plan, weights)
        into = build()
    slim = _slim(path, into, about.plan, weights)
    for name, tensor in slim.model.state_dict(keep_vars=True).items():
        if name in weights:
            # Laid out in memory as the dense network's is: a kernel may round differently for another layout.
            tensor.data = torch.empty_like(tensor, dtype=weights[name].dtype).copy_(weights[name])
    return slim


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state, each tied tensor under its first name only."""
    unique = named_tensors(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name in unique}


def _builder(path: Path, network: JsonValue) -> Callable[[], nn.Module]:
    """Return what builds the network that the metadata name."""
    try:
        named = _Network.model_validate(network, extra="ignore")
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise FileError(
            f"{path}: {''.join(map(str, detail['loc'])) or 'network'} in its metadata is {_shown(detail['input'])}:"
            f" {detail['msg'].lower()}; pass the dense network as into="
        ) from error
    name = named.name
    if name is None:
        raise NetworkError(f"{path} does not say which network it is of: pass the dense network as into=")
    if is_function_name(name):
        raise NetworkError(
            f"{path} is of {_shown(name)}, which is never imported from a file: pass the network as into="
        )
    if len(name) > MAX_NAME:
        raise NetworkError(f"{path} is of {_shown(name)}..., which is no network's name: pass the network as into=")
    return lambda: build_network(name, in_channels=named.in_channels, classes=named.classes)


def _check_size(path: Path, build: Callable[[], nn.Module], plan: JsonValue, weights: Mapping[str, Tensor]) -> None:
    """Refuse a file that would not load, or whose dense network is too large, before memory is taken for it."""
    try:
        with _NoMemory():
            skeleton = build()
    except NetworkError as error:
        raise NetworkError(f"{path}: {one_line(error)}; or pass the dense network as into=") from error
    numbers = sum(parameter.numel() for parameter in skeleton.parameters())
    if numbers > MAX_NUMBERS:
        raise FileError(
            f"{path}: its dense network has {numbers} parameters, expected at most {MAX_NUMBERS}: pass it as into="
        )
    _slim(path, skeleton, plan, weights)


class _NoMemory(TorchFunctionMode):
    """Puts the parameters of layers that are built under it, which start as ``torch.empty``, on the meta device.

    Not every tensor (``torch.device("meta")``): some networks compute numbers from small ones while they are built.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def _shown(value: object) -> str:
    """Return what a stranger's file says on one short line."""
    return f"{value!r:.80}"


def _slim(path: Path, dense: nn.Module, plan: JsonValue, weights: Mapping[str, Tensor]) -> SlimModel:
    """Return ``dense`` with the file's plan applied; ``weights``, which it is to be filled with, must fit."""
    try:
        read = PruningPlan.from_dict(plan, dense)
        model = with_plan(dense, read)
    except FileError as error:  # it quotes the file, which may hold names of any length
        raise FileError(f"{path}: {one_line(error)[:300]}") from error
    expected = _state(model)
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights or name not in expected:
            verb = "lacks" if name not in weights else "holds"
            raise FileError(f"{path} {verb} {_shown(name)}, unlike the network: it was saved from another one")
        if weights[name].shape != expected[name].shape:
            shape, wanted = tuple(weights[name].shape), tuple(expected[name].shape)
            raise FileError(f"{path}: {name} has shape {shape}, the slim network's is {wanted}")
        kinds = {weights[name].dtype, expected[name].dtype}
        # A network may have been saved in half precision; whatever else is not what it was is damage.
        if len(kinds) > 1 and not all(kind.is_floating_point for kind in kinds):
            raise FileError(f"{path}: {name} has type {weights[name].dtype}, the network's is {expected[name].dtype}")
    return SlimModel(model, read)
