"""Weights from a file: path → a model's parameters and buffers, all of them or none; no code from the file runs."""

import pickle
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from hoyer_export.errors import FileError, NetworkError

_KEYS = ("state_dict", "model")
"""Under which a checkpoint that holds more than weights has them."""

_PREFIX = "module."
"""What ``DataParallel`` puts before every name."""

_Part = Mapping[Any, Any]


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the weights in the file ``path`` into ``model``.

    Args:
        model: changed in place; keeps its dtype and device.
        path: as for ``read_weights``.

    Raises:
        FileError: the file is missing, damaged, or holds something else.
        NetworkError: a name, a shape or the kind of numbers does not agree with the model's.
    """
    assign_weights(model, read_weights(path, model.state_dict()), source=str(path))


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copy ``weights`` into ``model``; every name and shape must agree, else nothing is copied.

    Precision may differ; integers are no floating-point numbers, though, and neither are complex ones.

    Counters of batch norm (``num_batches_tracked``) may be missing: checkpoints of PyTorch before 0.4.1 have none.

    Args:
        model: changed in place; keeps its dtype and device.
        weights: name → tensor.
        source: where the weights come from, for the error.

    Raises:
        NetworkError: a name, a shape or the kind of numbers does not agree with the model's.
    """
    if misfit := next(_misfits(weights, model.state_dict()), None):
        raise NetworkError(f"{source} does not fit the network{misfit}")
    model.load_state_dict(weights, strict=False)  # all that can be missing here are the counters


def _misfits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield what does not fit, each the end of a sentence."""
    found = sum(name in expected for name in weights)
    count = f"{found} of the network's {len(expected)} names are in the file, which holds {len(weights)}"
    for name, tensor in expected.items():
        given = weights.get(name)
        if given is None:
            if not name.endswith("num_batches_tracked"):
                yield f": {name!r} is missing; {count}"
        elif given.shape != tensor.shape:
            sizes = f"should be {_shape(tensor)}, got {_shape(given)}"
            yield f": {name!r} {sizes}; check the network's name, in_channels and classes"
        elif _numbers(given) != _numbers(tensor):
            kinds = f"should hold {_numbers(tensor)} numbers, got {_numbers(given)} ones ({given.dtype})"
            yield f": {name!r} {kinds}; save them as the network holds them"
    yield from (f", which has no {name!r}; {count}" for name in weights if name not in expected)


def read_weights(path: Path, expected: Collection[str] = ()) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file, or a PyTorch checkpoint with ``weights_only=True``, onto the CPU.

    Args:
        path: a checkpoint holds a state dict, or one under the key ``state_dict`` or ``model``; the prefix
            ``module.`` that ``DataParallel`` puts before every name is taken off where more names fit without it.
        expected: the network's names; empty where they are not known, and the prefix always goes.

    Returns:
        Name → tensor.

    Raises:
        FileError: the file is missing, damaged, or holds something else; or a weight is not a finite number.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise FileError(f"{path}: expected a file of weights (.safetensors, .pt, .pth), found {found}")
    content: object
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load the file with its code running.
        raise FileError(
            f"{path} is no state dict: it is damaged, or holds more than tensors, and code from a file is never run;"
            " expected .safetensors, or torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # a damaged file makes zipfile, pickle, struct, torch, ... fail in their own ways
        first_line = next(iter(str(error).splitlines()), "")
        raise FileError(
            f"{path} is no readable file of weights ({type(error).__name__}: {first_line}); "
            "expected .safetensors, or a state dict saved with torch.save"
        ) from error
    if isinstance(content, Mapping):
        content = _weights_in(content, expected)
    if not isinstance(content, Mapping) or not content:
        raise FileError(f"{path}: expected a dict of weights, got {_kind(content)}")
    weights: dict[str, Tensor] = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise FileError(
                f"{path}: expected a dict of names and tensors, perhaps under the key 'state_dict' or 'model'; "
                f"{name!r} holds {_kind(tensor)}"
            )
        if tensor.is_meta or tensor.layout != torch.strided:
            kind = "a meta tensor, which has no numbers" if tensor.is_meta else f"a sparse tensor ({tensor.layout})"
            raise FileError(f"{path}: {name!r} is {kind}; expected ordinary, dense tensors")
        # In float64, for types of eight bits cannot be asked.
        if tensor.is_floating_point() and not bool(tensor.double().isfinite().all()):
            raise FileError(f"{path}: {name!r} holds numbers that are not finite; a training that diverged?")
        weights[name] = tensor
    return weights


def _weights_in(content: _Part, expected: Collection[str]) -> _Part:
    """Return the part of a checkpoint that holds the weights: the one with most of the ``expected`` names.

    A child or a parameter of the network may itself be called like a key or the prefix, so nothing is taken off
    unless that makes more names fit.
    """
    parts = [content[key] for key in _KEYS if isinstance(content.get(key), Mapping)] + [content]
    if not expected:
        return _bare(parts[0])[-1]

    def fitting(part: _Part) -> int:
        return sum(name in expected and isinstance(value, Tensor) for name, value in part.items())

    return max([*parts, *(bare for part in parts for bare in _bare(part))], key=fitting)


def _bare(part: _Part) -> list[_Part]:
    """Return a part as it is, and without the prefix, once or as often as it was put there."""
    forms = [part]
    while forms[-1] and all(isinstance(name, str) and name.startswith(_PREFIX) for name in forms[-1]):
        forms.append({name.removeprefix(_PREFIX): value for name, value in forms[-1].items()})
    return forms


def _kind(content: object) -> str:
    return "an empty dict" if content == {} else f"an object of type {type(content).__name__}"


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "a single number"


def _numbers(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "floating-point" if tensor.is_floating_point() else "integer"
