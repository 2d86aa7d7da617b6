"""``slim.safetensors``: the weights of a slim network, with its plan and the network's name in the metadata.

Loading builds the dense network (by name, or the one that the caller passes), applies the plan and fills in the
weights. Nothing in the file is ever executed or imported, and its sizes are checked before memory is taken for them.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hoyer_export.errors import FileError, NetworkError, one_line
from hoyer_export.networks import build_network, is_function_name
from hoyer_export.run_folder import write_whole
from hoyer_export.surgery.cut import SlimModel
from hoyer_export.surgery.plan import PruningPlan, with_plan
from hoyer_export.tensors import named_tensors

METADATA_KEY = "hoyer_export"
FORMAT = "hoyer-export-slim/1"
MAX_SIZE = 100_000
"""Classes or input channels that a file may ask for."""
MAX_NAME = 200
"""Letters of a network's name."""
MAX_NUMBERS = 2**30
"""Parameters of the dense network that a file may ask for: 4 GiB in float32. torchvision's largest has 645 million."""


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
    facts = {
        "format": FORMAT,
        "network": {"name": network, "in_channels": in_channels, "classes": classes},
        "plan": slim.plan.to_dict(),
    }
    # One key: safetensors writes several in an order that changes from run to run.
    tensors = {name: tensor.cpu().contiguous() for name, tensor in _tensors(slim.model).items()}
    write_whole(Path(path), save(tensors, {METADATA_KEY: json.dumps(facts)}))


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
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist") from error
    except (OSError, SafetensorError, struct.error) as error:
        raise FileError(
            f"{path} cannot be read as safetensors ({one_line(error)}): it is damaged or not a slim file"
        ) from error
    facts = _facts(path, metadata.get(METADATA_KEY, "{}"))
    if into is None:
        build = _builder(path, facts.get("network"))
        _check_size(path, build, facts, weights)
        into = build()
    slim = _slim(path, into, facts, weights)
    for name, tensor in slim.model.state_dict(keep_vars=True).items():
        if name in weights:
            # Laid out in memory as the dense network's is: a kernel may round differently for another layout.
            tensor.data = torch.empty_like(tensor, dtype=weights[name].dtype).copy_(weights[name])
    return slim


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state, each tied tensor under its first name only."""
    unique = named_tensors(model)
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if name in unique}


def _facts(path: Path, text: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
        found = facts.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"{path}: its metadata is damaged: make the slim file again") from error
    if found != FORMAT:
        raise FileError(f"{path} is no slim file: expected format {FORMAT} in its metadata, got {_told(found)}")
    return dict(facts)


def _builder(path: Path, network: Any) -> Callable[[], nn.Module]:
    """Return what builds the network that the metadata name."""
    try:
        name, in_channels, classes = network["name"], network["in_channels"], network["classes"]
    except (KeyError, TypeError) as error:
        raise FileError(f"{path}: the network in its metadata is damaged: pass the dense network as into=") from error
    if not isinstance(name, str):
        raise NetworkError(f"{path} does not say which network it is of: pass the dense network as into=")
    if is_function_name(name):
        raise NetworkError(
            f"{path} is of {_told(name)}, which is never imported from a file: pass the network as into="
        )
    if len(name) > MAX_NAME:
        raise NetworkError(f"{path} is of {_told(name)}..., which is no network's name: pass the network as into=")
    for key, value in (("in_channels", in_channels), ("classes", classes)):
        if value is not None and (type(value) is not int or not 1 <= value <= MAX_SIZE):
            raise FileError(f"{path}: {key} in its metadata is {_told(value)}, expected 1 to {MAX_SIZE}")
    return lambda: build_network(name, in_channels=in_channels, classes=classes)


def _check_size(path: Path, build: Callable[[], nn.Module], facts: dict[str, Any], weights: dict[str, Tensor]) -> None:
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
    _slim(path, skeleton, facts, weights)


class _NoMemory(TorchFunctionMode):
    """Puts the parameters of layers that are built under it, which start as ``torch.empty``, on the meta device.

    Not every tensor (``torch.device("meta")``): some networks compute numbers from small ones while they are built.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def _told(value: Any) -> str:
    """Return what a stranger's file says on one short line."""
    return repr(value)[:80]


def _slim(path: Path, dense: nn.Module, facts: dict[str, Any], weights: dict[str, Tensor]) -> SlimModel:
    """Return ``dense`` with the file's plan applied; ``weights``, which it is to be filled with, must fit."""
    try:
        plan = PruningPlan.from_dict(facts.get("plan"), dense)
        model = with_plan(dense, plan)
    except FileError as error:  # it quotes the file, which may hold names of any length
        raise FileError(f"{path}: {one_line(error)[:300]}") from error
    expected = _tensors(model)
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights or name not in expected:
            verb = "lacks" if name not in weights else "holds"
            raise FileError(f"{path} {verb} {_told(name)}, unlike the network: it was saved from another one")
        if weights[name].shape != expected[name].shape:
            found, wanted = tuple(weights[name].shape), tuple(expected[name].shape)
            raise FileError(f"{path}: {name} has shape {found}, the slim network's is {wanted}")
        kinds = {weights[name].dtype, expected[name].dtype}
        # A network may have been saved in half precision; whatever else is not what it was is damage.
        if len(kinds) > 1 and not all(kind.is_floating_point for kind in kinds):
            raise FileError(f"{path}: {name} has type {weights[name].dtype}, the network's is {expected[name].dtype}")
    return SlimModel(model, plan)
