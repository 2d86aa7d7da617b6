"""Whether each module of a network trains or evaluates: a fact of each module, which nobody may flip for good."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Give every module back the mode (train, eval) that it had: a user may have put some in eval for good.

    ``model.train(before)`` would not: it sets every module below.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
