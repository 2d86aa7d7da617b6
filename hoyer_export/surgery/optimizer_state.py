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
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from hoyer_export.errors import HoyerExportError
from hoyer_export.surgery.plan import PruningPlan
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
    _check_starts_from(model, slim.plan)
    new = type(optimizer)(_groups(optimizer, name_of, targets), **_constructor_options(optimizer))
    for dense, state in optimizer.state.items():
        name = name_of[id(dense)]
        if name in targets:
            new.state[targets[name]] = _sliced_state(name, state, dense, targets[name], slim.plan)
    return new


def _check_starts_from(model: nn.Module, plan: PruningPlan) -> None:
    for name, parameter in model.named_parameters():
        found = tuple(parameter.shape)
        if found != (dense := plan.shapes.get(name, found)):
            raise HoyerExportError(
                f"{name} has shape {found}, but the plan starts from {dense}: pass the model that was cut, and its"
                " optimizer"
            )


def _groups(
    optimizer: Optimizer, name_of: Mapping[int, str], targets: Mapping[str, nn.Parameter]
) -> list[dict[str, Any]]:
    """Return the parameter groups over ``targets``, the slim model's parameters by name."""
    groups: list[dict[str, Any]] = []
    group_of_module: dict[str, list[nn.Parameter]] = {}
    for number, group in enumerate(optimizer.param_groups):
        names = [_name(parameter, name_of, number) for parameter in group["params"]]
        options = {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", "param_names")}
        groups.append({**options, "params": [targets[name] for name in names if name in targets]})
        for name in names:
            group_of_module.setdefault(_module(name), groups[-1]["params"])
    for name in sorted(targets.keys() - set(name_of.values())):
        if _module(name) not in group_of_module:
            raise HoyerExportError(f"no parameter group of the optimizer holds a parameter beside {name}, which is new")
        group_of_module[_module(name)].append(targets[name])
    return groups


def _name(parameter: Tensor, name_of: Mapping[int, str], group: int) -> str:
    if id(parameter) not in name_of:
        raise HoyerExportError(
            f"parameter group {group} of the optimizer holds a parameter of shape {tuple(parameter.shape)} that is not"
            " the model's: pass the model that the optimizer trained"
        )
    return name_of[id(parameter)]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _constructor_options(optimizer: Optimizer) -> dict[str, Any]:
    """Return the defaults that the constructor takes: Adam and AdamW keep another one that tells them apart."""
    taken = inspect.signature(type(optimizer)).parameters
    return {key: value for key, value in optimizer.defaults.items() if key in taken}


def _sliced_state(
    name: str, state: Mapping[str, Any], dense: Tensor, slim: Tensor, plan: PruningPlan
) -> dict[str, Any]:
    sliced: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            sliced[key] = copy.deepcopy(value)
            continue
        if value.shape != dense.shape:
            raise HoyerExportError(
                f"the optimizer's {key} of {name} has shape {tuple(value.shape)}, expected its parameter's"
                f" {tuple(dense.shape)}: pass the optimizer as it was before the cut"
            )
        kept = value
        for dim, indices in plan.kept.get(name, {}).items():
            kept = kept.index_select(dim, indices.to(value.device))
        # Laid out in memory as the parameter is.
        sliced[key] = torch.empty_like(slim, dtype=value.dtype, device=value.device, requires_grad=False).copy_(kept)
    return sliced
