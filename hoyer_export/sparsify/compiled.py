"""Networks that run compiled for a while: ``torch.compile`` of their forward pass, hooks and modes as ever."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from hoyer_export.errors import TrainingError, one_line


@contextmanager
def compiled(*networks: nn.Module) -> Iterator[None]:
    """Let networks compile their forward pass at its first call, for each size of batch; afterwards they are as before.

    Hooks on a network itself stay outside. A step that somebody watches (``channels/energy.py``) is not compiled: a
    compiled network makes no calls that could be seen.

    Raises:
        TrainingError: torch cannot compile one, or finds no compiler.
    """
    if not networks:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # seconds to import

    own = [(network, vars(network).get("forward")) for network in networks]
    for network in networks:
        network.forward = _unless_watched(network.forward)
    try:
        yield
    except TorchDynamoException as error:
        line = one_line(error).partition(" Set TORCHDYNAMO_VERBOSE")[0][:200]
        raise TrainingError(f"torch.compile failed ({line}); leave compile = true out") from error
    finally:
        for network, forward in own:
            del network.forward
            vars(network).update({} if forward is None else {"forward": forward})


def _unless_watched(forward: Callable[..., Any]) -> Callable[..., Any]:
    fast: Callable[..., Any] = torch.compile(forward)

    @wraps(forward)  # whose signature says what the network takes
    def call(*args: Any, **kwargs: Any) -> Any:
        return (forward if torch._C._len_torch_function_stack() else fast)(*args, **kwargs)

    return call
