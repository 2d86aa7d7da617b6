"""A penalty on each weight tensor W of the convolution and linear layers, with its gradient in closed form.

    hs              H_S(W) = (Σ|w|)² / Σw²       ∂/∂w = 2 ρ sign(w) (1 − |w| ρ)         ρ = Σ|w| / Σw²
    hoyer           Σ|w| / √Σw²                  ∂/∂w = sign(w) (1 − |w| ρ) / √Σw²
    l1-elements     Σ|w|                         ∂/∂w = sign(w)
    transformed-l1  Σ 2|w| / (1 + |w|)           ∂/∂w = 2 sign(w) / (1 + |w|)²
    group-hs-layer  α_n G_H(filters of W) + α_c G_H(input channels of W), as ``penalties.py`` has G_H and its gradient

The first four act on single weights, and the smallest of these go (``select/elements.py``): all at the cut, or one
after the other in the last steps before it. ``magnitude-elements`` has no penalty and does only that. Where w is
exactly 0 every gradient is 0.

Sources: Yang, Wen, Li, "DeepHoyer", ICLR 2020, sections 3.2 and 3.3, https://arxiv.org/abs/1908.09979; transformed ℓ1
with a = 1: Ma, Miao, Niu, Zhang, "Transformed ℓ1 regularization for learning sparse deep neural networks", 2019,
https://arxiv.org/abs/1901.01021.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.norms import channel_norms
from hoyer_export.choices import ELEMENTS
from hoyer_export.errors import TrainingError
from hoyer_export.select.elements import element_weights, prune_, threshold_of_share
from hoyer_export.sparsify.penalties import effective_width, group_hs_rate
from hoyer_export.tensors import WITHOUT_FLOAT64

EVERY = 20
"""The line under which weights go is drawn anew every so many steps."""


class Penalty(NamedTuple):
    """The value, 0-d, and the gradient, of the weight's shape."""

    value: Tensor
    gradient: Tensor


def hoyer_square(weight: Tensor) -> Penalty:
    """Compute H_S(W), between 1 and the number of weights, whatever their scale; 0 if all are zero."""
    s1, s2 = _sums(weight)
    ratio = s1 / s2
    return Penalty(s1 * ratio, weight.sign() * (1 - weight.abs() * ratio) * (2 * ratio))


def hoyer(weight: Tensor) -> Penalty:
    """Compute ℓ1 over ℓ2."""
    s1, s2 = _sums(weight)
    return Penalty(s1 / s2.sqrt(), weight.sign() * (1 - weight.abs() * (s1 / s2)) / s2.sqrt())


def l1(weight: Tensor) -> Penalty:
    """Compute ℓ1."""
    return Penalty(_sums(weight)[0], weight.sign())


def transformed_l1(weight: Tensor) -> Penalty:
    """Compute transformed ℓ1 with a = 1."""
    sizes = weight.abs()
    return Penalty((2 * sizes / (1 + sizes)).sum(), 2 * weight.sign() / (1 + sizes).square())


def no_penalty(weight: Tensor) -> Penalty:
    """Return zeros."""
    return Penalty(weight.new_zeros(()), weight.new_zeros(()))


def layer_groups(weight: Tensor, alpha_n: float = 2e-3, alpha_c: float = 2e-3) -> Penalty:
    """Compute α_n G_H on the norms of the filters and α_c G_H on those of the input channels of W [O, I, ...]."""
    value, rate = weight.new_zeros(()), weight.new_zeros(())
    for dim, alpha in enumerate((alpha_n, alpha_c)):
        others = [it for it in range(weight.ndim) if it != dim]
        norms = torch.linalg.vector_norm(weight, dim=others, dtype=_precise(weight))
        along = [-1 if it == dim else 1 for it in range(weight.ndim)]
        value = value + alpha * effective_width(norms)
        rate = rate + alpha * group_hs_rate(norms).view(along)
    return Penalty(value, (rate * weight).to(weight.dtype))  # 1/w may be beyond float32, w/w is not


MEASURES: dict[str, Callable[..., Penalty]] = {
    "hs": hoyer_square,
    "hoyer": hoyer,
    "l1-elements": l1,
    "transformed-l1": transformed_l1,
    "magnitude-elements": no_penalty,
    "group-hs-layer": layer_groups,
}


class WeightPenalty:
    """strength · Σ over weight tensors of a measure; of single weights also what makes the smallest go.

    Args:
        measure: a key of ``MEASURES``.
        channels: the channel map of ``model``; what acts on single weights does not look at it.
        model: its weights are read and its ``.grad`` written. Weights with ``requires_grad=False`` get no gradient.
        strength: factor of the penalty.
        share: of the weights that may stay other than zero after ``steps``; None: all stay.
        steps: in how many steps.
        ramp: in which last share of ``steps`` they go; 0: none before the cut.
        alpha_n: strength on filters, of ``group-hs-layer`` alone.
        alpha_c: strength on input channels, likewise.

    Raises:
        NetworkError: ``model`` has no such weights.
        TrainingError: there is no such measure, or a number makes no sense.
    """

    def __init__(
        self,
        measure: str,
        channels: ChannelMap | None,
        model: nn.Module,
        strength: float = 1.0,
        *,
        share: float | None = None,
        steps: int = 1,
        ramp: float = 0.0,
        alpha_n: float | None = None,
        alpha_c: float | None = None,
    ) -> None:
        alphas = (("alpha_n", alpha_n), ("alpha_c", alpha_c))
        options = {name: alpha for name, alpha in alphas if alpha is not None}
        if measure not in MEASURES:
            raise TrainingError(f"expected a measure that is one of {', '.join(MEASURES)}, got {measure!r}")
        if options and measure != "group-hs-layer":
            raise TrainingError(f"{measure} has no {min(options)}, which is of group-hs-layer; leave it out")
        for name, value in {"strength": strength, **options}.items():
            if not (isfinite(value) and value >= 0):
                raise TrainingError(f"{measure}: expected {name} of 0 or more, got {value}")
        if steps < 1 or not 0 <= ramp <= 1 or not (share is None or 0 < share <= 1):
            got = f"{steps}, {ramp} and {share}"
            raise TrainingError(f"{measure}: expected steps of 1 or more, and ramp and share of 0 to 1, got {got}")
        self.measure, self.channels = measure, None if measure in ELEMENTS else channels
        self.strength, self.share, self.steps, self.ramp, self._options = strength, share, steps, ramp, options
        self._measured = partial(MEASURES[measure], **options)
        self._model, self._weights = model, element_weights(model)
        self._step, self._line = 0, -1.0

    @property
    def settings(self) -> dict[str, str | float | None]:
        """What must be the same for a training to go on from a checkpoint."""
        names = ("measure", "strength", "share", "steps", "ramp")
        return {name: getattr(self, name) for name in names} | self._options

    def describe(self) -> str:
        """Return one line for console and card."""
        numbers = self._options if self._options else {"strength": self.strength}
        how = ", ".join(f"{name} {value:g}" for name, value in numbers.items() if self.measure != "magnitude-elements")
        goes = f"down to {100 * self.share:g} % of the weights" if self.share and self.ramp else ""
        return ", ".join(filter(None, [self.measure, how, goes]))

    def observe(self, model: nn.Module) -> AbstractContextManager[None]:
        """Watch nothing: weights are all that it looks at."""
        return nullcontext()

    @torch.no_grad()
    def add_gradient_(self) -> Tensor:
        """Add the penalty's gradient to ``.grad``, and return its value, 0-d."""
        total = torch.zeros(())
        for weight in self._weights.values():
            value, gradient = self._measured(weight)
            total = total.to(value) + value
            if weight.requires_grad:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                weight.grad.add_(gradient, alpha=self.strength)
        return self.strength * total

    def after_step_(self, lr: float) -> None:
        """Let the smallest weights go: the share that stays falls as 1 − (1 − share) (1 − (1 − t)³), t from 0 to 1.

        Source: Zhu, Gupta, "To prune, or not to prune", 2017, equation 1, https://arxiv.org/abs/1710.01878. Deviation:
        a weight comes back where a step makes it larger than the line.
        """
        self._step += 1
        begin = (1 - self.ramp) * self.steps
        if self.share is None or self.ramp == 0 or self._step <= begin:
            return
        if self._step % EVERY == 0 or self._step == self.steps:
            left = max(0.0, self.steps - self._step) / (self.steps - begin)
            self._line = threshold_of_share(self._weights, self.share + (1 - self.share) * left**3)
        prune_(self._weights, dict.fromkeys(self._weights, self._line))

    def norms(self) -> dict[str, Tensor]:
        """Return the norms of the channels' weights; none where it acts on single weights."""
        return {} if self.channels is None else channel_norms(self.channels, dict(self._model.named_parameters()))

    def state_dict(self) -> dict[str, Tensor]:
        """Return how many steps were made, and the line."""
        return {"step": torch.tensor(self._step), "line": torch.tensor(self._line, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from it."""
        self._step, self._line = int(state["step"]), float(state["line"])


def hold_zeros_(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Keep every weight that is exactly zero so, whatever the optimizer: it gets no gradient, and loses its momenta."""
    for weight in element_weights(model).values():
        zero = weight.detach() == 0
        for value in optimizer.state[weight].values() if weight in optimizer.state else ():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.masked_fill_(zero, 0)
        if weight.requires_grad:
            weight.register_hook(partial(_without, zero))  # type: ignore[no-untyped-call]


def _without(zero: Tensor, gradient: Tensor) -> Tensor:
    if zero.device != gradient.device:
        zero.data = zero.to(gradient.device)  # once: training takes the network to its device after this was asked for
    return gradient.masked_fill(zero, 0)


def _sums(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ|w| and Σw², 0-d; 1 in the place of a second sum of 0, where the first is 0 too."""
    s1, norm = (torch.linalg.vector_norm(weight, order, dtype=_precise(weight)) for order in (1, 2))
    return s1, torch.where(norm > 0, norm, 1).square()


def _precise(weight: Tensor) -> torch.dtype:
    return torch.float32 if weight.device.type in WITHOUT_FLOAT64 else torch.float64
