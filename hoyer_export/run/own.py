"""What somebody holds in their hands in Python, where a recipe has only names: one more source for the ``Job``."""

from dataclasses import dataclass

import torch
from torch import nn

from hoyer_export.channels.rules import Rules
from hoyer_export.data import DataSplits
from hoyer_export.metric import ACCURACY, Metric
from hoyer_export.recipe.tables import GIVEN, Recipe
from hoyer_export.sparsify.epoch import Loss
from hoyer_export.surgery.edits import BiasEdit, ShortcutEdit
from hoyer_export.surgery.plan import PruningPlan, with_plan
from hoyer_export.surgery.step import SlimModel
from hoyer_export.tensors import named_tensors


@dataclass(frozen=True, kw_only=True)
class Own:
    """A network that was passed, and whatever else was passed with it.

    Args:
        network: the dense one, which is never changed.
        slim: what was cut from it and trained on, if it was cut already.
        data: batches; those that the recipe names where None.
        loss: (outputs, targets) → 0-d; cross-entropy where None.
        metric: what it is judged by.
        rules: for tracing.
    """

    network: nn.Module
    slim: SlimModel | None = None
    data: DataSplits | None = None
    loss: Loss | None = None
    metric: Metric = ACCURACY
    rules: Rules | None = None


def needs_own(recipe: Recipe) -> bool:
    """Return whether a recipe is of something that was passed in Python, so that it alone cannot be done."""
    return GIVEN in (recipe.dense.weights, recipe.cut.method, recipe.finetune.weights)


def widened(dense: nn.Module, slim: SlimModel) -> nn.Module:
    """Return the dense network with the slim one's weights, and zeros where the cut took channels out.

    Args:
        dense: the network that was cut; its own weights do not matter.
        slim: what was cut from it; its weights are those of today.

    Raises:
        CutRefused, FileError: the plan does not fit the dense network.
    """
    added = tuple(edit for edit in slim.plan.edits if isinstance(edit, (BiasEdit, ShortcutEdit)))
    wide = with_plan(dense, PruningPlan(edits=added))
    small = named_tensors(slim.model)
    with torch.no_grad():
        for name, tensor in named_tensors(wide).items():
            if kept := slim.plan.kept.get(name):
                tensor.fill_(float(name.endswith("running_var")))  # nothing is ever divided by zero
                stays = [kept.get(dim, torch.arange(size)) for dim, size in enumerate(tensor.shape)]
                tensor[torch.meshgrid(*stays, indexing="ij")] = small[name].to(tensor)
            else:
                tensor.copy_(small[name])
    return wide
