"""How far a right answer may be from torch's: as far as torch's own answer is from what it rounds.

    tolerance = max(1e-5 · s, 4 · r), at most 1e-3 · s,     s = max(1, max |y₃₂|)
    r = max(max |y₃₂ − y₆₄|, max |ỹ₆₄ − y₆₄|)           of four ỹ

y₃₂ and y₆₄ are what the network returns in float32 and in float64; ỹ₆₄ likewise in float64, but with every sum of n
terms √n units in the last place of float32 too large or too small, as runtimes are that add in another order, and
every mean n / 64: so far does onnxruntime get that adds equal numbers one after the other (1.32, ReduceMean: n / 68,
from 64 to 262,144 of them). A normalisation divides what is constant by nearly nothing: what comes out is amplified
rounding. Torch's may by chance, or by a more careful sum, be small, so that y₃₂ alone would not show it. Where more
than 1e-3 · s would have to be allowed, torch itself leaves the output open, and a difference on that input says
nothing about a file.

Source of ỹ: D. S. Parker, Monte Carlo arithmetic, UCLA CSD-970002, 1997; here multiplied, and on sums alone.
"""

import copy
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch.utils._pytree import tree_leaves

from hoyer_export.call import Call
from hoyer_export.deploy.onnx_file import first_line
from hoyer_export.deploy.weight_sizes import unfused
from hoyer_export.errors import DataError
from hoyer_export.operations import Watched
from hoyer_export.tensors import tensors_in

LEAST = 1e-5
"""Relative: what two runtimes that round differently may differ by, where torch is certain."""
MOST = 1e-3
"""Relative: what would need more cannot be compared."""
MARGIN = 4
"""Times torch's own rounding: onnxruntime rounds as well."""
_DRAWS = 4
"""Of the signs of the roundings: they may cancel."""
_UNIT = 2.0**-23
"""In the last place of float32, relative."""
# Product → which operand's last axis is summed over.
_PRODUCTS = dict.fromkeys(("mm", "bmm", "mv", "dot"), 0) | dict.fromkeys(("addmm", "baddbmm", "addmv"), 1)
_MEANS = ("mean", "sum", "linalg_vector_norm", "logsumexp", "_adaptive_avg_pool2d")
_VARIANCES = ("var", "var_mean", "std", "std_mean")

Floats = NDArray[np.float64]
Outputs = list[Floats]


@dataclass(frozen=True)
class Expected:
    """What torch returns for one batch.

    Args:
        call: with the batch.
        outputs: float32 as float64, each [N, ...].
        scales: of each max(1, max |output|), the unit of relative errors.
    """

    call: Call
    outputs: Outputs
    scales: list[float]

    @staticmethod
    def of(call: Call, outputs: Outputs) -> "Expected":
        """Return outputs with their scales."""
        largest = [float(np.abs(output).max(initial=0)) for output in outputs]
        return Expected(call, outputs, [max(1.0, it) if math.isfinite(it) else 1.0 for it in largest])

    def rows(self, count: int) -> "Expected":
        """Return what belongs to the first ``count`` examples; every output has a row for each."""
        return Expected.of(self.call.rows(slice(count)), [output[:count] for output in self.outputs])


@dataclass(frozen=True)
class Judged:
    """One difference from what torch returns.

    Args:
        error: largest difference; infinite where something is not a number or has another shape.
        tolerance: what it may be.
        scale: unit of both, max(1, max |torch|).
        is_open: it is larger, but so is what torch's own rounding does: nothing follows.
    """

    error: float
    tolerance: float
    scale: float
    is_open: bool


class Rounding:
    """How certain torch is of a network's outputs; looked at only where a difference asks for it.

    Args:
        network: float32, in eval mode, on the CPU.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._exact: nn.Module | None = None
        self._rounding: dict[tuple[bytes, ...], list[float]] = {}

    def expected(self, call: Call) -> Expected:
        """Run the network on one batch."""
        return Expected.of(call, torch_outputs(self._network, call))

    def judge(self, found: Outputs, reference: Outputs, expected: Expected, least: float = LEAST) -> list[Judged]:
        """Compare outputs for the batch that ``expected`` belongs to; ``least`` is the relative tolerance."""
        pairs = zip(found, reference, strict=True)
        return [self._judge(at, max_error(*pair), expected, least) for at, pair in enumerate(pairs)]

    def _judge(self, at: int, error: float, expected: Expected, least: float) -> Judged:
        scale = expected.scales[at]
        tolerance = least * scale
        if error <= tolerance or not np.isfinite(expected.outputs[at]).all():
            return Judged(error, tolerance, scale, False)
        wanted = MARGIN * self._rounded(expected.call)[at]
        tolerance = max(tolerance, min(wanted, MOST * scale))
        return Judged(error, tolerance, scale, error > tolerance and wanted > MOST * scale)

    def _rounded(self, call: Call) -> list[float]:
        """Return r of each output, once a batch; infinite where rounding alone may lead to what is no number."""
        if all(bool((x == x[:1]).all()) for x in call.tensors if call.is_batched(x)):
            call = call.rows(slice(1))  # equal images are as certain as one of them
        key = tuple(x.numpy().tobytes() for x in call.tensors)
        if key not in self._rounding:
            self._rounding[key] = self._round(call)
        return self._rounding[key]

    def _round(self, call: Call) -> list[float]:
        exact = self._exact = self._exact or float64_copy(self._network, call)
        if exact is None:
            return [0.0] * len(torch_outputs(self._network, call))
        doubles = _as_float64(call)
        right = torch_outputs(exact, doubles)
        errors = [_max_errors(torch_outputs(self._network, call), right)]
        for seed in range(_DRAWS):
            # torch takes a norm apart in most forms, not in all; then what is known without is what counts.
            with unfused(), Watched(_Rounding(seed).see), suppress(DataError):
                errors.append(_max_errors(torch_outputs(exact, doubles), right))
        return [max(of_output) for of_output in zip(*errors, strict=True)]


def float64_copy(network: nn.Module, call: Call) -> nn.Module | None:
    """Return ``network`` in float64; None where some of it would not run in that, or runs in less than float32.

    A network that rounds by itself (an autocast inside, a literal ``.float()``) does so by what its code says, and any
    runtime has to do the same: that is no reason to allow for more.
    """

    narrowed = []

    def see(func: Any, args: Any, kwargs: Any) -> Any:
        output = func(*args, **kwargs)
        given, returned = _bits((args, kwargs)), _bits(output)
        narrowed.append(bool(given and returned) and min(returned) < max(given))
        return output

    exact = copy.deepcopy(network).double()
    try:
        with torch.no_grad(), Watched(see):
            call.on(network)
            _as_float64(call).on(exact)
    except Exception:  # whatever a forward raises that meets a type it was not written for
        return None
    return None if any(narrowed) else exact


def torch_outputs(network: nn.Module, call: Call) -> Outputs:
    """Return every tensor that ``network`` returns, as float64.

    Raises:
        DataError: it does not run on these inputs.
    """
    try:
        with torch.no_grad():
            outputs = call.on(network)
    except Exception as error:
        raise DataError(f"the network does not run on inputs of shape {call.shapes} ({first_line(error)})") from error
    return [output.double().numpy() for output in tensors_in(outputs)]


def _as_float64(call: Call) -> Call:
    """Return a call with the floating-point tensors in float64."""
    return call.map(lambda x: x.double() if x.is_floating_point() else x)


def _max_errors(outputs: Outputs, expected: Outputs) -> list[float]:
    return list(map(max_error, outputs, expected))


def max_error(output: Floats, expected: Floats) -> float:
    """Return max |output − expected|; infinite where the shapes differ, or something is not a number."""
    if output.shape != expected.shape:
        return math.inf
    with np.errstate(invalid="ignore"):  # inf - inf
        largest = float(np.abs(output - expected).max(initial=0))
    return largest if math.isfinite(largest) else math.inf  # NaN compares with nothing


class _Rounding:
    """Puts every sum off by as much as runtimes differ in it, up or down."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def see(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        if "_norm" in name and func in decomposition_table:  # the sums inside
            with Watched(self.see):
                return decomposition_table[func](*args, **kwargs)
        output = func(*args, **kwargs)
        if name in _VARIANCES:
            return self._variance(name, args, kwargs, output)
        if name == "convolution":
            return self._off(output, math.sqrt(args[1][0].numel()))
        if name in _PRODUCTS:
            return self._off(output, math.sqrt(args[_PRODUCTS[name]].shape[-1]))
        return self._off(output, _units(args[0], output)) if name in _MEANS else output

    def _variance(self, name: str, args: Any, kwargs: Any, output: Any) -> Any:
        """Let the mean be off: Σ (x - m - e)² / n = var + e²."""
        values, means = output if isinstance(output, tuple) else (output, None)
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        mean = args[0].mean(dims, values.ndim == args[0].ndim)
        error = self._off(mean.clone(), _units(args[0], mean)) - mean
        values = (values**2 + error**2).sqrt() if name.startswith("std") else values + error**2
        return values if means is None else (values, means + error)

    def _off(self, output: Tensor, units: float) -> Tensor:
        if output.dtype == torch.float64:
            output *= 1 + _UNIT * units * (
                2 * torch.rand(output.shape, generator=self._generator, dtype=output.dtype) - 1
            )
        return output


def _units(given: Tensor, reduced: Tensor) -> float:
    terms = given.numel() / max(reduced.numel(), 1)
    return max(math.sqrt(terms), terms / 64)


def _bits(value: Any) -> list[int]:
    return [
        torch.finfo(leaf.dtype).bits
        for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    ]
