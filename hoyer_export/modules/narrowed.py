"""A module that sees an input of another width, while its linear layers read the true one: ``channels/lending.py``.

All that the module does with the input itself is to ask for its width, which is that of all its heads.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

_NAME = "narrowed"


@dataclass(eq=False)
class Narrowed:
    """The hooks of one module, and what they remember while it runs.

    Args:
        width: of what the module gets.
        is_off: the hooks do nothing: a trace lends the module its input itself.
        calls: (the whole, what the module got) of every call that is running, the innermost last.
    """

    width: int
    is_off: bool = False
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def enter(self, module: nn.Module, args: Any) -> Any:
        """Give the module something of the width that it is to see, which may also be more than its input has."""
        if self.is_off:
            return None
        part = args[0][..., :1].expand(*args[0].shape[:-1], self.width)
        self.calls.append((args[0], part))
        return (part, *args[1:])

    def read(self, layer: nn.Module, args: Any) -> Any:
        """Give a layer the whole where it would get the part."""
        whole, part = self.calls[-1] if self.calls else (None, None)
        return (whole, *args[1:]) if part is not None and args[0] is part else None

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forget the call."""
        if not self.is_off:
            self.calls.pop()


def narrowing_of(module: nn.Module) -> Narrowed | None:
    """Return what narrows a module's input, if anything does."""
    found = vars(module).get(_NAME)
    return found if isinstance(found, Narrowed) else None


def narrow_(module: nn.Module, width: int, layers: tuple[str, ...]) -> None:
    """Let ``module`` see an input of ``width`` channels, and its children ``layers`` the true one, in place."""
    if (found := narrowing_of(module)) is not None:  # of an earlier cut
        found.width = width
        return
    vars(module)[_NAME] = found = Narrowed(width)
    module.register_forward_pre_hook(found.enter)
    module.register_forward_hook(found.leave, always_call=True)
    for layer in layers:
        module.get_submodule(layer).register_forward_pre_hook(found.read)
