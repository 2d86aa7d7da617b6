"""How far two right answers may be apart: as far as torch's own float32 is from what it rounds.

    tolerance = max(1e-5 · s, 4 · max |y₃₂ − y₆₄|),    s = max(1, max |y₃₂|)

y₃₂ and y₆₄ are what the network returns in float32 and in float64. A normalisation divides what is constant by nearly
nothing: there torch's own result is amplified rounding, and another runtime rounds otherwise. Where more than 1e-3 · s
would have to be allowed, torch itself leaves the output open, and nothing can be compared on that input.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hoyer_export.deploy.onnx_file import first_line
from hoyer_export.errors import DataError

MOST = 1e-3
"""Relative; what would need more cannot be compared."""
_MARGIN = 4
"""Times torch's own rounding: onnxruntime rounds as well, and in another order."""

Inputs = tuple[Tensor, ...]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Expected:
    """What torch returns for one batch.

    Args:
        output: float32 as float64, [N, ...].
        scale: max(1, max |output|), the unit of relative errors.
        tolerance: largest difference of a right answer; None where torch leaves the output open.
    """

    output: Floats
    scale: float
    tolerance: float | None


def expected_output(network: nn.Module, exact: nn.Module | None, inputs: Inputs, least: float) -> Expected:
    """Run ``network`` on one batch, and its float64 copy ``exact`` where there is one.

    Args:
        network: float32, in eval mode.
        exact: the same in float64; None where that says nothing.
        inputs: one batch.
        least: relative tolerance where torch is certain.
    """
    output = torch_output(network, inputs)
    scale = scale_of(output)
    rounding = 0.0 if exact is None else max_error(torch_output(exact, as_float64(inputs)), output)
    if not math.isfinite(rounding):  # an output that is no number: nothing is allowed for it
        rounding = 0.0
    wanted = _MARGIN * rounding
    return Expected(output, scale, None if wanted > MOST * scale else max(least * scale, wanted))


def float64_copy(network: nn.Module, inputs: Inputs) -> nn.Module | None:
    """Return ``network`` in float64; None where some of it would not run in that, or runs in less than float32.

    A network that rounds by itself (an autocast inside, a literal ``.float()``) does so by what its code says, and any
    runtime has to do the same: that is no reason to allow for more.
    """
    exact = copy.deepcopy(network).double()
    try:
        for candidate, images in ((network, inputs), (exact, as_float64(inputs))):
            with torch.no_grad(), _Narrowing() as narrowing:
                candidate(*(x.clone() for x in images))
            if narrowing.found:
                return None
    except Exception:  # whatever a forward raises that meets a type it was not written for
        return None
    return exact


def torch_output(network: nn.Module, inputs: Inputs) -> Floats:
    """Return what ``network`` returns, as float64.

    Raises:
        DataError: it does not run on these inputs.
    """
    try:
        with torch.no_grad():
            output: Tensor = network(*(x.clone() for x in inputs))  # a network may write into its input
    except Exception as error:
        shapes = [list(x.shape) for x in inputs]
        raise DataError(f"the network does not run on inputs of shape {shapes} ({first_line(error)})") from error
    return output.double().numpy()


def as_float64(inputs: Inputs) -> Inputs:
    """Return inputs with the floating-point ones in float64."""
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def scale_of(output: Floats) -> float:
    """Return max(1, max |output|): the error's unit."""
    largest = float(np.abs(output).max(initial=0))
    return max(1.0, largest) if math.isfinite(largest) else 1.0


def max_error(output: Floats, expected: Floats) -> float:
    """Return max |output − expected|; infinite where the shapes differ, or something is not a number."""
    if output.shape != expected.shape:
        return math.inf
    with np.errstate(invalid="ignore"):  # inf - inf
        largest = float(np.abs(output - expected).max(initial=0))
    return largest if math.isfinite(largest) else math.inf  # NaN compares with nothing


class _Narrowing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices an operation that returns fewer digits than it was given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given, returned = _bits((args, kwargs)), _bits(output)
        self.found |= bool(given and returned) and min(returned) < max(given)
        return output


def _bits(value: Any) -> list[int]:
    return [
        torch.finfo(leaf.dtype).bits
        for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    ]
