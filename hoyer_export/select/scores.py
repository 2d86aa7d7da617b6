"""How much a channel is worth: one number each, comparable between groups, so that one threshold serves them all.

group-hs     its norm over its group's natural threshold, n_k / (Σn² / Σn)
magnitude    torch-pruning's group importance over the group's mean (the rival)
function     what it brings to its readers over its MACs, measured on calibration images (``function.py``)
sensitivity  what it brings, in the measure of what the outputs lose, over its MACs (``sensitivity.py``)
dead         1 if it ever fires on the calibration images, else 0; the threshold is 1
zero         0 if it is exactly zero or nothing reads it, else 1; the threshold is 1
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap
from hoyer_export.channels.norms import channel_norms
from hoyer_export.choices import BY_FUNCTION
from hoyer_export.errors import HoyerExportError
from hoyer_export.select.function import function_scores
from hoyer_export.select.sensitivity import sensitivities
from hoyer_export.surgery.extras.calibration import CalibrationInputs, as_batches
from hoyer_export.surgery.extras.dead_channels import firing_channels
from hoyer_export.surgery.zero import live_channels
from hoyer_export.tensors import named_tensors


@dataclass(frozen=True, eq=False)
class Scores:
    """What channels are worth.

    Args:
        method: what they were scored by.
        of: group name → float64 [width] on the CPU.
        warning: what to be careful about, if anything.
    """

    method: str
    of: Mapping[str, Tensor]
    warning: str | None = None


def channel_scores(channels: ChannelMap, model: nn.Module, method: str, inputs: CalibrationInputs | None) -> Scores:
    """Score every channel.

    Args:
        channels: the channel map.
        model: the network.
        method: above.
        inputs: one or more batches; ``group-hs`` and ``zero`` need none.

    Raises:
        HoyerExportError: the method lacks its inputs, torch-pruning cannot score this network, or its weights are not
            finite.
    """
    warning = None
    if method == "group-hs":
        scores = _relative_norms(channels, model)
    elif method == "zero":
        tensors = named_tensors(model)
        scores = {group.name: _is_live(group, tensors).double() for group in channels.groups}
    elif inputs is None:
        raise HoyerExportError(
            f"method = {method!r} needs inputs: one or more batches of what the network is called with"
        )
    elif method == "dead":
        scores = {name: fires.double() for name, fires in firing_channels(model, channels, inputs).items()}
    elif method in BY_FUNCTION:
        inputs = list(as_batches(model, inputs))  # gone through several times
        scores, missing = function_scores(channels, model, inputs)
        if method == "sensitivity":
            factors = sensitivities(channels, model, inputs)
            scores = {name: score * factors[name] for name, score in scores.items()}
        if missing:
            warning = f"scored by their weights, as no reader of theirs could be measured: {', '.join(missing)}"
    else:
        # A second to import, and only this method needs it.
        from hoyer_export.select.rival import group_importance

        first = next(iter(as_batches(model, inputs)))
        scores = group_importance(model, first.rows(slice(1)), channels)
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise HoyerExportError(f"the weights of channel group {name!r} are not finite: train the network again")
    return Scores(method, scores, warning)


def _relative_norms(channels: ChannelMap, model: nn.Module) -> dict[str, Tensor]:
    """Return n_k · Σn / Σn²; 0 where all norms are."""
    scores = {}
    with torch.no_grad():
        for name, norms in channel_norms(channels, named_tensors(model)).items():
            squares, total = norms.double().square().sum(), norms.double().sum()
            scores[name] = (norms.double() if squares == 0 else norms.double() * total / squares).cpu()
    return scores


def _is_live(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return bool [width]: the channel cannot be taken out as it is."""
    live = torch.zeros(group.width, dtype=torch.bool)
    live[list(live_channels(group, torch.arange(group.width), tensors))] = True
    return live
