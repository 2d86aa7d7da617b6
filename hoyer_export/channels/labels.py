"""What the rules work with: the labels beside every tensor while the model runs once.

A tensor has at most one vector of labels for each of its axes. That is enough, because a cut tensor has to stay
rectangular: what is removed from it are whole slices along an axis, so all the labels that meet in one slice live or
die together anyway.
"""

from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from weakref import ref

import numpy as np
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from hoyer_export.channels.layer_sizes import held_by
from hoyer_export.channels.union_find import NO_CHANNEL, UnionFind, Vector
from hoyer_export.tensors import named_tensors, tensors_in


@dataclass(frozen=True, eq=False)
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

    def __getitem__(self, positions: Any) -> "AxisLabels":
        """Return the labels at some of the positions."""
        return AxisLabels(self.labels[positions], self.rest)

    def mixed(self) -> "AxisLabels":
        """Return the labels after an operation that mixes numbers of one channel: 0 stays 0, all else is unknown."""
        return self.resting(0.0 if self.zero else None)

    def resting(self, rest: float | None) -> "AxisLabels":
        """Return the same labels with another rest."""
        return AxisLabels(self.labels, rest)

    def repeated(self, times: int) -> "AxisLabels":
        """Return every label several times in a row."""
        return AxisLabels(self.labels.repeat(times), self.rest)


TensorLabels = dict[int, AxisLabels]


@dataclass(frozen=True, eq=False)
class LabelledContraction:
    """A contraction whose axes are label vectors, or plain sizes where nothing is labelled."""

    name: str
    constant: int
    axes: tuple[Vector | int, ...]


@dataclass(frozen=True, eq=False)
class LabelledShuffle:
    """A shuffle of channels that a module returns, see ``channel_map.Shuffle``."""

    module: str
    dim: int
    shape: tuple[int, int]
    side: AxisLabels
    order: Vector


class Tracer:
    """The labels of every tensor, parameter and buffer of one traced run.

    Args:
        model: the model that runs; its parameters and buffers are what is labelled.
        batch_size: number of examples that run at once; MACs are counted for one.
    """

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        self.union_find = UnionFind()
        self.batch_size = batch_size
        self.operation: Any = None  # whose rule is at work
        self.modules: list[tuple[str, nn.Module]] = []  # that are running, the innermost last
        self.contractions: list[LabelledContraction] = []
        self.weights: list[Vector] = []
        self.readers: list[Vector] = []
        self.summed: list[Vector] = []
        self.untied: dict[int, Any] = {}  # sizes among the running operation's arguments that no axis follows yet
        self._labels_of: MutableMapping[Tensor, TensorLabels] = WeakTensorKeyDictionary()
        self._names: MutableMapping[Tensor, str] = WeakTensorKeyDictionary()
        self._examples: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        self.spreads: MutableMapping[Tensor, Any] = WeakTensorKeyDictionary()  # see positions.py
        self.shuffles: dict[str, LabelledShuffle] = {}
        self.lent: MutableMapping[Tensor, Any] = WeakTensorKeyDictionary()  # see lending.py
        self.loans: dict[str, list[Any]] = {}
        self._waiting: MutableMapping[Tensor, Callable[[Tensor], None]] = WeakTensorKeyDictionary()
        self._fixed_dims: dict[tuple[str, int], str] = {}  # dimensions of parameters without labels as yet → reason
        self._sharing: dict[int, list[ref[Tensor]]] = {}
        for name, tensor in named_tensors(model).items():
            self._names[tensor] = name
        kernels = [
            held_by(module, "weight") for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)
        ]
        self._without_channels = {
            (self._names[weight], axis) for weight in kernels if weight is not None for axis in range(2, weight.ndim)
        }

    # -- what a rule reads ------------------------------------------------------------------------------------------

    def axes(self, tensor: Tensor) -> TensorLabels:
        """Return the labelled axes of ``tensor``; a parameter or buffer has all those that may hold channels."""
        if tensor in self._names:
            for axis in range(tensor.ndim):
                if tensor.shape[axis] > 1 and (self._names[tensor], axis) not in self._without_channels:
                    self.axis(tensor, axis)
        return self.known_axes(tensor)

    def known_axes(self, tensor: Tensor) -> TensorLabels:
        """Return the axes that have labels already, without making any for a parameter."""
        if tensor not in self.lent:
            self.use(tensor)
        return self._labels_of.get(tensor, {})

    def axis(self, tensor: Tensor, axis: int) -> AxisLabels:
        """Return the labels along one axis: made now for a parameter without any, no channel's for an activation."""
        axis %= tensor.ndim
        known = self.known_axes(tensor)
        if axis in known:
            return known[axis]
        if (name := self._names.get(tensor)) is None:
            return AxisLabels(np.full(tensor.shape[axis], NO_CHANNEL), None)
        # A variance of 1 is what a zeroed channel is left with: it is divided by.
        rest = 1.0 if name.rpartition(".")[2] == "running_var" else 0.0
        labels = AxisLabels(self.union_find.new(name, axis, tensor.shape[axis]), rest)
        if (name, axis) in self._fixed_dims:
            self.fix(labels, self._fixed_dims[name, axis])
        self.put(tensor, {**known, axis: labels})
        return labels

    def is_parameter(self, tensor: Tensor) -> bool:
        """Return whether ``tensor`` is a parameter or buffer of the model."""
        return tensor in self._names

    def is_known(self, tensor: Tensor) -> bool:
        """Return whether ``tensor`` is a parameter or buffer, or carries labels."""
        return bool(self._labels_of.get(tensor)) or tensor in self._names or self.is_waiting(tensor)

    def name_of(self, tensor: Tensor) -> str:
        """Return the name of a parameter or buffer, "" of anything else."""
        return self._names.get(tensor, "")

    def is_example(self, tensor: Tensor) -> bool:
        """Return whether a tensor is the input or depends on it."""
        return tensor in self._examples

    def examples_in(self, tensor: Tensor) -> int:
        """Return how many examples a tensor holds: 1 where it was computed from parameters alone."""
        return self.batch_size if tensor in self._examples else 1

    def is_waiting(self, tensor: Tensor) -> bool:
        """Return whether something is to be declared once anybody uses ``tensor``."""
        return bool(self._waiting) and tensor in self._waiting

    def use(self, tensor: Tensor) -> None:
        """Declare what was to be declared once anybody uses ``tensor``."""
        if self._waiting and (declare := self._waiting.pop(tensor, None)) is not None:
            declare(tensor)

    # -- what a rule declares ---------------------------------------------------------------------------------------

    def put(self, tensor: Tensor, axes: TensorLabels) -> None:
        """Give ``tensor`` its labels."""
        self._labels_of[tensor] = axes

    def once_used(self, tensor: Tensor, declare: Callable[[Tensor], None]) -> None:
        """Declare something of ``tensor`` only when anything reads it: what nobody uses costs no channel."""
        self._waiting[tensor] = declare

    def unused(self, tensor: Tensor) -> None:
        """Forget what was to be declared of ``tensor``."""
        self._waiting.pop(tensor, None)
        self.spreads.pop(tensor, None)

    def keep_divisible(self, axis: AxisLabels, parts: int) -> None:
        """Declare that the length of an axis stays divisible by ``parts``."""
        self.union_find.keep_divisible(axis.labels, parts)

    def unite(self, first: AxisLabels, *others: AxisLabels) -> AxisLabels:
        """Let the channels at the same position of axes of equal length live or die together; return the first."""
        for other in others:
            if other is not first:
                self.union_find.unite(first.labels, other.labels)
        return first

    def unite_blocks(self, axis: AxisLabels, blocks: int) -> AxisLabels:
        """Unite position j of every one of ``blocks`` equal blocks of an axis; return the labels of the first block."""
        rows = axis.labels.reshape(blocks, -1)
        if blocks > 1:
            self.union_find.unite(rows, rows[:1])
        return axis[: rows.shape[1]]

    def unite_runs(self, axis: AxisLabels, length: int) -> AxisLabels:
        """Unite every ``length`` positions in a row; return the first label of each run."""
        rows = axis.labels.reshape(-1, length)
        self.union_find.unite(rows, rows[:, :1])
        return axis[::length]

    def fix(self, what: AxisLabels | Tensor, reason: str, dims: Iterable[int] | None = None) -> None:
        """Make the channels along an axis unprunable, or every channel that shows in a tensor.

        With ``dims`` only those along these dimensions of a tensor, of a parameter also if they are labelled later.
        """
        if isinstance(what, AxisLabels):
            self.union_find.fix(what.labels, reason)
            return
        axes = self.axes(what) if dims is None else self.known_axes(what)
        chosen = list(axes) if dims is None else [dim % what.ndim for dim in dims]
        for axis in chosen:
            if axis in axes:
                self.union_find.fix(axes[axis].labels, reason)
        if name := self._names.get(what):
            self._fixed_dims |= {(name, axis): reason for axis in chosen if axis not in axes}

    def reads(self, slices: AxisLabels) -> None:
        """Note that slices of a weight multiply the channels' activations: zero slices silence a channel."""
        self.readers.append(slices.labels)

    def sums(self, axis: AxisLabels) -> None:
        """Note that activations are summed over their channels (or multiplied with each other) as they are."""
        self.summed.append(axis.labels)

    def contraction(self, op: str, constant: int, weight: Tensor | list[Tensor], *axes: AxisLabels | int) -> None:
        """Count a contraction's MACs = constant · Π axes, and note that ``weight`` makes up its channels' norms.

        A weight may be computed (transposed, scaled, standardised): what counts is whose labels it carries. Where
        either factor may be the weight, both are given.
        """
        for factor in tensors_in(weight):
            self.weights += [side.labels for side in self.known_axes(factor).values()]
        sizes = tuple(axis.labels if isinstance(axis, AxisLabels) else axis for axis in axes)
        self.contractions.append(LabelledContraction(self.modules[-1][0] or op, constant, sizes))

    def note_example(self, tensor: Tensor) -> None:
        """Remember that a tensor is the input or depends on it."""
        self._examples[tensor] = True

    def note_view(self, output: Tensor, source: Tensor) -> None:
        """Remember that two tensors may share memory: writing into one then changes the other."""
        storage = output.untyped_storage().data_ptr()
        if output is not source and storage == source.untyped_storage().data_ptr():
            self._sharing.setdefault(storage, []).extend((ref(output), ref(source)))

    def is_viewed(self, tensor: Tensor) -> bool:
        """Return whether another tensor that still exists shares memory with this one."""
        storage = tensor.untyped_storage().data_ptr()
        others = [other() for other in self._sharing.get(storage, ())]
        return any(x is not None and x is not tensor and x.untyped_storage().data_ptr() == storage for x in others)
