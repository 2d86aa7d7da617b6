"""Group-HS on what channels do: the doomed ones fade, in what reads them, until they are exactly zero at the budget.

n_k² = e_k, the share that channel k brings to its readers (``channels/energy.py``), measured on the batch at hand. The
weights' own norms say little: a batch norm behind a filter undoes its scale, so that they shrink at no cost and the
channel goes on working.

A line τ_g parts doomed from kept channels: the smallest n_k that the budget keeps in group g. The budget moves in a
straight line from the dense network's cost to what is asked, so that the weakest channels for their cost are doomed
first; a channel that comes back above the line is doomed no longer, until it is zero. In every step, after the
optimizer's (decoupled, as AdamW's weight decay), a doomed channel gets

    n_k ← max(0, n_k − c_g · max(δ, 1 − n_k / τ_g)),        c_g = τ_g · (1 + ln 1/δ) / R

and its readers' slices are multiplied by n_k' / n_k. 1 − n_k / τ_g is the Group-HS gradient with the budget's line τ_g
in the place of the natural threshold Σn²/Σn, so that the pressure ends at the budget and kept channels feel none; δ
lets channels at the line arrive; c_g = η · s · Σn/K with a strength s that makes it R steps from the line to zero.
Filters keep their scale. What is zero stays zero: nothing reads it, and to take it out changes nothing.

Within a step the readers' total energies are constants, so the factor on the slices is the factor on n_k. Channels
whose activations meet other than in readers fade in all their parameters and running means. Where no reader of a group
could be measured, n_k² = ‖W_k‖² / Σ‖W_i‖². Weights that do not require a gradient fade like the others.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import inf, log

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelGroup, ChannelMap, Member, nothing_prunable
from hoyer_export.channels.energy import InputMoments, Moments
from hoyer_export.errors import NetworkError, TrainingError
from hoyer_export.select.align import aligned_keep, least_keep
from hoyer_export.select.budget import Budget
from hoyer_export.select.choose import meet
from hoyer_export.select.function import MACS_POWER, channel_prices, energies_from
from hoyer_export.sparsify.penalties import effective_width
from hoyer_export.tensors import named_tensors

FLOOR = 0.1
"""δ"""
SMOOTHING = 0.8
"""Of the readers' input moments: the weight of what was measured before."""
TINY = 1e-300
"""In the place of a norm of 0 that something is divided by."""


class FunctionHS:
    """Brings a network to a budget in a given number of steps; there is no strength to tune.

    Args:
        channels: the channel map of ``model``.
        model: the network that trains; its weights are changed after every step of the optimizer.
        budget: what it may cost at the end, at aligned widths.
        steps: in how many steps; in those after, what is dead is held at zero.
        align: multiple that widths are rounded up to.
        ramp: R as a share of ``steps``: how long a channel fades.
        every: M: energies are measured, and the line is drawn anew, in every M-th step.
        macs_power: p; the line is drawn on e_k / MACs_k^p.

    Raises:
        NetworkError: ``channels`` does not fit ``model``.
        TrainingError: nothing can be pruned, everything is frozen, the budget cannot be reached, or a number makes no
            sense.
    """

    def __init__(
        self,
        channels: ChannelMap,
        model: nn.Module,
        budget: Budget,
        steps: int,
        *,
        align: int = 16,
        ramp: float = 0.2,
        every: int = 20,
        macs_power: float = MACS_POWER,
    ) -> None:
        if steps < 1 or every < 1 or not 0 <= ramp < 1:
            raise TrainingError(
                f"expected steps and every of 1 or more, and a ramp below 1, got {steps}, {every} and {ramp}"
            )
        dense = budget.cost.of_keep(channels, {})
        if not channels.groups:
            raise TrainingError(nothing_prunable(channels))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise TrainingError("every parameter is frozen (requires_grad=False): nothing could make up for what fades")
        if not budget.is_met_by(least := budget.cost.of_keep(channels, least_keep(channels, align)), dense):
            reached = budget.cost.describe(least)
            raise TrainingError(f"{budget} cannot be met: with align = {align} the least is {reached}")
        self.channels, self.budget, self.steps, self.align = channels, budget, steps, align
        self.every, self.macs_power = every, macs_power
        self.ramp = max(1, round(ramp * steps))
        self._costs = dense, dense * budget.share if budget.share is not None else float(budget.at_most or 0)
        self._moments = InputMoments(channels, model)
        self._smoothed: Moments = {}
        self._fading = [_Fading(group, model) for group in channels.groups]
        self._prices = channel_prices(channels, macs_power)
        self._model = model
        self._step = 0
        self._effective = 0.0
        self._penalty: Tensor | None = None

    @property
    def settings(self) -> dict[str, str | float | None]:
        """What must be the same for a training to go on from a checkpoint."""
        numbers = ("steps", "align", "ramp", "every", "macs_power")
        return {"budget": str(self.budget), **{name: getattr(self, name) for name in numbers}}

    def describe(self) -> str:
        """Return one line for console and card."""
        return f"Group-HS on function, to {self.budget} in {self.steps:,} steps"

    @contextmanager
    def observe(self, model: nn.Module) -> Iterator[None]:
        """Measure the readers' inputs in the steps that draw the line; NetworkError where ``model`` is another."""
        if model is not self._model:
            raise NetworkError("this Group-HS acts on another model: make one for the model that trains")

        entered = ExitStack()

        def begin(*_: object) -> None:
            if self._is_due:
                entered.enter_context(self._moments)

        def end(*_: object) -> None:
            entered.close()

        hooks = model.register_forward_pre_hook(begin), model.register_forward_hook(end, always_call=True)
        try:
            yield
        finally:
            entered.close()  # a forward that was broken off by Ctrl-C calls no hook
            for hook in hooks:
                hook.remove()

    def add_gradient_(self) -> Tensor:
        """Add nothing, all is done after the step; return Σ_g G_H(g) on the norms of function."""
        if self._penalty is None:  # made once a line, where the weights are, so that no step waits for a device
            device = next(self._model.parameters()).device
            self._penalty = torch.tensor(self._effective, dtype=torch.float32, device=device)
        return self._penalty

    @torch.no_grad()
    def after_step_(self, lr: float) -> None:
        """Let doomed channels fade, whatever the learning rate is, and hold dead ones at zero."""
        if self._is_due:
            self._draw_line()
        self._step += 1
        for fading in self._fading:
            fading.step_(last=self._step >= self.steps)

    def norms(self) -> dict[str, Tensor]:
        """Return n_k of every channel, as they were measured last; of weights before that."""
        return {group.name: fading.norms for group, fading in zip(self.channels.groups, self._fading, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the smoothed moments, where each channel stands, and how many steps are done."""
        state = {f"moments/{name}/{dim}": tensor for (name, dim), tensor in self._smoothed.items()}
        for number, fading in enumerate(self._fading):
            state |= {f"{number}/{key}": tensor for key, tensor in fading.state_dict().items()}
        return state | {
            "step": torch.tensor(self._step),
            "effective": torch.tensor(self._effective, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` returned."""
        device = next(self._model.parameters()).device
        for key, tensor in state.items():
            kind, _, rest = key.partition("/")
            if kind == "moments":
                name, _, dim = rest.rpartition("/")
                self._smoothed[name, int(dim)] = tensor.to(device)
            elif kind.isdecimal():
                self._fading[int(kind)].load(rest, tensor)
        self._step, self._effective, self._penalty = int(state["step"]), float(state["effective"]), None

    @property
    def _is_due(self) -> bool:
        return self._step < self.steps and self._step % self.every == 0

    def _draw_line(self) -> None:
        """Measure every channel, and say which are doomed at what the network may cost by now."""
        for key, moment in self._moments.take(of_all=True).items():
            before = self._smoothed.get(key, moment)
            self._smoothed[key] = SMOOTHING * before + (1 - SMOOTHING) * moment
        energies, _ = energies_from(self._smoothed, self.channels, named_tensors(self._model))
        scores = {name: energy / self._prices[name] for name, energy in energies.items()}
        for name, dead in self.dead().items():
            scores[name] = scores[name].masked_fill(dead, -1)  # also where its smoothed moment is not zero yet
        done = min(1.0, (self._step + self.every) / max(1, self.steps - self.ramp))
        whole, asked = self._costs
        now = Budget(self.budget.cost, at_most=max(asked, whole - (whole - asked) * done))
        keep = aligned_keep(self.channels, scores, meet(self.channels, scores, self.align, now), self.align)
        left = max(1, min(self.ramp, self.steps - self._step))
        for fading in self._fading:
            fading.doom(energies[fading.name].sqrt(), keep[fading.name], left)
        self._effective = sum(float(effective_width(fading.norms)) for fading in self._fading)
        self._penalty = None

    def dead(self) -> dict[str, Tensor]:
        """Return which channels are exactly zero to all that reads them: group name → bool [width]."""
        return {fading.name: fading.dead for fading in self._fading}


class _Fading:
    """The channels of one group on their way: n_k, who is doomed, who is dead, and how fast; all on the CPU."""

    def __init__(self, group: ChannelGroup, model: nn.Module) -> None:
        readers = [member for member in group.members if member.reads]
        self.name = group.name
        self._tensors = named_tensors(model)
        self._members: list[Member] = [
            member
            for member in (readers if group.only_read and readers else group.members)
            if not member.parameter.endswith("running_var")  # which nothing is zero by
        ]
        self.norms = torch.ones(group.width, dtype=torch.float64)
        self.doomed = torch.zeros(group.width, dtype=torch.bool)
        self.dead = torch.zeros(group.width, dtype=torch.bool)
        self.line = torch.tensor(inf, dtype=torch.float64)
        self.speed = torch.tensor(0.0, dtype=torch.float64)

    def state_dict(self) -> dict[str, Tensor]:
        return {key: getattr(self, key) for key in ("norms", "doomed", "dead", "line", "speed")}

    def load(self, key: str, tensor: Tensor) -> None:
        setattr(self, key, tensor)

    def doom(self, norms: Tensor, kept: Tensor, steps: int) -> None:
        """Take over what was measured; whoever is not kept is doomed, to be dead in ``steps``."""
        self.norms = norms.masked_fill(self.dead, 0)
        stays = torch.zeros_like(self.dead)
        stays[kept] = True
        self.doomed = ~(stays | self.dead)
        stays &= ~self.dead
        if bool(self.doomed.any()):
            weakest = self.norms[stays].min() if bool(stays.any()) else norms.new_zeros(())
            self.line = torch.maximum(weakest, self.norms[self.doomed].max()).clamp(min=TINY)
            self.speed = self.line * (1 - log(FLOOR)) / steps

    def step_(self, *, last: bool) -> None:
        """Move the doomed one step, the last one to zero, and multiply their slices by the same factor."""
        if not bool((self.doomed | self.dead).any()):
            return
        pressure = inf if last else self.speed * (1 - self.norms / self.line).clamp(min=FLOOR)
        after = torch.where(self.doomed, (self.norms - pressure).clamp(min=0), self.norms)
        factor = torch.where(self.doomed, after / self.norms.clamp(min=TINY), 1.0).masked_fill(self.dead, 0)
        self.norms = after
        self.dead |= self.doomed & (after == 0)
        self.doomed &= ~self.dead
        for member in self._members:
            tensor = self._tensors[member.parameter]
            along = torch.cat([factor, factor.new_ones(1)])[member.owner]  # owner -1: the last, 1
            shape = [-1 if dim == member.dim else 1 for dim in range(tensor.ndim)]
            tensor.mul_(along.to(tensor).view(shape))
