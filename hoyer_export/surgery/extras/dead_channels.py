"""Channels of a trained network that never fire: exactly zero wherever they are read, on every calibration image.

A consumer computes y = Σ_c w_c · a_c. Where a_c = 0 at every consumer of channel c, zeroing the channel adds the same
zeros: no output moves on these images, not by a bit. On other images it may: that has to be measured.

Every convolution and linear layer is looked at while the model runs, by its weight. A group of which some consumer is
of another kind, or computes its weight first, cannot be seen: all of its channels count as firing.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap
from hoyer_export.errors import DataError, NetworkError, one_line
from hoyer_export.tensors import named_tensors, tensors_in

CalibrationInputs = Tensor | Iterable[Tensor | tuple[Tensor, ...]]
"""One batch, or several; a network of several inputs takes a tuple of tensors a batch."""

# Which dimension of the weight reads the input's channels.
_CONSUMERS: dict[Callable[..., Any], int] = {
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d), 1),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 0),
}


def firing_channels(model: nn.Module, channels: ChannelMap, inputs: CalibrationInputs) -> dict[str, Tensor]:
    """Find the channels that some consumer gets as anything but zero on some calibration image.

    The model runs in eval mode on a copy; the model itself is not touched.

    Args:
        model: the traced model.
        channels: its channel map.
        inputs: the calibration images, a batch or several; moved to the model's device.

    Returns:
        Group name → bool [width]; True also where it cannot be seen.

    Raises:
        DataError: there is no batch.
        NetworkError: the model does not run on a batch.
    """
    network = copy.deepcopy(model).eval()
    consumers = _Consumers(network)
    run_each(network, inputs, consumers)
    return {group.name: consumers.firing(group) for group in channels.groups}


def run_each(model: nn.Module, inputs: CalibrationInputs, watched_by: TorchFunctionMode) -> None:
    """Run a model as it is on every batch, moved to its device, inside a mode that watches.

    Raises:
        DataError: there is no batch.
        NetworkError: the model does not run on a batch.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    seen = 0
    with torch.no_grad():
        for batch in as_batches(inputs):
            tensors = tuple(tensor.to(device) for tensor in batch)
            try:
                with watched_by:
                    model(*tensors)
            except Exception as error:
                shapes = ", ".join("×".join(map(str, tensor.shape)) for tensor in tensors)
                raise NetworkError(
                    f"the network does not run on a calibration batch of shape {shapes} ({one_line(error)}); give"
                    " batches of what it is called with, without labels"
                ) from error
            seen += 1
    if not seen:
        raise DataError("expected calibration images, got no batch; give inputs=[images, ...]")


def as_batches(inputs: CalibrationInputs) -> Iterable[tuple[Tensor, ...]]:
    """Yield every batch as the arguments that the network is called with."""
    for batch in [inputs] if isinstance(inputs, Tensor) else inputs:
        yield batch if isinstance(batch, tuple) else (batch,)


class _Consumers(TorchFunctionMode):
    """Watches what every weight reads while the model runs.

    Args:
        network: the model that will run.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in named_tensors(network).items()}
        self._fired: dict[tuple[str, int], Tensor] = {}
        self._used_otherwise: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        named = (
            self._look(_CONSUMERS[func], *args, **kwargs) if func in _CONSUMERS else tuple(tensors_in((args, kwargs)))
        )
        # Asking a weight for its shape or dtype reads nothing.
        if any(True for _ in tensors_in(output)):
            self._used_otherwise |= {self._names[id(tensor)] for tensor in named if id(tensor) in self._names}
        return output

    def _look(
        self, dim: int, input: Tensor, weight: Tensor, bias: Tensor | None = None, *options: Any, **named_options: Any
    ) -> tuple[Tensor, ...]:
        """Remember which of the weight's input slices meet anything but zero; return what else the call used."""
        name = self._names.get(id(weight))
        if name is None or weight.ndim < 2:
            return (input,)  # no member of a channel; what it was computed from was seen before
        axis = input.ndim - 1 if weight.ndim == 2 else input.ndim - weight.ndim + 1
        fired = (input != 0).movedim(axis, 0).flatten(1).any(1)  # [I]
        if dim == 1:  # every group of a grouped convolution has the same slices
            fired = fired.view(-1, weight.shape[1]).any(0)  # [I / groups]
        before = self._fired.get((name, dim))
        self._fired[name, dim] = fired if before is None else before | fired
        return (input,)

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
