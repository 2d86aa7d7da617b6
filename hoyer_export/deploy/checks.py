"""What a verification finds: checks, the comparisons behind them, and the record of both.

``verify.py`` makes them of a network and its file, ``verify_files.py`` of two files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from hoyer_export.deploy.departure import Departure
from hoyer_export.deploy.rounding import LEAST, Judged

RELATIVE_TOLERANCE = LEAST
RELATIVE_CHANGE = "relative change of the outputs"
"""A check without a tolerance: a figure of files that round coarsely."""

Optimization = Literal["disabled", "all"]


@dataclass(frozen=True)
class Check:
    """One step: ``value`` may be at most ``tolerance``.

    Args:
        name: of the step, as in the list above.
        value: for outputs and rows the error that comes closest to its tolerance or exceeds it most, in units of
            max(1, max |torch|); for the others how many inputs, weights, values or images are wrong. Infinite where
            something is not a number or has another shape.
        tolerance: in the same unit; for outputs and rows the one of the same comparison; None of a mere figure.
        passed: value ≤ tolerance.
    """

    name: str
    value: float
    tolerance: float | None
    passed: bool


@dataclass(frozen=True)
class OnnxComparison:
    """One output of one batch through the runtime and through torch.

    Args:
        output: its name.
        batch: number of images.
        inputs: ``real``, ``zeros``, ``ones`` or ``noise`` (normal, variance 1).
        optimization: ``disabled`` or ``all`` of the runtime's graph optimisations.
        max_abs_error: max |runtime − torch|.
        tolerance: largest difference of a right file, at least 1e-5 · max(1, max |torch|).
        scale: max(1, max |torch|).
    """

    output: str
    batch: int
    inputs: str
    optimization: Optimization
    max_abs_error: float
    tolerance: float
    scale: float


@dataclass(frozen=True)
class VerifyRecord:
    """What was found.

    Args:
        passed: every check passed.
        checks: in order.
        onnx: the comparisons behind the checks of the outputs, on all inputs that torch does not leave open.
        onnx_accuracy: top-1 of the labelled images through the runtime in percent, or the metric; None without any.
        torch_accuracy: the same through torch.
        class_images: the labelled images of each class.
        class_correct: those of them that torch gets right.
        departure: the first node that computes something else, where a check did not pass and one can be named.
    """

    passed: bool
    checks: tuple[Check, ...]
    onnx: tuple[OnnxComparison, ...]
    onnx_accuracy: float | None
    torch_accuracy: float | None
    class_images: tuple[int, ...] = ()
    class_correct: tuple[int, ...] = ()
    departure: Departure | None = None


def check(name: str, value: float, tolerance: float) -> Check:
    """Return the check that ``value`` is at most ``tolerance``."""
    return Check(name, value, tolerance, value <= tolerance)


def closest(name: str, judged: list[list[Judged]]) -> Check:
    """Return the check of the error that is largest beside its tolerance; an output that is always open shows nothing.

    Args:
        name: of the check.
        judged: for every comparison its outputs.
    """
    nothing = Judged(math.inf, RELATIVE_TOLERANCE, 1.0, False)

    def share(it: Judged) -> float:
        return it.error / it.tolerance

    of_outputs = [[it for it in found if not it.is_open] for found in zip(*judged, strict=True)]
    worst = max((max(found, key=share, default=nothing) for found in of_outputs), key=share)
    return check(name, worst.error / worst.scale, worst.tolerance / worst.scale)


def check_outputs(
    judged: Mapping[tuple[str, int, Optimization], list[Judged]], outputs: Sequence[str]
) -> tuple[tuple[OnnxComparison, ...], list[Check]]:
    """Return the comparisons that say something, and the checks of the outputs.

    Args:
        judged: (kind of inputs, batch, optimisation) → what was found of every output.
        outputs: their names.
    """
    comparisons = tuple(
        OnnxComparison(name, batch, kind, optimization, it.error, it.tolerance, it.scale)
        for (kind, batch, optimization), found in judged.items()
        for name, it in zip(outputs, found, strict=True)
        if not it.is_open
    )
    checks = [
        closest(f"outputs, optimisation {level}", [it for (*_, of), it in judged.items() if of == level])
        for level in get_args(Optimization)
    ]
    left_open = len(judged) * len(outputs) - len(comparisons)
    if left_open:
        checks.append(check("inputs left open", left_open, left_open + len(comparisons) - 1))
    return comparisons, checks
