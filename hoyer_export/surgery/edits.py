"""Edits: what a plan does to the dense network besides keeping slices. Applied after the slices, in their order.

=============  =====================================================================================================
``attribute``  a size that a module keeps in an attribute follows the cut: ``num_heads`` 12 → 7
``bias``       a layer without a bias gains one, in which a constant is folded
``shortcut``   a dead residual block becomes its own shortcut and activation
``gather``     a linear layer reads only those input features whose columns the plan keeps
``order``      a module that shuffles channels puts those that are left in order
``narrow``     an attention that takes the width of its heads from its input sees one that is as wide as they are
``refit``      weights were fitted anew after the cut: nothing to do, they are in the file
=============  =====================================================================================================

In JSON an edit is its fields and its kind: ``{"kind": "bias", "module": "layer1.0.conv2"}``. Nothing that a plan says
is ever executed or imported.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ORDER
from hoyer_export.errors import FileError
from hoyer_export.modules.narrowed import narrow_
from hoyer_export.record import Record

KeptIndices = Mapping[str, Mapping[int, Tensor]]
"""Parameter or buffer → dimension → sorted int64 indices that stay."""

Size = Annotated[int, Field(ge=0, lt=2**31)]


def _without_repeats(children: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(children)) < len(children):
        raise ValueError("a child is named twice")
    return children


class AttributeEdit(Record):
    """A size in a module's attribute, or at ``index`` of a list or tuple there, becomes ``slim``."""

    kind: Literal["attribute"] = "attribute"
    module: str
    attribute: str
    index: Annotated[int, Field(ge=0)] | None
    dense: Size
    slim: Size

    @property
    def place(self) -> tuple[str, str, int | None]:
        """Where the size is."""
        return self.module, self.attribute, self.index


class BiasEdit(Record):
    """A convolution or linear layer gains a bias, zero at first."""

    kind: Literal["bias"] = "bias"
    module: str

    @property
    def bias(self) -> str:
        """Name of the new parameter."""
        return f"{self.module}.bias".lstrip(".")


class ShortcutEdit(Record):
    """A module becomes the chain of some of its children, under their names, and of a ReLU where its code had one.

    Args:
        module: name of the block.
        children: names of its children, in the order in which they run; none is the identity.
        relu: a ReLU comes last.
    """

    kind: Literal["shortcut"] = "shortcut"
    module: str
    # A JSON array arrives as a list, which a strict tuple refuses.
    children: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_without_repeats)]
    relu: bool


class GatherEdit(Record):
    """A linear layer picks the input features whose weight columns the plan keeps."""

    kind: Literal["gather"] = "gather"
    module: str

    @property
    def weight(self) -> str:
        """Name of the weight whose columns these are."""
        return f"{self.module}.weight".lstrip(".")


def _is_permutation(order: tuple[int, ...]) -> tuple[int, ...]:
    if sorted(order) != list(range(len(order))):
        raise ValueError("a place is named twice or left out")
    return order


class OrderEdit(Record):
    """A module's output takes its channels along ``dim`` in another order: place i is where ``order[i]`` was."""

    kind: Literal["order"] = "order"
    module: str
    dim: Annotated[int, Field(ge=0, lt=8)]
    order: Annotated[tuple[Size, ...], Field(strict=False), AfterValidator(_is_permutation)]


class NarrowEdit(Record):
    """A module sees an input that is ``width`` channels wide; its linear ``layers`` get the true one."""

    kind: Literal["narrow"] = "narrow"
    module: str
    layers: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_without_repeats)]
    width: Annotated[int, Field(ge=1, lt=2**31)]


class RefitEdit(Record):
    """Weights were refitted by least squares to the dense network's outputs on ``images`` calibration images."""

    kind: Literal["refit"] = "refit"
    module: Literal[""] = ""
    images: Annotated[int, Field(ge=1)]
    weights: Annotated[tuple[str, ...], Field(strict=False)]


Edit = Annotated[
    AttributeEdit | BiasEdit | ShortcutEdit | GatherEdit | OrderEdit | NarrowEdit | RefitEdit,
    Field(discriminator="kind"),
]
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_RELU = "relu"


class GatheredLinear(nn.Linear):
    """y = x[..., index] Wᵀ + b: a linear layer that leaves some of its input features out.

    ``index`` is no part of the state: it comes from the plan.
    """

    index: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_features] of [..., all input features]."""
        return super().forward(x.index_select(-1, self.index))


def in_order(dim: int, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Put a module's output in order: a forward hook."""
    return output.index_select(dim, module.get_buffer(ORDER))


def check_edit(model: nn.Module, edit: Edit, kept: KeptIndices) -> None:
    """Require that an edit fits the network.

    Args:
        model: the network, its slices taken out or not.
        edit: what is to be done to it.
        kept: the plan's.

    Raises:
        FileError: the module, attribute or child does not exist, or is not what the edit was made for.
    """
    # Not get_submodule: it would run any property that the plan names.
    module = dict(model.named_modules(remove_duplicate=False)).get(edit.module)
    if module is None:
        raise FileError(f"the pruning plan edits {edit.module!r}, which the network does not have")
    match edit:
        case AttributeEdit():
            found = size_in(module, edit.attribute, edit.index)
            # A module that torch knows says its slim size already.
            if type(found) is not int or found not in (edit.dense, edit.slim) or edit.slim > edit.dense:
                where = f"{edit.module}.{edit.attribute}" + (f"[{edit.index}]" if edit.index is not None else "")
                raise FileError(
                    f"the pruning plan makes {where} {edit.slim}, down from {edit.dense}, but the network's is"
                    f" {str(found)[:40]}"
                )
        case BiasEdit():
            if type(module) not in _LAYERS or module.bias is not None:
                raise FileError(f"the pruning plan gives {edit.module} a bias, but it has one or takes none")
        case ShortcutEdit():
            taken = edit.relu and _RELU in edit.children
            if (
                not edit.module
                or taken
                or not all(isinstance(module._modules.get(child), nn.Module) for child in edit.children)
            ):
                raise FileError(f"the pruning plan reduces {edit.module!r} to {edit.children}, which it does not have")
        case NarrowEdit():
            if not all(type(module._modules.get(layer)) is nn.Linear for layer in edit.layers):
                raise FileError(f"the pruning plan narrows the input of {edit.module!r}, which has no {edit.layers}")
        case GatherEdit():
            if type(module) not in (nn.Linear, GatheredLinear) or 1 not in kept.get(edit.weight, {}):
                raise FileError(f"the pruning plan gathers the inputs of {edit.module}, which is no such linear layer")


def apply_edit_(model: nn.Module, edit: Edit, kept: KeptIndices) -> None:
    """Do ``edit`` to the network, whose slices are taken out, in place; args and errors of ``check_edit``."""
    check_edit(model, edit, kept)
    module = model.get_submodule(edit.module)
    match edit:
        case AttributeEdit(attribute=name, index=None):
            vars(module)[name] = edit.slim
        case AttributeEdit(attribute=name):
            sizes: Any = vars(module)[name]
            vars(module)[name] = type(sizes)(edit.slim if at == edit.index else n for at, n in enumerate(sizes))
        case BiasEdit():
            weight = module.weight
            assert isinstance(weight, Tensor)
            module.bias = nn.Parameter(weight.new_zeros(len(weight)))
            module.bias.requires_grad_(weight.requires_grad)
        case ShortcutEdit():
            owner, _, name = edit.module.rpartition(".")
            model.get_submodule(owner)._modules[name] = shortcut_of(module, edit)
        case GatherEdit():
            # The same object, so that its hooks and other names stay.
            index = kept[edit.weight][1].to(module.get_parameter("weight").device)
            index = module.index[index] if isinstance(module, GatheredLinear) else index  # of what it picks already
            module.__class__ = GatheredLinear
            module.register_buffer("index", index, persistent=False)
        case NarrowEdit():
            narrow_(module, edit.width, edit.layers)
        case OrderEdit():
            if ORDER not in module._buffers:  # an earlier cut's hook stays
                module.register_forward_hook(partial(in_order, edit.dim))
            device = next(model.parameters()).device  # a shuffle has none of its own
            module.register_buffer(ORDER, torch.tensor(edit.order, device=device), persistent=False)


def size_in(module: nn.Module, attribute: str, index: int | None) -> Any:
    """Return what a module holds in an attribute, or at ``index`` of a list or tuple there; None if nothing.

    Read from the instance alone: a property would run code that a plan chose.
    """
    found: Any = vars(module).get(attribute)
    if index is None:
        return found
    return found[index] if type(found) in (list, tuple) and index < len(found) else None


def shortcut_of(block: nn.Module, edit: ShortcutEdit) -> nn.Sequential:
    """Return what ``edit`` makes of ``block``, whose children it shares."""
    chain = OrderedDict((name, _not_in_place(block.get_submodule(name))) for name in edit.children)
    if edit.relu:
        chain[_RELU] = nn.ReLU()
    slim = nn.Sequential(chain)
    slim.training = block.training
    # The hooks of the block stay: they see the same input and output.
    vars(slim).update({key: value for key, value in vars(block).items() if key.endswith("_hooks")})
    return slim


def _not_in_place(module: nn.Module) -> nn.Module:
    """Return the module such that it does not write into its input, which now is the block's own input."""
    if not getattr(module, "inplace", False):
        return module
    module = copy.copy(module)
    vars(module)["inplace"] = False
    return module
