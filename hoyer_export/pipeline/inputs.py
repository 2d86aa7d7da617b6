"""What a recipe names, looked at before the first file is made: data, network, weights, channels, budget, export."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import dense_macs, macs_of_keep, params_of_keep
from hoyer_export.choices import ALIGNMENTS
from hoyer_export.data import DataSplits, load_data
from hoyer_export.data.load import _DEFAULTS
from hoyer_export.deploy.export import as_float32, export_onnx, inference_copy
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.weight_sizes import TorchMacs, torch_macs
from hoyer_export.errors import DataError, NetworkError, RecipeError
from hoyer_export.modes import kept_modes
from hoyer_export.networks import build_network, is_function_name
from hoyer_export.pipeline.progress import Progress
from hoyer_export.recipe import Recipe, left_open, resolved
from hoyer_export.report.number_format import share
from hoyer_export.select.align import least_keep
from hoyer_export.select.choose import Selection
from hoyer_export.surgery.self_test import self_test
from hoyer_export.weights import load_weights

TRIES = 8
"""Selections before a budget counts as missed: each comes closer by what the one before was off."""


@dataclass(frozen=True)
class Inputs:
    """Everything a run starts from.

    Args:
        recipe: as resolved: with the number of threads, the device, and what follows from the data.
        settled: keys of it that were left open in the recipe as it was given.
        data: the three splits.
        network: the dense network, with the given weights where there are any.
        example: two validation images, float32 [2, C, H, W], normalised.
        channels: what lives or dies together in the network, as far as the self-test does not refute it.
        in_channels: what the network was built with; None where it was not told.
        classes: the same.
        device: where training runs.
    """

    recipe: Recipe
    settled: tuple[str, ...]
    data: DataSplits
    network: nn.Module
    example: Tensor
    channels: ChannelMap
    in_channels: int | None
    classes: int | None
    device: torch.device


def load_inputs(recipe: Recipe, *, allow_import: Sequence[str], progress: Progress, pretrained: bool = True) -> Inputs:
    """Load, build, trace and self-test what the recipe names.

    Args:
        recipe: as given.
        allow_import: packages that may be imported for a network ``package.module:function``.
        progress: is told.
        pretrained: read the weights that the recipe names, if it names any.

    Raises:
        DataError: the data is missing, damaged, or does not fit the network.
        NetworkError: the network cannot be built, run or traced, its weights do not fit, or nothing can be pruned.
    """
    progress.headline(f"{recipe.network.name} on {recipe.data.name}")
    data = load_recipe_data(recipe)
    in_channels, classes = told_to_network(recipe, data)
    network = build_dense(recipe, in_channels, classes, allow_import)
    if pretrained and recipe.dense.weights is not None:
        load_weights(network, Path(recipe.dense.weights))
    example = two_images(data)
    check_output(recipe.network.name, network, example, data)
    channels = proved_channels(recipe.network.name, network, example, progress)
    found = _in_force(recipe, data, in_channels, classes)
    recipe, settled = resolved(recipe, found), tuple(left_open(recipe, found))
    device = torch.device(recipe.device or found["device"])
    return Inputs(recipe, settled, data, network, example, channels, in_channels, classes, device)


def _in_force(recipe: Recipe, data: DataSplits, in_channels: int | None, classes: int | None) -> dict[str, Any]:
    """Return what holds for the keys whose defaults are not in the recipe, but follow from machine, data and network.

    What a network of one's own was not told is absent: its function may take neither.
    """
    found = {
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "network.in_channels": in_channels,
        "network.classes": classes,
        "data.mean": data.mean,
        "data.std": data.std,
        "data.augment": _DEFAULTS[recipe.data.name].augment,
        "data.image_size": data.input_shape[1],
    }
    return {key: value for key, value in found.items() if value is not None}


def check_device(inputs: Inputs) -> None:
    """Say before training that the device is not there.

    Raises:
        RecipeError: the recipe asks for a GPU, and torch sees none.
    """
    if inputs.device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError('device = "cuda", but torch sees no GPU; leave the key out, or set it to "cpu"')


def load_recipe_data(recipe: Recipe) -> DataSplits:
    """Load the data set that the recipe names."""
    table = recipe.data
    return load_data(
        table.name,
        root=None if table.root is None else Path(table.root),
        validation=table.validation,
        seed=recipe.seed,
        mean=table.mean,
        std=table.std,
        augment=table.augment,
        image_size=table.image_size,
        workers=table.workers,
    )


def two_images(data: DataSplits) -> Tensor:
    """Return two validation images, float32 [2, C, H, W]: with one alone, a batch could not be told from a constant.

    Raises:
        DataError: there is only one.
    """
    images = next(iter(data.validation.batches(2)))[0]
    if len(images) < 2:
        raise DataError(f"the validation split of {data.name} holds a single image; expected at least 2: give it more")
    return images


def build_dense(recipe: Recipe, in_channels: int | None, classes: int | None, allow_import: Sequence[str]) -> nn.Module:
    """Build the untrained dense network; the recipe's seed decides its weights."""
    torch.manual_seed(recipe.seed)
    return build_network(recipe.network.name, in_channels=in_channels, classes=classes, allow_import=allow_import)


def check_export(inputs: Inputs) -> None:
    """Export the untrained network once, to nowhere: what cannot be shipped is said before it is trained.

    Raises:
        NetworkError: torch.onnx cannot export the network, or nobody could say whether its file meets the budget.
    """
    name = inputs.recipe.network.name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        export_onnx(inputs.network, inputs.example, path, opset=inputs.recipe.export.opset)
        counted, expected = count_macs(path), dense_macs(inputs.channels)
    if counted.uncounted:
        if inputs.recipe.cut.macs is not None:
            raise NetworkError(
                f"cut.macs cannot be judged: {uncounted_words(counted.uncounted)} of {name} may multiply, and nobody "
                "counts how much; give cut.params or cut.threshold instead"
            )
        return
    run = macs_in_torch(inputs.network, inputs.example)
    # The exporter writes once what the network computes twice.
    if counted.macs != expected and (counted.macs != run.distinct or expected != run.macs):
        raise NetworkError(
            f"the exported graph of {name} has {counted.macs:,} MACs, but {expected:,} were traced: "
            "an operation of it is counted by one and not by the other, so a budget could not be kept"
        )


def macs_in_torch(network: nn.Module, example: Tensor) -> TorchMacs:
    """Count what one image costs when torch runs what is shipped of ``network``."""
    return torch_macs(inference_copy(network), as_float32(example))


def stricter_macs(
    chosen: Selection, asked: float | None, dense: nn.Module, slim: nn.Module, example: Tensor
) -> float | None:
    """Return the share to select by next, where the slim file would have more MACs than asked for; None where not.

    A selection meets a share of what torch runs. The file has once what the network computes twice, so that its share
    may be another.
    """
    if asked is None:
        return None
    whole = macs_in_torch(dense, example)
    if whole.distinct == whole.macs:  # nothing is computed twice
        return None
    reached = macs_in_torch(slim, example).distinct / whole.distinct
    return None if reached <= asked else chosen.macs / chosen.dense_macs * asked / reached


def uncounted_words(uncounted: Mapping[str, int]) -> str:
    """Return what is not counted, e.g. ``2 × DeformConv, 1 × Loop``."""
    return ", ".join(f"{calls} × {name}" for name, calls in uncounted.items())


def check_budget(inputs: Inputs, progress: Progress) -> None:
    """Say before training what the narrowest aligned network costs.

    Raises:
        RecipeError: that is more than the recipe asks for.
    """
    table = inputs.recipe.cut
    for key, asked, cost in (("macs", table.macs, macs_of_keep), ("params", table.params, params_of_keep)):
        if asked is None:
            continue
        keep = least_keep(inputs.channels, table.align)
        least = cost(inputs.channels, keep) / cost(inputs.channels, {})
        if least > asked:
            lower = [align for align in ALIGNMENTS if align < table.align]
            way_out = " or lower cut.align" if lower else ""
            raise RecipeError(
                f"cut.{key} = {asked:g} cannot be reached: {inputs.recipe.network.name} at its narrowest with "
                f"align = {table.align} keeps {least:.4f} of its {key}; ask for more{way_out}"
            )
        progress.note(f"{key} = {asked:g} can be reached: the narrowest network keeps {share(least)}")


def told_to_network(recipe: Recipe, data: DataSplits) -> tuple[int | None, int | None]:
    """Return the channels and classes to build with: the recipe's, else the data's for networks known by name."""
    told = recipe.network
    if told.in_channels is not None and told.in_channels != data.input_shape[0]:
        raise DataError(
            f"network.in_channels is {told.in_channels}, but the images of {data.name} have {data.input_shape[0]}; "
            "leave the key out"
        )
    if told.classes is not None and told.classes < data.classes:
        raise DataError(
            f"network.classes is {told.classes}, but {data.name} has {data.classes} classes; leave the key out"
        )
    # A user's own function may take neither.
    if is_function_name(told.name):
        return told.in_channels, told.classes
    return data.input_shape[0], told.classes or data.classes


def proved_channels(name: str, network: nn.Module, example: Tensor, progress: Progress) -> ChannelMap:
    """Trace the network called ``name``, and return what the self-test does not refute.

    Raises:
        NetworkError: the network cannot be traced, or nothing in it can be pruned.
    """
    tested = self_test(network, example)
    for verdict in tested.verdicts:
        if verdict.verdict == "refuted":
            progress.note(f"self-test: {verdict.group} is left whole ({verdict.channels} channels): {verdict.reason}")
        elif verdict.verdict == "unseen":
            progress.note(f"self-test: {verdict.group} is not proved ({verdict.channels} channels): {verdict.reason}")
    if not tested.channels.groups:
        reasons = sorted({entry.reason for entry in tested.channels.unprunable})
        raise NetworkError(
            f"nothing in {name} can be pruned exactly "
            f"({'; '.join(reasons[:3]) or 'no channels found'}); see  hoyer-export inspect"
        )
    return tested.channels


def check_output(name: str, network: nn.Module, example: Tensor, data: DataSplits) -> None:
    """Run the network called ``name`` on two images of its data.

    Raises:
        NetworkError: it cannot take them, or does not return logits for the data's classes.
    """
    shape = "×".join(map(str, example.shape[1:]))
    try:
        with kept_modes(network), torch.no_grad():
            logits = network.eval()(example)
    except Exception as error:  # foreign code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise NetworkError(f"{name} cannot take the {shape} images of {data.name} ({reason[:200]})") from error
    if not isinstance(logits, Tensor) or logits.shape[:1] != (2,) or logits.ndim != 2 or logits.shape[1] < data.classes:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise NetworkError(
            f"{name} should return logits [N, {data.classes}] for images of {data.name}, got {got} for N = 2"
        )
