"""How a network is called: whatever its arguments are, the tensors among them can be read and replaced.

Everything that runs a network takes its arguments in this one shape: tensors anywhere in nested tuples, lists and
dicts, beside numbers, flags and None, which stay as they are.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from hoyer_export.errors import NetworkError
from hoyer_export.tensors import TensorRecord, named_leaves, tensors_in

ExampleInputs = Any
"""A tensor, a tuple of arguments, a dict of arguments by name, anything else that is one argument, or a ``Call``."""

ExampleKwargs = Mapping[str, Any]
"""Further arguments by name."""


class _Place(int):
    """Stands for a tensor where names are looked for."""


@dataclass(frozen=True, eq=False, repr=False)
class Call(TensorRecord):
    """The arguments of one call.

    Args:
        args: by position.
        kwargs: by name.
    """

    args: tuple[Any, ...]
    kwargs: ExampleKwargs = field(default_factory=dict)

    @staticmethod
    def of(
        model: nn.Module, inputs: ExampleInputs, kwargs: ExampleKwargs | None = None, *, collated: bool = False
    ) -> "Call":
        """Return what ``model`` is called with.

        Args:
            model: the network.
            inputs: a tensor or anything else that is one argument; a tuple of arguments; a dict of arguments, where
                the network takes arguments of these names; a ``Call``.
            kwargs: further arguments by name.
            collated: a list is a tuple of arguments, as a ``DataLoader`` makes one, where the network takes as many.

        Raises:
            NetworkError: there is no tensor in it, or some in an object that nobody can look into.
        """
        named = dict(kwargs or {})
        if isinstance(inputs, Call):
            call = Call(inputs.args, {**inputs.kwargs, **named})
        elif isinstance(inputs, Mapping) and _takes(model, **{**inputs, **named}):
            call = Call((), {**inputs, **named})
        elif isinstance(inputs, list) and (collated or not _takes(model, inputs, **named)) and _takes(model, *inputs):
            call = Call(tuple(inputs), named)
        else:
            call = Call(inputs if isinstance(inputs, tuple) else (inputs,), named)
        if len(call.tensors) < sum(1 for _ in tensors_in((call.args, call.kwargs))):
            raise NetworkError("the arguments hold tensors in an object of its own kind: give tuples, lists or dicts")
        return call

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor among the arguments, in order."""
        return tuple(leaf for leaf in tree_flatten((self.args, dict(self.kwargs)))[0] if isinstance(leaf, Tensor))

    def with_tensors(self, tensors: Iterable[Any]) -> "Call":
        """Return the call with others in the place of its tensors."""
        new = iter(tensors)
        return self.map(lambda _: next(new))

    def map(self, change: Callable[[Tensor], Any]) -> "Call":
        """Return the call with every tensor changed."""
        args, kwargs = tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return Call(args, kwargs)

    def on(self, model: Callable[..., Any]) -> Any:
        """Return what a network returns; it gets copies, for it may write into its arguments."""
        copies = self.map(torch.clone)
        return model(*copies.args, **copies.kwargs)

    @property
    def batch_size(self) -> int:
        """How many examples: the first size of the first tensor that has one."""
        return next((len(tensor) for tensor in self.tensors if tensor.ndim), 1)

    def is_batched(self, tensor: Tensor) -> bool:
        """Return whether one of its tensors has a row for every example."""
        return tensor.ndim > 0 and len(tensor) == self.batch_size

    def rows(self, which: slice | Tensor) -> "Call":
        """Return the call with some of its examples."""
        return self.map(lambda tensor: tensor[which] if self.is_batched(tensor) else tensor)

    def names(self, model: nn.Module) -> list[str]:
        """Return a name for every tensor: its argument's, with keys and positions; ``input`` for a single one."""
        count = len(self.tensors)
        if count == 1:
            return ["input"]
        numbered = self.with_tensors(map(_Place, range(count)))
        try:
            bound = inspect.signature(model.forward).bind(*numbered.args, **numbered.kwargs)
        except (TypeError, ValueError):
            return ["input", *(f"input_{i}" for i in range(1, count))]
        kinds = {parameter.name: parameter.kind for parameter in bound.signature.parameters.values()}
        arguments = {
            name: value for name, value in bound.arguments.items() if kinds[name] is not inspect.Parameter.VAR_KEYWORD
        }
        named = {leaf: name for name, leaf in named_leaves({**arguments, **bound.kwargs}) if isinstance(leaf, _Place)}
        return [named[_Place(at)] for at in range(count)]

    @property
    def shapes(self) -> str:
        """The shapes of its tensors, for an error."""
        return ", ".join("×".join(map(str, tensor.shape)) or "a number" for tensor in self.tensors)


def _takes(model: nn.Module, *args: Any, **kwargs: Any) -> bool:
    """Return whether a network's forward takes such arguments, as far as its signature tells."""
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True
