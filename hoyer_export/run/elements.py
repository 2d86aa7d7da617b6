"""Single weights: those that the recipe's [cut] zeroes, and how many are left."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.report.stage_records import LayerWeights
from hoyer_export.run.cut_to_budget import Found
from hoyer_export.run.job import Job
from hoyer_export.select.elements import element_weights, prune_, threshold_of_share, thresholds_of_spread
from hoyer_export.surgery.step import SlimModel


def zero_elements(job: Job, network: nn.Module, start: SlimModel, channels: ChannelMap, images: list[Tensor]) -> Found:
    """Zero the smallest weights; every channel stays, so that the network keeps its shape."""
    table, zeroed = job.recipe.cut, copy.deepcopy(start.model)
    weights = element_weights(zeroed)
    if table.weights is not None:
        lines = dict.fromkeys(weights, threshold_of_share(weights, table.weights))
    else:
        lines = thresholds_of_spread(weights, float(table.threshold or 0))
    prune_(weights, lines)
    empty = ", ".join(name for name, weight in weights.items() if not weight.any())
    warning = f"no weight is left of {empty}: nothing goes through; let more weights stay" if empty else None
    slim, keep = replace(start, model=zeroed), {group.name: torch.arange(group.width) for group in channels.groups}
    return Found(keep, zeroed, (start,), slim, warning)


def layer_weights(model: nn.Module) -> tuple[LayerWeights, ...]:
    """Count the weights of every convolution and linear layer, and those that are not zero."""
    return tuple(
        LayerWeights(name=name, weights=weight.numel(), nonzero=int(weight.count_nonzero()))
        for name, weight in element_weights(model).items()
    )
