"""Weights from a file: path → a model's parameters and buffers, all of them or none.

Where they stand in the file is found by the network's own names: under whatever keys and behind whatever prefix, all of
them must be there, in their shapes. Nobody has to know how a training script calls its ``state_dict``.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from pathlib import Path

import torch
from torch import Tensor, nn

from hoyer_export.errors import FileError, NetworkError
from hoyer_export.weights_file import is_module, read_file

_COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
"""Ends of names that no output depends on: batch norm's, which PyTorch before 0.4.1 did not save, and those of thop."""
_AVERAGED = re.compile("ema|avg|averag|swa|teacher|momentum|encoder_k", re.IGNORECASE)
"""How training scripts call weights that are a mean over steps."""
_DEPTH = 8
"""Keys within keys that are looked into."""


@dataclass(frozen=True)
class LoadedWeights:
    """Where the weights stand in a file, and what else it holds.

    Args:
        path: of the file.
        key: under which they are, keys within keys joined by dots; empty where the file holds nothing else.
        prefix: that stands before every name, e.g. ``module.``.
        tensors: name → tensor on the CPU, by the network's names.
        others: places of weights that fit as well; ``key`` of ``load_weights`` takes them.
        unused: names of tensors beside them that the network has no use for.
        left_out: classes of other people's code that the file names; nothing of them was read.
        new_head: parameters that keep what the network had.
    """

    path: Path
    key: str
    prefix: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    others: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    new_head: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Key and prefix in one."""
        return f"{self.key}.{self.prefix}".strip(".")

    def describe(self) -> str:
        """Return on one line where the weights were, and what was not used."""
        kinds = {str(it.dtype).removeprefix("torch.") for it in self.tensors.values() if it.is_floating_point()}
        parts = [f"key {self.key!r}"] if self.key else []
        parts += [f"prefix {self.prefix!r}"] if self.prefix else []
        parts += sorted(kinds - {"float32"})
        more = [f"{_listed(self.others)} would fit too (--weights-key, dense.weights_key)"] if self.others else []
        more += [f"left out: {_listed((*self.unused, *self.left_out))}"] if self.unused or self.left_out else []
        more += [f"a new head: {_listed(self.new_head)}"] if self.new_head else []
        return "; ".join([f"weights of {self.path}: {', '.join(parts) or 'as they stand there'}", *more])


def load_weights(
    model: nn.Module, path: str | Path, *, key: str | None = None, new_head: bool = False
) -> LoadedWeights:
    """Copy the weights in a file into ``model``.

    Args:
        model: changed in place; keeps its dtype and device.
        path: ``.safetensors``, or what ``torch.save`` wrote: a state dict, or the checkpoint of a training script.
            It is read with ``weights_only=True``, and no code from it runs.
        key: where in the file they are, e.g. ``model_ema``; by default where all names and shapes fit, and of several
            such places the first that does not look like averaged weights.
        new_head: a last layer with another number of outputs, or none in the file, stays as the model has it.

    Returns:
        Which key and prefix were used, and what was left out.

    Raises:
        FileError: the file is missing, damaged, or holds something else; or a weight is not a finite number.
        NetworkError: a name, a shape or the kind of numbers does not agree with the model's; nothing was copied.
    """
    found = find_weights(Path(path), _state(model), key=key, new_head=new_head)
    source = f"{path} ({found.place})" if found.place else str(path)
    assign_weights(model, found.tensors, source=source, but=found.new_head)
    return found


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str, but: tuple[str, ...] = ()) -> None:
    """Copy ``weights`` into ``model``; every name and shape must agree, else nothing is copied.

    Precision may differ; integers are no floating-point numbers, though, and neither are complex ones.

    Counters (``num_batches_tracked`` of batch norm) may be missing on both sides.

    Args:
        model: changed in place; keeps its dtype and device.
        weights: name → tensor.
        source: where the weights come from, for the error.
        but: names that may be missing.

    Raises:
        NetworkError: a name, a shape or the kind of numbers does not agree with the model's.
    """
    expected = {name: tensor for name, tensor in _state(model).items() if name not in but}
    if misfit := next(_misfits(weights, expected), None):
        raise NetworkError(f"{source} does not fit the network{misfit}")
    model.load_state_dict({name: weights[name] for name in expected if name in weights}, strict=False)


def find_weights(
    path: Path, expected: Mapping[str, Tensor], *, key: str | None = None, new_head: bool = False
) -> LoadedWeights:
    """Return the weights in a file that fit best; ``load_weights`` refuses what does not fit.

    Args:
        path, key, new_head: as for ``load_weights``.
        expected: the network's names and tensors.

    Raises:
        FileError: the file is missing or damaged, holds no weights or nothing under ``key``, or a weight is no number.
    """
    file = read_file(path)
    places = [place for at, tensors in _containers(file.content) for place in _places(path, at, tensors, expected)]
    if not places:
        raise FileError(f"{path} holds no weights: {_what_else(file.content)}")
    if new_head:
        places = [_without_head(place, expected) for place in places]
    if key is not None:
        known = dict.fromkeys(it.place if _fits(it, expected) else it.key for it in places)
        places = [it for it in places if f"{it.place}.".startswith(f"{key.strip('.')}.")]
        if not places:
            raise FileError(f"{path} has no weights under {key!r}; {_expected_keys([it for it in known if it])}")
    fitting = [place for place in places if _fits(place, expected)]
    fitting.sort(key=lambda place: _AVERAGED.search(place.place) is not None)  # what is not averaged comes first
    # Two ways to the same tensors are one place.
    fitting = list({tuple(map(id, it.tensors.values())): it for it in reversed(fitting)}.values())[::-1]
    best = fitting[0] if fitting else max(places, key=lambda place: _agreeing(place.tensors, expected))
    others = tuple(dict.fromkeys(place.place for place in fitting[1:]))
    _check_numbers(best)
    return replace(best, others=others, left_out=file.left_out)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors by name; its own extra state may be anything, and stays."""
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def _containers(content: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every dict or list with tensors, and the key under which it is; what an optimizer remembers is none."""
    level: list[tuple[str, object]] = [("", content)]
    seen: set[int] = set()  # a file may hold a dict that holds itself
    for _ in range(_DEPTH):
        within: list[tuple[str, object]] = []
        for key, part in level:
            if not isinstance(part, Mapping | list | tuple) or _is_optimizer(part) or id(part) in seen:
                continue
            seen.add(id(part))
            items = part.items() if isinstance(part, Mapping) else enumerate(part)
            named = {str(name): value for name, value in items}
            if tensors := {name: value for name, value in named.items() if isinstance(value, Tensor)}:
                yield key, tensors
            within += [(f"{key}.{name}".lstrip("."), it) for name, it in named.items() if not isinstance(it, Tensor)]
        level = within


def _places(
    path: Path, key: str, tensors: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> Iterator[LoadedWeights]:
    """Yield the weights behind every prefix with which a name is the network's; without any, all as they are.

    A network that wraps another has a prefix of its own (``model.conv1``), which the file may lack.
    """
    shared = commonprefix(list(expected))  # noqa: RUF071 (of letters: up to the last dot of these)
    own = shared[: shared.rfind(".") + 1]
    prefixes: dict[tuple[str, str], None] = {}
    for name in tensors:
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            for added in dict.fromkeys(("", own)):
                if added + name[start:] in expected:
                    prefixes[name[:start], added] = None
    for prefix, added in prefixes or {("", ""): None}:
        under = {added + name.removeprefix(prefix): it for name, it in tensors.items() if name.startswith(prefix)}
        unused = tuple(name for name in tensors if not name.startswith(prefix))
        yield LoadedWeights(path, key, prefix, under, unused=unused)


def _fits(place: LoadedWeights, expected: Mapping[str, Tensor]) -> bool:
    rest = {name: tensor for name, tensor in expected.items() if name not in place.new_head}
    return next(_misfits(place.tensors, rest), None) is None


def _agreeing(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return how many names agree in their shape, and how many at all."""
    common = expected.keys() & weights.keys()
    return sum(weights[name].shape == expected[name].shape for name in common), len(common)


def _misfits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield what does not fit, each the end of a sentence."""
    found = sum(name in expected for name in weights)
    such = next((f", such as {name!r}" for name in weights if name not in expected), "")
    count = f"{found} of the network's {len(expected)} names are in the file, which holds {len(weights)}{such}"
    for name, tensor in expected.items():
        given = weights.get(name)
        if given is None:
            if not name.endswith(_COUNTERS):
                yield f": {name!r} is missing; {_way_out(name, weights, expected, count)}"
        elif given.shape != tensor.shape:
            way_out = _way_out(name, weights, expected, "check the network's name, in_channels and classes")
            yield f": {name!r} should be {_shape(tensor)}, got {_shape(given)}; {way_out}"
        elif _numbers(given) != _numbers(tensor):
            kinds = f"should hold {_numbers(tensor)} numbers, got {_numbers(given)} ones ({given.dtype})"
            yield f": {name!r} {kinds}; save them as the network holds them"
    for name in weights:
        if name not in expected and not name.endswith(_COUNTERS):
            yield f", which has no {name!r}; {count}"


def _way_out(name: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], otherwise: str) -> str:
    """Return what to do about a name that does not fit: ``otherwise`` where more differs than the head."""
    if name not in _other_head(weights, expected):
        return otherwise
    as_file = f"build it with {len(weights[name])} classes (network.classes, --classes), or " if name in weights else ""
    return f"all but the head fits: {as_file}keep the rest and train a head anew (dense.new_head = true in a recipe)"


def _other_head(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> set[str]:
    """Return the parameters of the network's head, where the file has one with another number of outputs, or none.

    Empty where that is not all that differs.
    """
    common = [name for name in expected if name in weights]
    other = {name for name in common if weights[name].shape != expected[name].shape}
    missing = {name for name in expected if name not in weights and not name.endswith(_COUNTERS)}
    outputs = {(weights[name].shape[:1], expected[name].shape[:1]) for name in other}
    head = other | missing
    layers = {_layer(name) for name in head}
    whole = head == {name for name in expected if _layer(name) in layers}
    if missing:
        alone = not other and layers == {_layer(list(expected)[-1])}
    else:
        alone = len(outputs) == 1 and all(
            weights[name].ndim == expected[name].ndim > 0 and weights[name].shape[1:] == expected[name].shape[1:]
            for name in other
        )
    return head if whole and alone else set()


def _without_head(place: LoadedWeights, expected: Mapping[str, Tensor]) -> LoadedWeights:
    """Return a place without the file's head, where that is all that does not fit."""
    head = _other_head(place.tensors, expected)
    if not head:
        return place
    kept = {name: tensor for name, tensor in place.tensors.items() if name in expected and name not in head}
    unused = (*place.unused, *(name for name in place.tensors if name not in expected))
    return replace(place, tensors=kept, unused=unused, new_head=tuple(sorted(head)))


def _check_numbers(place: LoadedWeights) -> None:
    """Refuse what holds no ordinary numbers."""
    for name, tensor in place.tensors.items():
        if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            kind = "meta tensor, which has no numbers" if tensor.is_meta else "quantized tensor"
            kind = f"sparse tensor ({tensor.layout})" if tensor.layout != torch.strided else kind
            raise FileError(f"{place.path}: {name!r} is a {kind}; expected ordinary, dense tensors")
        # In float64, for types of eight bits cannot be asked.
        if tensor.is_floating_point() and not bool(tensor.double().isfinite().all()):
            raise FileError(f"{place.path}: {name!r} holds numbers that are not finite; a training that diverged?")


def _what_else(content: object) -> str:
    """Return what a file holds that holds no weights, and what to do."""
    parts = [content, *(content.values() if isinstance(content, Mapping) else ())]
    if any(map(is_module, parts)):
        return (
            "it is a whole pickled network, whose code is never run; load it where you trust that code, and save "
            "torch.save(model.state_dict(), FILE)"
        )
    if any(map(_is_optimizer, parts)):
        return "it is the state of an optimizer; give the file with the state dict of the network"
    if isinstance(content, Mapping) and content:
        kinds = [f"{name!r:.80} holds {_kind(it)}" for name, it in content.items()]
        return f"expected a dict of names and tensors; {', '.join(kinds[:4])}"
    return f"expected a dict of names and tensors, got {_kind(content)}"


def _is_optimizer(part: object) -> bool:
    return isinstance(part, Mapping) and "param_groups" in part


def _expected_keys(keys: list[str]) -> str:
    return f"expected {_listed(keys)}" if keys else "leave the key out: the file holds nothing else"


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _listed(names: tuple[str, ...] | list[str]) -> str:
    """Return names, the first of many, and nothing in them that a terminal would obey."""
    shown = ", ".join(f"{name!r:.80}" for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _kind(content: object) -> str:
    return "an empty dict" if content == {} else f"an object of type {type(content).__name__}"


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "a single number"


def _numbers(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "floating-point" if tensor.is_floating_point() else "integer"
