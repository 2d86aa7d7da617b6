"""``slim.safetensors``: the weights of a slim network, with its plan and the network's name in the metadata.

Loading builds the dense network (by name, or the one that the caller passes), applies the plan and fills in the
weights. Nothing in the file is ever executed or imported.
"""

import copy
import json
import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hoyer_export.errors import FileError, NetworkError
from hoyer_export.networks import build_network
from hoyer_export.run_folder import write_whole
from hoyer_export.surgery.cut import SlimModel
from hoyer_export.surgery.plan import PruningPlan, apply_plan_

METADATA_KEY = "hoyer_export"
FORMAT = "hoyer-export-slim/1"
MAX_SIZE = 100_000
"""Classes or input channels that a file may ask for: a damaged one must not exhaust the memory."""


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
    write_whole(Path(path), save(_tensors(slim.model), {METADATA_KEY: json.dumps(facts)}))


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
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist") from error
    except (OSError, SafetensorError, struct.error) as error:
        raise FileError(f"{path} cannot be read as safetensors ({error}): it is damaged or not a slim file") from error
    facts = _facts(path, metadata.get(METADATA_KEY, "{}"))
    model = copy.deepcopy(into) if into is not None else _build(path, facts.get("network"))
    tensors = [*model.named_parameters(), *model.named_buffers()]
    plan = PruningPlan.from_dict(facts.get("plan"), {name: tuple(tensor.shape) for name, tensor in tensors})
    apply_plan_(model, plan)
    _fill(path, model, weights)
    return SlimModel(model, plan)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state, each tied tensor under its first name only."""
    unique = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    state = model.state_dict()
    return {name: tensor.cpu().contiguous() for name, tensor in state.items() if name in unique}


def _facts(path: Path, text: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
        found = facts.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"{path}: its metadata is damaged: make the slim file again") from error
    if found != FORMAT:
        raise FileError(f"{path} is no slim file: expected format {FORMAT} in its metadata, got {found}")
    return dict(facts)


def _build(path: Path, network: Any) -> nn.Module:
    try:
        name, in_channels, classes = network["name"], network["in_channels"], network["classes"]
    except (KeyError, TypeError) as error:
        raise FileError(f"{path}: the network in its metadata is damaged: pass the dense network as into=") from error
    if not isinstance(name, str):
        raise NetworkError(f"{path} does not say which network it is of: pass the dense network as into=")
    if ":" in name and not name.startswith("torchvision:"):
        raise NetworkError(f"{path} is of {name}, which is never imported from a file: pass the network as into=")
    for key, value in (("in_channels", in_channels), ("classes", classes)):
        if value is not None and (type(value) is not int or not 1 <= value <= MAX_SIZE):
            raise FileError(f"{path}: {key} in its metadata is {value!r}, expected 1 to {MAX_SIZE}")
    return build_network(name, in_channels=in_channels, classes=classes)


def _fill(path: Path, model: nn.Module, weights: dict[str, Tensor]) -> None:
    expected = _tensors(model)
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights or name not in expected:
            raise FileError(f"{path} {'lacks' if name not in weights else 'holds'} {name}, unlike the network")
        if weights[name].shape != expected[name].shape:
            found, wanted = tuple(weights[name].shape), tuple(expected[name].shape)
            raise FileError(f"{path}: {name} has shape {found}, the slim network's is {wanted}")
        if weights[name].is_floating_point() != expected[name].is_floating_point():
            raise FileError(f"{path}: {name} has type {weights[name].dtype}, the network's is {expected[name].dtype}")
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in weights:
            tensor.data = weights[name].to(tensor.device)
