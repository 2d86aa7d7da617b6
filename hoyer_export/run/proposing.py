"""A recipe for a network and a data set: both are looked at, and what was found decides what the recipe says.

Weights that are given go into one schedule with distillation; without any, the dense network is trained before. What
the file says about each key is the text under it in ``recipe/tables.py``.
"""

import shlex
import statistics
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from math import ceil
from pathlib import Path

from torch import nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import dense_macs, macs_of_keep
from hoyer_export.choices import ALIGNMENTS, Alignment
from hoyer_export.data import DataSplits
from hoyer_export.errors import FileError, NetworkError, cannot_write
from hoyer_export.metric import evaluate
from hoyer_export.networks import default_input_shape
from hoyer_export.recipe.keys import Key, as_toml, keys_of, meaning_of, table_class, table_names
from hoyer_export.recipe.reading import make_recipe
from hoyer_export.recipe.tables import PATHS, SPARSE_KEYS, Recipe, sparse_keys
from hoyer_export.report.number_format import count as prefixed
from hoyer_export.report.number_format import exact, percent, share
from hoyer_export.run.inputs import check, check_labels, check_output, proved_channels
from hoyer_export.run.job import Job
from hoyer_export.run.progress import Silent
from hoyer_export.run_folder import RunFolder, write_whole
from hoyer_export.select.align import least_keep

SIDE = 224
"""Of the images, where nobody says what a network is meant for."""
GRADUAL = 0.2
"""Below this share of the MACs channels fade while the network trains; from it on a cut at once, by function, has been
as good, and no epoch goes into it (docs/what-was-tried.md)."""
CALIBRATION = 2048
"""Images that the cut at once looks at."""
ROOM = 0.75
"""The narrowest network costs at most so much of the budget, else there is nothing to choose."""
STEPS = 2000
"""Of the one schedule, within 10 to 40 epochs."""
LOOKED_AT = 256
"""Images whose size, or whose classification by given weights, is looked at."""


@dataclass(frozen=True)
class Proposal:
    """A recipe that was written.

    Args:
        recipe: its file.
        found: a line each on data, network, budget and training.
        next: the command that runs it.
    """

    recipe: str
    found: tuple[str, ...]
    next: str


def check_new_file(path: Path, *, overwrite: bool) -> None:
    """Refuse a name that is taken.

    Raises:
        FileError: there is a folder at ``path``, or a file and ``overwrite`` is off.
    """
    if path.is_dir():
        raise FileError(f"`out` {path} is a folder; give the name of a file, e.g. {path / 'recipe.toml'}")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise FileError(f"`out` {path} is there already; add `overwrite=True` to replace it, or give another name")


def propose_recipe(asked: Recipe, path: Path, *, overwrite: bool = False, allow_import: Sequence[str] = ()) -> Proposal:
    """Look at a network and its data, and write a recipe for them.

    Args:
        asked: network, data, weights to start from if there are any, and the share of the MACs that may stay.
        path: of the file that is written, whole or not at all.
        overwrite: a file that is there already is replaced.
        allow_import: packages that may be imported for ``package.module:function``.

    Raises:
        DataError: the data is missing, damaged, or has no labels.
        NetworkError: the network cannot be built or traced, does not take the images, or its weights do not fit.
        RecipeError: the budget cannot be reached.
        FileError: ``path`` is taken, or cannot be written.
    """
    check_new_file(path, overwrite=overwrite)
    asked = _with_head(asked, allow_import)
    _looking(asked, allow_import).data.check_readable()
    job = _that_fits(asked, allow_import)
    network, weights = job.given()
    job.channels = proved_channels(job, network)
    job.recipe = _filled(job, network)
    least = check(job).least
    found = (
        _data_words(job),
        f"network: {asked.network.name}, {prefixed(sum(it.numel() for it in network.parameters()))} parameters,"
        f" {prefixed(dense_macs(job.channels))} MACs; takes the images, and"
        f" {len(job.channels.groups)} groups of its channels can be cut",
        f"budget: macs = {asked.cut.macs:g} can be reached; with align = {job.recipe.cut.alignment} the narrowest"
        f" network keeps {share(least)}",
        *([weights.describe()] if weights else []),
        _training_words(job),
        *job.data.notes,
    )
    run = shlex.join(["hoyer-export", "run", str(path), "--out", str(_free_folder(path))])
    for package in allow_import:
        run += f" --allow-import {shlex.quote(package)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    write_whole(path, _text(job.recipe, path, [*found, f"next: {run}"]))
    return Proposal(str(path), found, run)


def _that_fits(asked: Recipe, allow_import: Sequence[str]) -> Job:
    """Return a job whose images the network takes: as small as they are on disk, or as its weights know them best."""
    tables = asked.model_dump(exclude_unset=True)
    fitting: list[Job] = []
    sides = _sides(asked, allow_import)
    for side in sides:
        sized = {"image_size": side} if asked.data and asked.data.name == "imagefolder" else {}
        job = _looking(make_recipe(tables | {"data": tables["data"] | sized}), allow_import)
        check_labels(job.data)
        try:
            check_output(job, job.given()[0], job.data)
        except NetworkError:
            if side == sides[-1] and not fitting:
                raise
            continue
        fitting.append(job)
    return max(fitting, key=_right) if _is_trained(asked) and len(fitting) > 1 else fitting[0]


def _with_head(asked: Recipe, allow_import: Sequence[str]) -> Recipe:
    """Return the same, with a new head where the given weights fit but for theirs."""
    try:
        _looking(asked, allow_import).given()
    except NetworkError as error:
        tables = asked.model_dump(exclude_unset=True)
        if asked.dense.file is None:
            raise
        asked = make_recipe(tables | {"dense": tables["dense"] | {"epochs": 1, "new_head": True}})
        try:
            _looking(asked, allow_import).given()
        except NetworkError:
            raise error from None
    return asked


def _is_trained(recipe: Recipe) -> bool:
    """Whether the given weights are those of the dense network, head and all."""
    return recipe.dense.file is not None and not recipe.dense.epochs


def _looking(recipe: Recipe, allow_import: Sequence[str]) -> Job:
    """Return a job that looks at what a recipe names, and writes nothing."""
    return Job(recipe, RunFolder(Path()), Silent(), allow_import)


def _right(job: Job) -> float:
    """Return how many % of some validation images the given weights classify as they should."""
    return evaluate(job.given()[0], islice(job.data.validation.batches(64), LOOKED_AT // 64))


def _sides(asked: Recipe, allow_import: Sequence[str]) -> list[int]:
    """Return the sides that images may be brought to, the smallest first.

    Small images stay small, but half of what the network is meant for is the least: behind all its strides nothing
    would be left of them.
    """
    meant = default_input_shape(asked.network.name)
    usual = meant[1] if meant else SIDE
    typical = _side_on_disk(_looking(asked, allow_import).data) or usual
    return sorted({min(max(typical, usual // 2 if meant else 1), usual), usual})


def _side_on_disk(data: DataSplits) -> int | None:
    """Return the median of the images' short sides, in pixels; None where they are no files of their own."""
    if data.name != "imagefolder":
        return None
    from hoyer_export.data.image_file import size_of
    from hoyer_export.data.image_folder import FolderSplit  # torchvision takes a second to import

    assert isinstance(data.train, FolderSplit)
    samples = data.train.samples
    return int(statistics.median(min(size_of(path)) for path, _ in samples[:: ceil(len(samples) / LOOKED_AT)]))


def _filled(job: Job, network: nn.Module) -> Recipe:
    """Return the job's recipe with all that is chosen here."""
    tables = {"seed": job.recipe.seed} | job.recipe.model_dump(exclude_unset=True)
    images, side = len(job.data.train), job.shape[-1]
    largest = 128 if side < 100 else 32  # activations of large images take gigabytes
    batch = max(16, min(largest, 1 << max(1, images // 16).bit_length() - 1))
    epochs = max(10, min(40, STEPS // ceil(images / batch)))
    how = _rate(network, batch) | {"batch_size": batch, "warmup": 1}
    if job.recipe.dense.file is None:
        tables["dense"] = {"epochs": max(30, epochs)} | how
    elif job.recipe.dense.epochs:
        tables["dense"] |= {"epochs": epochs} | how
    macs = job.recipe.cut.macs or 1
    tables["cut"] |= {"align": _alignment(job.channels, macs)}
    if macs < GRADUAL:
        tables["train"] = {"epochs": epochs, "cut_at": 0.1} | how
        tables["sparse"] = {"norms": "function"}
    else:
        tables["train"] = {"epochs": epochs, "cut_at": 0} | how
        tables["cut"] |= {"method": "function", "calibration": CALIBRATION}
    tables["distill"] = {"weight": 0.7}
    return make_recipe(tables)


def _rate(network: nn.Module, batch: int) -> dict[str, str | float]:
    """Return optimizer and learning rate: what has layer norms alone trains with AdamW, what has no norms slowly."""
    batch_norms = nn.modules.batchnorm._BatchNorm, nn.GroupNorm
    if any(isinstance(module, batch_norms) for module in network.modules()):
        return {"lr": 0.05 * min(1, batch / 64)}
    if any(isinstance(module, nn.LayerNorm) for module in network.modules()):
        return {"lr": 5e-4, "optimizer": "adamw", "weight_decay": 0.05}
    return {"lr": 0.01 * min(1, batch / 64)}


def _alignment(channels: ChannelMap, macs: float) -> Alignment:
    """Return the largest usual alignment that leaves the budget something to choose."""
    dense = max(dense_macs(channels), 1)
    for align in reversed(ALIGNMENTS):
        if align <= 16 and macs_of_keep(channels, least_keep(channels, align)) <= ROOM * macs * dense:
            return align
    return 1


def _data_words(job: Job) -> str:
    data: DataSplits = job.data
    where = f" in {job.recipe.data.root}" if job.recipe.data and job.recipe.data.root else ""
    numbers = (
        f"{exact(len(data.train))} training, {exact(len(data.validation))} validation, {exact(len(data.test))} test"
    )
    shape = "×".join(map(str, data.input_shape))
    side = _side_on_disk(data)
    size = f"with a short side of {side} pixels, brought to {shape}" if side else f"of {shape}"
    return f"data: {data.name}{where}, {data.classes} classes, {numbers} images {size}"


def _training_words(job: Job) -> str:
    """Say what is trained; of given weights also how right they are, for with another mean and std they are not."""
    train, dense = job.recipe.train, job.recipe.dense
    assert train is not None
    schedule = f"{train.epochs} epochs in one schedule to the slim network"
    if not _is_trained(job.recipe):
        begin = "from scratch" if dense.file is None else "from these weights"
        return f"training: {begin}, {dense.epochs} epochs of the dense network, then {schedule}"
    right = _right(job)
    seen = min(LOOKED_AT, len(job.data.validation))
    advice = "" if right >= 50 else "; if they should be better, set mean and std in [data] to those they know"
    return f"training: {percent(right)} of {seen} validation images are right with these weights{advice}; {schedule}"


def _free_folder(path: Path) -> Path:
    name = "first" if path.stem == "recipe" else path.stem
    folders = (Path("runs", name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(folder for folder in folders if not folder.exists())


def _text(recipe: Recipe, path: Path, found: Sequence[str]) -> str:
    """Return the file: what was found, then of each table what is set, each key under its meaning."""
    tables = [name for name in table_names() if _is_set(recipe, name)]
    missing = ", ".join(f"[{name}]" for name in table_names() if name not in (*tables, "finetune"))
    lines = [
        f"# {recipe.network.name}, a recipe by hoyer-export init, which found:",
        *(f"#   {line}" for line in found),
        *_comment(f"Tables that are not here have their defaults: {missing}. docs/recipe.md explains every key."),
        *_key_lines(recipe, path, keys_of(Recipe), recipe.model_fields_set),
    ]
    for name in tables:
        if (kind := table_class(name)) is not None:
            head = f"\n[{name}]", *_comment(meaning_of(kind).split("\n\n")[0])
            lines += [*head, *_key_lines(recipe, path, keys_of(kind), _is_set(recipe, name), name)]
    return "\n".join(lines) + "\n"


def _is_set(recipe: Recipe, table: str) -> frozenset[str]:
    """Return the keys of a table that its file has to say."""
    given = getattr(recipe, table)
    elsewhere = recipe.train.phases().get(table, {}) if recipe.train else {}
    defaults = sparse_keys(recipe.sparse.model_dump()) if table == "sparse" else {}
    return frozenset() if given is None else frozenset(given.model_fields_set - elsewhere.keys() - defaults.keys())


def _key_lines(
    recipe: Recipe, path: Path, keys: Sequence[Key], chosen: Collection[str], table: str = ""
) -> Iterator[str]:
    """Yield the lines of a table, or of what is in none: what is chosen with its meaning, the names of the others."""
    for key in keys:
        if key.name in chosen:
            value = getattr(getattr(recipe, table) if table else recipe, key.name)
            if (table, key.name) in PATHS and Path(value).is_relative_to(path.parent.absolute()):
                value = Path(value).relative_to(path.parent.absolute()).as_posix()  # both may move together
            yield from ("", *_comment(key.meaning), as_toml(key.name, value))
    elsewhere = recipe.train.phases().get(table, {}) if recipe.train else {}
    others = SPARSE_KEYS - sparse_keys(recipe.sparse.model_dump()).keys()
    rest = [key for key in keys if key.name not in (*chosen, *elsewhere, *others)]
    if rest and not (table == "dense" and not recipe.dense.epochs):  # nothing says how nothing is trained
        names = (key.name if key.default is None else f"{key.name} = {key.default}" for key in rest)
        yield from ("", *_comment("Not set: " + ", ".join(names)))


def _comment(text: str) -> list[str]:
    words = " ".join(text.replace("``", "").split())
    lines = textwrap.wrap(words, width=98, break_long_words=False, break_on_hyphens=False)
    return [f"# {line}" for line in lines]
