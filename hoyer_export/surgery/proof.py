"""The proof of every step of the surgery: two networks that must compute the same do, in float64.

Both run in eval mode on the example inputs and on noise, in another batch size where the network takes one; then once
in training mode, where only code that holds a size can fail. What they return is compared, and every number in front of
a decision: an argmax alone would prove nothing (``decisions.py``). Neither network is touched: copies run.
"""

import copy
import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hoyer_export.call import Call
from hoyer_export.errors import CutRefused, one_line
from hoyer_export.random_state import kept_random_state, seed_generators
from hoyer_export.surgery.decisions import TOLERANCE, Decision, Decisions, difference, is_continuous
from hoyer_export.tensors import WITHOUT_FLOAT64, named_tensors, tensors_in

# Truth values are drawn both ways in two rounds; a threshold on numbers that Python reads has to be met.
_ROUNDS, _READ_ROUNDS = 2, 16

_NOISE = 20261127  # a seed that no example's noise is drawn with


@dataclass(frozen=True)
class Run:
    """One run of a network.

    Args:
        outputs: every tensor that it returned.
        values: every plain number, text and the like that it returned.
        decisions: what it decided on the way, and from what.
    """

    outputs: tuple[Tensor, ...]
    values: tuple[Any, ...]
    decisions: tuple[Decision, ...]

    def witnesses(self) -> list[Tensor]:
        """Return the tensors in which a change would show: floating-point outputs, and what decisions are made from."""
        evidence = [x for decision in self.decisions for x in decision.evidence]
        return [x for x in (*self.outputs, *evidence) if is_continuous(x) and x.numel()]


@dataclass(frozen=True)
class Comparison:
    """Two networks side by side.

    Args:
        error: their largest difference in float64, relative to the largest number of the tensor that it was found in.
        is_blind: nothing that was compared depends on the input, so that nothing was shown.
        is_half_blind: something that was compared does not, and may hide what leads to it: a head that starts at zero.
    """

    error: float
    is_blind: bool
    is_half_blind: bool


def prove_equal(
    before: nn.Module, after: nn.Module, call: Call, cause: str, *, part_is_gone: bool = False
) -> Comparison:
    """Compare two networks' outputs, and what they make their decisions from, in float64.

    Args:
        before: the network as it was.
        after: what it was turned into.
        call: what both are called with.
        cause: what it means if they differ, for the message.
        part_is_gone: ``after`` may lack modules, and the decisions that they made.

    Raises:
        CutRefused: they differ by more than rounding, or only the first one runs.
    """
    first, second = in_float64(before), in_float64(after)
    with torch.no_grad():
        cases = _runs(first, call)
        for y in (y for _, expected in cases for y in expected.outputs if y.is_floating_point() and y.numel()):
            # An infinite number may be a mask's; not a number is nothing that could be compared.
            if bool(y.isnan().any()) or not bool(y.isfinite().any()):
                raise CutRefused(
                    "the network's own outputs are not finite in float64 on the example inputs and on noise:"
                    " nothing can be compared; look at its weights and inputs"
                )
        error = max(_error(second, case, expected, cause, part_is_gone) for case, expected in cases)
        if cases[0][1].decisions:
            reads = any(decision.is_read for decision in cases[0][1].decisions)
            rounds = _READ_ROUNDS if reads else _ROUNDS
            error = max(error, _drawn_error(first, second, call, cause, part_is_gone, rounds))
        blind = _blind(first, *cases[0])
        _require_training(first, second, proof_cases(call)[0])
    return Comparison(error, all(blind), any(blind))


def rel_difference(before: nn.Module, after: nn.Module, call: Call) -> float:
    """Return how far two networks' outputs are apart in float64, relative to the largest, rounded weights and all."""
    first, second = in_float64(before), in_float64(after)
    worst = 0.0
    with torch.no_grad():
        for case, expected in _runs(first, call):
            decisions = Decisions(followed=expected.decisions, tolerance=float("inf"), skips=True)
            found = run(second, case, decisions)
            worst = max([worst, *map(difference, expected.outputs, found.outputs)])
    return worst


def _runs(model: nn.Module, call: Call) -> list[tuple[Call, Run]]:
    """Run a network on all proof cases in one batch, or one by one where its code holds the batch size."""
    real, noise, together = proof_cases(call)
    try:
        return [(together, run(model, together))]
    except Exception:
        return [(case, run_in_float64(model, case)) for case in (real, noise)]


def _drawn_error(first: nn.Module, second: nn.Module, call: Call, cause: str, part_is_gone: bool, rounds: int) -> float:
    """Return the error behind decisions that are drawn: branches, filters and experts that the inputs never ask for."""
    real, _, together = proof_cases(call)
    error = 0.0
    for seed in range(rounds):
        for case in (together, real):
            try:
                expected = run(first, case, Decisions(drawn=torch.Generator().manual_seed(seed)))
            except Exception:  # its code does not expect such decisions, or holds the batch size
                continue
            error = max(error, _error(second, case, expected, cause, part_is_gone))
            break
    return error


def _in_float64(x: Tensor) -> Tensor:
    """Return floating-point numbers in float64, others as they are; on the CPU where the device has no float64."""
    x = x.detach().cpu() if x.device.type in WITHOUT_FLOAT64 else x.detach()
    return x.double() if x.is_floating_point() else x


def in_float64(model: nn.Module) -> nn.Module:
    """Return a copy in float64 and eval mode that shares no tensor with ``model``; see ``WITHOUT_FLOAT64``."""
    if any(tensor.device.type in WITHOUT_FLOAT64 for tensor in named_tensors(model).values()):
        model = copy.deepcopy(model).cpu()
    memo: dict[int, Any] = {}
    # What deepcopy finds in its memo it need not copy before the conversion: half the time. Not in scripted modules,
    # which hand out tensors that live no longer than the call.
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    for tensor in [t for module in modules for t in (*module._parameters.values(), *module._buffers.values())]:
        if tensor is not None and type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point():
            wide = tensor.detach().to(torch.float64, copy=True)
            is_parameter = isinstance(tensor, nn.Parameter)
            memo.setdefault(id(tensor), nn.Parameter(wide, tensor.requires_grad) if is_parameter else wide)
    with torch.no_grad():  # a copy of a scripted module would hang on its gradients
        return copy.deepcopy(model, memo).double().eval()


def proof_cases(call: Call) -> tuple[Call, Call, Call]:
    """Return the example inputs, noise of their shapes, and both in one batch with one more, in float64.

    A single number is no image: a scale or a threshold, which stays.
    """
    real = call.map(_in_float64)
    generator = torch.Generator().manual_seed(_NOISE)
    noise = real.map(
        lambda x: torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() and x.ndim else x
    )
    # Another batch size, where the network takes one: a size may hide behind the example's.
    pairs = zip(real.tensors, noise.tensors, strict=True)
    together = (
        torch.cat([x, y, y[:1] / 2 if y.is_floating_point() else y[:1]]) if real.is_batched(x) else x for x, y in pairs
    )
    return real, noise, real.with_tensors(together)


def run(model: nn.Module, case: Call, decisions: Decisions | None = None) -> Run:
    """Run a network once, with random numbers of a fixed seed; ``case`` stays as it is.

    Args:
        model: the network, in the mode that it is in.
        case: its arguments.
        decisions: what notes them, and hands over those that are to be followed; nothing is followed where None.
    """
    decisions = decisions or Decisions()
    with kept_random_state():
        seed_generators(0, case.tensors[0].device)
        with decisions.watch():
            outputs = case.on(model)
    values = tuple(leaf for leaf in tree_leaves(outputs) if isinstance(leaf, bool | int | float | str))
    return Run(tuple(tensors_in(outputs)), values, tuple(decisions.made))


def run_in_float64(model: nn.Module, case: Call) -> Run:
    """Return what ``run`` returns for a network that is as it was given; CutRefused if it fails."""
    try:
        return run(model, case)
    except Exception as error:
        raise CutRefused(
            f"the network does not run in float64, which the cut is proved in ({one_line(error)}): give it inputs that"
            " fit, and let its code follow its input's type"
        ) from error


def _error(slim: nn.Module, case: Call, expected: Run, cause: str, part_is_gone: bool) -> float:
    """Return the error of one run that takes over the other's decisions; CutRefused where it is more than rounding."""
    decisions = Decisions(followed=expected.decisions, skips=part_is_gone)
    try:
        found = run(slim, case, decisions)
    except CutRefused as refusal:
        raise CutRefused(
            f"the slim network differs from the given one: {refusal}: {cause}; nothing was changed"
        ) from refusal
    except Exception as failure:
        raise CutRefused(_does_not_run("", failure)) from failure
    apart = [float("inf")]  # it returns more or fewer tensors
    if len(found.outputs) == len(expected.outputs) and _same_values(expected.values, found.values):
        apart = [difference(a, b) for a, b in zip(expected.outputs, found.outputs, strict=True)]
    error = max(apart, default=0.0)
    if error > TOLERANCE:
        raise CutRefused(
            f"the slim network differs from the given one by {error:.1e} (relative, float64; rounding is at most"
            f" {TOLERANCE:.0e}): {cause}; nothing was changed"
        )
    return max(error, decisions.error)


def _same_values(expected: tuple[Any, ...], found: tuple[Any, ...]) -> bool:
    return len(expected) == len(found) and all(
        a == b or (isinstance(a, float) and isinstance(b, float) and (math.isclose(a, b, rel_tol=TOLERANCE) or a != a))
        for a, b in zip(expected, found, strict=True)
    )


def _blind(model: nn.Module, case: Call, expected: Run) -> list[bool]:
    """Return of every tensor in which a change would show whether it is the same for other inputs; [True] for none.

    Where no other input can be had, nothing is held against the network.
    """
    blind: list[bool] = []
    for factor in (0.5, -3.0):  # a sign may only turn over with the input's
        changed = (x.flip(0) * factor if x.ndim and x.is_floating_point() else x for x in case.tensors)
        try:
            other = run(model, case.with_tensors(changed))
        except Exception:  # its code does not take such numbers: they tell nothing
            continue
        pairs = zip_longest(expected.witnesses(), other.witnesses())
        same = [x is not None and y is not None and difference(x, y) == 0 for x, y in pairs] or [True]
        blind = [one and two for one, two in zip(blind, same, strict=False)] if blind else same
        if not any(blind):
            break
    return blind or [False]


def shows_change(first: Run, second: Run, least: float) -> bool:
    """Return whether some tensor in which a change would show differs between two runs, by more than ``least``.

    That is relative to the largest of the numbers that differ: a mask's -1e9 hides nothing.
    """

    def changed(x: Tensor, y: Tensor) -> bool:
        other = (x != y) & ~(x.isnan() & y.isnan())
        return bool(other.any()) and bool((x - y)[other].abs().max() > least * x[other].abs().max())

    pairs = zip_longest(first.witnesses(), second.witnesses())
    return any(x is None or y is None or x.shape != y.shape or changed(x, y) for x, y in pairs)


def _require_training(first: nn.Module, second: nn.Module, case: Call) -> None:
    """Refuse a slim network that cannot train although the zeroed one can: code that runs only then was not traced."""
    try:
        run(second.train(), case)
    except Exception as error:
        try:
            run(first.train(), case)
        except Exception:  # e.g. a batch norm that needs more than one value
            return
        raise CutRefused(_does_not_run("in training mode ", error)) from error


def _does_not_run(mode: str, error: Exception) -> str:
    return (
        f"the slim network does not run {mode}({one_line(error)}): the code uses a size or a part that is gone;"
        " nothing was changed"
    )
