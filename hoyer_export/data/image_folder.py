"""A labelled image folder: decoded, resized and augmented by worker processes, image by image.

Every image draws its crop and flip from (seed, epoch, its index) alone, so the number of workers changes nothing.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension, make_dataset
from torchvision.transforms import v2

from hoyer_export.data.image_file import read_image, why_unreadable
from hoyer_export.data.splits import Split, hold_out
from hoyer_export.data.unlabelled import pictures
from hoyer_export.errors import DataError, one_line
from hoyer_export.random_state import mixed_seed

_LAYOUT = "expected train/CLASS/*.jpg and test/CLASS/*.jpg (or val/) there"
# Evaluation looks at the middle 224 of an image whose short side is 256, the custom since Krizhevsky et al. 2012.
_RESIZE_PER_CROP = 256 / 224

Samples = list[tuple[str, int]]


@dataclass(frozen=True)
class FolderSplit(Split):
    """Images on disk, decoded when they are needed.

    Args:
        samples: (path, class) of every image.
        training: how an augmented image is made; None where there is no augmentation.
        evaluation: how any other image is made.
        seed: with the epoch, decides order, crops and flips.
        workers: processes that decode; 0 decodes in this one.
    """

    samples: Samples
    training: v2.Compose | None
    evaluation: v2.Compose
    seed: int
    workers: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def _made(
        self, indices: list[Tensor], epoch: int, generator: torch.Generator, device: torch.device, augment: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Decode batches [N, 3, S, S] in the worker processes; DataError where an image cannot be read."""
        transform = self.training if augment and self.training else self.evaluation
        loader: DataLoader[Any] = DataLoader(
            range(len(self)),  # type: ignore[arg-type]  # whatever has a length and items does
            batch_sampler=[batch.tolist() for batch in indices],
            num_workers=self.workers,
            collate_fn=partial(_decoded, samples=self.samples, transform=transform, seed=self.seed, epoch=epoch),
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own, or it would draw from the global one
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            images, labels = batch
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def unreadable(self) -> list[str]:
        """Open every image, and return those that cannot be read, each with the reason; see ``Split.unreadable``."""
        paths = [path for path, _ in self.samples]
        with ThreadPool() as pool:  # Pillow lets others run while it decodes
            reasons = pool.imap(why_unreadable, paths, chunksize=16)
            return [f"{path} ({reason})" for path, reason in zip(paths, reasons, strict=True) if reason is not None]


def _decoded(
    indices: list[int], samples: Samples, transform: v2.Compose, seed: int, epoch: int
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
            images.append(transform(image))
    return torch.stack(images), torch.tensor([samples[index][1] for index in indices])


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignore what asks the whole process group to stop: a worker that dies of it would be reported as a crash.

    The parent ends its workers by its own means, and they end by themselves when it is gone.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def read_image_folder(
    root: Path,
    *,
    validation: float,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: bool,
    image_size: int,
    workers: int,
) -> tuple[FolderSplit, FolderSplit, FolderSplit, int]:
    """Find the images of a folder with one folder a class.

    With train, val and test each is what its name says, and ``validation`` is not used. With train and only one of
    the two others, that one is the test set, and the validation images are held out of train.

    Args:
        root: holds the folders ``train``, and ``test`` or ``val`` or both.
        validation, seed, mean, std, augment, image_size, workers: as for ``load_data``, which has checked them; S is
            ``image_size``.

    Returns:
        (train, validation, test, number of classes).

    Raises:
        DataError: a folder is missing, has no classes or images, or has other classes than train.
    """
    for folder in (root, root / "train"):
        if not folder.is_dir():
            raise DataError(f"no folder {folder}; {_LAYOUT}")
    names = [name for name in ("val", "test") if (root / name).is_dir()]
    if not names:
        raise DataError(f"{root} has neither test nor val; {_LAYOUT}")
    parts = {name: _image_folder(root / name) for name in ("train", *names)}
    classes, train = parts["train"]
    for name in names:
        if odd := sorted(set(classes) ^ set(parts[name][0])):
            where = "train" if odd[0] in classes else name
            raise DataError(f"{root}: the class {odd[0]!r} is in {where} only; train and {name} need the same classes")
    if len(classes) < 2:
        raise DataError(
            f"{root / 'train'} holds the class {classes[0]!r} only, so there is nothing to tell apart; expected two"
            " folders or more, one a class"
        )
    held_out, test = parts[names[0]][1], parts[names[-1]][1]
    if len(names) == 1:
        rest, chosen = hold_out([label for _, label in train], validation, seed)
        train, held_out = [train[i] for i in rest.tolist()], [train[i] for i in chosen.tolist()]

    split = _made_by(seed, mean, std, image_size, workers)
    return split(train, augment), split(held_out), split(test), len(classes)


def read_pictures(
    root: Path,
    *,
    validation: float,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: bool,
    image_size: int,
    workers: int,
) -> tuple[FolderSplit, FolderSplit, FolderSplit, None]:
    """Find the pictures in a folder and those in it, whatever their folders are called; the rest as above.

    Returns:
        (train, validation, no test images, no classes).
    """
    samples = [(path, 0) for path in pictures(root)]
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    held = max(2, round(validation * len(samples)))
    split = _made_by(seed, mean, std, image_size, workers)
    parts = ([samples[i] for i in sorted(chosen)] for chosen in (order[held:], order[:held], []))
    train, held_out, test = parts
    return split(train, augment), split(held_out), split(test), None


def _made_by(
    seed: int, mean: Sequence[float], std: Sequence[float], image_size: int, workers: int
) -> Callable[..., FolderSplit]:
    """Return what makes a split of samples, augmented where that is said."""
    # A grey image of more than eight bits has one channel until here.
    finish = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.RGB(), v2.Normalize(list(mean), list(std))]
    training = v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(), *finish])
    short_side = round(image_size * _RESIZE_PER_CROP)
    evaluation = v2.Compose([v2.Resize(short_side), v2.CenterCrop(image_size), *finish])

    def split(samples: Samples, augment: bool = False) -> FolderSplit:
        return FolderSplit(samples, training if augment else None, evaluation, seed, workers)

    return split


def _image_folder(folder: Path) -> tuple[list[str], Samples]:
    """Return the classes and images of a folder with one folder a class; whatever is hidden is none.

    That is what a file manager or a notebook leaves there (``.DS_Store``, ``._0.jpg``, ``.ipynb_checkpoints``).

    Raises:
        DataError: there is no class, or one without images.
    """

    def is_image(path: str) -> bool:
        hidden = any(part.startswith(".") for part in Path(path).relative_to(folder).parts)
        return not hidden and has_file_allowed_extension(path, IMG_EXTENSIONS)

    try:
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        numbers = {name: number for number, name in enumerate(classes)}
        if not classes:
            raise FileNotFoundError("it holds no folder")
        return classes, make_dataset(str(folder), numbers, is_valid_file=is_image)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: {one_line(error)}; expected one folder a class, each with at least one image"
        ) from error
