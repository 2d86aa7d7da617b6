"""Batches of small images against a slow and obvious reference, in float64."""

import pytest
import torch
from torch import Tensor

from hoyer_export.data.tensor_split import TensorSplit, crop_and_flip

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def split(count: int = 23, **options) -> TensorSplit:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8, generator=generator)
    images[:, 0, 0, 0] = torch.arange(count)  # says who it is
    return TensorSplit(images, torch.arange(count) % 10, **{"mean": MEAN, "std": STD, "seed": 1, **options})


def who(images: Tensor) -> list[int]:
    return (((images[:, 0, 0, 0] * STD[0]) + MEAN[0]) * 255).round().int().tolist()


def by_hand(image: Tensor, top: int, left: int, mirrored: bool, padding: int) -> Tensor:
    channels, height, width = image.shape
    canvas = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    canvas[:, padding : padding + height, padding : padding + width] = image
    window = canvas[:, top : top + height, left : left + width]
    return window.flip(-1) if mirrored else window


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_every_window_and_mirror_is_the_one_cut_by_hand(padding: int) -> None:
    places = range(2 * padding + 1)
    cases = [(top, left, mirrored) for top in places for left in places for mirrored in (False, True)]
    images = torch.randint(1, 256, (len(cases), 3, 6, 5), dtype=torch.uint8)
    shifts = torch.tensor([case[:2] for case in cases])
    mirrored = torch.tensor([case[2] for case in cases])
    result = crop_and_flip(images, shifts, mirrored, padding)
    expected = torch.stack([by_hand(i, *case, padding) for i, case in zip(images, cases, strict=True)])
    assert torch.equal(result, expected)
    assert not torch.equal(result, crop_and_flip(images, shifts, ~mirrored, padding))


def test_a_window_in_the_middle_is_the_image() -> None:
    images = torch.rand(7, 2, 4, 4)
    assert torch.equal(crop_and_flip(images, torch.full((7, 2), 3), torch.zeros(7, dtype=torch.bool), 3), images)


def test_batches_are_normalised_as_the_formula_says() -> None:
    data = split()
    images, labels = next(data.batches(23))
    pixels = data._images.double()
    expected = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.allclose(images.double(), expected, atol=1e-6)


def test_an_epoch_shows_every_image_once_with_its_label() -> None:
    seen: list[int] = []
    for images, labels in split().batches(5, shuffle=True):
        seen += who(images)
        assert labels.tolist() == [name % 10 for name in who(images)]
    assert sorted(seen) == list(range(23))
    assert seen != list(range(23))


def epoch_of(data: TensorSplit, batch_size: int = 5, **options) -> Tensor:
    return torch.cat([images for images, _ in data.batches(batch_size, **options)])


def test_order_and_augmentation_depend_on_seed_and_epoch_only() -> None:
    options = {"crop_padding": 2, "flip": True}
    asked = {"shuffle": True, "augment": True}
    data = split(**options)
    first = epoch_of(data, epoch=4, **asked)
    epoch_of(data, epoch=5, **asked)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(epoch_of(data, epoch=4, **asked), first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert torch.equal(epoch_of(split(**options), batch_size=7, epoch=4, **asked), first)
    assert not torch.equal(epoch_of(data, epoch=5, **asked), first)
    assert not torch.equal(epoch_of(split(seed=2, **options), epoch=4, **asked), first)


def test_the_order_is_the_same_with_and_without_augmentation() -> None:
    data = split(crop_padding=1, flip=True)
    order = [
        torch.cat([labels for _, labels in data.batches(5, shuffle=True, augment=augment)]) for augment in (False, True)
    ]
    assert torch.equal(*order)


def test_half_of_the_images_are_mirrored_and_windows_are_uniform() -> None:
    count = 4000
    ramp = torch.arange(1, 6, dtype=torch.uint8).expand(count, 1, 6, 5).contiguous()
    data = TensorSplit(ramp, torch.zeros(count).long(), mean=(0,), std=(1 / 255,), crop_padding=1, flip=True)
    images = epoch_of(data, batch_size=count, augment=True)
    row = images[:, 0, 2].round()  # a row that no vertical shift can blacken
    mirrored = row[:, 1] > row[:, 3]
    assert 0.46 < mirrored.double().mean() < 0.54  # 0.5 ± 5 deviations
    top_is_black = images[:, 0, 0].sum(1) == 0
    assert 0.29 < top_is_black.double().mean() < 0.375  # 1/3 ± 5 deviations


def test_a_split_without_augmentation_never_augments() -> None:
    data = split()
    assert torch.equal(epoch_of(data, augment=True), epoch_of(data))
    assert not torch.equal(epoch_of(split(flip=True), augment=True), epoch_of(data)), "a flip would be seen"


def test_the_images_live_and_are_augmented_on_the_device_that_is_asked_for() -> None:
    # The meta device holds no values, but refuses to meet another device as a GPU does.
    data = split(crop_padding=1, flip=True)
    for images, labels in data.batches(5, device="meta", shuffle=True, augment=True):
        assert (images.device.type, labels.device.type) == ("meta", "meta")
    assert data._images.device.type == "meta"
