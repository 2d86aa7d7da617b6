"""The proof of every step of the surgery: two networks that must compute the same do, in float64.

Both run in eval mode on the example inputs and on noise, in another batch size where the network takes one; then once
in training mode, where only code that holds a size can fail. Neither network is touched: copies run.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hoyer_export.channels.trace import ExampleInputs as ExampleInputs
from hoyer_export.channels.tracer import tensors_in
from hoyer_export.errors import CutRefused, one_line

# float64 sums of other lengths round differently: 1e-15 a term and some 10⁴ terms leave 1e-9 ample room, and a
# single wrong channel moves an output by orders of magnitude more.
TOLERANCE = 1e-9

Case = tuple[Tensor, ...]


def prove_equal(before: nn.Module, after: nn.Module, example_inputs: ExampleInputs, cause: str) -> float:
    """Return the largest difference of two networks' outputs, relative to the largest output, in float64.

    Args:
        before: the network as it was.
        after: what it was turned into.
        example_inputs: what both are called with.
        cause: what it means if they differ, for the message.

    Raises:
        CutRefused: they differ by more than rounding, or only the first one runs.
    """
    first, second = in_float64(before), in_float64(after)
    real, noise, together = proof_cases(example_inputs)
    with torch.no_grad():
        try:
            cases = [(together, run(first, together))]
        except Exception:  # the batch size is written into the code
            cases = [(case, run_in_float64(first, case)) for case in (real, noise)]
        if not all(bool(y.isfinite().all()) for _, expected in cases for y in expected if y.is_floating_point()):
            raise CutRefused(
                "the network's own outputs are not finite in float64 on the example inputs and on noise: nothing can be"
                " compared; look at its weights and inputs"
            )
        error = max((_error(second, case, expected) for case, expected in cases), key=_nan_is_largest)
        _require_training(first, second, real)
    if not error <= TOLERANCE:  # also refuses NaN
        raise CutRefused(
            f"the slim network differs from the given one by {error:.1e} (relative, float64; rounding is at most"
            f" {TOLERANCE:.0e}): {cause}; nothing was changed"
        )
    return error


def in_float64(model: nn.Module) -> nn.Module:
    """Return a copy in float64 and eval mode that shares no tensor with ``model``."""
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


def proof_cases(example_inputs: ExampleInputs) -> tuple[Case, Case, Case]:
    """Return the example inputs, noise of their shapes, and both in one batch with one more, in float64."""
    inputs = tuple(tensors_in(example_inputs))
    generator = torch.Generator().manual_seed(0)
    noise = tuple(
        torch.randn(x.shape, generator=generator).to(x.device, torch.float64) if x.is_floating_point() else x
        for x in inputs
    )
    real = tuple(x.detach().double() if x.is_floating_point() else x for x in inputs)
    # Another batch size, where the network takes one: a size may hide behind the example's.
    together = tuple(torch.cat([x, y, y[:1]]) if x.ndim else x for x, y in zip(real, noise, strict=True))
    return real, noise, together


def run(model: nn.Module, case: Case) -> list[Tensor]:
    """Return every tensor in the model's output; ``case`` stays as it is, also if the model writes into its input."""
    return list(tensors_in(model(*(x.clone() for x in case))))


def run_in_float64(model: nn.Module, case: Case) -> list[Tensor]:
    """Return what ``run`` returns for a network that is as it was given; CutRefused if it fails."""
    try:
        return run(model, case)
    except Exception as error:
        raise CutRefused(
            f"the network does not run in float64, which the cut is proved in ({one_line(error)}): give it inputs that"
            " fit, and let its code follow its input's type"
        ) from error


def _error(slim: nn.Module, case: Case, expected: list[Tensor]) -> float:
    try:
        found = run(slim, case)
    except Exception as error:
        raise CutRefused(_does_not_run("", error)) from error
    return float(max((_rel_error(a, b) for a, b in zip(expected, found, strict=True)), key=_nan_is_largest))


def _require_training(first: nn.Module, second: nn.Module, case: Case) -> None:
    """Refuse a slim network that cannot train although the zeroed one can: code that runs only then was not traced."""
    with torch.random.fork_rng(devices=[]):
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


def _rel_error(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if expected.is_complex() and found.is_complex():
        expected, found = torch.view_as_real(expected), torch.view_as_real(found)
    if not expected.is_floating_point() or expected.numel() == 0:
        return 0.0 if torch.equal(expected, found) else float("inf")
    expected, found = expected.double(), found.double()  # the code may have made it float32 by itself
    return float((expected - found).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny))


def _nan_is_largest(value: Any) -> float:
    return float("inf") if value != value else float(value)
