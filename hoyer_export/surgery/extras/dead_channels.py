"""Channels of a trained network that never fire: exactly zero wherever they are read, on every calibration image.

A reader computes y = Σ_c w_c · a_c. Where a_c = 0 at every reader of channel c, zeroing the channel adds the same
zeros: no output moves on these images, not by a bit. On other images it may: that has to be measured.

Every convolution and linear layer is looked at while the model runs, by its weight. A group of which some reader is
of another kind, or computes its weight first, cannot be seen: all of its channels count as firing.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap
from hoyer_export.channels.reading import Key, LayerCall, Watch
from hoyer_export.surgery.extras.calibration import CalibrationInputs, watch_each
from hoyer_export.tensors import tensors_in


def firing_channels(model: nn.Module, channels: ChannelMap, inputs: CalibrationInputs) -> dict[str, Tensor]:
    """Find the channels that some reader gets as anything but zero on some calibration image.

    The model runs in eval mode on a copy; the model itself is not touched.

    Args:
        model: the traced model.
        channels: its channel map.
        inputs: the calibration images, a batch or several; moved to the model's device.

    Returns:
        Group name → bool [width]; True also where it cannot be seen.

    Raises:
        DataError: there is no batch, or one holds something else than finite numbers.
        NetworkError: the model does not run on a batch.
    """
    network = copy.deepcopy(model).eval()
    read = _Read(network)
    watch_each(network, inputs, read.watch)
    return {group.name: read.firing(group) for group in channels.groups}


class _Read:
    """What every weight reads while a network runs.

    Args:
        network: the model that will run.
    """

    def __init__(self, network: nn.Module) -> None:
        self.watch = Watch(network, after=self._layer, other=self._other)
        self._fired: dict[tuple[str, int], Tensor] = {}
        self._used_otherwise: set[str] = set()

    def _layer(self, key: Key, call: LayerCall, output: Tensor) -> None:
        """Remember which of the weight's input slices meet anything but zero."""
        fired = (call.spread(call.input) != 0).transpose(0, 1).flatten(1).any(1)  # [I]
        if not call.transposed:  # every group of a grouped convolution has the same slices
            fired = fired.view(-1, call.weight.shape[1]).any(0)  # [I / groups]
        at = (key[0], call.reading_dim)
        self._fired[at] = self._fired[at] | fired if at in self._fired else fired
        self._use([call.input])

    def _other(self, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        if any(True for _ in tensors_in(output)):  # asking a weight for its shape or dtype reads nothing
            self._use(tensors_in((args, kwargs)))

    def _use(self, tensors: Iterable[Tensor]) -> None:
        self._used_otherwise |= {self.watch.names[id(it)] for it in tensors if id(it) in self.watch.names}

    def firing(self, group: ChannelGroup) -> Tensor:
        """Return bool [width]: which channels of a group fire, as far as can be seen."""
        readers = [member for member in group.members if member.reads]
        hidden = any(
            (member.parameter, member.dim) not in self._fired or member.parameter in self._used_otherwise
            for member in readers
        )
        firing = torch.zeros(group.width, dtype=torch.bool)
        if not readers or hidden or not group.only_read:
            return ~firing
        for member in readers:
            owned = member.owner >= 0
            fired = self._fired[member.parameter, member.dim].cpu()
            firing[member.owner[owned & fired]] = True
        return firing
