"""What a network decides while it runs: comparisons, argmax, sorting, rounding, numbers that Python reads.

A decision says little about the numbers that it was made from: two networks may agree in every class and in no logit.
So the proof compares the numbers in front of each decision, and hands the decisions of the first network to the second.
From there on both follow the same path: a tie that rounding turns over no longer reorders what comes behind it, and
whatever still differs is a difference.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hoyer_export.errors import CutRefused
from hoyer_export.tensors import tensors_in

TOLERANCE = 1e-9
"""Of two networks in float64, relative: sums of other lengths round differently, 1e-15 a term and some 10⁴ terms leave
ample room, and a single wrong channel moves an output by orders of magnitude more."""

# They return floating-point numbers, and yet steps: a small difference shows nowhere, or as a whole one.
_STEPS = frozenset(
    (
        *("sign", "sgn", "round", "floor", "ceil", "trunc", "frac", "heaviside", "floor_divide", "remainder", "fmod"),
        *("gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "logical_xor", "logical_not"),
        *("bernoulli", "histc", "bincount", "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"),
    )
)
# Python or numpy read the numbers here, below torch's dispatcher; ``item``, ``float()`` and the like pass through it.
_READS = frozenset((Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__))


@dataclass(frozen=True)
class Decision:
    """One decision, and what it was made from.

    Args:
        name: of the operation.
        numbers: the plain numbers among its arguments: a threshold, k of the k largest.
        evidence: the floating-point tensors among its arguments, as they were.
        answers: what it returned that is no continuous function of these: tensors, or one plain number.
    """

    name: str
    numbers: tuple[Any, ...]
    evidence: tuple[Tensor, ...]
    answers: tuple[Any, ...]


@dataclass
class Decisions:
    """The decisions of one run.

    Args:
        followed: those of another network, which this one has to make from the same numbers, and takes over.
        tolerance: how far the numbers in front of them may be apart, see ``evidence_difference``.
        made: in order; empty where others are followed.
        error: the largest ``evidence_difference`` from those that were followed.
        is_comparing: two decisions are being compared now.
    """

    followed: Sequence[Decision] | None = None
    tolerance: float = TOLERANCE
    made: list[Decision] = field(default_factory=list)
    error: float = 0.0
    is_comparing: bool = False
    _next: int = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note the decisions that are made inside."""
        with _Reads(self), _Operations(self):
            yield

    def note(self, decision: Decision) -> Decision:
        """Return the decision that stands: the other network's where one is followed, else this one, which is kept.

        Raises:
            CutRefused: the other network does not make this decision, or makes it from other numbers.
        """
        if self.followed is None:
            copies = (
                tuple(x.clone() if isinstance(x, Tensor) else x for x in values)  # they may be written into later
                for values in (decision.evidence, decision.answers)
            )
            self.made.append(Decision(decision.name, decision.numbers, *copies))
            return decision
        self.is_comparing = True
        try:
            return self._followed(self.followed, decision)
        finally:
            self.is_comparing = False

    def _followed(self, followed: Sequence[Decision], decision: Decision) -> Decision:
        nearest, least = None, float("inf")
        for at in range(self._next, len(followed)):  # those of a part that is gone are skipped
            other = followed[at]
            if other.name != decision.name:
                continue
            error = _disagreement(other, decision)
            if error <= self.tolerance:
                self._next, self.error = at + 1, max(self.error, error)
                return other
            if nearest is None:
                nearest, least = other, error
        raise CutRefused(_shown(decision, nearest, least))


def _shown(decision: Decision, other: Decision | None, error: float) -> str:
    if other is None:
        return f"it makes a decision (`{decision.name}`) that the given one does not make"
    if other.numbers != decision.numbers:
        numbers = [", ".join(map(str, one.numbers)) for one in (other, decision)]
        return f"it decides (`{decision.name}`) by other numbers: {numbers[1]} instead of {numbers[0]}"
    return f"what it decides from (`{decision.name}`) differs by {error:.1e}"


def _disagreement(first: Decision, second: Decision) -> float:
    if first.numbers != second.numbers or len(first.evidence) != len(second.evidence):
        return float("inf")
    pairs = zip(first.evidence, second.evidence, strict=True)
    return max((evidence_difference(a, b) for a, b in pairs), default=0.0)


def evidence_difference(expected: Tensor, found: Tensor) -> float:
    """Return how far a tensor is from what is left of another after the cut, relative to the largest number.

    Where one axis has become shorter, its slices have to be some of the other's, in the same order. Where several have,
    nothing is compared: what is made of them is.
    """
    if expected.shape == found.shape:
        return difference(expected, found)
    if expected.ndim != found.ndim:
        return float("inf")
    shorter = [axis for axis, (a, b) in enumerate(zip(expected.shape, found.shape, strict=True)) if a != b]
    if any(expected.shape[axis] < found.shape[axis] for axis in shorter):
        return float("inf")
    return 0.0 if len(shorter) > 1 else _slices_difference(expected, found, shorter[0])


def _slices_difference(expected: Tensor, found: Tensor, axis: int) -> float:
    """Look up each slice in turn, as near as it can be had; the largest distance counts."""
    if found.numel() == 0:
        return 0.0
    rows, wanted = (x.movedim(axis, 0).reshape(x.shape[axis], -1) for x in (expected, found))
    scale = _largest(rows)
    worst, start = 0.0, 0
    for number, row in enumerate(wanted):
        stop = len(rows) - len(wanted) + number + 1
        distances = _distance(rows[start:stop], row).amax(1)
        fits = (distances <= TOLERANCE * scale).nonzero()
        if not len(fits):
            return float(distances.min()) / scale
        worst = max(worst, float(distances[fits[0]]) / scale)
        start += int(fits[0]) + 1
    return worst


def difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference of two tensors relative to the largest finite number of the first one.

    Infinite for other shapes, for integers that are not equal, and where only one of two numbers is finite.
    """
    if expected.shape != found.shape:
        return float("inf")
    if expected.is_complex() and found.is_complex():
        expected, found = torch.view_as_real(expected), torch.view_as_real(found)
    if not (expected.is_floating_point() and found.is_floating_point()):
        return 0.0 if torch.equal(expected, found) else float("inf")
    if expected.numel() == 0:
        return 0.0
    return float(_distance(expected, found).max()) / _largest(expected)


def _distance(expected: Tensor, found: Tensor) -> Tensor:
    """Return |expected − found|: 0 for equal infinities and where both are no number, infinite where only one is."""
    expected, found = expected.double(), found.double()  # the code may have made it float32 by itself
    same = (expected == found) | (expected.isnan() & found.isnan())
    return (expected - found).abs().nan_to_num(float("inf"), posinf=float("inf")).masked_fill(same, 0.0)


def _largest(x: Tensor) -> float:
    finite = x[x.isfinite()].abs()
    return float(finite.double().max().clamp_min(torch.finfo(torch.float64).tiny)) if finite.numel() else 1.0


class _Reads(TorchFunctionMode):
    """Notes what is read from a tensor past the dispatcher."""

    def __init__(self, decisions: Decisions) -> None:
        super().__init__()
        self.decisions = decisions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (func in _READS or func.__name__.endswith("_with_indices")) and is_continuous(args[0]):
            self.decisions.note(Decision(func.__name__, (), (args[0].detach(),), ()))
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation whose result is no continuous function of what it was given."""

    def __init__(self, decisions: Decisions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.decisions = decisions

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a wrapper around every operation, for compiled code, of which there is none here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.decisions.is_comparing:  # our own arithmetic
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__.removesuffix("_")
        evidence = [x for x in tensors_in((args, kwargs)) if is_continuous(x)]
        if "max_pool" in name:  # its indices are asked for by another function
            evidence.clear()
        elif name in _STEPS:  # it may write into its argument
            evidence = [x.clone() for x in evidence]
        output = func(*args, **kwargs)
        if not evidence:
            if numbers := _thresholds(func, args, output):
                self.decisions.note(Decision(name, numbers, (), ()))
            return output
        answers = [x for x in tensors_in(output) if name in _STEPS or not is_continuous(x)]
        is_number = isinstance(output, bool | int | float)
        if answers or is_number:
            mine = (output,) if is_number else tuple(answers)
            taken = self.decisions.note(Decision(name, _numbers((*args, *kwargs.values())), tuple(evidence), mine))
            if is_number:
                return taken.answers[0]
            for own, other in zip(answers, taken.answers, strict=True):
                if own is not other and own.shape == other.shape:
                    own.copy_(other)
        return output


def is_continuous(x: Tensor) -> bool:
    """Return whether a tensor holds floating-point or complex numbers."""
    return x.is_floating_point() or x.is_complex()


def _numbers(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Return the plain numbers among arguments; a tensor of one integer is one too."""
    return tuple(
        x.item() if isinstance(x, Tensor) else x
        for x in arguments
        if isinstance(x, bool | int | float) or (isinstance(x, Tensor) and x.ndim == 0 and not is_continuous(x))
    )


def _thresholds(func: Any, args: Any, output: Any) -> tuple[Any, ...]:
    """Return the numbers that an operation on integers computes with; none where it only moves them."""
    if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor) or is_continuous(output):
        return ()
    kinds = [str(argument.type) for argument in func._schema.arguments]
    return _numbers([x for x, kind in zip(args, kinds, strict=False) if "number" in kind or kind == "Tensor"][1:])
