"""A data set by its name: what its files are called, its usual mean and deviation, whether it is augmented."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hoyer_export.data.cifar10 import HOW_TO_GET, read_cifar10
from hoyer_export.data.folder_layout import LAYOUT, find_labelled, renamed
from hoyer_export.data.idx import how_to_get, read_idx_set
from hoyer_export.data.options import Augmentation, ImageOptions
from hoyer_export.data.splits import DataSplits, hold_out
from hoyer_export.data.tensor_split import TensorSplit
from hoyer_export.data.unlabelled import EXPECTED, array_splits, find_unlabelled, read_array
from hoyer_export.errors import DataError
from hoyer_export.preprocessing import Preprocessing

_CIFAR = ("cifar10", "cifar10-16")
_OF_FILES = {"imagefolder": LAYOUT, "images": EXPECTED}
_DIGITS_TEST_IMAGES = 360
_DIGITS_TEST_SEED = 0  # its own, so that the test images are the same whatever the recipe's seed


@dataclass(frozen=True)
class _Defaults:
    """Of a data set: mean and deviation of each channel over the training images (values in 0..1), whether they are
    augmented, whether that flips them, and what the classes are called.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool = False
    flip: bool = False
    class_names: tuple[str, ...] | None = None


_NUMERALS = tuple("0123456789")
_GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # https://docs.pytorch.org/vision/stable/models.html

_DEFAULTS = {
    # over the 1,437 images that are not test images
    "digits": _Defaults((0.3054,), (0.3761,), class_names=_NUMERALS),
    # https://github.com/pytorch/examples/blob/main/mnist/main.py
    "mnist": _Defaults((0.1307,), (0.3081,), class_names=_NUMERALS),
    # names: https://github.com/zalandoresearch/fashion-mnist#labels
    "fashion-mnist": _Defaults((0.2860,), (0.3530,), class_names=_GARMENTS),
    # names: https://www.cs.toronto.edu/~kriz/cifar.html
    "cifar10": _Defaults((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), True, True, _THINGS),
    # measured: the mean stays, neighbours even out
    "cifar10-16": _Defaults((0.4914, 0.4822, 0.4465), (0.2381, 0.2347, 0.2536), True, True, _THINGS),
    "imagefolder": _Defaults(*_IMAGENET, augment=True, flip=True),
    "images": _Defaults(*_IMAGENET, flip=True),
}
# Evaluation looks at the middle 224 of an image whose short side is 256, the custom since Krizhevsky et al. 2012.
_SHORT_SIDE_PER_SIZE = 256 / 224
_CROP_SCALE = 0.08  # Szegedy et al. 2015, arXiv 1409.4842, section 6


def load_data(
    name: str,
    *,
    root: Path | None = None,
    validation: float = 0.15,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: bool | None = None,
    image_size: int | None = None,
    workers: int = 0,
    options: ImageOptions | None = None,
) -> DataSplits:
    """Load a data set, with a validation split held out of its training images.

    Args:
        name: ``digits`` (ships with scikit-learn), ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar10-16`` (the
            same images, 2×2 pixels averaged to one, for quick comparisons), ``imagefolder``, or ``images``: pictures
            without labels, in a folder or as an array [N, C, H, W] or [N, H, W, C] in an .npy or .npz file.
        root: folder of the files; none is needed for ``digits``.
        validation: share of the training images that is held out, the same of every class; above 0, below 1.
        seed: decides which images are held out, and with the epoch their order and augmentation.
        mean: of each channel, of values in 0..1; the usual one of the data set where None.
        std: of each channel; the usual one where None.
        augment: whether training batches that ask for augmentation get it. None: yes for ``cifar10`` and
            ``cifar10-16`` (window of the image with zero pixels around it, an eighth of its side or ``shift``; flip)
            and ``imagefolder``. For the others it is such a window, and no flip.
        image_size: side of an input in pixels, for image files only: 224 where None.
        workers: processes that decode image files; the others are in memory and need none.
        options: what else is asked.

    Raises:
        DataError: an argument is out of range, or the files are missing, damaged or of another kind.
    """
    options = options or ImageOptions()
    if name not in _DEFAULTS:
        close = difflib.get_close_matches(name, _DEFAULTS, n=1)
        advice = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_DEFAULTS)}"
        raise DataError(f"unknown data set {name!r}; {advice}")
    array, defaults = _array(name, root)
    channels = len(defaults.mean)
    mean = _per_channel("mean", mean, defaults.mean, channels)
    std = _per_channel("std", std, defaults.std, channels)
    _check_numbers(std, validation, seed, workers)
    augmentation = None
    if defaults.augment if augment is None else augment:
        augmentation = Augmentation(defaults.flip if options.flip is None else options.flip, shift=options.shift)
    elif idle := [key for key in ("flip", "shift") if getattr(options, key)]:
        raise DataError(f"{idle[0]} is for augmented images, and these are not; set augment = true, or leave it out")
    if name in _OF_FILES and options.shift is not None:
        raise DataError(f"shift is {options.shift}, but image files get random crops; give crop_scale, or leave it out")
    if name in _OF_FILES and array is None:
        from hoyer_export.data.image_folder import folder_splits, readable  # torchvision takes a second to import

        how, folder = _sizes(image_size, options), _needed(root, name, _OF_FILES[name], "name it as root")
        find = find_labelled if name == "imagefolder" else find_unlabelled
        layout = find(folder, validation, seed).in_order_of(options.class_names)
        if options.skip_unreadable:
            layout = readable(layout, folder)
        if augmentation:
            scale = options.crop_scale or _CROP_SCALE
            augmentation = replace(augmentation, crop_scale=scale, fast_decode=options.fast_decode)
        how = how.model_copy(update={"mean": mean, "std": std, "class_names": layout.class_names})
        return folder_splits(name, layout, how, augmentation, seed, workers)

    if array is not None:
        splits, shape = array_splits(array, mean, std, validation, seed), tuple(array.shape[1:])
    else:
        splits, shape = _splits(name, root, mean, std, validation, seed, augmentation)
    _check_fixed(name, shape, image_size, options)
    how = Preprocessing(shape=shape, mean=mean, std=std, class_names=renamed(options.class_names, defaults.class_names))
    return DataSplits(name, *splits, how, augmentation)


def _sizes(image_size: int | None, options: ImageOptions) -> Preprocessing:
    """Return how image files get their size."""
    side = 224 if image_size is None else image_size
    if side < 1:
        raise DataError(f"image_size is {side}; expected pixels, at least 1")
    resize, short = options.resize or "crop", options.short_side
    if short is not None and (resize != "crop" or short < side):
        raise DataError(
            f'short_side is {short}; expected at least the image_size, {side}, and with resize = "crop" alone'
        )
    if options.fast_decode and options.interpolation == "lanczos":
        raise DataError("fast_decode resizes bytes, for which there is no lanczos; leave one of the two out")
    return Preprocessing(
        shape=(3, side, side),
        resize=resize,
        short_side=(short or round(side * _SHORT_SIDE_PER_SIZE)) if resize == "crop" else None,
        interpolation=options.interpolation or "bilinear",
    )


def _check_fixed(name: str, shape: Sequence[int], image_size: int | None, options: ImageOptions) -> None:
    """Refuse what is asked of image files where the images are in memory, in the size that they have."""
    _, height, width = shape
    keys = ("resize", "short_side", "interpolation", "crop_scale")
    asked = {"image_size": None if image_size == height else image_size} | {it: getattr(options, it) for it in keys}
    asked["fast_decode"] = options.fast_decode or None
    for key, value in asked.items():
        if value is not None:
            raise DataError(f"{key} is {value}, but the images of {name} are {height}×{width}; leave it out")


def _splits(
    name: str,
    root: Path | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    validation: float,
    seed: int,
    augmentation: Augmentation | None,
) -> tuple[tuple[TensorSplit, TensorSplit, TensorSplit], tuple[int, ...]]:
    """Return training, validation and test images of a data set of small images, and (C, H, W) of one."""
    (images, labels), (test_images, test_labels) = _read(name, root)

    def split(images: Tensor, labels: Tensor, how: Augmentation | None = None) -> TensorSplit:
        usual = images.shape[2] // 8  # 4 for 32×32, as He et al. 2015, section 4.2
        if how is not None and how.shift is not None and how.shift >= (side := min(images.shape[2:])):
            raise DataError(f"shift is {how.shift}, and the images have sides of {side}; give less")
        return TensorSplit(
            images,
            labels,
            full_scale=16 if name == "digits" else 255,
            mean=mean,
            std=std,
            seed=seed,
            crop_padding=0 if how is None else usual if how.shift is None else how.shift,
            flip=how is not None and how.flip,
        )

    rest, chosen = hold_out(labels.numpy(), validation, seed)
    training, held = split(images[rest], labels[rest], augmentation), split(images[chosen], labels[chosen])
    return (training, held, split(test_images, test_labels)), tuple(images.shape[1:])


def _array(name: str, root: Path | None) -> tuple[Tensor | None, _Defaults]:
    """Return the images of an .npy or .npz file, if that is what ``root`` is, and the data set's defaults."""
    if name != "images" or root is None or not root.is_file():
        return None, _DEFAULTS[name]
    array = read_array(root)
    if array.shape[1] == 3 and array.dtype == torch.uint8:
        return array, _DEFAULTS[name]
    nothing = (0.0,) * array.shape[1]  # floats are what the network takes already
    return array, _Defaults(nothing, tuple(1.0 for _ in nothing))


def _check_numbers(std: tuple[float, ...], validation: float, seed: int, workers: int) -> None:
    if min(std) <= 0:
        raise DataError(f"std is {list(std)}; expected numbers above 0")
    if not 0 < validation < 1:
        raise DataError(f"validation is {validation}; expected a share of the training images, above 0 and below 1")
    if seed < 0 or seed >= 2**32:
        raise DataError(f"seed is {seed}; expected 0 to {2**32 - 1}")
    if workers < 0:
        raise DataError(f"workers is {workers}; expected 0 or more processes")


def _per_channel(
    what: str, given: Sequence[float] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    values = default if given is None else tuple(float(value) for value in given)
    if len(values) != channels or not all(math.isfinite(value) for value in values):
        raise DataError(f"{what} is {list(values)}; expected {channels} finite numbers, one a channel")
    return values


def _read(name: str, root: Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (images uint8 [count, C, H, W], labels int64 [count]) for training and test."""
    if name == "digits":
        return _read_digits()
    if name in _CIFAR:
        train, test = read_cifar10(_needed(root, name, "cifar-10-batches-bin or cifar-10-batches-py", HOW_TO_GET))
        return (train, test) if name == "cifar10" else (_halved(*train), _halved(*test))
    folder = "MNIST" if name == "mnist" else "FashionMNIST"
    return read_idx_set(_needed(root, name, f"{folder}/raw/*-ubyte", how_to_get(folder)), folder)


def _halved(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Average 2×2 pixels to one, rounded to bytes; in parts, for as floats all images need four times the memory."""
    parts = [F.avg_pool2d(part.float(), 2).round().byte() for part in torch.split(images, 10_000)]
    return torch.cat(parts), labels


def _needed(root: Path | None, name: str, files: str, advice: str) -> Path:
    """Return ``root``, which every data set but the digits needs."""
    if root is None:
        raise DataError(f"the data set {name!r} needs a root, the folder that holds {files}: {advice}")
    if not root.is_dir():
        raise DataError(f"no folder {root}, where the data set {name!r} expects {files}: {advice}")
    return root


def _read_digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return 1,437 training and 360 test images, uint8 [count, 1, 8, 8] with values 0..16.

    Source: UCI's Optical Recognition of Handwritten Digits, the copy inside scikit-learn.
    """
    from sklearn.datasets import load_digits  # half a second to import

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    rest, test = hold_out(labels.numpy(), _DIGITS_TEST_IMAGES, _DIGITS_TEST_SEED)
    return (images[rest], labels[rest]), (images[test], labels[test])
