"""What hangs on a network beside its tensors: kept by a cut, or refused with the way out; never lost in silence.

==========================================  ===========================================================================
hooks of modules (forward, backward, ...)   kept; they may not count on the dense widths: nothing checks a backward one
Python attributes of parameters, buffers    kept (``parameter.decay = False``), refused where one is a tensor
gradient hooks of parameters                refused: a copy loses them
parametrizations                            kept; what they compute is traced and proved like any other code
parameters of a class of their own          refused where they are cut
``.grad``                                   dropped, as by every copy: call ``zero_grad`` or cut after the step
``model.compile()``                         dropped: compile the slim model
a ``ScriptModule`` inside                   kept whole: tracing cannot look into it
==========================================  ===========================================================================

Networks that are wrapped, quantised, lazy or masked are refused earlier, by tracing.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from hoyer_export.errors import CutRefused
from hoyer_export.tensors import named_tensors


def check_attachments(model: nn.Module, sliced: Iterable[str]) -> None:
    """Refuse what a cut of ``model`` would lose or get wrong.

    Args:
        model: the network that is to be cut.
        sliced: names of the parameters and buffers that the cut slices.

    Raises:
        CutRefused: what it is, where, and what to do.
    """
    for name in sliced:
        _check_sliced(model, name)
    for name, tensor in named_tensors(model).items():
        # No public way to ask for them.
        if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
            raise CutRefused(
                f"{name} has a gradient hook, which a copy loses: remove it, and register it on the slim model's {name}"
            )
        for attribute, value in vars(tensor).items():
            if isinstance(value, Tensor):
                raise CutRefused(
                    f"{name}.{attribute} is a tensor, which the cut cannot follow: delete it, and set it again on the"
                    " slim model"
                )


def carry_attributes(model: nn.Module, slim: nn.Module) -> None:
    """Give the parameters and buffers of ``slim``, a cut copy, what a copy loses of those in ``model``.

    That is their Python attributes and, inside a ``ScriptModule``, that they are leaves with a ``requires_grad``.

    Args:
        model: where they come from, by name.
        slim: changed in place.
    """
    targets = named_tensors(slim)
    for name, tensor in named_tensors(model).items():
        if name in targets:
            target = targets[name] if targets[name].is_leaf else targets[name].detach_()
            target.requires_grad_(tensor.requires_grad)
            vars(target).update(vars(tensor))


def _check_sliced(model: nn.Module, name: str) -> None:
    path, _, attribute = name.rpartition(".")
    kind = type(getattr(model.get_submodule(path), attribute))
    if kind not in (nn.Parameter, Tensor):
        raise CutRefused(
            f"{name} is a {kind.__module__}.{kind.__name__}, which the cut cannot slice: make it a plain parameter"
        )
