"""Let training go on in the slim model: its optimizer, with the dense one's state sliced by the plan.

What is proved: the slim model's next step equals the zeroed model's on the surviving weights and running statistics.
Nothing flows through a removed channel in either direction, so the surviving gradients are equal, and each update rule
here works element by element.

Where they part: the zeroed model's own optimizer still holds momentum of the removed slices, which moves them away from
zero in that very step (v ← μ v + 0, w ← −lr v); from then on they count again. Where that momentum is zero too, all
later steps agree as well.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from hoyer_export.errors import HoyerExportError
from hoyer_export.surgery.plan import kept_slices
from hoyer_export.surgery.step import SlimModel

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)

# Their state is a number a weight, or one number (``step``); what others keep may not be sliced like the weight.
_SLICED = (SGD, Adam, AdamW)


def slice_optimizer(optimizer: AnyOptimizer, model: nn.Module, slim: SlimModel) -> AnyOptimizer:
    """Return an optimizer of ``slim.model`` that goes on where ``optimizer`` stands; nothing else is changed.

    It is of the same class, with the same parameter groups in the same order and their options; parameters are found
    by name, tied ones once. Those that the cut removed are left out; those that it added (a bias that took up a
    constant) join the group of their module's other parameters, without state. A learning-rate scheduler holds on to
    the old optimizer: make it again for the new one.

    Args:
        optimizer: ``SGD``, ``Adam`` or ``AdamW`` over parameters of ``model``.
        model: the model that was cut, from which ``slim.plan`` starts.
        slim: what ``cut`` returned for it.

    Returns:
        The new optimizer; momenta are sliced by ``slim.plan``.

    Raises:
        HoyerExportError: another class of optimizer, a parameter that ``model`` does not have, or a state that is
            neither one number nor of its parameter's shape.
    """
    if type(optimizer) not in _SLICED:
        known = ", ".join(kind.__name__ for kind in _SLICED)
        raise HoyerExportError(
            f"the state of {type(optimizer).__name__} cannot be sliced (only {known}'s): make a new optimizer for the"
            " slim model"
        )
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    targets = dict(slim.model.named_parameters())
    for name, parameter in model.named_parameters():
        if (shape := tuple(parameter.shape)) != (expected := slim.plan.shapes.get(name, shape)):
            raise HoyerExportError(
                f"{name} has shape {shape}, but the plan starts from {expected}: pass the model that was cut, and its"
                " optimizer"
            )
    groups = []
    for group, parameters in zip(optimizer.param_groups, _parameters(optimizer, name_of, targets), strict=True):
        options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        groups.append({**copy.deepcopy(options), "params": parameters})
    # Adam and AdamW keep another default, which tells them apart.
    taken = optimizer.defaults.keys() & inspect.signature(type(optimizer)).parameters.keys()
    new = type(optimizer)(groups, **{key: optimizer.defaults[key] for key in taken})
    for dense, state in optimizer.state.items():
        name = name_of[id(dense)]
        if name in targets:
            dims = slim.plan.kept.get(name, {})
            new.state[targets[name]] = {
                key: _sliced_state(f"{key} of {name}", value, dense, targets[name], dims)
                for key, value in state.items()
            }
    return new


def _parameters(
    optimizer: Optimizer, name_of: Mapping[int, str], targets: Mapping[str, nn.Parameter]
) -> list[list[nn.Parameter]]:
    """Return the parameters of each group among ``targets``, the slim model's parameters by name."""
    groups: list[list[nn.Parameter]] = []
    group_of_module: dict[str, list[nn.Parameter]] = {}
    for number, group in enumerate(optimizer.param_groups):
        groups.append([])
        for parameter in group["params"]:
            if (name := name_of.get(id(parameter))) is None:
                raise HoyerExportError(
                    f"parameter group {number} of the optimizer holds a parameter of shape {tuple(parameter.shape)}"
                    " that is not the model's: pass the model that the optimizer trained"
                )
            if name in targets:
                groups[-1].append(targets[name])
            group_of_module.setdefault(_module(name), groups[-1])
    for name in sorted(targets.keys() - set(name_of.values())):
        if _module(name) not in group_of_module:
            raise HoyerExportError(f"no parameter group of the optimizer holds a parameter beside {name}, which is new")
        group_of_module[_module(name)].append(targets[name])
    return groups


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _sliced_state(what: str, value: object, dense: Tensor, slim: Tensor, dims: Mapping[int, Tensor]) -> object:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return copy.deepcopy(value)
    if value.shape != dense.shape:
        raise HoyerExportError(
            f"the optimizer's {what} has shape {tuple(value.shape)}, expected its parameter's {tuple(dense.shape)}:"
            " pass the optimizer as it was before the cut"
        )
    # Laid out in memory as the parameter is.
    empty = torch.empty_like(slim, dtype=value.dtype, device=value.device, requires_grad=False)
    return empty.copy_(kept_slices(value, dims))
