"""Somebody's own batches as a split: their loader decides batch size, order and augmentation."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, IterableDataset

from hoyer_export import parallel
from hoyer_export.data.splits import DataSplits, Split
from hoyer_export.errors import DataError
from hoyer_export.preprocessing import Preprocessing
from hoyer_export.tensors import examples_in

OWN_DATA = "own data"
"""What the data set of such batches is called, where nobody says its name."""


class OwnBatches(Split):
    """Batches (inputs, targets) of any kind.

    Args:
        batches: a ``DataLoader``, a list, anything that can be gone through again and again.
        what: the batches are called, for errors.

    Raises:
        DataError: it can be gone through only once, or not at all.
    """

    seed = 0

    def __init__(self, batches: Iterable[Any], what: str) -> None:
        if not isinstance(batches, Iterable) or isinstance(batches, (Tensor, Iterator)):
            got = type(batches).__name__
            raise DataError(
                f"{what}: expected batches (inputs, targets) that can be gone through again and again, a DataLoader or"
                f" a list, got a {got}"
            )
        self._batches, self._what = batches, what

    def __len__(self) -> int:
        """Return the number of examples."""
        given = self._batches
        if isinstance(given, DataLoader) and given.batch_size and not isinstance(given.dataset, IterableDataset):
            return min(len(given.sampler), len(given) * given.batch_size)  # type: ignore[arg-type]
        return self._counted[0]

    def steps(self, batch_size: int) -> int:
        """Return the number of batches, whatever their size."""
        try:
            return len(self._batches)  # type: ignore[arg-type]
        except TypeError:  # of no length that it knows
            return self._counted[1]

    def _made(
        self, indices: list[Tensor], epoch: int, generator: torch.Generator, device: torch.device, augment: bool
    ) -> Iterator[tuple[Any, Any]]:
        """Yield the batches as they come; what is random in them hangs on torch's generator, seeded by the epoch."""
        for batch in self._batches:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                got = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else f"a {type(batch).__name__}"
                raise DataError(f"{self._what}: expected batches (inputs, targets), got {got}")
            inputs, targets = tree_map_only(Tensor, lambda tensor: tensor.to(device), tuple(batch))
            yield inputs, targets

    def unreadable(self) -> list[str]:
        """Return nothing: nobody here knows where these images come from."""
        return []

    @cached_property
    def _counted(self) -> tuple[int, int]:
        """Examples and batches of an epoch, counted by going through it once."""
        sizes = [examples_in(inputs) for inputs, _ in self._made([], 0, torch.Generator(), torch.device("cpu"), False)]
        return sum(sizes), len(sizes)


def shared_rows(batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Yield this process's part of every batch, where each of several goes through the same loader.

    What decides its order is drawn at its first batch: that is drawn alike by all.
    """
    if parallel.size() == 1:
        yield from batches
        return
    seed = parallel.of_first(torch.tensor(torch.initial_seed() % 2**63))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        iterator = iter(batches)
        begun = list(islice(iterator, 1))
    for batch in chain(begun, iterator):
        count = examples_in(batch)

        def rows(tensor: Tensor, count: int = count) -> Tensor:
            return parallel.part(tensor) if tensor.ndim and len(tensor) == count else tensor

        inputs, targets = tree_map_only(Tensor, rows, batch)
        yield inputs, targets


def own_splits(
    train: Iterable[Any], validation: Iterable[Any], test: Iterable[Any], *, name: str = OWN_DATA
) -> DataSplits:
    """Return three loaders as a data set.

    Raises:
        DataError: one cannot be used, or there is no batch to look at.
    """
    fitted, chosen, judged = OwnBatches(train, "train"), OwnBatches(validation, "validation"), OwnBatches(test, "test")
    first = next(iter(chosen.batches(2)), None)
    if first is None:
        raise DataError("validation: expected at least one batch, got none")
    shape = tuple(first[0].shape[1:]) if isinstance(first[0], Tensor) else ()
    return DataSplits(name, fitted, chosen, judged, Preprocessing(shape=shape), own=True)
