"""See every operation of torch's dispatcher while a network runs, and answer in its place."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which ``see(operation, args, kwargs)`` is called for every operation; it returns the output.

    What ``see`` itself calls is not seen, unless it enters the context again.
    """

    def __init__(self, see: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see = see

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a wrapper around every operation, for compiled code, of which there is none here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._see(func, args, kwargs or {})
