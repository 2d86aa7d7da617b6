"""Least squares after a cut: what reads the cut channels gets the weights that restore the dense layer's outputs.

X (``least_squares.py``): patches of the slim layer's input, refitted so far; Y: the dense layer's outputs at the same
places, at the rows that are kept; a bias, or the running mean of the one batch norm behind, takes the constant up.
Where a layer's output is added to what was there before, as at the end of a residual block, Y also makes up for what
the other summand lacks (``sums.py``), or errors would pile up along the stream.

The same idea: He et al. 2017 (arXiv 1707.06168), ThiNet (Luo et al. 2017, arXiv 1707.06342), OBC (Frantar and Alistarh
2022, arXiv 2208.11580). Both networks run on the same batches. The slim one waits in front of each layer until all
batches have come there (``waiting_run.py``), and the layer is refitted just before it runs. So each batch runs once;
where there is no room for all that wait, some end and begin anew, most of them early in the network, where
activations are large and runs up to them short.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil, inf

import torch
from torch import Tensor, nn

from hoyer_export.channels.reading import Key, LayerCall
from hoyer_export.errors import HoyerExportError
from hoyer_export.modes import kept_modes
from hoyer_export.surgery.edits import RefitEdit
from hoyer_export.surgery.extras.calibration import CalibrationInputs
from hoyer_export.surgery.extras.dense_outputs import DenseOutputs, Sample
from hoyer_export.surgery.extras.layer_matrix import at_places, kept_rows, matrix, patches, set_matrix_
from hoyer_export.surgery.extras.least_squares import LeastSquares
from hoyer_export.surgery.extras.scout import Scout
from hoyer_export.surgery.extras.waiting_run import Stop, stops
from hoyer_export.surgery.plan import kept_slices
from hoyer_export.surgery.step import SlimModel
from hoyer_export.tensors import TensorRecord, named_tensors

_CHUNK = 2**24
"""Numbers of patches that are made at once."""
_WAITING_BYTES = 3 * 2**30
"""What runs may hold that wait for a layer to be refitted; the others begin anew. A ResNet-50 holds 5.2 MB an image."""
_WAITING_RUNS = 64
"""How many may wait, for each has a thread, and that one torch's threads."""


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


class _Refitting:
    """Refits every layer just before it runs, on all batches side by side."""

    def __init__(self, slim: SlimModel, targets: DenseOutputs, ridge: float, follow: bool) -> None:
        self.plan, self.targets, self.ridge = slim.plan, targets, ridge
        self.tensors = named_tensors(slim.model)
        self.scout = Scout(slim.model, targets.example, slim.plan.kept, follow)
        self.refitted: dict[str, None] = {}
        self.left = dict(self._unfit())
        self.wanted = 0
        self._network = slim.model
        self._last = {key[0]: key for key in self.scout.calls}
        self._runs: dict[int, tuple[Iterator[Stop], int]] = {}  # batch → its run, while it waits, and what that holds

    def _unfit(self) -> Iterator[tuple[str, str]]:
        for key, (rows, _, *shape) in self.scout.calls.items():
            dense = self.targets.calls.get(key)
            if key[0] not in self.scout.changed:
                continue
            if key[0] in self.scout.otherwise:
                yield key[0], "the weight is used in another way too"
            elif dense is None or [rows, *shape] != [dense[0], *dense[2:]]:
                yield key[0], "the dense network has no such layer, or outputs of other sizes"

    def run(self) -> None:
        """Refit the layers that may read something else, in the order in which they run."""
        fits: dict[str, LeastSquares] = {}  # a weight that is used again goes on with the samples that it has
        for key in self.scout.calls:
            if key[0] in self.scout.changed and key[0] not in self.left:
                self._refit(key, fits)
        self._runs.clear()

    def _refit(self, key: Key, fits: dict[str, LeastSquares]) -> None:
        name = key[0]
        for number, stop in self._calls(key):
            call = stop.call
            shift = self.scout.shift_of(name, call)
            self._add(fits.setdefault(name, LeastSquares(centred=shift is not None)), number, stop, shift)
        if name not in fits or not fits[name].count:
            self.left[name] = "it does not run on these images"
        else:
            self._solve(fits[name], name, call, shift)
        if key == self._last[name]:
            fits.pop(name, None)

    def _calls(self, key: Key) -> Iterator[tuple[int, Stop]]:
        """Yield where runs wait for a layer, on every batch where it runs, and let the run wait if there is room."""
        for number, batch in enumerate(self.targets.batches):
            run, _ = self._runs.pop(number, (None, 0))
            run = run or stops(self._network, batch)
            stop = next((stop for stop in run if stop.key == key), None)
            if stop is None:
                continue
            yield number, stop
            held = stop.held_bytes + sum(held for _, held in self._runs.values())
            if held <= _WAITING_BYTES and len(self._runs) < _WAITING_RUNS:
                self._runs[number] = run, stop.held_bytes

    def _add(self, fit: LeastSquares, number: int, stop: Stop, shift: str | None) -> None:
        key, call = stop.key, stop.call
        sample = self.targets.at(key, number)
        if sample is None:
            return
        x, places, weight = call.spread(call.input), sample.places, call.weight
        rows = kept_rows(call, self.plan, key[0], sample.outputs.shape[2]).to(x.device)
        outputs = sample.outputs.index_select(2, rows)
        if (lacking := self._lacking(stop, sample, rows)) is not None:
            outputs = outputs + lacking
        step = max(1, _CHUNK // max(1, places.shape[1] * call.groups * weight[:, 0].numel()))
        for first in range(0, len(x), step):
            part = slice(first, first + step)
            y = torch.unflatten(outputs[part].flatten(0, 1), 1, (call.groups, -1))
            if shift is None and call.bias is not None:
                y = y - call.bias.view(call.groups, -1)
            fit.add(patches(call, x[part], places[part], sample.shape), y)

    def _lacking(self, stop: Stop, sample: Sample, rows: Tensor) -> Tensor | None:
        """Return what a layer has to give for what its outputs are added to, [N, P, O]."""
        sum_ = self.scout.sums.get(stop.key)
        beside = None if sum_ is None else stop.made.get(sum_.number)
        if sum_ is None or beside is None or sample.beside is None:
            return None
        beside = stop.call.spread(beside)
        if tuple(beside.shape) != (len(sample.places), len(rows), *sample.shape):
            return None
        there = at_places(beside, sample.places).transpose(1, 2)
        return sum_.through(sample.beside.index_select(2, rows) - there)

    def _solve(self, fit: LeastSquares, name: str, call: LayerCall, shift: str | None) -> None:
        before = matrix(call)
        try:
            new, constant = fit.solve(before, self.ridge)
        except RuntimeError:  # what it reads does not vary
            new = constant = torch.full((), torch.nan)
        if not (new.isfinite().all() and constant.isfinite().all()):
            self.left[name] = "what it reads does not vary, or is not finite"
            return
        set_matrix_(call, new)
        if shift is not None:
            self._set_constant_(shift, constant.flatten())
        self.refitted[name] = None
        self.wanted = max(self.wanted, ceil(self.targets.images * before.shape[2] / fit.count))

    def _set_constant_(self, shift: str, constant: Tensor) -> None:
        """Make a layer's bias the constant, or take it off the mean that the batch norm behind it subtracts."""
        tensor = self.tensors[shift]
        if not isinstance(tensor, nn.Parameter):
            constant = kept_slices(self.targets.tensors[shift], self.plan.kept.get(shift, {})).double() - constant
        tensor.data.copy_(constant)

    def name_unseen(self) -> None:
        """Name the weights that were cut and with which no convolution or linear layer was seen to read."""
        seen = {name for name, _ in self.scout.calls}
        for name in self.plan.kept.keys() - seen:
            if name in self.tensors and self.tensors[name].ndim > 1:
                self.left[name] = "no convolution or linear layer was seen to read with it"


def refit_(
    slim: SlimModel,
    dense: nn.Module | DenseOutputs,
    batches: CalibrationInputs = (),
    *,
    positions: int = 16,
    ridge: float = 1.0,
    seed: int = 0,
    readers_only: bool = False,
) -> Refit:
    """Refit the weights of a slim network by least squares, in place, so that its layers give the dense one's outputs.

    Convolutions of any dimension, grouped and transposed ones too, and linear layers are refitted, in the order in
    which they run; those before the first cut stay as they are. A weight that is used at several places gets one fit.

    Memory: a batch at work, one Gram matrix [G, I / G · kernel, I / G · kernel] in float64, at most 1 GiB of the dense
    layers' outputs (more where a single layer has more), and at most 3 GiB of what the network holds for the other
    batches between two layers. Time: each batch runs once; those for which there is no room begin anew at each layer.

    Args:
        slim: what ``cut`` or ``load_slim`` returned.
        dense: the network before the cut, or its ``DenseOutputs``, for several slim ones.
        batches: calibration images without labels, a batch or several; not with ``DenseOutputs``, which hold them.
        positions: places an image and layer.
        ridge: λ over the mean ‖x‖² of a sample: how many samples an unknown the weights before count for.
        seed: of the places.
        readers_only: what reads the channels that went, and not what comes after it.

    Raises:
        HoyerExportError: ``slim`` is a model without the plan that says what it was cut from, or a number is out of
            range.
        DataError: there is no batch, or one holds something else than finite numbers.
        NetworkError: a network does not run on a batch.
    """
    if not isinstance(slim, SlimModel):
        raise HoyerExportError(
            f"refit_ needs the plan of the cut: give what cut or load_slim returned, a SlimModel (slim, not"
            f" slim.model), got {type(slim).__name__}"
        )
    if not isinstance(ridge, int | float) or not 0 <= ridge < inf:
        raise HoyerExportError(f"ridge is λ over the mean ‖x‖² of a sample, 0 or more and finite, got {ridge!r}")
    targets = dense if isinstance(dense, DenseOutputs) else DenseOutputs(dense, batches, positions, seed)
    with kept_modes(slim.model):
        slim.model.eval()
        fitting = _Refitting(slim, targets, ridge, follow=not readers_only)
        fitting.run()
    fitting.name_unseen()
    refitted = tuple(fitting.refitted)
    edits = (edit for edit in slim.plan.edits if not isinstance(edit, RefitEdit))
    plan = replace(slim.plan, edits=(*edits, RefitEdit(images=targets.images, weights=refitted)))
    return Refit(replace(slim, plan=plan), refitted, fitting.left, targets.images, fitting.wanted)
