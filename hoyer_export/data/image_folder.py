"""A folder of images: decoded, resized and augmented by worker processes, image by image.

Every image draws its crop and flip from (seed, epoch, its index) alone, so the number of workers changes nothing.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from hoyer_export.data.folder_layout import Layout, Samples, as_text
from hoyer_export.data.image_file import read_image, why_unreadable
from hoyer_export.data.options import Augmentation
from hoyer_export.data.resizing import resized, squared
from hoyer_export.data.splits import DataSplits, Split
from hoyer_export.errors import DataError
from hoyer_export.preprocessing import Preprocessing
from hoyer_export.random_state import mixed_seed


@dataclass(frozen=True)
class FolderSplit(Split):
    """Images on disk, decoded when they are needed.

    Args:
        samples: (path, class) of every image.
        how: an image becomes an input.
        augmentation: what a batch that asks for it gets; None: nothing.
        seed: with the epoch, decides order, crops and flips.
        workers: processes that decode; 0 decodes in this one.
    """

    samples: Samples
    how: Preprocessing
    augmentation: Augmentation | None
    seed: int
    workers: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def _made(
        self, indices: list[Tensor], epoch: int, generator: torch.Generator, device: torch.device, augment: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Decode batches [N, 3, S, S] in the worker processes; DataError where an image cannot be read."""
        made = partial(as_input, how=self.how, augmentation=self.augmentation if augment else None)
        loader: DataLoader[Any] = DataLoader(
            range(len(self)),  # type: ignore[arg-type]  # whatever has a length and items does
            batch_sampler=[batch.tolist() for batch in indices],
            num_workers=self.workers,
            collate_fn=partial(_decoded, samples=self.samples, made=made, seed=self.seed, epoch=epoch),
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own, or it would draw from the global one
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            images, labels = batch
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def pictures(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image as it is on disk; see ``Split.pictures``."""
        for path, label in self.samples:
            image = read_image(path)
            if image.mode == "F":
                image = Image.fromarray((np.asarray(image) * 255).round().astype(np.uint8))
            yield torch.from_numpy(np.asarray(image.convert("RGB")).copy())[None], torch.tensor([label])

    def unreadable(self) -> list[str]:
        """Open every image, and return those that cannot be read, each with the reason; see ``Split.unreadable``."""
        return [f"{path} ({reason})" for path, reason in why_each([path for path, _ in self.samples]).items()]


def why_each(paths: Sequence[str]) -> dict[str, str]:
    """Open every image, and return those that cannot be read → the reason."""
    with ThreadPool() as pool:  # Pillow lets others run while it decodes
        reasons = pool.imap(why_unreadable, paths, chunksize=16)
        return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason is not None}


def as_input(image: Image.Image, how: Preprocessing, augmentation: Augmentation | None = None) -> Tensor:
    """Return what the network takes of an image, [3, H, W]; an augmented one draws from torch's global generator."""
    if augmentation is None or augmentation.crop_scale in (None, 1):
        image = resized(image, how)
    else:
        by, scale = v2.InterpolationMode(how.interpolation), (augmentation.crop_scale, 1.0)
        image = v2.RandomResizedCrop(list(how.shape[1:]), scale=scale, interpolation=by)(squared(image, how))
    if augmentation is not None and augmentation.flip:
        image = v2.RandomHorizontalFlip()(image)
    # A grey image of more than eight bits has one channel until here.
    pixels = v2.RGB()(v2.ToDtype(torch.float32, scale=True)(v2.PILToTensor()(image)))
    normalised: Tensor = v2.Normalize(list(how.mean or ()), list(how.std or ()))(pixels)
    return normalised


def _decoded(
    indices: list[int], samples: Samples, made: Callable[[Image.Image], Tensor], seed: int, epoch: int
) -> tuple[Tensor, Tensor] | DataError:
    """Return a batch as a worker process makes it; the error of an image as a value, for it loses its shape if raised.

    The transforms draw from the global generator; the caller finds it as it was.
    """
    images = []
    with torch.random.fork_rng(devices=[]):
        for index in indices:
            try:
                image = read_image(samples[index][0])
            except DataError as error:
                return error
            torch.manual_seed(mixed_seed(seed, epoch, index + 1))  # a key that ends in 0 is the order's
            images.append(made(image))
    return torch.stack(images), torch.tensor([samples[index][1] for index in indices])


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignore what asks the whole process group to stop: a worker that dies of it would be reported as a crash.

    The parent ends its workers by its own means, and they end by themselves when it is gone.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def readable(layout: Layout, root: Path) -> Layout:
    """Return the images of a folder that can be read, and which are left out.

    Raises:
        DataError: of some class no image can be read.
    """
    bad = why_each([path for split in layout.splits for path, _ in split])
    left_out = tuple(f"{as_text(Path(path).relative_to(root).as_posix())} ({reason})" for path, reason in bad.items())
    return layout.without(bad, left_out) if bad else layout


def folder_splits(
    name: str, layout: Layout, how: Preprocessing, augmentation: Augmentation | None, seed: int, workers: int
) -> DataSplits:
    """Return the splits of the images that were found in a folder."""
    train, *others = layout.splits
    training = FolderSplit(train, how, augmentation, seed, workers)
    validation, test = (FolderSplit(samples, how, None, seed, workers) for samples in others)
    return DataSplits(name, training, validation, test, how, augmentation, layout.notes, layout.left_out)
