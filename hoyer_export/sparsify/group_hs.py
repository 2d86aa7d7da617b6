"""Group-HS on a model: channels → a penalty on their norms, and its gradient in closed form.

    loss = task + strength · Σ_g cost_g · scale_g · G_H(g)

scale_g = Σ_k n_k² / K, a constant to the gradient (``scale="relative"``): a slice w of channel k then moves by
lr · strength · cost_g · 2 (Σn / (K n_k)) (1 − n_k · Σn/Σn²) · w, a relative rate whatever the weights' scale, so that
strength has the unit of weight decay. scale_g = 1 is the paper's form (``scale="paper"``).
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.norms import channel_grid, check_fits, safe_sqrt
from hoyer_export.errors import NetworkError, TrainingError
from hoyer_export.sparsify.penalties import effective_width, group_hs_rate, smooth

Scale = Literal["relative", "paper"]


class GroupHS:
    """The Group-HS penalty of a model's channel groups.

    Use one of the two, once an optimizer step: add ``penalty()`` to the loss, or call ``add_gradient_()`` between
    ``backward()`` and ``optimizer.step()`` (after ``unscale_`` where a gradient scaler is used). Both give the same
    gradient to rounding, except that only ``add_gradient_()`` knows ``max_rate``.

    Args:
        channels: the channel map of ``model``.
        model: its weights are read, its ``.grad`` written. Weights with ``requires_grad=False`` (and buffers) count
            in the norms and get no gradient.
        strength: with ``scale="relative"`` in the unit of weight decay (2 to 4 times the weight decay is strong);
            may be set at any time.
        scale: "relative" or "paper".
        costs: group name → cost of a channel, for every group, in any unit: normalised to mean 1. None: all 1.
        max_rate: bound on the size of a channel's relative rate, in the unit of weight decay. Near zero the rate grows
            as 1/n_k; a bounded channel fades exponentially instead of jumping across zero. None: no bound.
        dense_widths: group name → K of ``scale_g`` where the group was cut already; the width in ``channels`` for
            groups not named.

    Raises:
        NetworkError: ``channels`` does not fit ``model``.
        TrainingError: every weight is frozen, or a strength, scale, cost, rate or width that makes no sense.
    """

    def __init__(
        self,
        channels: ChannelMap,
        model: nn.Module,
        strength: float = 1e-3,
        *,
        scale: Scale = "relative",
        costs: Mapping[str, float] | None = None,
        max_rate: float | None = None,
        dense_widths: Mapping[str, int] | None = None,
    ) -> None:
        if not (isfinite(strength) and strength >= 0):
            raise TrainingError(f"expected a Group-HS strength of 0 or more, got {strength}")
        if scale not in get_args(Scale):
            raise TrainingError(f'expected scale "relative" or "paper", got {scale!r}')
        if max_rate is not None and not max_rate > 0:
            raise TrainingError(f"expected max_rate above 0, or None for no bound, got {max_rate}")
        self.channels = channels
        self.strength = strength
        self.scale: Scale = scale
        self.max_rate = max_rate
        self._given = {f"costs.{name}": cost for name, cost in (costs or {}).items()}
        self._given |= {f"dense_widths.{name}": width for name, width in (dense_widths or {}).items()}
        self._costs = torch.tensor(_normalised(channels, costs), dtype=torch.float64)
        self._dense_widths = torch.tensor(_widths(channels, dense_widths), dtype=torch.float64)
        self._grid = channel_grid(channels)
        # Modules and names, not tensors: a parameter may be replaced, e.g. by load_state_dict(assign=True).
        self._owners = [_find(model, weight.parameter) for weight in self._grid.weights]
        for weight, (module, name) in zip(self._grid.weights, self._owners, strict=True):
            check_fits(weight, getattr(module, name))
        weights = [getattr(module, name) for module, name in self._owners]
        if any(isinstance(it, nn.Parameter) for it in weights) and not any(it.requires_grad for it in weights):
            raise TrainingError(
                "every weight that Group-HS acts on is frozen (requires_grad=False), so that nothing would shrink;"
                " unfreeze some before this"
            )

    def penalty(self) -> Tensor:
        """Compute strength · Σ_g cost_g · scale_g · G_H(g) for autograd, a 0-d tensor in float64."""
        return self._value(self._read()[1])

    @torch.no_grad()
    def add_gradient_(self) -> Tensor:
        """Add the penalty's gradient to ``.grad`` (made where it is None), and return the penalty's value.

        Returns:
            A 0-d float64 tensor on the weights' device; nothing waits for the device.
        """
        weights, norms = self._read()
        rates = group_hs_rate(norms, self._grid.widths) * (self.strength * self._scales(norms)).unsqueeze(-1)
        if self.max_rate is not None:
            rates = rates.clamp(-self.max_rate, self.max_rate)
        if not any(weight.dtype == torch.float64 for weight in weights):
            # float32 beside float32 weights takes a fifth of the time. Only scale="paper" on norms below 1e-19 can go
            # beyond its range: stay finite (two rates may be added).
            bound = torch.finfo(torch.float32).max / 4
            rates = rates.clamp(-bound, bound).float()
        for weight, rate in zip(weights, self._grid.spread(rates, weights), strict=True):
            if weight.requires_grad:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                weight.grad.addcmul_(weight, rate)
        return self._value(norms)

    @property
    def settings(self) -> dict[str, str | float | None]:
        """What must be the same for a training to go on from a checkpoint."""
        return {"strength": self.strength, "scale": self.scale, "max_rate": self.max_rate, **self._given}

    def describe(self) -> str:
        """Return one line for console and card."""
        return f"Group-HS, strength {self.strength:g} ({self.scale})"

    def observe(self, model: nn.Module) -> AbstractContextManager[None]:
        """Watch nothing, the penalty knows weights only; NetworkError where they are not those of ``model``."""
        if not {module for module, _ in self._owners} <= set(model.modules()):
            raise NetworkError("this Group-HS acts on the weights of another model: make one for the model that trains")
        return nullcontext()

    def after_step_(self, lr: float) -> None:
        """Do nothing: all is in the gradient."""

    def norms(self) -> dict[str, Tensor]:
        """Return n_k of every channel, of its weights as they are."""
        rows = self._read()[1].detach()
        return {group.name: row[: group.width] for group, row in zip(self.channels.groups, rows, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the strength, which may be steered while the network trains."""
        return {"strength": torch.tensor(self.strength, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the strength that ``state_dict`` returned."""
        self.strength = state["strength"].item()

    @torch.no_grad()
    def effective_widths(self) -> dict[str, float]:
        """Return G_H of every group: how many channels it effectively has, between 1 and its width (0 if all dead)."""
        widths = effective_width(self._read()[1], self._grid.widths)
        return dict(zip([group.name for group in self.channels.groups], widths.tolist(), strict=True))

    def _read(self) -> tuple[list[Tensor], Tensor]:
        """Return the weights, and the norms [G, K] of their channels, padded with zeros."""
        weights = [getattr(module, name) for module, name in self._owners]
        # A model may be moved after this object was made.
        if weights and weights[0].device != self._grid.places.device:
            self._grid = self._grid.to(weights[0].device)
        norms = safe_sqrt(self._grid.squares(weights))
        self._costs, self._dense_widths = self._costs.to(norms), self._dense_widths.to(norms)
        return weights, norms

    def _scales(self, norms: Tensor) -> Tensor:
        """Return cost_g · scale_g, [G], constants to the gradient."""
        if self.scale == "paper":
            return self._costs
        squares = smooth(norms.detach(), self._grid.widths).square().sum(-1)
        return self._costs * squares / self._dense_widths

    def _value(self, norms: Tensor) -> Tensor:
        return self.strength * (self._scales(norms) * effective_width(norms, self._grid.widths)).sum()


def _find(model: nn.Module, parameter: str) -> tuple[nn.Module, str]:
    path, _, name = parameter.rpartition(".")
    module = dict(model.named_modules(remove_duplicate=False)).get(path)
    if module is None or not isinstance(getattr(module, name, None), Tensor):
        raise NetworkError(f"{parameter}: expected a weight of this name, got none; trace this very network")
    return module, name


def _normalised(channels: ChannelMap, costs: Mapping[str, float] | None) -> list[float]:
    names = [group.name for group in channels.groups]
    if costs is None:
        return [1.0] * len(names)
    for name in names:
        if name not in costs:
            raise TrainingError(f"costs: expected one for every channel group, got none for {name!r}")
    for name, cost in costs.items():
        if name not in names:
            raise TrainingError(f"costs: expected the names of channel groups, got {name!r}")
        if not (isfinite(cost) and cost >= 0):
            raise TrainingError(f"costs: expected a number of 0 or more for {name!r}, got {cost}")
    mean = sum(costs.values()) / max(1, len(costs))
    if names and mean == 0:
        raise TrainingError("costs: expected at least one above 0, got zeros; use strength=0 for no penalty")
    return [costs[name] / mean for name in names]


def _widths(channels: ChannelMap, dense_widths: Mapping[str, int] | None) -> list[int]:
    widths = {group.name: group.width for group in channels.groups}
    for name, width in (dense_widths or {}).items():
        if name not in widths:
            raise TrainingError(f"dense_widths: expected the names of channel groups, got {name!r}")
        if width < widths[name]:
            raise TrainingError(f"dense_widths: expected at least {widths[name]} channels for {name!r}, got {width}")
        widths[name] = width
    return list(widths.values())
