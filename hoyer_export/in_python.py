"""The chain as calls: with a network, batches, a loss and a metric that somebody holds in their hands.

``run`` and ``ship`` are what ``hoyer-export run`` and ``ship`` are on the command line, the same stages, proofs, files
and report: where those have names, these have objects.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hoyer_export.channels.rules import Rules
from hoyer_export.data.own_batches import OWN_DATA, own_splits
from hoyer_export.errors import DataError, NetworkError, RecipeError
from hoyer_export.live import progress
from hoyer_export.metric import Metric, as_metric
from hoyer_export.recipe.reading import make_recipe, read_tables
from hoyer_export.recipe.tables import GIVEN
from hoyer_export.report.report import Report
from hoyer_export.run.chain import run_recipe, ship_network
from hoyer_export.run.own import Own
from hoyer_export.sparsify.epoch import Loss
from hoyer_export.surgery.step import SlimModel

Batches = Iterable[Any]
"""(inputs, targets) that can be gone through again and again: a ``DataLoader``, a list."""
Tables = str | Path | Mapping[str, Any]
"""A recipe: the path of a TOML file, or its tables."""


def ship(
    dense: nn.Module,
    slim: SlimModel,
    inputs: Any,
    out: str | Path,
    *,
    labelled: Batches | None = None,
    metric: Metric | Callable[[Any, Any], Any] | object | None = None,
    recipe: Tables | None = None,
    rules: Rules | None = None,
) -> Report:
    """Export, verify, measure and report a slim network that was cut and trained in a loop of one's own.

    The cut is proved with the weights that the slim network has now: it agrees in float64 with the dense network that
    has these weights, and zeros for what was taken out.

    Args:
        dense: the network before the cut, trained: what the slim one is compared with.
        slim: what ``cut`` returned, its ``model`` trained further, or what ``load_slim`` did.
        inputs: a batch of real inputs, as the network is called with.
        out: a folder, absent or empty, for the files of a run, all of them or none.
        labelled: batches (inputs, targets) that no choice was made on, to judge both networks by.
        metric: what they are judged by: a function of (outputs, targets), an object that accumulates, or a ``Metric``;
            accuracy (logits, classes) where None.
        recipe: what else is wanted, e.g. ``{"network": {"name": "my-unet"}, "bench": {"threads": 4}}``: the tables
            [network], [data] (their names), [export], [verify] and [bench].
        rules: as for ``trace_channels``.

    Returns:
        What report.json holds; whether verification passed is in it (``passed``).

    Raises:
        HoyerExportError: the two are not of one cut, or something cannot be traced, exported or measured; nothing was
            written.
    """
    if not isinstance(slim, SlimModel):
        raise NetworkError(
            "slim: expected what hx.cut returned (its .model is what you train), or hx.load_slim(FILE, into=dense),"
            f" got a {type(slim).__name__}"
        )
    nothing: dict[str, Any] = {"epochs": 0}
    tables = _tables(dense, {} if recipe is None else recipe)
    if taken := tables.keys() & {"dense", "train", "sparse", "cut", "finetune", "distill"}:
        raise RecipeError(f"[{min(taken)}]: what is shipped was cut and trained already; leave the table out")
    tables |= {"data": {"name": OWN_DATA} | tables.get("data", {}), "sparse": nothing, "cut": {"method": GIVEN}}
    tables |= dict.fromkeys(("dense", "finetune"), nothing | {"weights": GIVEN})
    made = make_recipe(tables)
    data = own_splits([], [(inputs, None)], [] if labelled is None else labelled, name=tables["data"]["name"])
    own = Own(network=dense, slim=slim, data=data, metric=as_metric(metric), rules=rules)
    with progress() as shown:
        return ship_network(made, Path(out), own, progress=shown)


def run(
    network: nn.Module,
    *,
    recipe: Tables,
    out: str | Path,
    train: Batches | None = None,
    validation: Batches | None = None,
    test: Batches | None = None,
    loss: Loss | None = None,
    metric: Metric | Callable[[Any, Any], Any] | object | None = None,
    resume: bool = False,
    redo_from: str | None = None,
) -> Report:
    """Train, cut, fine-tune, export, verify, measure and report a network of one's own.

    Args:
        network: trained or not; it is copied, and training starts from its weights.
        recipe: what is asked for: a TOML file, or its tables, e.g. ``{"train": {"epochs": 20}, "sparse": {"norms":
            "function"}, "cut": {"macs": 0.5}}``. [network] and, with batches, [data] need no more than a name, if any.
        out: a folder, absent or empty; with ``resume`` that of an earlier run.
        train: batches (inputs, targets) of an epoch; what [data] names where None.
        validation: batches that every choice is made on.
        test: batches for the numbers in the report, if there are any.
        loss: ``(outputs, targets) → mean over the batch``; cross-entropy with the recipe's label smoothing and class
            weights where None.
        metric: what networks are judged by: a function of (outputs, targets) → number, whose mean over the examples
            counts, an object with ``reset``, ``update`` and ``compute``, or a ``Metric``, which says its name and
            whether less is better; accuracy where None.
        resume: go on from the last whole epoch; the arguments are the same again.
        redo_from: name of the stage from which on all is done again.

    Returns:
        What report.json holds; whether verification passed and the budget was met is in it.

    Raises:
        HoyerExportError: an argument is wrong (nothing has been written then), or training diverged.
    """
    tables = _tables(network, recipe)
    tables["dense"] = {"weights": GIVEN} | tables.get("dense", {})
    given = {"train": train, "validation": validation, "test": test}
    data = None
    if any(it is not None for it in given.values()):
        if train is None or validation is None:
            missing = "train" if train is None else "validation"
            raise DataError(f"{missing} is missing: expected batches to train on, and others to choose on")
        tables["data"] = {"name": OWN_DATA} | tables.get("data", {})
        data = own_splits(train, validation, [] if test is None else test, name=tables["data"]["name"])
    own = Own(network=network, data=data, loss=loss, metric=as_metric(metric))
    with progress() as shown:
        return run_recipe(make_recipe(tables), Path(out), resume=resume, redo_from=redo_from, progress=shown, own=own)


def _tables(network: nn.Module, recipe: Tables) -> dict[str, Any]:
    """Return a recipe's tables; the network is called by its class unless they name it."""
    if not isinstance(network, nn.Module):
        raise NetworkError(f"expected a network, a torch.nn.Module, got a {type(network).__name__}")
    if not isinstance(recipe, str | Path | Mapping):
        got = type(recipe).__name__
        raise RecipeError(f"recipe: expected the path of a TOML file, or its tables in a dict, got a {got}")
    tables = read_tables(recipe) if isinstance(recipe, str | Path) else dict(recipe)
    return tables | {"network": {"name": type(network).__name__} | tables.get("network", {})}
