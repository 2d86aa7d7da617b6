"""MNIST's files, whole and damaged."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from hoyer_export.data.idx import read_idx_set
from hoyer_export.errors import DataError

COUNTS = {"train": 60, "t10k": 20}


def pixels(part: str) -> np.ndarray:
    return np.random.default_rng(len(part)).integers(0, 256, (COUNTS[part], 28, 28), dtype=np.uint8)


def write_set(folder: Path, *, packed: bool = False) -> None:
    folder.mkdir(parents=True)
    for part, count in COUNTS.items():
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels(part).tobytes()
        labels = struct.pack(">II", 2049, count) + bytes(number % 10 for number in range(count))
        for name, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            path = folder / (name + ".gz" if packed else name)
            path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("place", "folder"), [("MNIST/raw", "MNIST"), ("FashionMNIST/raw", "FashionMNIST"), ("", "MNIST")]
)
def test_images_and_labels_come_back_as_they_were_written(
    tmp_path: Path, place: str, folder: str, packed: bool
) -> None:
    write_set(tmp_path / "set" / place, packed=packed)
    for (images, labels), part in zip(read_idx_set(tmp_path / "set", folder), COUNTS, strict=True):
        assert torch.equal(images, torch.from_numpy(pixels(part))[:, None])
        assert labels.tolist() == [number % 10 for number in range(COUNTS[part])]


def test_fashion_mnist_is_not_mistaken_for_mnist(tmp_path: Path) -> None:
    write_set(tmp_path / "FashionMNIST/raw")
    with pytest.raises(
        DataError, match=r"no MNIST under .*: expected MNIST/raw/train-images-idx3-ubyte there; python -c"
    ):
        read_idx_set(tmp_path, "MNIST")


def header(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"", "found an empty file"),
        ("train-images-idx3-ubyte", b"\x00\x00", "found 00 00"),
        ("train-images-idx3-ubyte", header(2051, 60, 28, 28) + bytes(1000), "announces 47,040 bytes, found 1,000"),
        ("train-images-idx3-ubyte", header(2051, 1, 28, 28) + bytes(785), "announces 784 bytes, found 785"),
        ("train-images-idx3-ubyte", header(2049, 60) + bytes(60), "starts with 00 00 08 03, found 00 00 08 01"),
        ("train-images-idx3-ubyte", header(2051, 2**31, 2**31, 4) + bytes(9), "announces 18,446,744,073,709,551,616"),
        (
            "train-images-idx3-ubyte",
            header(2051, 1, 8, 8) + bytes(64),
            "expected train images of 28×28, found 1 of 8×8",
        ),
        ("train-images-idx3-ubyte", header(2051, 0, 28, 28), "found 0 of 28×28"),
        ("t10k-images-idx3-ubyte", b"<html>not found</html>", "found 3c 68 74 6d"),
        ("t10k-labels-idx1-ubyte", header(2049, 19) + bytes(19), "20 t10k images but 19 labels"),
        ("t10k-labels-idx1-ubyte", header(2049, 21) + bytes(21), "20 t10k images but 21 labels"),
        (
            "t10k-labels-idx1-ubyte",
            header(2049, 20) + bytes([0] * 5 + [10] * 15),
            "t10k label 5 is 10; expected 0 to 9",
        ),
        ("t10k-labels-idx1-ubyte", None, "t10k-labels-idx1-ubyte is missing"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    write_set(tmp_path / "MNIST/raw")
    path = tmp_path / "MNIST/raw" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx_set(tmp_path, "MNIST")
    assert message in str(caught.value)
    assert "download=True" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda content: b"x" + content, lambda content: b""])
def test_a_damaged_gz_file_is_one_line(tmp_path: Path, damage) -> None:
    write_set(tmp_path / "raw", packed=True)
    path = tmp_path / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
        read_idx_set(tmp_path, "MNIST")
