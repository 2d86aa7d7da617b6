"""Bring your own model: a network and its weights in; a slim network, two verified ONNX files and the figures out.

Nothing is trained here. The files are made aside, and appear in the output folder once everything has been measured.
"""

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from math import ceil, isfinite
from pathlib import Path
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor, nn

from hoyer_export.channels.cost import dense_macs, params_of_keep
from hoyer_export.channels.trace import trace_channels
from hoyer_export.data import DataSplits
from hoyer_export.data.splits import Split
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.verify import verify_onnx
from hoyer_export.errors import DataError, NetworkError
from hoyer_export.networks import build_network, default_input_shape, is_function_name
from hoyer_export.run.cut import TRIES, stricter_macs, widths_text
from hoyer_export.run.cut_report import CutReport, FileFigures, Moved
from hoyer_export.run.inputs import check_output, proved_channels
from hoyer_export.run.job import two_images
from hoyer_export.run.progress import Progress
from hoyer_export.run_folder import RunFolder, claimed, whole_folder, write_whole
from hoyer_export.select.choose import Selection, select_channels
from hoyer_export.store.slim_file import save_slim
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.extras.dead_blocks import remove_dead_blocks
from hoyer_export.surgery.extras.folding import Folding, fold_constants
from hoyer_export.surgery.extras.gather import gather_inputs
from hoyer_export.surgery.plan import compose
from hoyer_export.surgery.step import SlimModel, as_slim
from hoyer_export.surgery.zero import zero_
from hoyer_export.tensors import tensors_in
from hoyer_export.weights import load_weights

Options = ParamSpec("Options")

BATCH = 250
"""Images at a time; the last of them may bring a few more than were asked for."""


@dataclass(frozen=True)
class _Dense:
    """The network that came.

    Args:
        name: of the network.
        model: with its weights.
        example: two images.
        in_channels: what it was built with; None where it was not told.
        classes: the same.
    """

    name: str
    model: nn.Module
    example: Tensor
    in_channels: int | None
    classes: int | None


def _in_claimed_folder(
    cutting: Callable[Concatenate[str, Path, Options], CutReport],
) -> Callable[Concatenate[str, Path, Options], CutReport]:
    """Claim the output folder before anything else, so that nobody makes the same files meanwhile."""

    @wraps(cutting)
    def claiming(name: str, out: Path, /, *args: Options.args, **options: Options.kwargs) -> CutReport:
        with claimed(out):
            return cutting(name, out, *args, **options)

    return claiming


@_in_claimed_folder
def cut_network(
    name: str,
    out: Path,
    *,
    weights: Path | None = None,
    input_shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    data: DataSplits | None = None,
    macs: float | None = None,
    params: float | None = None,
    threshold: float | str | None = None,
    method: str = "group-hs",
    align: int | None = None,
    dead_first: bool = False,
    dead_blocks: bool = False,
    gather: Sequence[str] = (),
    calibration: int = 5000,
    seed: int = 0,
    allow_import: Sequence[str] = (),
    progress: Progress,
) -> CutReport:
    """Cut the network called ``name`` into the folder ``out``.

    It leaves slim.safetensors (with plan and network name), widths.json, slim.onnx and dense.onnx, the latter two
    verified against their networks.

    Args:
        name: as for ``build_network``.
        out: absent or empty.
        weights: .safetensors or a PyTorch checkpoint; random weights where None.
        input_shape: (C, H, W) of one image; the data's, or what the network is meant for, where None.
        classes: number of outputs; the data's, or the network's own number, where None.
        data: for accuracy and calibration: training images calibrate, validation images are held out.
        macs: share of the dense MACs that may stay.
        params: share of the dense parameters that may stay.
        threshold: as for ``select_channels``.
        method: as for ``select_channels``.
        align: as for ``select_channels``.
        dead_first: channels that never fire on the calibration images go before any other.
        dead_blocks: residual blocks whose branch is exactly zero become their shortcuts first.
        gather: linear layers that are to read only the input features on which their weights are not zero.
        calibration: training images that decide what is dead; as many are held out, where there are so many.
        seed: decides random weights, and which images calibrate.
        allow_import: packages that may be imported for ``package.module:function``.
        progress: is told what happens.

    Returns:
        The figures; whether the files were verified and the budget was met is in them.

    Raises:
        HoyerExportError: an input is wrong, or the network cannot be cut, exported or verified; nothing was written.
    """
    if data is None and (method == "dead" or dead_first):
        raise DataError("dead channels are found on images: give a data set (--data)")
    if data is not None:
        data.check_readable()
    progress.headline(f"{name}: build, trace, self-test")
    dense = _dense(name, weights, input_shape, classes, data, seed, allow_import)
    start = as_slim(dense.model)
    if dead_blocks:
        start = remove_dead_blocks(dense.model, dense.example)
    blocks = tuple(edit.module for edit in start.plan.edits)
    channels = proved_channels(name, start.model, dense.example, progress)
    asked_macs = macs
    budgets = {"macs": macs, "params": params, "threshold": threshold}
    asked = {key: value for key, value in budgets.items() if value is not None}
    if blocks:  # shares of the network that came, not of what is left of it
        traced = trace_channels(dense.model, dense.example)
        macs = None if macs is None else min(1.0, macs * dense_macs(traced) / dense_macs(channels))
        params = (
            None if params is None else min(1.0, params * params_of_keep(traced, {}) / params_of_keep(channels, {}))
        )
    progress.headline(" ".join(["cut:", method, *(f"{key} = {value}" for key, value in asked.items())]))
    training = [] if data is None else _images(data.train, calibration, shuffle=True)
    scored = start.model
    if dead_first:
        scored = copy.deepcopy(start.model)
        zero_(scored, channels, select_channels(channels, scored, method="dead", inputs=training).keep)

    def choose(macs: float | None, params: float | None) -> tuple[Selection, Folding]:
        chosen = select_channels(
            channels,
            scored,
            macs=macs,
            params=params,
            threshold=threshold,
            align=align,
            method=method,
            inputs=training if method == "dead" else [dense.example],
        )
        # What is a constant moves into the layers that read it; zeroing it would change what they compute.
        return chosen, fold_constants(start.model, channels, chosen.keep, dense.example)

    share = macs
    for _ in range(TRIES):
        chosen, folding = choose(share, params)
        if params is not None:
            whole, slim_params = params_of_keep(channels, {}), params_of_keep(folding.channels, chosen.keep)
            if slim_params > params * whole:  # layers gained biases, which the selection could not know of
                biases = slim_params - params_of_keep(channels, chosen.keep)
                chosen, folding = choose(share, params - biases / whole)
        zeroed = copy.deepcopy(folding.model)
        zero_(zeroed, folding.channels, chosen.keep)
        whole_plan = SlimModel(zeroed, compose(start.plan, folding.plan))
        slim = cut(whole_plan, folding.channels, chosen.keep, dense.example)
        share = stricter_macs(chosen, asked_macs, dense.model, slim.model, dense.example)
        if share is None:
            break
    steps: list[SlimModel | Folding] = [start, folding, slim]
    if gather:
        slim = gather_inputs(slim, gather, dense.example)
        steps.append(slim)
    moved = _moved(dense, zeroed, training, data, calibration)

    progress.headline("export and verify: dense.onnx, slim.onnx")
    with whole_folder(out) as folder:
        figures = {
            file: _figures(file, model, path, dense, data)
            for file, model, path in (("dense", dense.model, folder.dense_onnx), ("slim", slim.model, folder.slim_onnx))
        }
        _write_slim(folder, slim, chosen, dense)
    uncounted = figures["dense"].uncounted | figures["slim"].uncounted
    shares = {key: getattr(figures["slim"], key) / max(getattr(figures["dense"], key), 1) for key in ("macs", "params")}
    met = all(shares[key] <= value for key, value in asked.items() if key in shares)
    return CutReport(
        network=name,
        input_shape=tuple(dense.example.shape[1:]),
        weights=None if weights is None else weights.name,
        data=None if data is None else data.name,
        method=method,
        dead_first=dead_first,
        dead_blocks=blocks,
        gathered={layer: _features(dense.model, slim.model, layer) for layer in gather},
        align=chosen.align,
        seed=seed,
        asked=asked,
        met=met and not ("macs" in asked and uncounted),
        widths={group.name: (group.width, len(chosen.keep[group.name])) for group in channels.groups},
        max_rel_error=max(step.max_rel_error or 0.0 for step in steps),
        delivered_rel_error=max(step.delivered_rel_error or 0.0 for step in steps),
        moved=moved,
        dense=figures["dense"],
        slim=figures["slim"],
        warning=chosen.warning,
    )


def _features(dense: nn.Module, slim: nn.Module, layer: str) -> tuple[int, int]:
    """Return how many input features a linear layer read, and reads."""
    before, after = (model.get_parameter(f"{layer}.weight").shape[1] for model in (dense, slim))
    return before, after


def _dense(
    name: str,
    weights: Path | None,
    shape: tuple[int, ...] | None,
    classes: int | None,
    data: DataSplits | None,
    seed: int,
    allow_import: Sequence[str],
) -> _Dense:
    usual = default_input_shape(name)
    if data is not None:
        if shape not in (None, data.input_shape):
            raise DataError(
                f"the images of {data.name} are {_by(data.input_shape)}, got --input {_by(shape)}; leave it out"
            )
        shape = data.input_shape
    shape = shape or usual
    # A user's own function may take neither; where the input is the network's own, nothing has to be told.
    told = not is_function_name(name)
    in_channels = shape[0] if told and shape and usual and shape[0] != usual[0] else None
    if data is not None and told:
        classes = classes or data.classes
    torch.manual_seed(seed)
    model = build_network(name, in_channels=in_channels, classes=classes, allow_import=allow_import)
    if shape is None:
        raise NetworkError(f"the input of {name} is not known; give it with --input, e.g. --input 3x224x224")
    if weights is not None:
        load_weights(model, weights)
    if data is None:
        example = torch.randn((2, *shape), generator=torch.Generator().manual_seed(seed))
    else:
        example = two_images(data)
        check_output(name, model, example, data)
    return _Dense(name, model, example, in_channels, classes)


def _images(split: Split, count: int, *, shuffle: bool = False) -> list[Tensor]:
    """Return batches of at least ``count`` images, or of all there are, without augmentation."""
    return [images for images, _ in islice(split.batches(BATCH, shuffle=shuffle), ceil(count / BATCH))]


def _moved(
    dense: _Dense, zeroed: nn.Module, training: list[Tensor], data: DataSplits | None, count: int
) -> tuple[Moved, ...]:
    if data is None:
        return (_difference("noise", dense.model, zeroed, [dense.example]),)
    return (
        _difference("calibration", dense.model, zeroed, training),
        _difference("held-out", dense.model, zeroed, _images(data.validation, count)),
    )


def _difference(images: str, dense: nn.Module, zeroed: nn.Module, batches: Iterable[Tensor]) -> Moved:
    first, second = (copy.deepcopy(model).eval() for model in (dense, zeroed))
    count, change, largest, finite = 0, 0.0, 0.0, True
    with torch.no_grad():
        for batch in batches:
            for before, after in zip(tensors_in(first(batch)), tensors_in(second(batch)), strict=True):
                if not (before.is_floating_point() or before.is_complex()):  # a mask or a label: no difference as it is
                    before, after = before.double(), after.double()
                finite &= bool(before.isfinite().all()) and bool(after.isfinite().all())
                if finite and before.numel():  # NaN is larger than nothing
                    change = max(change, float((after - before).abs().max()))
                    largest = max(largest, float(before.abs().max()))
            count += len(batch)
    return Moved(images, count, change if finite else None, largest if finite else None)


def _figures(file: str, model: nn.Module, path: Path, dense: _Dense, data: DataSplits | None) -> FileFigures:
    facts = {"network": dense.name, "file": file}
    if data is not None:
        facts |= {"data": data.name, "mean": json.dumps(data.mean), "std": json.dumps(data.std)}
    exported = export_onnx(model, dense.example, path, metadata=facts)
    labelled = None if data is None else data.test.batches(BATCH)
    found = verify_onnx(path, model, dense.example, labelled=labelled, sha256=exported.sha256)
    error = max(check.value for check in found.checks if check.name.startswith("outputs"))
    counted = count_macs(path)
    return FileFigures(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=counted.macs,
        uncounted=counted.uncounted,
        onnx_bytes=exported.size_bytes,
        max_error=error if isfinite(error) else None,
        left_open=sum(int(check.value) for check in found.checks if check.name == "inputs left open"),
        failed=tuple(check.name for check in found.checks if not check.passed),
        accuracy=found.torch_accuracy,
    )


def _write_slim(folder: RunFolder, slim: SlimModel, chosen: Selection, dense: _Dense) -> None:
    save_slim(slim, folder.slim_weights, network=dense.name, in_channels=dense.in_channels, classes=dense.classes)
    write_whole(folder.widths, widths_text(chosen))


def _by(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape or ()))
