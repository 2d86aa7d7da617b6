"""The first stages: what a recipe names is loaded, traced and tested, and what cannot be reached is said at once."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.channels.channel_map import ChannelMap, nothing_prunable
from hoyer_export.channels.cost import dense_macs
from hoyer_export.choices import ALIGNMENTS, LATENCY
from hoyer_export.data import DataSplits
from hoyer_export.deploy.export import as_float32, inference_copy
from hoyer_export.deploy.half import write_half
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.pictures import check_pictures
from hoyer_export.deploy.runtime import as_runtime
from hoyer_export.deploy.weight_sizes import TorchMacs, torch_macs
from hoyer_export.errors import DataError, HoyerExportError, NetworkError, RecipeError, one_line
from hoyer_export.metric import ACCURACY, Tally, outputs_of
from hoyer_export.modes import kept_modes
from hoyer_export.random_state import kept_random_state
from hoyer_export.recipe.reading import left_open, resolved
from hoyer_export.report.number_format import share
from hoyer_export.report.stage_records import CheckRecord, Images, InputsRecord
from hoyer_export.run.channel_file import write_channels
from hoyer_export.run.exporting import export_as_asked, sizes_of_run
from hoyer_export.run.job import Job
from hoyer_export.run.stage import Stage
from hoyer_export.run.timing import TIMED_WITH, job_latency
from hoyer_export.run.tracking import check_trackers
from hoyer_export.select.align import least_keep
from hoyer_export.select.budget import COSTS, Budget
from hoyer_export.select.elements import element_weights
from hoyer_export.sparsify.epoch import check_loss
from hoyer_export.surgery.edits import GatherEdit
from hoyer_export.surgery.extras.gather import gather_inputs
from hoyer_export.surgery.self_test import self_test

SETTLED_BY_DATA = ("mean", "std", "resize", "short_side", "interpolation")
"""Keys of [data] that stand in the resolved recipe as they are in force; names of classes are the folder's."""


def look_at_inputs(job: Job) -> InputsRecord:
    """Load, build, trace and self-test what the recipe names; the job's recipe is resolved from then on.

    Raises:
        DataError: the data is missing, damaged, or does not fit the network.
        NetworkError: the network cannot be built, run or traced, its weights do not fit, or nothing can be pruned.
        RecipeError: the device is not there.
        HoyerExportError: the runtime is not.
    """
    recipe = job.recipe
    if job.device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError('device = "cuda", but torch sees no GPU; leave the key out, or set it to "cpu"')
    as_runtime(recipe.bench.runtime)
    data = job.data if job.has_data else None
    network, weights = job.given()
    if weights is not None:
        job.progress.note(weights.describe())
    if data is not None:
        for note in data.notes:
            job.progress.note(note)
        data.check_readable()
    if data is not None and recipe.trains:
        check_labels(data)
    if recipe.cut.max_drop is not None and not job.has_labels:
        raise DataError("cut.max_drop is measured on labelled images, got none; give max_change, which needs no labels")
    if recipe.cut.max_drop is not None and job.metric is not ACCURACY:
        raise DataError(f"cut.max_drop is in points of accuracy, not of {job.metric.name}; give max_change")
    if recipe.gate.max_accuracy_drop is not None and not (job.has_labels and job.metric is ACCURACY):
        raise DataError("gate.max_accuracy_drop is in points of accuracy on labelled test images; leave the key out")
    if job.loss is not None and recipe.distill.weight:
        raise RecipeError("distill.weight: the dense network teaches by its logits; leave it out, or `loss`")
    if data is not None and data.has_targets:
        check_output(job, network, data)
        if job.own is not None and recipe.trains:
            try_on(job, network, data)
    channels = proved_channels(job, network)
    found = {
        "threads": torch.get_num_threads(),
        "device": job.device.type,
        "network.in_channels": job.in_channels,
        "network.classes": job.classes,
    }
    if data is None:
        found["network.input"] = job.shape
    elif not data.own:
        found |= {f"data.{key}": getattr(data.preprocessing, key) for key in SETTLED_BY_DATA}
        found |= {"data.image_size": data.input_shape[1], "data.augment": data.augmentation is not None}
        if data.augmentation is not None:
            found |= {"data.flip": data.augmentation.flip, "data.crop_scale": data.augmentation.crop_scale}
    # What a network of one's own is not told stays open: its function may not take it.
    known = {key: value for key, value in found.items() if value is not None}
    settled = left_open(recipe, known)
    job.recipe = resolved(recipe, known)
    write_channels(job.folder.channels, channels)
    if data is None:
        return InputsRecord(shape=job.shape, settled=tuple(settled))
    return InputsRecord(
        data=data.name,
        classes=data.classes,
        images=Images(train=len(data.train), validation=len(data.validation), test=len(data.test)),
        notes=data.notes,
        left_out=data.left_out,
        **data.preprocessing.model_dump(),
        metric=None if job.metric is ACCURACY else job.metric.name,
        higher_is_better=bool(job.metric.higher_is_better),
        # Nobody can tell whether given weights saw these images; training images are what weights are trained on.
        validation=None if recipe.dense.file is None else "may have been seen in training",
        settled=tuple(settled),
    )


def check_labels(data: DataSplits) -> None:
    """Refuse to train on images without labels; DataError."""
    if not data.has_targets:
        raise DataError(f"training needs labels, and {data.name} has none; name a data set with classes")


def check(job: Job) -> CheckRecord:
    """Find out before training what could not be shipped or reached after it.

    Raises:
        NetworkError: torch.onnx cannot export the network, or nobody could say whether its file meets the budget.
        RecipeError: the narrowest network costs more than the recipe asks for, channels are to be gathered, or what a
            tracker needs is not installed.
        CutRefused: a layer is to be gathered that cannot be.
    """
    started = time.perf_counter()
    check_gather(job)
    check_trackers(job.recipe.track)
    if job.recipe.export.preprocess:
        check_pictures(job.data.preprocessing, job.data.name)
    if job.recipe.trains or job.recipe.cut.refit:  # what is exported at once need not be tried before
        check_export(job)
    return CheckRecord(least=check_budget(job), seconds=time.perf_counter() - started)


def check_export(job: Job) -> None:
    """Export the untrained network once, to nowhere, and compare its MACs with the traced ones."""
    name, network = job.recipe.network.name, job.network()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        export_as_asked(network, job, path)
        counted, expected = count_macs(path, shapes=sizes_of_run(path, job)), dense_macs(job.channels)
        if job.recipe.export.fp16:
            write_half(path, path.with_name("half.onnx"))
    if counted.uncounted:
        if job.recipe.cut.macs is not None:
            raise NetworkError(
                f"cut.macs cannot be judged: {uncounted_words(counted.uncounted)} of {name} may multiply, and nobody "
                "counts how much; give cut.params or cut.threshold instead"
            )
        return
    run = macs_in_torch(network, job.example)
    # The exporter writes once what the network computes twice.
    if counted.macs != expected and (counted.macs != run.distinct or expected != run.macs):
        raise NetworkError(
            f"the exported graph of {name} has {counted.macs:,} MACs, but {expected:,} were traced: "
            "an operation of it is counted by one and not by the other, so a budget could not be kept"
        )


def macs_in_torch(network: nn.Module, example: Tensor) -> TorchMacs:
    """Count what one image costs when torch runs what is shipped of ``network``."""
    return torch_macs(inference_copy(network), as_float32(Call.of(network, example)))


def uncounted_words(uncounted: Mapping[str, int]) -> str:
    """Return what is not counted, e.g. ``2 × DeformConv, 1 × Loop``."""
    return ", ".join(f"{calls} × {name}" for name, calls in uncounted.items())


def check_gather(job: Job) -> None:
    """Refuse to gather what cannot be gathered before anything is trained.

    Raises:
        CutRefused: a layer's input features cannot be left out.
        RecipeError: they are channels.
    """
    for layer in job.recipe.cut.gather:
        weight = GatherEdit(module=layer).weight
        for group in job.channels.groups:
            if not group.gather and any((it.parameter, it.dim) == (weight, 1) for it in group.members):
                raise RecipeError(
                    f"cut.gather: {layer} reads the channels of {group.name}, which are taken out where they are made;"
                    " name layers that read the network's input, or leave it out"
                )
        network = job.network()  # try it: one feature less
        for name, parameter in network.named_parameters():
            if name == weight and parameter.ndim == 2:
                parameter.data[:, 0] = 0
        gather_inputs(network, layer, job.example)
        if not any(group.gather == layer for group in job.channels.groups):
            raise RecipeError(f"cut.gather: what {layer} reads cannot be followed in the network's code; leave it out")


def check_budget(job: Job) -> float | None:
    """Say what the narrowest aligned network costs, and return its share of dense; None where no share is asked."""
    table, channels = job.recipe.cut, job.channels
    if table.weights is not None:
        whole = sum(weight.numel() for weight in element_weights(job.network()).values())
        if table.weights * whole < 1:
            raise RecipeError(f"cut.weights = {table.weights:g} leaves none of {whole:,} weights; ask for more")
        return 1 / whole
    for key, asked in table.asked().items():
        if (
            not isinstance(asked, float) or key not in (*COSTS, *LATENCY) or table.dead_blocks
        ):  # blocks that go make room
            continue
        cost = job_latency(job) if key in LATENCY else COSTS[key]
        dense, narrowest = (cost.of_keep(channels, it) for it in ({}, least_keep(channels, table.alignment)))
        least = narrowest / (dense or 1)
        budget = Budget(cost, at_most=asked) if key == "latency_ms" else Budget(cost, asked)
        if not budget.is_met_by(narrowest, dense):
            lower = [align for align in ALIGNMENTS if align < table.alignment]
            way_out = " or lower cut.align" if lower else ""
            keeps = f"takes {cost.describe(narrowest)}" if key == "latency_ms" else f"keeps {least:.4f} of its {key}"
            raise RecipeError(
                f"cut.{key} = {asked:g} cannot be reached: {job.recipe.network.name} at its narrowest with "
                f"align = {table.alignment} {keeps}; ask for more{way_out}"
            )
        job.progress.note(f"{key} = {asked:g} can be reached: the narrowest network keeps {share(least)}")
        return least
    return None


def proved_channels(job: Job, network: nn.Module) -> ChannelMap:
    """Trace a network, and return what the self-test does not refute.

    Raises:
        NetworkError: the network cannot be traced, or nothing in it can be pruned.
    """
    tested = self_test(network, job.example, rules=job.rules)
    for verdict in tested.verdicts:
        if verdict.verdict == "refuted":
            job.progress.note(
                f"self-test: {verdict.group} is left whole ({verdict.channels} channels): {verdict.reason}"
            )
        elif verdict.verdict == "unseen":
            job.progress.note(
                f"self-test: {verdict.group} is not proved ({verdict.channels} channels): {verdict.reason}"
            )
    if not tested.channels.groups and not job.recipe.cut.of_elements:
        raise NetworkError(
            f"{job.recipe.network.name}: {nothing_prunable(tested.channels)}; hoyer-export inspect shows all"
        )
    return tested.channels


def check_output(job: Job, network: nn.Module, data: DataSplits) -> None:
    """Run the network on two images of its data.

    Raises:
        NetworkError: it cannot take them, or does not return logits for the data's classes where it has to.
        RecipeError: there are more or fewer weights than classes.
    """
    name, shape, classes = job.recipe.network.name, "×".join(map(str, data.input_shape)), data.classes
    try:
        with kept_modes(network), torch.no_grad():
            logits = outputs_of(network.eval(), job.example)
    except Exception as error:  # foreign code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise NetworkError(f"{name} cannot take the {shape} images of {data.name} ({reason[:200]})") from error
    if not ((job.recipe.trains and job.loss is None) or (job.has_labels and job.metric is ACCURACY)):
        return
    if (
        not isinstance(logits, Tensor)
        or logits.shape[:1] != (2,)
        or logits.ndim != 2
        or logits.shape[1] < (classes or 2)
    ):
        got = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        way_out = "; pass `loss` and `metric` for what it returns" if job.own is not None else ""
        raise NetworkError(
            f"{name} should return logits [N, {classes or 'classes'}] for images of {data.name}, got {got} for N ="
            f" 2{way_out}"
        )
    weights = job.recipe.data.class_weights if job.recipe.data else None
    if weights is not None and len(weights) != logits.shape[1]:
        raise RecipeError(
            f"data.class_weights: expected one number for each of the {logits.shape[1]} outputs of {name}, got"
            f" {len(weights)}"
        )


def try_on(job: Job, network: nn.Module, data: DataSplits) -> None:
    """Call somebody's own loss and metric once, on a validation batch, before anything is trained.

    Raises:
        DataError: the metric is no finite number.
        NetworkError: one of them fails on what the network returns.
        TrainingError: the loss is not one number with a gradient.
    """
    called = "loss"
    try:
        with kept_modes(network), kept_random_state():  # a loader may draw from it
            inputs, targets = next(iter(data.validation.batches(2)))
            outputs = outputs_of(network.eval(), inputs)
        if job.loss is not None:
            check_loss(job.loss(outputs, targets))
        called = f"metric {job.metric.name}"
        tally = Tally(job.metric)
        tally.add(outputs, targets)
        tally.value()
    except HoyerExportError:
        raise
    except Exception as error:  # foreign code may raise anything
        reason = one_line(error, typed=True)[:200]
        raise NetworkError(f"{called}: fails on the first validation batch ({reason})") from error


INPUTS = Stage(
    name="inputs",
    record=InputsRecord,
    run=look_at_inputs,
    reads=("seed", "threads", "device", "network", "data", "dense.weights", "dense.weights_key", "dense.new_head"),
)
CHECK = Stage(
    name="check",
    record=CheckRecord,
    run=check,
    reads=("cut", "export"),
    also_reads=lambda recipe: TIMED_WITH if recipe.cut.of_time else (),
    needs=("inputs",),
)
