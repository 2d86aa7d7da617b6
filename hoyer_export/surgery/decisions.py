"""What a network decides while it runs: comparisons, argmax, sorting, rounding, numbers that Python reads.

A decision says little about the numbers that it was made from: two networks may agree in every class and in no logit.
So the proof compares the numbers in front of each decision, and hands the decisions of the first network to the second.
From there on both follow the same path: a tie that rounding turns over no longer reorders what comes behind it, and
whatever still differs is a difference. Decisions may also be drawn, for both alike: then a filter lets half through, a
branch goes both ways and every expert is asked, and what lies behind them is compared as well.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hoyer_export.errors import CutRefused
from hoyer_export.operations import Watched
from hoyer_export.tensors import tensors_in

TOLERANCE = 1e-9
"""Of two networks in float64, relative: sums of other lengths round differently, 1e-15 a term and some 10⁴ terms leave
ample room, and a single wrong channel moves an output by orders of magnitude more."""

# Numbers that are the same in both networks and this many times as large as all others (a mask's -1e9) set no scale.
_MASK = 1e6

# They return floating-point numbers, and yet steps: a small difference shows nowhere, or as a whole one.
_STEPS = frozenset(
    (
        *("sign", "sgn", "round", "floor", "ceil", "trunc", "frac", "heaviside", "floor_divide", "remainder", "fmod"),
        *("gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "logical_xor", "logical_not"),
        *("bernoulli", "histc", "bincount", "hardshrink", "threshold", "copysign"),
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
        choices: how many there are to choose from where each answer is the number of one: the classes of an argmax.
        is_read: the answers are floating-point numbers that Python or numpy read: what is made of them, nobody sees.
    """

    name: str
    numbers: tuple[Any, ...]
    evidence: tuple[Tensor, ...]
    answers: tuple[Any, ...]
    choices: int | None = None
    is_read: bool = False


@dataclass
class Decisions:
    """The decisions of one run.

    Args:
        followed: those of another network, which this one has to make from the same numbers, and takes over.
        tolerance: how far the numbers in front of them may be apart, see ``evidence_difference``.
        skips: some of those that are followed may be missing here, because a part of the network is gone.
        drawn: the generator that decides in the place of the network, if any.
        made: in order; empty where others are followed.
        error: the largest ``evidence_difference`` from those that were followed.
        is_comparing: two decisions are being compared now.
    """

    followed: Sequence[Decision] | None = None
    tolerance: float = TOLERANCE
    skips: bool = False
    drawn: torch.Generator | None = None
    made: list[Decision] = field(default_factory=list)
    error: float = 0.0
    is_comparing: bool = False
    _next: int = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note the decisions that are made inside; CutRefused at the end where some that are followed were not made."""
        with _Reads(self), Watched(partial(_see, self)):
            yield
        left = [] if self.followed is None or self.skips else self.followed[self._next :]
        if left:
            raise CutRefused(f"it does not make a decision (`{left[0].name}`) that the given one makes")

    def note(self, decision: Decision) -> Decision:
        """Return the decision that stands: the other network's where one is followed, else this one, which is kept.

        Raises:
            CutRefused: the other network does not make this decision, or makes it from other numbers.
        """
        self.is_comparing = True
        try:
            if self.followed is not None:
                return self._followed(self.followed, decision)
            copies = [
                tuple(x.clone() if isinstance(x, Tensor) else x for x in values)  # they may be written into later
                for values in (decision.evidence, decision.answers)
            ]
            kept = replace(decision, evidence=copies[0], answers=copies[1])
            self.made.append(kept if self.drawn is None else _drawn(kept, self.drawn))
            return self.made[-1]
        finally:
            self.is_comparing = False

    def take_over(self, own: Decision) -> None:
        """Note a decision, and write the answers that stand over its own."""
        stands = self.note(own)
        self.is_comparing = True
        try:
            _take_over(own, stands)
        finally:
            self.is_comparing = False

    def _followed(self, followed: Sequence[Decision], decision: Decision) -> Decision:
        last = len(followed) if self.skips else self._next + 1
        candidates = [(at, followed[at]) for at in range(self._next, min(last, len(followed)))]
        errors = [(at, _disagreement(other, decision)) for at, other in candidates if other.name == decision.name]
        for at, error in errors:
            if error <= self.tolerance:
                self._next, self.error = at + 1, max(self.error, error)
                return followed[at]
        if not errors:
            raise CutRefused(f"it makes a decision (`{decision.name}`) that the given one does not make there")
        at, error = errors[0]
        if followed[at].numbers != decision.numbers:
            before, after = (", ".join(map(str, one.numbers)) for one in (followed[at], decision))
            raise CutRefused(f"it decides (`{decision.name}`) by other numbers: {after} instead of {before}")
        raise CutRefused(f"what it decides from (`{decision.name}`) differs by {error:.1e}")


def _drawn(decision: Decision, generator: torch.Generator) -> Decision:
    """Return the decision with other answers of the same kind, at random; places are only reordered.

    What is decided from a zeroed channel stays: where that is gone, no answer could be handed over.
    """
    silent = [_silent_slices(x) for x in decision.evidence]

    def drawn(answer: Any) -> Any:
        if isinstance(answer, bool):
            return bool(torch.rand((), generator=generator) < 0.5)
        if decision.is_read:  # up to ten times as large as any that came
            numbers = torch.as_tensor(answer)
            size = 10 ** float(torch.rand((), generator=generator)) * float(_largest(numbers.abs().double()))
            other = (2 * torch.rand(numbers.shape, generator=generator) - 1).to(numbers) * size
            return other if isinstance(answer, Tensor) else float(other)
        if not isinstance(answer, Tensor) or is_continuous(answer):
            return answer
        if answer.dtype == torch.bool:
            other = (torch.rand(answer.shape, generator=generator) < 0.5).to(answer.device)
        elif decision.choices is not None:
            other = torch.randint(decision.choices, answer.shape, generator=generator).to(answer)
        elif not answer.ndim:
            return answer
        else:
            other = answer[torch.randperm(len(answer), generator=generator).to(answer.device)]
        for evidence, slices in zip(decision.evidence, silent, strict=True):
            if slices and evidence.shape != answer.shape:
                return answer
            for axis, indices in slices.items():
                other.index_copy_(axis, indices, answer.index_select(axis, indices))
        return other

    return replace(decision, answers=tuple(map(drawn, decision.answers)))


def _disagreement(first: Decision, second: Decision) -> float:
    if first.numbers != second.numbers or len(first.evidence) != len(second.evidence):
        return float("inf")
    pairs = zip(first.evidence, second.evidence, strict=True)
    return max((evidence_difference(a, b) for a, b in pairs), default=0.0)


def evidence_difference(expected: Tensor, found: Tensor) -> float:
    """Return how far a tensor is from what is left of another after the cut, as ``difference`` does.

    Where an axis has become shorter, what is gone must be what a zeroed channel leaves behind, one number at all
    positions: the slices that hold more than one have to be the same in both, in the same order.
    """
    if expected.ndim != found.ndim or any(a < b for a, b in zip(expected.shape, found.shape, strict=True)):
        return float("inf")
    for axis in range(expected.ndim):
        if expected.shape[axis] != found.shape[axis]:
            expected, found = _varied(expected, found, axis)
    return difference(expected, found)


def _silent_slices(x: Tensor) -> dict[int, Tensor]:
    """Return axis → the slices along it that hold one number, as a zeroed channel does, where there are any."""
    found = {}
    for axis in (axis for axis, size in enumerate(x.shape) if size > 1):
        indices = ~_varied_slices(x, x, axis)[0]
        if int(indices.sum()) > (x.numel() == x.shape[axis]):  # of single numbers one is always left out
            found[axis] = indices.nonzero().flatten()
    return found


def _varied(expected: Tensor, found: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the slices of both along an axis that hold more than one number."""
    varied = [mask.nonzero().flatten() for mask in _varied_slices(expected, found, axis)]
    return expected.index_select(axis, varied[0]), found.index_select(axis, varied[1])


def _varied_slices(expected: Tensor, found: Tensor, axis: int) -> list[Tensor]:
    """Return, for both, bool [size of the axis]: the slice holds more than one number.

    Of slices of a single number nobody can say whether they vary: the most frequent number is left out.
    """
    size = math.prod(expected.shape[:axis] + expected.shape[axis + 1 :])
    both = [x.movedim(axis, 0).reshape(x.shape[axis], x.numel() // max(x.shape[axis], 1)) for x in (expected, found)]
    silent = [both[0].mode(0).values] * 2 if size == 1 else [rows[:, :1] for rows in both]
    return [(rows != number).any(1) for rows, number in zip(both, silent, strict=True)]


def difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference of two tensors relative to the largest finite number of the first one.

    Infinite for other shapes, for integers that are not equal, and where only one of two numbers is finite. A number
    that is the same in both and 10⁶ times as large as all that are not, as a mask is, sets no scale.
    """
    if expected.shape != found.shape:
        return float("inf")
    if expected.is_complex() and found.is_complex():
        expected, found = torch.view_as_real(expected), torch.view_as_real(found)
    if not (expected.is_floating_point() and found.is_floating_point()):
        return 0.0 if torch.equal(expected, found) else float("inf")
    expected, found = expected.double(), found.double()  # the code may have made it float32 by itself
    other = ~((expected == found) | (expected.isnan() & found.isnan()))
    if not bool(other.any()):
        return 0.0
    distance = (expected - found)[other].abs().nan_to_num(float("inf"), posinf=float("inf")).max()
    scale = min(_largest(expected), _MASK * max(_largest(expected[other]), _largest(found[other])))
    return float(distance) / scale


def _largest(x: Tensor) -> float:
    finite = x[x.isfinite()].abs()
    return float(finite.max().clamp_min(torch.finfo(torch.float64).tiny)) if finite.numel() else 1.0


def is_continuous(x: Tensor) -> bool:
    """Return whether a tensor holds floating-point or complex numbers, each at its place."""
    return (x.is_floating_point() or x.is_complex()) and x.layout == torch.strided


class _Reads(TorchFunctionMode):
    """Notes what is read from a tensor past the dispatcher, and the places of maxima where they are asked for."""

    def __init__(self, decisions: Decisions) -> None:
        super().__init__()
        self.decisions = decisions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not args or not isinstance(args[0], Tensor) or not is_continuous(args[0]):
            return func(*args, **kwargs)
        evidence = args[0].detach()
        if func in _READS:  # both read the same numbers: the first network's
            (same,) = self.decisions.note(Decision(func.__name__, (), (evidence,), (evidence,), is_read=True)).answers
            return func(same if same.shape == evidence.shape else evidence, *args[1:], **kwargs)
        output = func(*args, **kwargs)
        if func.__name__.endswith("_with_indices"):
            places = tuple(x for x in tensors_in(output) if not is_continuous(x))
            self.decisions.take_over(Decision(func.__name__, (), (evidence,), places))
        return output


def _see(decisions: Decisions, func: Any, args: Any, kwargs: Any) -> Any:
    """Note an operation whose result is no continuous function of what it was given."""
    full_name = func.overloadpacket.__name__
    name = full_name.removesuffix("_")
    if decisions.is_comparing or "max_pool" in name:  # our own arithmetic; places are asked for elsewhere
        return func(*args, **kwargs)
    is_step = name in _STEPS or name.startswith("fake_quantize") or bool(kwargs.get("rounding_mode"))
    # What is only written to, was never decided from.
    given = args[1:] if full_name == "bernoulli_" else args
    read = tensors_in((given, {key: value for key, value in kwargs.items() if key != "out"}))
    evidence = tuple(x.clone() if is_step else x for x in read if is_continuous(x))  # it may write into them
    output = func(*args, **kwargs)
    if isinstance(output, bool | int | float):
        own = Decision(name, (), evidence, (output,), is_read=isinstance(output, float))
        return decisions.note(own).answers[0] if evidence else output
    answers = tuple(x for x in tensors_in(output) if is_step or not is_continuous(x))
    if not answers or not (evidence or (numbers := _thresholds(func, args, kwargs))):
        return output
    if evidence:
        numbers = _numbers((*args, *kwargs.values()))
        choices = _choices(name, args, evidence)
        decisions.take_over(Decision(name, numbers, evidence, answers, choices))
    else:
        decisions.note(Decision(name, numbers, (), ()))
    return output


def _take_over(own: Decision, stands: Decision) -> None:
    """Write the answers that stand over one's own, where they have a place for them."""
    for mine, other in zip(own.answers, stands.answers, strict=True):
        if mine.layout != torch.strided or mine.ndim != other.ndim:
            continue
        if mine.shape == other.shape:
            mine.copy_(other)
        elif own.evidence[0].shape == mine.shape:  # position by position, on the slices that both have
            here, there = torch.ones_like(mine, dtype=torch.bool), torch.ones_like(other, dtype=torch.bool)
            for axis in (axis for axis in range(mine.ndim) if mine.shape[axis] != other.shape[axis]):
                masks = _varied_slices(stands.evidence[0], own.evidence[0], axis)
                for places, mask in zip((there, here), masks, strict=True):
                    places &= mask.reshape([-1 if at == axis else 1 for at in range(mine.ndim)])
            if int(here.sum()) == int(there.sum()):
                mine[here] = other[there]


def _choices(name: str, args: Any, evidence: Sequence[Tensor]) -> int | None:
    """Return how many an argmax chooses from."""
    if name not in ("argmax", "argmin", "max", "min") or len(args) < 2 or not isinstance(args[1], int):
        return None
    return evidence[0].shape[args[1]]


def _numbers(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Return the plain numbers among arguments; a tensor of one integer is one too."""
    return tuple(
        x.item() if isinstance(x, Tensor) else x
        for x in arguments
        if isinstance(x, bool | int | float) or (isinstance(x, Tensor) and x.ndim == 0 and not is_continuous(x))
    )


def _thresholds(func: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Return the numbers that an operation on integers computes with; none where it only moves them."""
    if not any(isinstance(x, Tensor) for x in args):
        return ()
    kinds = [str(argument.type) for argument in func._schema.arguments]
    named = [
        x for x, kind in zip(args, kinds, strict=False) if "number" in kind or (kind == "Tensor" and x is not args[0])
    ]
    return _numbers([*named, *(args[:1] if isinstance(args[0], bool | int | float) else ()), *kwargs.values()])
