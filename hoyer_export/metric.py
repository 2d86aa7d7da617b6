"""What a network is judged by: a number for outputs beside their targets, whatever both are.

A function is called for every batch, and its numbers are averaged over the examples. What is no mean over examples (an
intersection over union of the whole set, a rank correlation) is an object that accumulates: ``reset()``,
``update(outputs, targets)``, ``compute()``, as those of torchmetrics have it.
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hoyer_export.call import Call
from hoyer_export.errors import DataError
from hoyer_export.modes import kept_modes
from hoyer_export.tensors import examples_in


@dataclass(frozen=True)
class Metric:
    """A number that says how good a network is, and its name.

    Args:
        measure: ``(outputs, targets) → number``, or an object that accumulates.
        name: what reports call it; that of ``measure`` where empty.
        higher_is_better: whether more is better; where None, what ``measure`` says of itself, and else yes.
    """

    measure: Any
    name: str = ""
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        if not (callable(self.measure) or self.accumulates):
            raise DataError(
                "metric: expected a function of (outputs, targets), or an object with reset, update and compute, got"
                f" a {type(self.measure).__name__}"
            )
        own = getattr(self.measure, "__name__", type(self.measure).__name__)
        says = getattr(self.measure, "higher_is_better", None)
        object.__setattr__(self, "name", self.name or own.strip("<>"))
        object.__setattr__(self, "higher_is_better", self.higher_is_better is not False and says is not False)

    @property
    def accumulates(self) -> bool:
        """Whether ``measure`` is an object that sees one batch after the other."""
        return all(callable(getattr(self.measure, name, None)) for name in ("reset", "update", "compute"))


class Tally:
    """One metric over one set of outputs; several may be under way.

    Args:
        metric: whose ``measure`` stays as it is.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric, self._sum, self._seen = metric, 0.0, 0
        if metric.accumulates:
            self._measure = copy.deepcopy(metric.measure)
            self._measure.reset()

    def add(self, outputs: Any, targets: Any) -> None:
        """Take in a batch; its tensors are handed over on the CPU."""
        outputs, targets = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), (outputs, targets))
        count = examples_in((outputs, targets))
        self._seen += count
        if self._metric.accumulates:
            self._measure.update(outputs, targets)
        else:
            self._sum += count * _number(self._metric.measure(outputs, targets), self._metric.name)

    def value(self) -> float:
        """Return the number over all batches; DataError where there was none, or it is not finite."""
        if self._seen == 0:
            raise DataError(f"expected at least one image to measure the {self._metric.name} on, got none")
        found = self._measure.compute() if self._metric.accumulates else self._sum / self._seen
        return _number(found, self._metric.name)


class _Accuracy:
    """Top-1 accuracy in %: logits [N, classes], int64 targets [N]."""

    def reset(self) -> None:
        self.correct = self.seen = 0

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.correct += int((logits.argmax(1) == targets).sum())
        self.seen += len(targets)

    def compute(self) -> float:
        return 100 * self.correct / self.seen


ACCURACY = Metric(_Accuracy(), "accuracy")
"""Correct top-1 in %, what a classifier is judged by unless something else is asked for."""


def as_metric(given: Metric | Callable[[Any, Any], Any] | object | None) -> Metric:
    """Return what was given as a metric; accuracy for None."""
    return ACCURACY if given is None else given if isinstance(given, Metric) else Metric(given)


def evaluate(model: nn.Module, batches: Iterable[tuple[Any, Any]], metric: Metric = ACCURACY) -> float:
    """Measure a metric of a network, in eval mode and the model's own precision.

    Args:
        model: its modules' modes (train, eval) are as before afterwards.
        batches: (inputs, targets), on any device.
        metric: of its outputs.

    Raises:
        DataError: there is no image, or the metric is no finite number.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    tally = Tally(metric)
    with kept_modes(model), torch.inference_mode():
        model.eval()
        for inputs, targets in batches:
            tally.add(outputs_of(model, tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)), targets)
    return tally.value()


def outputs_of(model: nn.Module, inputs: Any) -> Any:
    """Call a network with a batch's inputs as a loader hands them out: ``Call.of`` says which arguments they are."""
    call = Call.of(model, inputs, collated=True)
    return model(*call.args, **call.kwargs)


def _number(found: Any, name: str) -> float:
    try:
        number = float(found)
    except (TypeError, ValueError, RuntimeError):
        got = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise DataError(f"metric {name}: expected one number, got {got}") from None
    if not math.isfinite(number):
        raise DataError(f"metric {name}: expected a finite number, got {number}; look at its targets")
    return number
