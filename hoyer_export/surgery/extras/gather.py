"""Input features that a linear layer does not use: left out by an explicit ``Gather`` in front of it.

The width of a network's input is the caller's, so a cut leaves it alone. Where all of a linear layer's weights on some
features are zero, y = x Wᵀ + b = x[..., index] W[:, index]ᵀ + b: exact, and fewer MACs, for one ``Gather`` more. The
MACs of pruned multilayer perceptrons in the papers (LeNet-300-100 on MNIST) are counted that way.

As channel groups of their own, such features are scored, faded and chosen within the budget as channels are.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from hoyer_export.call import Call, ExampleInputs
from hoyer_export.channels.channel_map import Axis, ChannelGroup, ChannelMap, Member
from hoyer_export.errors import CutRefused
from hoyer_export.surgery.edits import GatherEdit
from hoyer_export.surgery.plan import PruningPlan
from hoyer_export.surgery.step import SlimModel, as_slim, proved_step
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
        example_inputs: what the model is called with, as for ``trace_channels``, or a ``Call``.

    Returns:
        The new model; a layer that uses all of its features stays as it is.

    Raises:
        CutRefused: a layer is no ``nn.Linear``, was cut along its inputs, or the model computes something else now.
    """
    given = as_slim(model)
    modules = dict(given.model.named_modules())
    tensors = named_tensors(given.model)
    kept: dict[str, dict[int, Tensor]] = {}
    edits: list[GatherEdit] = []
    for name in dict.fromkeys([layers] if isinstance(layers, str) else layers):
        module, edit = modules.get(name), GatherEdit(module=name)
        if type(module) is not nn.Linear:
            raise CutRefused(f"{name!r} is not the name of a linear layer whose inputs could be gathered")
        if any(it is not module and getattr(it, "weight", None) is module.weight for it in modules.values()):
            raise CutRefused(f"{name} shares its weight with another layer, which would lose inputs too")
        if 1 in given.plan.kept.get(edit.weight, {}):
            raise CutRefused(f"{name} lost inputs in a cut already: what is left cuts better than it gathers")
        used = ~zero_slices(module.weight, 1, torch.arange(module.in_features))
        if not bool(used.all()):
            used[0] |= not bool(used.any())  # a layer reads one feature at least
            kept[edit.weight] = {1: used.nonzero().flatten()}
            edits.append(edit)
    if not edits:
        return given
    call = Call.of(given.model, example_inputs)
    plan = PruningPlan(kept, {weight: tuple(tensors[weight].shape) for weight in kept}, tuple(edits))
    return proved_step(given, plan, call, cause="the layer's weight is used in another way as well")


INPUT = ".input"
"""What the group of a layer's input features is called, behind the layer's name."""


def with_input_features(channels: ChannelMap, layers: Iterable[str]) -> ChannelMap:
    """Return the channel map with a group for the input features of each layer, so that they are chosen like channels.

    A layer that reads channels, or whose features cannot be gathered, gets none (``gather_inputs`` says why).

    Args:
        channels: the channel map.
        layers: names of linear layers.
    """
    for layer in dict.fromkeys(layers):
        weight = GatherEdit(module=layer).weight
        owned = any((it.parameter, it.dim) == (weight, 1) for group in channels.groups for it in group.members)
        calls = [it for it in channels.contractions if it.name == layer]
        shape = channels.shapes.get(weight, ())
        if owned or len(shape) != 2 or not calls or any(it.axes[1].fixed != shape[1] for it in calls):
            continue
        group = ChannelGroup(
            name=f"{layer}{INPUT}",
            width=shape[1],
            members=(Member(weight, 1, torch.arange(shape[1]), is_weight=True, reads=True),),
            only_read=True,
            gather=layer,
        )
        features = Axis(0, {group.name: torch.ones(shape[1], dtype=torch.int64)})
        contractions = tuple(
            replace(it, axes=(it.axes[0], features, *it.axes[2:])) if it.name == layer else it
            for it in channels.contractions
        )
        channels = replace(channels, groups=(group, *channels.groups), contractions=contractions)
    return channels
