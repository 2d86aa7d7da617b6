"""The one module that knows torch-pruning: a second opinion on which channels are coupled, and the rival's scores.

torch-pruning (Fang et al. 2023, *DepGraph*, CVPR, arXiv 2301.12900) finds the same dependencies by another way, from
the autograd graph. On the networks that it handles both must find the same coupled channels.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from hoyer_export.call import Call, ExampleInputs
from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap, weight_members
from hoyer_export.channels.norms import channel_norms
from hoyer_export.errors import NetworkError, one_line
from hoyer_export.tensors import named_tensors

# One channel: (weight, dimension, index) of every slice that it owns.
_Slices = frozenset[tuple[str, int, int]]


@dataclass(frozen=True)
class CrossCheck:
    """How two tracers agree.

    Args:
        agreeing: coupled channels that both find, slice for slice.
        only_here: names of channel groups with a channel that torch-pruning couples otherwise.
        only_there: layers whose coupled channels torch-pruning would remove and this package would not: the model's
            output, for one.
    """

    agreeing: int
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]


def cross_check(model: nn.Module, example_inputs: ExampleInputs, channels: ChannelMap) -> CrossCheck:
    """Compare the coupled channels of ``channels`` with torch-pruning's on the same network.

    Only slices of convolution and linear weights are compared: torch-pruning names no others in the same way.

    Args:
        model: the traced network.
        example_inputs: what it is called with.
        channels: its channel map.

    Raises:
        NetworkError: torch-pruning cannot trace the network.
    """
    their_groups = _their_groups(model, example_inputs)
    theirs = {frozenset(slices) for _, of_root in their_groups for slices in of_root.values()}
    agreeing, only_here, ours = 0, [], set()
    for group in channels.groups:
        found = _our_channels(group)
        ours.update(found)
        agreeing += sum(slices in theirs for slices in found)
        if any(slices not in theirs for slices in found):
            only_here.append(group.name)
    only_there = {min(slices)[0] for slices in theirs - ours}
    return CrossCheck(agreeing, tuple(only_here), tuple(sorted(only_there)))


def _our_channels(group: ChannelGroup) -> list[_Slices]:
    slices: list[set[tuple[str, int, int]]] = [set() for _ in range(group.width)]
    for member in weight_members(group):
        for index, channel in enumerate(member.owner.tolist()):
            if channel >= 0:
                slices[channel].add((member.parameter, member.dim, index))
    return [frozenset(found) for found in slices]


def group_importance(model: nn.Module, example_inputs: ExampleInputs, channels: ChannelMap) -> dict[str, Tensor]:
    """Score channels as torch-pruning's ``GroupMagnitudeImportance`` does by default.

    Σ w² of each layer's slice, batch norms' γ included, averaged over the group's layers, over the mean of the group.
    Where torch-pruning couples fewer slices than a channel has, the channel gets the mean of their scores.

    Args:
        model: the traced network.
        example_inputs: what it is called with.
        channels: its channel map.

    Returns:
        Group name → float64 [width] on the CPU.

    Raises:
        NetworkError: torch-pruning cannot trace the network, or sees none of a channel's slices.

    Source: https://github.com/VainF/Torch-Pruning, ``torch_pruning/pruner/importance.py`` at v1.6.1.
    """
    importance = torch_pruning.importance.GroupMagnitudeImportance()
    of_slice: defaultdict[tuple[str, int, int], list[float]] = defaultdict(list)
    for group, of_root in _their_groups(model, example_inputs):
        scores = importance(group).tolist()
        for root, slices in of_root.items():
            for found in slices:
                of_slice[found].append(scores[root])
    result = {}
    for group in channels.groups:
        if group.gather:  # no pruner but ours takes these away, so by the same formula
            squares = channel_norms(channels, named_tensors(model))[group.name].detach().double().cpu().square()
            result[group.name] = squares / squares.mean()
            continue
        known = [[score for one in slices for score in of_slice.get(one, [])] for slices in _our_channels(group)]
        if not all(known):
            raise NetworkError(
                f"torch-pruning does not see channel {known.index([])} of group {group.name!r}, so it cannot score it;"
                " use method = 'group-hs'"
            )
        result[group.name] = torch.tensor([sum(scored) / len(scored) for scored in known], dtype=torch.float64)
    return result


def _their_groups(
    model: nn.Module, example_inputs: ExampleInputs
) -> Iterator[tuple[Any, dict[int, set[tuple[str, int, int]]]]]:
    """Yield torch-pruning's groups, each with the slices of weights that belong to every index of its root."""
    network = copy.deepcopy(model).eval()
    names = {module: name for name, module in network.named_modules()}
    layers = (nn.modules.conv._ConvNd, nn.Linear)
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(
            network, Call.of(network, example_inputs), forward_fn=lambda model, call: call.on(model)
        )
        groups = list(graph.get_all_groups(root_module_types=list(layers)))
    except Exception as error:
        raise NetworkError(f"torch-pruning cannot trace the network ({one_line(error)}); do without it") from error
    for group in groups:
        of_root: defaultdict[int, set[tuple[str, int, int]]] = defaultdict(set)
        for item in group.items:
            module = item.dep.target.module
            if isinstance(module, layers):
                for index, root in zip(item.idxs, item.root_idxs, strict=True):
                    of_root[root].add((f"{names[module]}.weight", _dim(module, item.dep.handler.__name__), index))
        yield group, of_root


def _dim(module: nn.Module, handler: str) -> int:
    """Return which dimension of the weight a pruning function of torch-pruning slices."""
    outputs = "out_channels" in handler or "depthwise" in handler
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    return int(outputs == transposed)
