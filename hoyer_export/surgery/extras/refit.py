"""Least squares after a cut: what reads the cut channels gets the weights that restore the dense layer's outputs.

    W = (Y Xᵀ + λ W₀)(X Xᵀ + λ I)⁻¹

X: patches of the slim layer's input, refitted so far; Y: the dense layer's outputs at the same places, at the rows that
are kept; both centred where a bias, or the running mean of the one batch norm behind, takes b = ȳ − W x̄ up.
W₀: the weights before; λ: ``ridge`` times the mean of X Xᵀ's diagonal. In float64, one Gram matrix for each group.

The same idea: He et al. 2017 (arXiv 1707.06168), ThiNet (Luo et al. 2017, arXiv 1707.06342), OBC (Frantar and Alistarh
2022, arXiv 2208.11580). The dense network runs once and keeps its outputs at some random places; the slim one
runs once too, over all images together, and each layer is refitted just before it runs.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from hoyer_export.errors import DataError
from hoyer_export.modes import kept_modes
from hoyer_export.surgery.edits import RefitEdit
from hoyer_export.surgery.extras.dead_channels import CalibrationInputs, as_batches, run_each
from hoyer_export.surgery.plan import PruningPlan, kept_slices
from hoyer_export.surgery.step import SlimModel, as_slim
from hoyer_export.tensors import TensorRecord, named_tensors, tensors_in

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_SIGNATURES: dict[Callable[..., Any], tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _CONVOLUTION),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _TRANSPOSED),
}
_ROUNDING = 1e-9
"""Share of the inputs' energy below which their variation counts as none."""
_CHUNK = 2**24
"""Numbers of patches that are made at once."""


@dataclass(frozen=True, eq=False, repr=False)
class Refit(TensorRecord):
    """What was refitted.

    Args:
        slim: the model that was given, with its new weights, and the plan that says so.
        refitted: names of the weights.
        left: weights that stay as they were → why.
        images: how many images it was done with.
        wanted: how many of them give every weight as many equations as it has unknowns; with fewer the rest is left
            to λ.
    """

    slim: SlimModel
    refitted: tuple[str, ...]
    left: Mapping[str, str]
    images: int
    wanted: int


@dataclass(frozen=True)
class _Call:
    """A convolution or linear layer at work, as a convolution: input [N, C, *S], weight as one matrix a group."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    output_padding: Any = 0
    transposed: bool = False

    @staticmethod
    def of(func: Any, args: Any, kwargs: Mapping[str, Any]) -> "_Call | None":
        """Return the call that a torch function is, or None."""
        if func not in _SIGNATURES:
            return None
        call = _Call(**dict(zip(_SIGNATURES[func], args, strict=False)), **kwargs)
        return replace(call, transposed=_SIGNATURES[func] is _TRANSPOSED) if call.weight.ndim > 1 else None

    def spread(self, x: Tensor) -> Tensor:
        """Return an input or output of the call as [N, C, *S]."""
        if self.weight.ndim == 2:
            return x.reshape(len(x) if x.ndim > 1 else 1, -1, x.shape[-1]).movedim(-1, 1)
        return x if x.ndim == self.weight.ndim else x[None]

    def matrix(self) -> Tensor:
        """Return the weight as [G, O / G, I / G · kernel], float64."""
        weight = torch.unflatten(self.weight.detach().double(), 0, (self.groups, -1))
        return (weight.transpose(1, 2) if self.transposed else weight).flatten(2)

    def set_matrix_(self, matrix: Tensor) -> None:
        """Write the weight from [G, O / G, I / G · kernel]."""
        inputs = self.weight.shape[0] // self.groups if self.transposed else self.weight.shape[1]
        weight = torch.unflatten(matrix, 2, (inputs, *self.weight.shape[2:]))
        self.weight.data.copy_((weight.transpose(1, 2) if self.transposed else weight).flatten(0, 1))

    def patches(self, x: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return what the outputs at flat ``places`` [N, P] of ``shape`` read: [N · P, G, I / G · kernel]."""
        dims = len(shape)
        sizes, kernel = x.shape[2:], self.weight.shape[2:] or (1,)
        stride, dilation, padding = (_each(v, dims) for v in (self.stride, self.dilation, self.padding))
        if padding[0] in ("same", "valid"):
            same = padding[0] == "same"
            padding = tuple(d * (k - 1) // 2 * same for d, k in zip(dilation, kernel, strict=True))
        index = places.new_zeros(*places.shape, 1)
        inside = torch.ones_like(index, dtype=torch.bool)
        for dim, where in enumerate(torch.unravel_index(places, shape)):
            taps = torch.arange(kernel[dim], device=x.device) * dilation[dim]
            if self.transposed:
                at = where[..., None] + padding[dim] - taps
                valid, at = at % stride[dim] == 0, at.div(stride[dim], rounding_mode="floor")
            else:
                at = where[..., None] * stride[dim] - padding[dim] + taps
                valid = torch.ones_like(at, dtype=torch.bool)
            valid &= (at >= 0) & (at < sizes[dim])
            index = (index[..., None] * sizes[dim] + at.clamp(0, sizes[dim] - 1)[:, :, None]).flatten(2)
            inside = (inside[..., None] & valid[:, :, None]).flatten(2)
        read = _at(x, index.flatten(1)).view(len(x), -1, *index.shape[1:]) * inside[:, None]  # [N, C, P, kernel]
        return read.transpose(1, 2).reshape(places.numel(), self.groups, -1)


def _each(value: Any, dims: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, tuple | list | torch.Size) else (value,)
    return values * dims if len(values) == 1 else values


def _at(x: Tensor, places: Tensor) -> Tensor:
    """Return [N, C, P]: [N, C, *S] at the flat places [N, P]."""
    return x.flatten(2).gather(2, places[:, None].expand(-1, x.shape[1], -1))


class _Watch(TorchFunctionMode):
    """Hands every call of a convolution or linear layer whose weight has a name, and which call of it it is, on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in named_tensors(network).items()}
        self.count: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = _Call.of(func, args, kwargs)
        name = None if call is None else self.names.get(id(call.weight))
        if call is None or name is None:
            output = func(*args, **kwargs)
            self.other(func, args, kwargs, output)
            return output
        key = (name, self.count[name])
        self.count[name] += 1
        self.before(key, call)
        output = func(*args, **kwargs)
        self.after(key, call, output)
        return output

    def before(self, key: tuple[str, int], call: _Call) -> None:
        """See a layer that is about to run."""

    def after(self, key: tuple[str, int], call: _Call, output: Tensor) -> None:
        """See a layer that ran."""

    def other(self, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """See any other call."""


class DenseOutputs(_Watch):
    """What the layers of the dense network give at random places, to which any slim network may be refitted.

    Args:
        dense: the network before the cut.
        inputs: calibration images, a batch or several.
        positions: places an image and layer; all of them where there are no more.
        seed: of the places.

    Raises:
        DataError: there is no batch.
        NetworkError: the network does not run on a batch.
    """

    def __init__(self, dense: nn.Module, inputs: CalibrationInputs, positions: int = 16, seed: int = 0) -> None:
        network = copy.deepcopy(dense).eval()
        super().__init__(network)
        self.inputs = [tuple(tensor.cpu() for tensor in batch) for batch in as_batches(inputs)]
        self._positions, self._generator = positions, torch.Generator().manual_seed(seed)
        self._found: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
        self.shapes: dict[tuple[str, int], tuple[int, ...]] = {}
        self.tensors = named_tensors(network)
        for batch in self.inputs:
            self.count.clear()
            run_each(network, [batch], self)
        if not self.inputs:
            raise DataError("expected calibration images, got no batch; give batches=[images, ...]")

    def after(self, key: tuple[str, int], call: _Call, output: Tensor) -> None:
        output = call.spread(output)
        self.shapes[key] = tuple(output.shape[2:])
        size = prod(self.shapes[key])
        if size <= self._positions:
            places = torch.arange(size).expand(len(output), size)
        else:
            places = torch.randint(size, (len(output), self._positions), generator=self._generator)
        places = places.to(output.device)
        self._found.setdefault(key, []).append((places, _at(output, places).transpose(1, 2)))

    def of(self, key: tuple[str, int]) -> tuple[Tensor, Tensor] | None:
        """Return places [N, P] and outputs [N, P, O] of the nth call of a weight."""
        if key not in self._found or len({places.shape[1] for places, _ in self._found[key]}) > 1:
            return None
        places, outputs = zip(*self._found[key], strict=True)
        return torch.cat(places), torch.cat(outputs)


class _Scout(_Watch):
    """Finds which weights and biases are used in one way alone, and the batch norm behind a layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.otherwise: set[str] = set()
        self._made: Any = WeakIdKeyDictionary()
        self._users: dict[str, set[str]] = {}  # weight → running means that its outputs go to, "" for anything else
        self._sources: dict[str, set[str]] = {}  # running mean → weights
        self._biases: dict[str, set[str]] = {}

    def after(self, key: tuple[str, int], call: _Call, output: Tensor) -> None:
        self._made[output] = key[0]
        if source := self._made.get(call.input):
            self._users.setdefault(source, set()).add("")
        if call.bias is not None:
            self._biases.setdefault(self.names.get(id(call.bias), ""), set()).add(key[0])

    def other(self, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        if not any(True for _ in tensors_in(output)):
            return  # asking for a shape uses nothing
        tensors = list(tensors_in((args, kwargs)))
        self.otherwise |= {self.names[id(tensor)] for tensor in tensors if id(tensor) in self.names}
        mean = (args[1:2] or (kwargs.get("running_mean"),))[0] if func is F.batch_norm else None
        behind = self.names.get(id(mean), "")
        for source in (self._made[tensor] for tensor in tensors if tensor in self._made):
            self._users.setdefault(source, set()).add(behind)
        if behind:
            self._sources.setdefault(behind, set()).add(self._made.get(tensors[0], ""))

    def shift_of(self, name: str, call: _Call) -> str | None:
        """Return what takes up a constant: the layer's own bias, or the mean of the batch norm behind it alone."""
        bias = self.names.get(id(call.bias), "")
        if call.bias is not None:
            return bias if bias and bias not in self.otherwise and self._biases[bias] == {name} else None
        users = self._users.get(name, set())
        (mean,) = users if len(users) == 1 else ("",)
        return mean if mean and self._sources[mean] == {name} else None


class _LeastSquares:
    """Σ over samples of x xᵀ and y xᵀ, for each group; the samples themselves while they are fewer than unknowns."""

    def __init__(self, centred: bool) -> None:
        self.centred, self.count = centred, 0
        self._held: list[tuple[Tensor, Tensor]] = []
        self._sums: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # x xᵀ, y xᵀ, x, y

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add samples x [n, G, I] and y [n, G, O]."""
        self._held.append((x, y))
        self.count += len(x)
        if self._sums is not None or self.count > x.shape[2]:
            for held_x, held_y in self._held:
                xs, ys = held_x.double().transpose(0, 1), held_y.double().transpose(0, 1)
                new = (xs.mT @ xs, ys.mT @ xs, xs.sum(1), ys.sum(1))
                for total, more in zip(self._sums or (), new, strict=False):
                    total.add_(more)
                self._sums = self._sums or new
            self._held.clear()

    def solve(self, before: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Return the weights [G, O, I] and the constant ȳ − W x̄, [G, O]."""
        if self._sums is None:
            x, y = (torch.cat(held).double().transpose(0, 1) for held in zip(*self._held, strict=True))
            mean_x, mean_y = x.mean(1, keepdim=True) * self.centred, y.mean(1, keepdim=True) * self.centred
            x, y = x - mean_x, y - mean_y
            gram = x @ x.mT  # [G, n, n]
            penalty = _penalty(gram, ridge / x.shape[2], (x + mean_x).square().sum((1, 2)))
            new = before + (_damped_solve(gram, penalty, y - x @ before.mT)).mT @ x
            mean_x, mean_y = mean_x[:, 0], mean_y[:, 0]
        else:
            gram, cross, mean_x, mean_y = self._sums
            mean_x, mean_y = mean_x / self.count * self.centred, mean_y / self.count * self.centred
            energy = gram.diagonal(dim1=1, dim2=2).sum(1)
            gram = gram - self.count * mean_x[:, :, None] * mean_x[:, None]
            cross = cross - self.count * mean_y[:, :, None] * mean_x[:, None]
            penalty = _penalty(gram, ridge / gram.shape[1], energy)
            new = _damped_solve(gram, penalty, (cross + penalty * before).mT).mT
        return new, mean_y - (new @ mean_x[..., None])[..., 0]


def _penalty(gram: Tensor, share: float, energy: Tensor) -> Tensor:
    """Return λ of each group, [G, 1, 1]: a share of the trace, and enough to keep W₀ where the inputs do not vary.

    What centring leaves of constant inputs is rounding, about 1e-16 of their ``energy`` Σ‖x‖², [G]; a fit to that would
    be noise.
    """
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    return torch.maximum(share * trace, _ROUNDING * energy).clamp(min=1e-200)[:, None, None]


def _damped_solve(gram: Tensor, penalty: Tensor, right: Tensor) -> Tensor:
    damped = gram.clone()
    damped.diagonal(dim1=1, dim2=2).add_(penalty[:, 0])
    solution: Tensor = torch.linalg.solve(damped, right)
    return solution


class _Refitting(_Watch):
    """Refits every layer just before it runs."""

    def __init__(self, slim: SlimModel, targets: DenseOutputs, scout: _Scout, ridge: float) -> None:
        super().__init__(slim.model)
        self.plan, self.targets, self.scout, self.ridge = slim.plan, targets, scout, ridge
        self.tensors = named_tensors(slim.model)
        self.refitted: dict[str, None] = {}
        self.left: dict[str, str] = {}
        self.wanted = 0
        self.changed = False
        self.seen: set[str] = set()
        self._fits: dict[str, _LeastSquares] = {}

    def before(self, key: tuple[str, int], call: _Call) -> None:
        name = key[0]
        self.seen.add(name)
        self.changed |= (0 if call.transposed else 1) in self.plan.kept.get(name, {})
        if not self.changed and (name, 1) not in self.targets.shapes:
            return  # it reads what the dense one reads, and will not be called again
        found = self.targets.of(key)
        if name in self.scout.otherwise:
            self.left[name] = "the weight is used in another way too"
        elif found is None:
            self.left[name] = "the dense network has no such layer, or other sizes in every batch"
        else:
            self._refit(key, call, *found)

    def name_unseen(self) -> None:
        """Name the weights that read cut channels and that no convolution or linear layer was seen to read with."""
        for name, kept in self.plan.kept.items():
            weight = name in self.tensors and self.tensors[name].ndim > 1
            if weight and name not in self.refitted and (name not in self.seen or any(dim > 0 for dim in kept)):
                self.left.setdefault(name, "no convolution or linear layer was seen to read with it")

    def _refit(self, key: tuple[str, int], call: _Call, places: Tensor, outputs: Tensor) -> None:
        name, x = key[0], call.spread(call.input)
        shift = self.scout.shift_of(name, call)
        fit = self._fits.setdefault(name, _LeastSquares(centred=shift is not None))
        matrix = call.matrix()
        rows = _kept_rows(call, self.plan, name, outputs.shape[2]).to(outputs.device)
        step = max(1, _CHUNK // (places.shape[1] * matrix.shape[0] * matrix.shape[2]))
        for first in range(0, len(x), step):
            part = slice(first, first + step)
            y = torch.unflatten(outputs[part].index_select(2, rows).flatten(0, 1), 1, (call.groups, -1))
            if shift is None and call.bias is not None:
                y = y - call.bias.view(call.groups, -1)
            fit.add(call.patches(x[part], places[part], self.targets.shapes[key]), y)
        if not self.changed:
            return
        try:
            new, constant = fit.solve(matrix, self.ridge)
        except RuntimeError:  # what it reads does not vary
            new = constant = torch.full((), torch.nan)
        if not (new.isfinite().all() and constant.isfinite().all()):
            self.left[name] = "what it reads does not vary, or is not finite"
            return
        call.set_matrix_(new)
        if shift is not None:
            self._set_constant_(shift, constant.flatten())
        self.refitted[name] = None
        self.wanted = max(self.wanted, ceil(len(x) * matrix.shape[2] / fit.count))

    def _set_constant_(self, shift: str, constant: Tensor) -> None:
        """Make a layer's bias the constant, or take it off the mean that the batch norm behind it subtracts."""
        tensor = self.tensors[shift]
        if not isinstance(tensor, nn.Parameter):
            constant = kept_slices(self.targets.tensors[shift], self.plan.kept.get(shift, {})).double() - constant
        tensor.data.copy_(constant)


def _kept_rows(call: _Call, plan: PruningPlan, name: str, outputs: int) -> Tensor:
    """Return which of the dense layer's outputs the slim one has."""
    kept = plan.kept.get(name, {})
    if not call.transposed:
        return kept.get(0, torch.arange(outputs))
    slices, inputs = call.weight.shape[1], plan.shapes.get(name, call.weight.shape)
    groups = outputs // (inputs[1] if kept else slices)
    per_group = kept.get(1, torch.arange(outputs // groups))
    stay = torch.unique(kept.get(0, torch.arange(inputs[0])) // (inputs[0] // groups))  # whole groups may be gone
    return torch.flatten(stay[:, None] * (outputs // groups) + per_group)


def refit_(
    slim: nn.Module | SlimModel,
    dense: nn.Module | DenseOutputs,
    batches: CalibrationInputs = (),
    *,
    positions: int = 16,
    ridge: float = 1e-3,
    seed: int = 0,
) -> Refit:
    """Refit the weights of a slim network by least squares, in place, so that its layers give the dense one's outputs.

    Convolutions of any dimension, grouped and transposed ones too, and linear layers are refitted, in the order in
    which they run; those before the first cut stay as they are. A weight that is used at several places gets one fit.

    Memory: one Gram matrix [G, I / G · kernel, I / G · kernel] in float64, the dense layers' outputs at the places, and
    what the slim network holds while it runs on all images at once.

    Args:
        slim: what ``cut`` returned.
        dense: the network before the cut, or its ``DenseOutputs``, for several slim ones.
        batches: calibration images without labels, a batch or several; not with ``DenseOutputs``, which hold them.
        positions: places an image and layer.
        ridge: λ as a share of X Xᵀ's mean diagonal.
        seed: of the places.

    Raises:
        DataError: there is no batch.
        NetworkError: a network does not run on a batch.
    """
    given = as_slim(slim)
    targets = dense if isinstance(dense, DenseOutputs) else DenseOutputs(dense, batches, positions, seed)
    everything = tuple(torch.cat(tensors) for tensors in zip(*targets.inputs, strict=True))
    with kept_modes(given.model):
        given.model.eval()
        scout = _Scout(given.model)
        run_each(given.model, [tuple(tensor[:2] for tensor in targets.inputs[0])], scout)
        fitting = _Refitting(given, targets, scout, ridge)
        run_each(given.model, [everything], fitting)
    fitting.name_unseen()
    images, refitted = len(everything[0]), tuple(fitting.refitted)
    edits = (edit for edit in given.plan.edits if not isinstance(edit, RefitEdit))
    plan = replace(given.plan, edits=(*edits, RefitEdit(images=images, weights=refitted)))
    return Refit(replace(given, plan=plan), refitted, fitting.left, images, fitting.wanted)
