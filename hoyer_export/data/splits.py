"""Three splits of one data set, and the order in which their images come: a function of (seed, epoch) alone.

So a training that was interrupted after a whole epoch goes on with exactly the batches it would have seen.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoyer_export import parallel
from hoyer_export.data.options import Augmentation
from hoyer_export.errors import DataError
from hoyer_export.preprocessing import Preprocessing
from hoyer_export.random_state import seeded_generator

_NAMED = 3
"""Bad images that an error names; it counts the others."""


class Split(ABC):
    """Labelled images that come in batches."""

    seed: int
    """With the epoch, decides order and augmentation."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    def in_order_of(self, seed: int) -> "Split":
        """Return the same images in the order, with the crops and flips, of another seed."""
        other = copy.copy(self)
        object.__setattr__(other, "seed", seed)  # a frozen dataclass, too
        return other

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int = 0,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        augment: bool = False,
        shared: bool = False,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images float32 [N, C, H, W] normalised, classes int64 [N]) once through the split.

        Args:
            batch_size: N of every batch but the last.
            epoch: counts from the start of the whole run; with the seed it decides order and augmentation.
            device: where the batches are wanted.
            shuffle: in a random order; a last batch of a single image is left out (batch norm cannot train on it).
            augment: with random crops and flips, where the split has them (validation and test never do).
            shared: where several processes train together, only this one's part of every batch; in the natural order,
                whole batches in turn.
            skip: so many of the first batches are not made.

        Raises:
            DataError: ``batch_size`` is below 1, or an image cannot be read.
        """
        generator = seeded_generator(self.seed, epoch)
        indices = batch_indices(len(self), batch_size, generator if shuffle else None)
        if shared:
            own = slice(parallel.rank(), None, parallel.size())
            indices = [parallel.part(batch) for batch in indices] if shuffle else indices[own]
        yield from self._made(indices[skip:], epoch, generator, torch.device(device), augment)

    @abstractmethod
    def _made(
        self, indices: list[Tensor], epoch: int, generator: torch.Generator, device: torch.device, augment: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of these images; ``generator`` is the epoch's, and its order is drawn already."""

    def steps(self, batch_size: int) -> int:
        """Return how many batches an epoch of training has."""
        return len(batch_indices(len(self), batch_size, torch.Generator()))

    def pictures(self) -> Iterator[tuple[Tensor, Tensor]] | None:
        """Return (uint8 [1, height, width, 3] as taken, class int64 [1]) of every image; None: they have one size."""
        return None

    @abstractmethod
    def unreadable(self) -> list[str]:
        """Look at every image that is still on disk, and return those that cannot be read, each with the reason."""


@dataclass(frozen=True)
class DataSplits:
    """A data set, ready to train on.

    Args:
        name: as in ``load_data``.
        train: without the validation images.
        validation: held out of the training images; every choice is made on it.
        test: for the final number only; empty where there are no labels.
        preprocessing: how every input is made, and what the classes are called; targets are their places.
        augmentation: what training images get beside that; None: nothing.
        notes: what somebody who reads a result has to know of where its images come from.
        left_out: unreadable images that are in none of the splits, each with the reason.
        own: the batches are somebody's own: what targets are is their business.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    preprocessing: Preprocessing
    augmentation: Augmentation | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    own: bool = False

    @property
    def classes(self) -> int | None:
        """How many there are; None: there are no labels, and no test images."""
        names = self.preprocessing.class_names
        return None if names is None else len(names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return self.preprocessing.shape

    @property
    def has_targets(self) -> bool:
        """Whether batches say what should come out."""
        return self.own or self.classes is not None

    def check_readable(self) -> None:
        """Look at every image of the three splits: a bad one is said before the first epoch, not after the last.

        Raises:
            DataError: some cannot be read; all of them are counted, the first are named.
        """
        bad = [image for split in (self.train, self.validation, self.test) for image in split.unreadable()]
        if bad:
            count = "an image" if len(bad) == 1 else f"{len(bad):,} images"
            raise DataError(
                f"cannot read {count} of {self.name}: {the_first(bad)}; replace what is damaged, take it out of the"
                " folder, or go on without it: data.skip_unreadable = true (--skip-unreadable)"
            )


def the_first(bad: Sequence[str]) -> str:
    """Return the first of the bad images, and how many there are more."""
    more = f" and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
    return f"{', '.join(bad[:_NAMED])}{more}"


def batch_indices(count: int, batch_size: int, order: torch.Generator | None) -> list[Tensor]:
    """Return the int64 indices of every batch of one epoch; in the natural order where ``order`` is None.

    Raises:
        DataError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; expected at least 1")
    indices = torch.arange(count) if order is None else torch.randperm(count, generator=order)
    batches = list(torch.split(indices, batch_size))
    if order is not None and len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        batches.pop()
    return batches


def hold_out(
    labels: Sequence[int] | NDArray[np.int64], share: float | int, seed: int, names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Split indices in two, with the same proportion of every class in both, and at least one of each.

    Args:
        labels: class of every image, [count].
        share: of the images that are held out, above 0 and below 1; or, as an integer, their number.
        seed: decides which.
        names: of the classes, for the error.

    Returns:
        (indices that stay, indices held out), int64, both ascending.

    Raises:
        DataError: a class has a single image.
    """
    from sklearn.model_selection import train_test_split  # half a second to import

    indices, labels = np.arange(len(labels)), np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        alone = classes[counts.argmin()]
        raise DataError(
            f"cannot hold out {share:g} of {len(labels)} training images with every class on both sides: the class"
            f" {(names[alone] if names else int(alone))!r} has one image for both; give it more, or leave it out"
        )
    part = share if share < 1 else share / len(labels)
    if part * counts.min() >= 1 and (1 - part) * counts.min() >= 1:
        held_out = train_test_split(indices, test_size=share, stratify=labels, random_state=seed)[1]
    else:  # sklearn's would give a small class to one side alone
        order = np.random.default_rng(seed).permutation(indices)
        numbers = np.clip(np.round(part * counts), 1, counts - 1).astype(int)
        held_out = np.concatenate(
            [order[labels[order] == label][:number] for label, number in zip(classes, numbers, strict=True)]
        )
    return torch.from_numpy(np.setdiff1d(indices, held_out)), torch.from_numpy(np.sort(held_out))
