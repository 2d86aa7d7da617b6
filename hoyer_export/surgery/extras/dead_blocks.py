"""Dead residual blocks: where the branch is zero, act(shortcut(x) + branch(x)) becomes act(shortcut(x)).

A block is any module that turns one tensor into another and holds a layer whose weights are all exactly zero. What it
becomes is found by trying: the identity or one of its children (a projection), followed by nothing, by one of its
children without parameters, or by a ReLU, which the code may call as a function. The block alone has to agree with it
to the last bit in float64, on what reaches it and on noise (behind another block's ReLU nothing would tell the identity
from a ReLU), and in training mode too. Then the whole network is proved.

A branch that is one constant c a channel is folded into the bias at the end of the projection, to rounding. A shortcut
that is the identity has no place for it, and the block stays.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hoyer_export.call import Call, ExampleInputs
from hoyer_export.random_state import kept_random_state, seed_generators
from hoyer_export.surgery.edits import ShortcutEdit, shortcut_of
from hoyer_export.surgery.plan import PruningPlan
from hoyer_export.surgery.proof import in_float64, proof_cases, run_in_float64
from hoyer_export.surgery.step import SlimModel, as_slim, proved_step

_SCALES = (3.0, 1e6)
"""Of the noise: a ReLU6 saturates at the first, and a ReLU that sleeps behind a large shift wakes up at the second."""

_CAUSE = "the dead blocks are used in another way as well"

_ROUNDING = 1e-12
"""Relative; what adding a constant before or after the projection's own shift may change."""


def remove_dead_blocks(model: nn.Module | SlimModel, example_inputs: ExampleInputs) -> SlimModel:
    """Return a new model in which every residual block whose branch is zero or constant is its own shortcut.

    ``model`` is not changed, and parameters that stay keep their names. Trace the new model before it is cut:
    ``slim = remove_dead_blocks(model, x)``, then ``cut(slim, trace_channels(slim.model, x), keep, x)``.

    Args:
        model: a model, or what an earlier step returned: its plan goes on.
        example_inputs: what the model is called with, as for ``trace_channels``, or a ``Call``.

    Returns:
        The new model; its ``plan.edits`` name the blocks. What was given, where no block is dead.

    Raises:
        CutRefused: the new model computes something else, or the code uses a part of a block that is gone.
    """
    given = as_slim(model)
    if not any(_candidates(given.model)):
        return given
    wide, call = in_float64(given.model), Call.of(given.model, example_inputs)
    reductions: list[_Reduction] = []
    for name, x in _inputs(wide, call).items():
        if any(name.startswith(f"{reduction.edit.module}.") for reduction in reductions):
            continue  # goes with the block that it is part of
        if not _shares(wide, name) and (reduction := _reduction(name, wide.get_submodule(name), x)) is not None:
            reductions.append(reduction)
    if not reductions:
        return given

    def fill_(model: nn.Module) -> None:
        with torch.no_grad():
            for name, by in (shift for reduction in reductions for shift in reduction.shifts.items()):
                bias = model.get_parameter(name)
                bias.copy_(bias.double() + by)

    plan = PruningPlan(edits=tuple(reduction.edit for reduction in reductions))
    return proved_step(given, plan, call, cause=_CAUSE, fill_=fill_)


@dataclass(frozen=True)
class _Reduction:
    """What a block becomes, and what is added to its biases for it."""

    edit: ShortcutEdit
    shifts: dict[str, Tensor] = field(default_factory=dict)


def _shares(model: nn.Module, block: str) -> bool:
    """Return whether a block holds a parameter of a layer outside, which would lose its name with the block."""
    inside: set[int] = set()
    outside: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        (inside if name.startswith(f"{block}.") else outside).add(id(parameter))
    return not inside.isdisjoint(outside)


def _trains(block: nn.Module, chain: nn.Module, x: Tensor) -> bool:
    """Return whether both also agree in training mode, where dropout works and norms look at the batch."""
    outputs = []
    with kept_random_state():
        for module in (block, chain):
            seed_generators(0, x.device)
            outputs.append(_call(copy.deepcopy(module).train(), x))
    return outputs[0] is None or _is_equal(outputs[1], outputs[0], _ROUNDING)


def _candidates(model: nn.Module) -> Iterator[str]:
    """Yield the modules, outermost first, that hold a layer of zeros: one of those may be what silences a branch."""
    weights = ((name, module._parameters.get("weight")) for name, module in model.named_modules())
    zero = [name for name, weight in weights if weight is not None and not bool(weight.any())]
    for name, _ in model.named_modules():
        if name and any(layer.startswith(f"{name}.") for layer in zero):
            yield name


def _inputs(model: nn.Module, call: Call) -> dict[str, Tensor]:
    """Return what reaches every candidate that turns one tensor into another, outermost first."""
    inputs: dict[str, Tensor] = {}

    def after(name: str, module: nn.Module, args: Any, options: Any, output: Any) -> None:
        if len(args) == 1 and not options and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            inputs[name] = args[0].clone()

    candidates = list(_candidates(model))
    with ExitStack() as hooks, torch.no_grad():
        for name in candidates:
            module = model.get_submodule(name)
            hooks.callback(module.register_forward_hook(partial(after, name), with_kwargs=True).remove)
        run_in_float64(model, proof_cases(call)[0])
    return {name: inputs[name] for name in candidates if name in inputs}


@torch.no_grad()
def _reduction(name: str, block: nn.Module, x: Tensor) -> _Reduction | None:
    """Return what a block may become, the simplest first; None if its branch is not zero."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
    inputs = (x, *(scale * noise for scale in _SCALES))
    cases = [(case, output) for case in inputs if (output := _call(block, case)) is not None]
    # A module that puts out zeros has no shortcut.
    if len(cases) < len(inputs) or not all(bool(output.any()) for _, output in cases):
        return None
    edits = list(_possible(name, block))
    for edit in edits:
        chain = shortcut_of(block, edit)
        if all(_is_equal(_call(chain, case), output, 0.0) for case, output in cases) and _trains(block, chain, x):
            return _Reduction(edit)
    constants = _constants(block, noise)
    for edit in edits:
        chain = copy.deepcopy(shortcut_of(block, edit))
        biases = [child for child, parameter in chain.named_parameters() if child.rpartition(".")[2] == "bias"]
        for constant in constants if biases else []:
            bias = chain.get_parameter(biases[-1])
            if bias.shape == constant.shape:
                bias.add_(constant)
                exact = all(_is_equal(_call(chain, case), output, _ROUNDING) for case, output in cases)
                if exact and _trains(block, chain, x):
                    return _Reduction(edit, {f"{name}.{biases[-1]}": constant})
                bias.sub_(constant)
    return None


def _possible(name: str, block: nn.Module) -> Iterator[ShortcutEdit]:
    """Yield every chain of a shortcut and an activation that a block could be, the simplest first."""
    children = [child for child, _ in block.named_children()]
    activations = [child for child in children if not list(block.get_submodule(child).parameters())]
    for shortcut in ((), *((child,) for child in children)):
        yield ShortcutEdit(module=name, children=shortcut, relu=False)
        for activation in activations:
            if activation not in shortcut:
                yield ShortcutEdit(module=name, children=(*shortcut, activation), relu=False)
        if "relu" not in shortcut:
            yield ShortcutEdit(module=name, children=shortcut, relu=True)


def _constants(block: nn.Module, x: Tensor) -> list[Tensor]:
    """Return [C] for every layer in a block that puts out one constant a channel, other than zero."""
    found: list[Tensor] = []

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim >= 2 and any(module._parameters):
            values = output.transpose(0, 1).flatten(1)  # [C, N · H · W]
            if bool(values[:, 0].any()) and bool((values == values[:, :1]).all()):
                found.append(values[:, 0].clone())

    with ExitStack() as hooks:
        for module in block.modules():
            hooks.callback(module.register_forward_hook(after).remove)
        block(x)
    return found


def _call(module: nn.Module, x: Tensor) -> Tensor | None:
    try:
        output = module(x.clone())
    except Exception:  # tried on an input that is not its own
        return None
    return output if isinstance(output, Tensor) else None


def _is_equal(found: Tensor | None, expected: Tensor, tolerance: float) -> bool:
    if found is None or found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
