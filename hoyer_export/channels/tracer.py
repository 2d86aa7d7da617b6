"""What the rules work with: the labels beside every tensor while the model runs once.

A tensor has at most one vector of labels for each of its axes. That is enough, because a cut tensor has to stay
rectangular: what is removed from it are whole slices along an axis, so all the labels that meet in one slice live or
die together anyway.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from weakref import ref

import numpy as np
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from hoyer_export.channels.attributes import Attribute
from hoyer_export.channels.labels import NOBODY, Labels, Vector


@dataclass(frozen=True)
class AxisLabels:
    """Whose channel each position along one axis of a tensor is.

    Args:
        labels: int64 [size of the axis].
        rest: what the tensor holds at all positions of a channel that is zeroed: 0 as long as nothing was added,
            0.5 after a sigmoid, None for finite numbers that nobody knows.
    """

    labels: Vector
    rest: float | None = 0.0

    @property
    def zero(self) -> bool:
        """Whether a zeroed channel is exactly zero here."""
        return self.rest == 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def mixed(self) -> "AxisLabels":
        """Return the labels after an operation that mixes numbers of one channel: 0 stays 0, all else is unknown."""
        return AxisLabels(self.labels, 0.0 if self.zero else None)


TensorLabels = dict[int, AxisLabels]
Rule = Callable[..., Any]


@dataclass(frozen=True)
class LabelledContraction:
    """A contraction whose axes are label vectors, or plain sizes where nothing is labelled."""

    name: str
    constant: int
    axes: tuple[Vector | int, ...]


class Tracer:
    """The labels of every tensor, parameter and buffer of one traced run.

    Args:
        model: the model that runs; its parameters and buffers are what is labelled.
        batch_size: number of examples that run at once; MACs are counted for one.
    """

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        self.labels = Labels()
        self.batch_size = batch_size
        self.contractions: list[LabelledContraction] = []
        self.weights: list[Vector] = []
        self.readers: list[Vector] = []
        self.summed: list[Vector] = []
        self.attributes: list[Attribute] = []
        self.untied: dict[int, Any] = {}  # sizes among the running operation's arguments that no axis follows yet
        self.modules: list[tuple[str, nn.Module]] = []
        self._labels_of: MutableMapping[Tensor, TensorLabels] = WeakTensorKeyDictionary()
        self._names: MutableMapping[Tensor, str] = WeakTensorKeyDictionary()
        self._examples: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        self._sharing: dict[int, list[ref[Tensor]]] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._names[tensor] = name

    # -- what a rule reads ------------------------------------------------------------------------------------------

    def axes(self, tensor: Tensor) -> TensorLabels:
        """Return the labelled axes of ``tensor``; a parameter or buffer has all its axes longer than one labelled."""
        if tensor in self._names:
            for axis in range(tensor.ndim):
                if tensor.shape[axis] > 1:
                    self.axis(tensor, axis)
        return self.known_axes(tensor)

    def known_axes(self, tensor: Tensor) -> TensorLabels:
        """Return the axes that have labels already, without making any for a parameter."""
        return self._labels_of.get(tensor, {})

    def axis(self, tensor: Tensor, axis: int) -> AxisLabels:
        """Return the labels along one axis: made now for a parameter that has none yet, nobody's for an activation."""
        axis %= tensor.ndim
        known = self._labels_of.get(tensor, {})
        if axis in known:
            return known[axis]
        if (name := self._names.get(tensor)) is None:
            return AxisLabels(np.full(tensor.shape[axis], NOBODY), None)
        # A variance of 1 is what a zeroed channel is left with: it is divided by.
        rest = 1.0 if name.rpartition(".")[2] == "running_var" else 0.0
        labels = AxisLabels(self.labels.new(name, axis, tensor.shape[axis]), rest)
        self.put(tensor, {**known, axis: labels})
        return labels

    def is_known(self, tensor: Tensor) -> bool:
        """Return whether ``tensor`` is a parameter or buffer, or carries labels."""
        return bool(self._labels_of.get(tensor)) or tensor in self._names

    def is_parameter(self, tensor: Tensor) -> bool:
        """Return whether ``tensor`` is a parameter or buffer of the model."""
        return tensor in self._names

    def examples_in(self, tensor: Tensor) -> int:
        """Return how many examples a tensor holds: 1 where it was computed from parameters alone."""
        return self.batch_size if tensor in self._examples else 1

    def is_example(self, tensor: Tensor) -> bool:
        """Return whether a tensor is the input or depends on it."""
        return tensor in self._examples

    def note_example(self, tensor: Tensor) -> None:
        """Remember that a tensor is the input or depends on it."""
        self._examples[tensor] = True

    @property
    def module(self) -> nn.Module:
        """The innermost module that is running."""
        return self.modules[-1][1]

    # -- what a rule declares ---------------------------------------------------------------------------------------

    def put(self, tensor: Tensor, axes: TensorLabels) -> None:
        """Give ``tensor`` its labels."""
        self._labels_of[tensor] = axes

    def unite(self, first: AxisLabels, second: AxisLabels) -> None:
        """Tie the channels at the same position of two axes of equal length."""
        self.labels.unite(first.labels, second.labels)

    def tie_blocks(self, axis: AxisLabels, blocks: int) -> AxisLabels:
        """Tie position j of every one of ``blocks`` equal runs along an axis; return the labels of the first run."""
        runs = axis.labels.reshape(blocks, -1)
        self.labels.unite(runs, runs[:1])
        return AxisLabels(runs[0], axis.rest)

    def fix(self, axis: AxisLabels, reason: str) -> None:
        """Make the channels along an axis unprunable."""
        self.labels.fix(axis.labels, reason)

    def fix_tensor(self, tensor: Tensor, reason: str) -> None:
        """Make every channel that shows in ``tensor`` unprunable."""
        for axis in self.axes(tensor).values():
            self.fix(axis, reason)

    def refuse(self, inputs: Iterable[Tensor], outputs: Iterable[Tensor], reason: str) -> None:
        """Make every channel unprunable that enters an operation, and those that meet what it returns."""
        lengths: set[int] = set()
        for tensor in inputs:
            self.fix_tensor(tensor, reason)
            lengths.update(len(axis) for axis in self.axes(tensor).values())
        for tensor in outputs:
            axes = {axis: size for axis, size in enumerate(tensor.shape) if size in lengths}
            if axes and not self.is_known(tensor):
                self.put(
                    tensor, {axis: AxisLabels(self.labels.fixed(size, reason), None) for axis, size in axes.items()}
                )

    def fix_later(self, tensor: Tensor, axes: Iterable[int], reason: str) -> None:
        """Make axes of a tensor unprunable, those of a parameter also if they are labelled only later."""
        for axis in axes:
            if axis in self.known_axes(tensor):
                self.fix(self.axis(tensor, axis), reason)
            if tensor in self._names:
                self.labels.fix_slot(self._names[tensor], axis, reason)

    def reads(self, slices: AxisLabels) -> None:
        """Note that slices of a weight multiply the channels' activations: zero slices silence a channel."""
        self.readers.append(slices.labels)

    def sums(self, axis: AxisLabels) -> None:
        """Note that activations are summed over their channels (or multiplied with each other) as they are."""
        self.summed.append(axis.labels)

    def note_view(self, output: Tensor, source: Tensor) -> None:
        """Remember that two tensors may share memory: writing into one then changes the other."""
        storage = output.untyped_storage().data_ptr()
        if output is not source and storage == source.untyped_storage().data_ptr():
            self._sharing.setdefault(storage, []).extend((ref(output), ref(source)))

    def is_viewed(self, tensor: Tensor) -> bool:
        """Return whether another tensor that is still alive shares memory with this one."""
        storage = tensor.untyped_storage().data_ptr()
        others = (other() for other in self._sharing.get(storage, ()))
        return any(
            other is not None and other is not tensor and other.untyped_storage().data_ptr() == storage
            for other in others
        )

    def contraction(self, op: str, constant: int, weight: Tensor, *axes: AxisLabels | int) -> None:
        """Count a contraction's MACs = constant · Π axes, and note that ``weight`` makes up its channels' norms.

        A weight may be computed (transposed, scaled, standardised): what counts is whose labels it carries.
        """
        self.weights += [side.labels for side in self.known_axes(weight).values()]
        sizes = tuple(axis.labels if isinstance(axis, AxisLabels) else axis for axis in axes)
        self.contractions.append(LabelledContraction(self.modules[-1][0] or op, constant, sizes))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists, dicts and dataclasses of an argument or a result."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list | set | frozenset):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dataclass_fields__"):
        for item in vars(value).values():
            yield from tensors_in(item)


def opaque_in(value: Any) -> Iterator[Any]:
    """Yield what ``tensors_in`` cannot look into."""
    if isinstance(value, Mapping):
        value = list(value.values())
    elif hasattr(value, "__dataclass_fields__"):
        value = list(vars(value).values())
    if isinstance(value, tuple | list | set | frozenset):
        for item in value:
            yield from opaque_in(item)
    elif not (value is None or isinstance(value, Tensor | int | float | complex | str | bytes)):
        yield value
