"""Image folders: the same batches whatever the number of workers, and bad folders explained."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hoyer_export.data import DataSplits, ImageOptions, Split, image_file, load_data
from hoyer_export.errors import DataError
from hoyer_export.preprocessing import Resize

# Python 3.12 warns of every fork in a process with threads; torch's are idle here, and its loader forks by default.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")

CLASSES = ("ant", "bee", "cat")
SIZE = 16


def write_images(folder: Path, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            smooth = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            Image.fromarray(smooth).resize((24, 20)).save(folder / name / f"{number}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path / "train", 8, seed=0)
    write_images(tmp_path / "val", 2, seed=1)
    return tmp_path


def load(root: Path, **options) -> DataSplits:
    return load_data("imagefolder", root=root, **{"image_size": SIZE, "validation": 0.25, **options})


def everything(split: Split, **options) -> tuple[Tensor, Tensor]:
    batches = list(split.batches(4, **options))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_without_a_test_folder_val_is_the_test_set_and_validation_is_held_out_of_train(root: Path) -> None:
    data = load(root)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 6, 6)
    assert (data.classes, data.input_shape) == (3, (3, SIZE, SIZE))
    for split, count in ((data.train, 6), (data.validation, 2), (data.test, 2)):
        assert everything(split)[1].bincount().tolist() == [count] * 3


def test_with_three_folders_each_is_what_its_name_says(root: Path) -> None:
    write_images(root / "test", 3, seed=2)
    data = load(root)
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 6, 9)


def test_with_train_and_test_validation_is_held_out_of_train(root: Path) -> None:
    (root / "val").rename(root / "test")
    data = load(root)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 6, 6)


def test_evaluation_resizes_and_takes_the_middle_as_pillow_would(root: Path) -> None:
    data = load(root, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    images, labels = everything(data.test)
    short = round(SIZE * 256 / 224)  # 18; the other side is 24 · 18 / 20 = 21.6
    resized = Image.open(root / "val/ant/0.png").resize((21, short), Image.Resampling.BILINEAR)
    top, left = (short - SIZE) // 2, round((21 - SIZE) / 2)
    pixels = np.asarray(resized)[top : top + SIZE, left : left + SIZE] / 255
    expected = torch.from_numpy((pixels - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]).permute(2, 0, 1)
    assert torch.allclose(images[0].double(), expected, atol=1e-6)
    assert images.dtype == torch.float32
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_order_crops_and_flips_depend_on_seed_and_epoch_and_not_on_the_workers(root: Path) -> None:
    asked = {"shuffle": True, "augment": True}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, first_labels = everything(load(root).train, epoch=3, **asked)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    with_workers, labels = everything(load(root, workers=2).train, epoch=3, **asked)
    assert torch.equal(with_workers, first)
    assert torch.equal(labels, first_labels)
    torch.manual_seed(6)
    assert torch.equal(everything(load(root).train, epoch=3, **asked)[0], first)
    assert not torch.equal(everything(load(root).train, epoch=4, **asked)[0], first)


def test_every_image_of_every_epoch_has_a_crop_of_its_own(root: Path) -> None:
    for path in (root / "train/ant").iterdir():
        if path.name != "0.png":
            shutil.copy(root / "train/ant/0.png", path)
    write_images(root / "test", 1, seed=2)  # so that nothing is held out of train
    images, labels = everything(load(root).train, augment=True)
    ants = images[labels == 0].flatten(1)
    assert len(ants.unique(dim=0)) == len(ants) == 8
    assert not torch.equal(everything(load(root).train, epoch=1, augment=True)[0], images)


def test_only_training_images_are_augmented_and_only_where_both_ask_for_it(root: Path) -> None:
    data = load(root)
    for split in (data.validation, data.test):
        assert torch.equal(everything(split, augment=True)[0], everything(split)[0])
    plain = everything(data.train)[0]
    assert not torch.equal(everything(data.train, augment=True)[0], plain)
    assert torch.equal(everything(load(root, augment=False).train, augment=True)[0], plain)


def test_grey_images_and_images_with_transparency_become_three_channels(root: Path) -> None:
    for mode, number in (("L", 0), ("RGBA", 1)):
        Image.open(root / f"val/ant/{number}.png").convert(mode).save(root / f"val/ant/{number}.png")
    assert everything(load(root).test)[0].shape == (6, 3, SIZE, SIZE)


def move(source: str, target: str):
    return lambda root: (root / source).rename(root / target)


def remove(folder: str):
    return lambda root: shutil.rmtree(root / folder)


def empty(folder: str):
    return lambda root: [path.unlink() for path in (root / folder).iterdir()]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("train"), "no folder {root}/train; expected train/CLASS/*.jpg and test/CLASS/*.jpg (or val/) there"),
        (move("val/bee", "val/wasp"), "{root}: the class 'bee' is in train only; train and val need the same classes"),
        (move("train/ant", "train/emu"), "the class 'ant' is in val only"),
        (remove("val/cat"), "the class 'cat' is in train only"),
        (lambda root: [remove(f"train/{name}")(root) for name in CLASSES], "expected one folder a class"),
        (empty("train/bee"), "{root}/train: no image in the class 'bee'; expected one folder a class"),
        (lambda root: [path.unlink() for path in list((root / "train/bee").iterdir())[1:]], "the class 'bee' has one"),
    ],
)
def test_a_wrong_folder_is_explained_in_one_line(root: Path, damage, message: str) -> None:
    damage(root)
    with pytest.raises(DataError) as caught:
        load(root)
    assert message.format(root=root) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [lambda content: b"no image", lambda content: content[:-200], lambda content: b""])
def test_an_unreadable_image_is_named_in_one_line(root: Path, workers: int, damage) -> None:
    path = root / "val/bee/1.png"
    path.write_bytes(damage(path.read_bytes()))
    data = load(root, workers=workers)
    with pytest.raises(DataError) as caught:
        everything(data.test)
    assert f"cannot read the image {path} (" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_unreadable_image_of_every_split_is_found_at_once(root: Path, workers: int) -> None:
    load(root, workers=workers).check_readable()
    bad = [root / "val/bee/1.png", root / "train/ant/0.png"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot read 2 images of imagefolder") as caught:
        load(root, workers=workers).check_readable()
    assert all(str(path) in str(caught.value) for path in bad)
    for path in (root / "train").glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot read 25 images .* and 22 more; ") as caught:
        load(root, workers=workers).check_readable()
    assert "\n" not in str(caught.value)


def test_unreadable_images_are_left_out_where_that_is_asked_and_named(root: Path) -> None:
    bad = ["val/bee/1.png", "train/ant/0.png", "train/cat/3.png"]
    whole, tested = load(root), everything(load(root).test)[0]
    for name in bad:
        (root / name).write_bytes(b"hello")
    data = load(root, options=ImageOptions(skip_unreadable=True))
    data.check_readable()
    images, labels = everything(data.test)
    assert labels.tolist() == [0, 0, 1, 2, 2]
    assert torch.equal(images, tested[[0, 1, 2, 4, 5]])
    assert len(data.train) + len(data.validation) == len(whole.train) + len(whole.validation) - 2
    why = "no picture, or of a kind that Pillow does not know"
    assert sorted(data.left_out) == [f"{name} ({why})" for name in sorted(bad)]
    assert "3 unreadable images are left out: " in data.notes[-1]
    assert load(root).left_out == ()
    (root / "val/bee/0.png").write_bytes(b"")
    with pytest.raises(DataError, match="cannot read any image of the class 'bee' in one of the splits: "):
        load(root, options=ImageOptions(skip_unreadable=True))


def test_a_crop_scale_of_one_crops_nothing_and_flips_can_be_turned_off(root: Path) -> None:
    plain = everything(load(root).train)[0]
    for flip in (True, False):
        data = load(root, options=ImageOptions(crop_scale=1.0, flip=flip))
        images = everything(data.train, augment=True)[0]
        mirrored = [not torch.equal(image, before) for image, before in zip(images, plain, strict=True)]
        assert any(mirrored) == flip
        assert not all(mirrored)
        for image, before, is_mirrored in zip(images, plain, mirrored, strict=True):
            assert torch.equal(image, before.flip(-1) if is_mirrored else before)
    cropped = load(root, options=ImageOptions(crop_scale=0.3, flip=False)).train
    assert not torch.equal(everything(cropped, augment=True)[0], plain)


@pytest.mark.parametrize(("resize", "seen"), [("squash", 1.0), ("pad", 0.25)])
def test_a_random_crop_has_the_proportions_that_evaluation_sees(root: Path, resize: Resize, seen: float) -> None:
    for path in root.glob("*/*/*.png"):
        Image.new("RGB", (40, 10), "white").save(path)
    options = ImageOptions(resize=resize, crop_scale=0.9)
    data = load(root, mean=[0, 0, 0], std=[1, 1, 1], options=options)
    for images in (everything(data.test)[0], everything(data.train, augment=True)[0]):
        assert abs(float(images.mean()) - seen) < 0.06


def test_what_is_hidden_is_neither_a_class_nor_an_image(root: Path) -> None:
    expected = everything(load(root).train)
    for hidden in ("train/.ipynb_checkpoints", "val/.ipynb_checkpoints", "train/.cache", "train/ant/.thumbnails"):
        shutil.copytree(root / "val/bee", root / hidden)
    for hidden in ("train/.DS_Store", "train/bee/.DS_Store", "train/bee/._0.jpg", "val/.0.png"):
        (root / hidden).write_bytes(b"\0\5\26\7")
    data = load(root)
    data.check_readable()
    assert (data.classes, len(data.test)) == (3, 6)
    assert all(map(torch.equal, everything(data.train), expected))


def test_a_single_class_is_refused(root: Path) -> None:
    for name in CLASSES[1:]:
        for part in ("train", "val"):
            shutil.rmtree(root / part / name)
    with pytest.raises(DataError, match=r"train holds the class 'ant' only, so there is nothing to tell apart"):
        load(root)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_an_image_is_turned_as_its_exif_block_says_and_a_damaged_block_is_no_reason_to_refuse_it(root: Path) -> None:
    halves = np.zeros((20, 20, 3), np.uint8)
    halves[:, :10] = 255  # bright on the left; turned by 90° clockwise: on top
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in CLASSES:
        for path in (root / "val" / name).iterdir():
            path.unlink()
        Image.fromarray(halves).save(root / "val" / name / "a.jpg", exif=exif, quality=95)
    (root / "val/cat/a.jpg").unlink()
    Image.fromarray(halves).save(root / "val/cat/a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", quality=95)
    for image, turned in zip(everything(load(root).test)[0][:, 0], (True, True, False), strict=True):
        first, second = (image, image.T) if turned else (image.T, image)
        assert first[:6].mean() - first[-6:].mean() > 3  # of about 4.4, black to white over ImageNet's deviation
        assert abs(second[:6].mean() - second[-6:].mean()) < 0.5


def test_grey_images_of_sixteen_bits_keep_their_precision_through_resizing(root: Path) -> None:
    values = np.full((20, 24), 32_768 + 100, np.uint16)  # both 128 of 255
    for name, level in zip(CLASSES, (32_768, 32_868, 33_000), strict=True):
        for path in (root / "val" / name).iterdir():
            path.unlink()
        values[:] = level
        Image.fromarray(values).save(root / "val" / name / "a.png")
    data = load(root, mean=[0, 0, 0], std=[1, 1, 1])
    images = everything(data.test)[0]
    expected = torch.tensor([32_768, 32_868, 33_000]) / 65_535
    assert images.shape == (3, 3, SIZE, SIZE)
    assert torch.allclose(images, expected.view(3, 1, 1, 1).expand_as(images), atol=1e-6)
    everything(data.test, augment=True)


def test_fast_decoding_shows_the_same_crops_and_leaves_out_what_no_pixel_needs(root: Path, monkeypatch) -> None:
    rows, columns = np.mgrid[:400, :600]
    pixels = np.stack([columns * 255 // 599, rows * 255 // 399, np.full_like(rows, 128)], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # lying: shown upright, it is 400 wide
    for number, path in enumerate(sorted((root / "train").rglob("*.png"))):
        path.unlink()
        Image.fromarray(pixels).save(path.with_suffix(".jpg"), exif=exif if number % 2 else Image.Exif(), quality=95)
    decoded: list[tuple[int, int]] = []
    read = image_file._read

    def watched(image: Image.Image) -> Image.Image:
        found = read(image)
        decoded.append(found.size)
        return found

    monkeypatch.setattr(image_file, "_read", watched)
    slow, fast = (
        everything(load(root, options=ImageOptions(crop_scale=0.5, fast_decode=fast)).train, augment=True)[0]
        for fast in (False, True)
    )
    assert {side for size in decoded[: len(slow)] for side in size} == {400, 600}
    assert {side for size in decoded[len(slow) :] for side in size} <= {50, 75, 100, 150}
    assert (slow - fast).abs().max() < 0.1  # of pixels between about -2 and 2
    assert (slow - fast.flip(0)).abs().max() > 0.5


def test_fast_decoding_is_for_random_crops_alone_and_takes_every_kind_of_image(root: Path) -> None:
    deep = np.linspace(0, 65_535, 40 * 40).reshape(40, 40).astype(np.uint16)
    Image.fromarray(deep).save(next((root / "train").rglob("*.png")))
    slow, fast = (load(root, options=ImageOptions(fast_decode=it)) for it in (False, True))
    assert torch.equal(everything(slow.validation)[0], everything(fast.validation)[0])
    crops = [everything(data.train, augment=True)[0] for data in (slow, fast)]
    assert (crops[0] - crops[1]).abs().max() < 0.1
    with pytest.raises(DataError, match="no lanczos; leave one of the two out"):
        load(root, options=ImageOptions(fast_decode=True, interpolation="lanczos"))
