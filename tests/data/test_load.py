"""Data sets by name: sizes, defaults that agree with the data, and wrong arguments explained."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hoyer_export.data import DataSplits, ImageOptions, Split, load_data
from hoyer_export.errors import DataError


def everything(split: Split, **options) -> tuple[Tensor, Tensor]:
    batches = list(split.batches(500, **options))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def pixels(data: DataSplits, split: Split) -> Tensor:
    """Undo the normalisation: values in 0..1, float64."""
    images, _ = everything(split)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.preprocessing.mean, data.preprocessing.std))
    return images.double() * std + mean


def test_the_digits_need_no_files_and_have_360_stratified_test_images() -> None:
    data = load_data("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1221, 216, 360)
    assert (data.name, data.classes, data.input_shape) == ("digits", 10, (1, 8, 8))
    assert data.preprocessing.class_names == tuple("0123456789")
    for split in (data.train, data.validation, data.test):
        images, labels = everything(split)
        assert images.shape == (len(split), 1, 8, 8)
        assert (labels.bincount(minlength=10) / len(split) - 0.1).abs().max() < 0.01


def test_the_digits_are_all_there_once() -> None:
    from sklearn.datasets import load_digits

    data = load_data("digits")
    ours = torch.cat([pixels(data, split) for split in (data.train, data.validation, data.test)]).flatten(1) * 16
    labels = torch.cat([everything(split)[1] for split in (data.train, data.validation, data.test)])
    ours = sorted((*image, label) for image, label in zip(ours.round().int().tolist(), labels.tolist(), strict=True))
    theirs = load_digits()
    images = theirs.data.astype(int).tolist()
    assert ours == sorted((*image, label) for image, label in zip(images, theirs.target.tolist(), strict=True))


def test_the_seed_chooses_the_validation_images_and_never_the_test_images() -> None:
    first, second = load_data("digits", seed=0), load_data("digits", seed=1)
    assert torch.equal(everything(first.test)[0], everything(second.test)[0])
    assert not torch.equal(everything(first.validation)[0], everything(second.validation)[0])
    again = load_data("digits", seed=0)
    assert torch.equal(everything(first.validation)[0], everything(again.validation)[0])


def test_the_default_mean_and_deviation_of_the_digits_are_those_of_the_images_that_are_not_test() -> None:
    data = load_data("digits")
    values = torch.cat([pixels(data, data.train), pixels(data, data.validation)])
    assert abs(float(values.mean()) - data.preprocessing.mean[0]) < 5e-5
    assert abs(float(values.std(correction=0)) - data.preprocessing.std[0]) < 5e-5


def test_given_mean_and_deviation_are_used_and_returned() -> None:
    data = load_data("digits", mean=[0.5], std=[0.25])
    assert (data.preprocessing.mean, data.preprocessing.std) == ((0.5,), (0.25,))
    images, _ = everything(data.test)
    assert (float(images.min()), float(images.max())) == (-2.0, 2.0)  # (0 - 0.5) / 0.25 and (1 - 0.5) / 0.25


def test_the_digits_are_augmented_on_request_only_and_validation_and_test_never() -> None:
    plain, moved = load_data("digits"), load_data("digits", augment=True)
    original, _ = everything(plain.train)
    assert torch.equal(everything(plain.train, augment=True)[0], original)
    assert not torch.equal(everything(moved.train, augment=True)[0], original)
    assert torch.equal(everything(moved.train)[0], original)
    for split in (moved.validation, moved.test):
        assert torch.equal(everything(split, augment=True)[0], everything(split)[0])


def test_images_in_memory_are_flipped_where_that_is_asked_and_named_as_is_asked() -> None:
    names = ("null", *(f"number {i}" for i in range(1, 10)))
    flipped = load_data("digits", augment=True, options=ImageOptions(flip=True, class_names=names))
    still = load_data("digits", augment=True, options=ImageOptions(flip=False))
    unmoved = load_data("digits", augment=True, options=ImageOptions(flip=False, shift=0))
    assert torch.equal(everything(unmoved.train, augment=True)[0], everything(unmoved.train)[0])
    assert flipped.preprocessing.class_names == names
    assert not torch.equal(everything(flipped.train, augment=True)[0], everything(still.train, augment=True)[0])
    assert torch.equal(
        everything(load_data("digits", augment=True).train, augment=True)[0], everything(still.train, augment=True)[0]
    )
    assert torch.equal(everything(flipped.train)[1], everything(still.train)[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digit"}, "unknown data set 'digit'; did you mean 'digits'?"),
        (
            {"name": "svhn"},
            "unknown data set 'svhn'; known are digits, mnist, fashion-mnist, cifar10, cifar10-16, imagefolder",
        ),
        ({"validation": 0.0}, "validation is 0.0; expected a share of the training images, above 0 and below 1"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"validation": -0.1}, "validation is -0.1"),
        ({"validation": float("nan")}, "validation is nan"),
        ({"seed": -1}, "seed is -1; expected 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"mean": [0.1, 0.2]}, "mean is [0.1, 0.2]; expected 1 finite numbers, one a channel"),
        ({"std": [0.0]}, "std is [0.0]; expected numbers above 0"),
        ({"std": [float("inf")]}, "std is [inf]"),
        ({"workers": -1}, "workers is -1"),
        ({"image_size": 28}, "image_size is 28, but the images of digits are 8×8; leave it out"),
        ({"options": ImageOptions(resize="pad")}, "resize is pad, but the images of digits are 8×8; leave it out"),
        ({"options": ImageOptions(crop_scale=0.5)}, "crop_scale is 0.5, but the images of digits are 8×8"),
        ({"options": ImageOptions(class_names=("a", "b"))}, "class_names is ['a', 'b']; expected 10 different names"),
        ({"options": ImageOptions(class_names=("a",) * 10)}, "expected 10 different names, one a class"),
        ({"name": "mnist"}, "the data set 'mnist' needs a root, the folder that holds MNIST/raw/*-ubyte: python -c"),
        ({"name": "fashion-mnist", "root": Path("no/such")}, "no folder no/such, where the data set 'fashion-mnist'"),
        (
            {"name": "cifar10"},
            "needs a root, the folder that holds cifar-10-batches-bin or cifar-10-batches-py: unpack",
        ),
        ({"name": "imagefolder"}, "needs a root, the folder that holds train/CLASS/*.jpg and test/CLASS/*.jpg"),
        ({"options": ImageOptions(shift=1)}, "shift is for augmented images, and these are not; set augment = true"),
        ({"augment": True, "options": ImageOptions(shift=8)}, "shift is 8, and the images have sides of 8"),
        (
            {"name": "imagefolder", "root": Path(), "options": ImageOptions(shift=2)},
            "shift is 2, but image files get random",
        ),
        ({"name": "imagefolder", "root": Path(), "image_size": 0}, "image_size is 0; expected pixels, at least 1"),
        (
            {"name": "imagefolder", "root": Path(), "options": ImageOptions(short_side=200)},
            "short_side is 200; expected at least the image_size, 224",
        ),
        (
            {"name": "imagefolder", "root": Path(), "options": ImageOptions(resize="squash", short_side=256)},
            'short_side is 256; expected at least the image_size, 224, and with resize = "crop" alone',
        ),
    ],
)
def test_a_wrong_argument_is_explained_in_one_line(arguments, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(**{"name": "digits", **arguments})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def real(folder: str) -> Path:
    root = os.environ.get("HOYER_EXPORT_DATA")
    if root is None or not (Path(root) / folder).is_dir():
        pytest.skip(f"set HOYER_EXPORT_DATA to a folder that holds {folder}")
    return Path(root)


@pytest.mark.parametrize(
    ("name", "folder", "count"),
    [
        ("mnist", "MNIST", 70_000),
        ("fashion-mnist", "FashionMNIST", 70_000),
        ("cifar10", "cifar-10-batches-bin", 60_000),
    ],
)
def test_real_sets_are_whole_and_their_default_mean_and_deviation_are_right(name: str, folder: str, count: int) -> None:
    data = load_data(name, root=real(folder), validation=0.1)
    sizes = (len(data.train), len(data.validation), len(data.test))
    assert sizes == ((count - 10_000) * 9 // 10, (count - 10_000) // 10, 10_000)
    # A tenth of the images knows the mean of all to about 0.12 / √5,000 = 0.0017.
    values = pixels(data, data.validation)
    assert (values.mean((0, 2, 3)) - torch.tensor(data.preprocessing.mean)).abs().max() < 0.005
    assert (values.transpose(0, 1).flatten(1).std(1) - torch.tensor(data.preprocessing.std)).abs().max() < 0.005
    images, _ = next(data.train.batches(64, augment=True))
    plain, _ = next(data.train.batches(64))
    assert torch.equal(images, plain) == (name != "cifar10")
