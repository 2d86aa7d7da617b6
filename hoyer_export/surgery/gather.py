"""Input features that a linear layer does not use: left out by an explicit ``Gather`` in front of it.

The width of a network's input is the caller's, so a cut leaves it alone. Where all of a linear layer's weights on some
features are zero, y = x Wᵀ + b = x[..., index] W[:, index]ᵀ + b: exact, and fewer MACs, for one ``Gather`` more. The
MACs of pruned multilayer perceptrons in the papers (LeNet-300-100 on MNIST) are counted that way.
"""

from collections.abc import Iterable

import torch
from torch import nn

from hoyer_export.errors import CutRefused
from hoyer_export.surgery.cut import SlimModel, as_slim
from hoyer_export.surgery.edits import GatherEdit
from hoyer_export.surgery.plan import PruningPlan, compose, with_plan
from hoyer_export.surgery.proof import ExampleInputs, prove_equal
from hoyer_export.surgery.zero import zero_slices
from hoyer_export.tensors import named_tensors


def gather_inputs(
    model: nn.Module | SlimModel, layers: str | Iterable[str], example_inputs: ExampleInputs
) -> SlimModel:
    """Return a new model whose ``layers`` read only the input features on which some of their weights are not zero.

    ``model`` is not changed. Cut first: channels that can be removed are better removed.

    Args:
        model: a model, or what an earlier step returned: its plan goes on.
        layers: names of linear layers that read what cannot be cut, such as the network's input.
        example_inputs: what the model is called with.

    Returns:
        The new model; a layer that uses all of its features stays as it is.

    Raises:
        CutRefused: a layer is no ``nn.Linear``, was cut along its inputs, or the model computes something else now.
    """
    given = as_slim(model)
    modules = dict(given.model.named_modules())
    plan = PruningPlan({}, {})
    for name in dict.fromkeys([layers] if isinstance(layers, str) else layers):
        module, edit = modules.get(name), GatherEdit(name)
        if type(module) is not nn.Linear:
            raise CutRefused(f"{name!r} is not the name of a linear layer whose inputs could be gathered")
        if edit.weight not in named_tensors(given.model):
            raise CutRefused(f"{name} shares its weight with another layer, which would lose inputs too")
        if 1 in given.plan.keep.get(edit.weight, {}):
            raise CutRefused(f"{name} lost inputs in a cut already: what is left cuts better than it gathers")
        unused = zero_slices(module.weight, 1, torch.arange(module.in_features))
        if bool(unused.any()):
            kept = (~unused).nonzero().flatten()
            plan.keep[edit.weight] = {1: kept if len(kept) else torch.zeros(1, dtype=torch.int64)}
            plan.shapes[edit.weight] = tuple(module.weight.shape)
            plan = PruningPlan(plan.keep, plan.shapes, (*plan.edits, edit))
    if not plan.edits:
        return given
    slim = with_plan(given.model, plan)
    error = prove_equal(given.model, slim, example_inputs, "the layer's weight is used in another way as well").error
    return SlimModel(slim, compose(given.plan, plan), error, error)
