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
from torchvision.transforms.v2 import functional as F

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
        made = partial(_pixels, how=self.how, augmentation=self.augmentation if augment else None)
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
            images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
            yield _normalised(images, self.how), labels

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


def _pixels(path: str, how: Preprocessing, augmentation: Augmentation | None) -> Tensor:
    """Return an image in its size, [3, S, S]: bytes, or numbers of 0..1 where it is grey of more than eight bits.

    An augmented one draws from torch's global generator.
    """
    crop = None if augmentation is None or augmentation.crop_scale in (None, 1) else augmentation.crop_scale
    by = v2.InterpolationMode(how.interpolation)
    if crop is None:
        pixels = F.pil_to_tensor(resized(read_image(path), how))
    elif augmentation is not None and augmentation.fast_decode and how.resize == "crop":
        pixels = _fast_crop(path, how, crop)
    else:
        window = v2.RandomResizedCrop(list(how.shape[1:]), scale=(crop, 1.0), interpolation=by)
        pixels = F.pil_to_tensor(window(squared(read_image(path), how)))
    if augmentation is not None and augmentation.flip and torch.rand(1) < 0.5:
        pixels = pixels.flip(-1)
    coloured: Tensor = pixels.expand(3, -1, -1)
    return coloured


def _fast_crop(path: str, how: Preprocessing, scale: float) -> Tensor:
    """Return the crop that ``RandomResizedCrop`` draws, out of a JPEG that is no larger than needed, resized as bytes.

    An antialiasing filter on bytes takes a third of Pillow's time, and differs from it by a rounding.
    """
    sides = how.shape[1:]
    window: dict[str, int] = {}

    def needed(width: int, height: int) -> float:
        seen = torch.empty(1, height, width, device="meta")
        window.update(v2.RandomResizedCrop(list(sides), scale=(scale, 1.0)).make_params([seen]))
        window.update(of=width)
        return min(window["height"] / sides[0], window["width"] / sides[1])

    pixels = F.pil_to_tensor(read_image(path, needed))
    shrunk = pixels.shape[2] / window.pop("of")
    box = [round(window[name] * shrunk) for name in ("top", "left", "height", "width")]
    by = v2.InterpolationMode(how.interpolation)
    cropped: Tensor = F.resized_crop(pixels, *box, size=list(sides), interpolation=by, antialias=True)
    return cropped


def _normalised(pixels: Tensor, how: Preprocessing) -> Tensor:
    """Return what the network takes of a batch of pixels, [N, 3, S, S]; made where the batch is, four bytes a byte."""
    values = F.to_dtype(pixels, torch.float32, scale=True)
    normalised: Tensor = F.normalize(values, list(how.mean or ()), list(how.std or ()), inplace=True)
    return normalised


def _decoded(
    indices: list[int], samples: Samples, made: Callable[[str], Tensor], seed: int, epoch: int
) -> tuple[Tensor, Tensor] | DataError:
    """Return a batch as a worker process makes it; the error of an image as a value, for it loses its shape if raised.

    The transforms draw from the global generator; the caller finds it as it was.
    """
    images = []
    with torch.random.fork_rng(devices=[]):
        for index in indices:
            # The CPU's alone: the others have nothing to draw. A key that ends in 0 is the order's.
            torch.default_generator.manual_seed(mixed_seed(seed, epoch, index + 1))
            try:
                images.append(made(samples[index][0]))
            except DataError as error:
                return error
    if any(image.is_floating_point() for image in images):
        images = [F.to_dtype(image, torch.float32, scale=True) for image in images]
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
