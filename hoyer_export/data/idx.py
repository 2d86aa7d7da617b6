"""MNIST and its drop-in replacements from IDX files: folder → bytes and labels.

An IDX file is a big-endian header (two zero bytes, type 8 = unsigned byte, number of dimensions, then each size as
32 bits) and the values. Source: http://yann.lecun.com/exdb/mnist (kept at https://archive.org).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hoyer_export.errors import DataError


def read_idx_set(root: Path, folder: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Read the training and the test images of a set of 28×28 images in ten classes.

    Args:
        root: holds ``folder/raw`` as torchvision lays it out, or is the folder of the files itself.
        folder: ``MNIST`` or ``FashionMNIST``.

    Returns:
        (images uint8 [count, 1, 28, 28], labels int64 [count]) for training and test.

    Raises:
        DataError: a file is missing, truncated, or holds something else.
    """
    advice = how_to_get(folder)
    for place in (root / folder / "raw", root / "raw", root):
        if _find(place / "train-images-idx3-ubyte") or _find(place / "t10k-images-idx3-ubyte"):
            try:
                return _read_pair(place, "train"), _read_pair(place, "t10k")
            except DataError as error:
                raise DataError(f"{error}; {advice}") from error
    raise DataError(f"no {folder} under {root}: expected {folder}/raw/train-images-idx3-ubyte there; {advice}")


def how_to_get(folder: str) -> str:
    """Say how a user gets the files of ``MNIST`` or ``FashionMNIST``."""
    command = f"from torchvision.datasets import {folder}; {folder}('DIR', download=True)"
    return f'python -c "{command}" fetches it; then name DIR as root'


def _find(path: Path) -> Path | None:
    """Return ``path`` or ``path.gz``, whichever is there."""
    packed = path.with_name(path.name + ".gz")
    return path if path.is_file() else packed if packed.is_file() else None


def _read_pair(place: Path, part: str) -> tuple[Tensor, Tensor]:
    images = _read_idx(place / f"{part}-images-idx3-ubyte", dimensions=3)
    labels = _read_idx(place / f"{part}-labels-idx1-ubyte", dimensions=1)
    count, height, width = images.shape
    if (height, width) != (28, 28) or count == 0:
        raise DataError(f"{place}: expected {part} images of 28×28, found {count:,} of {height}×{width}")
    if len(labels) != count:
        raise DataError(f"{place}: {count:,} {part} images but {len(labels):,} labels")
    if int(labels.max()) > 9:
        record = int(labels.argmax())
        raise DataError(f"{place}: {part} label {record} is {int(labels[record])}; expected 0 to 9")
    return images[:, None], labels.long()


def _read_idx(path: Path, *, dimensions: int) -> Tensor:
    """Read one file of unsigned bytes with ``dimensions`` dimensions."""
    found = _find(path)
    if found is None:
        raise DataError(f"{path} is missing")
    try:
        content = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {found}: {error}") from error
    start, header = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    if len(content) < header or not content.startswith(start):
        came = content[:4].hex(" ") or "an empty file"
        raise DataError(f"{found}: expected an IDX file that starts with {start.hex(' ')}, found {came}")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(sizes):
        announced = f"{math.prod(sizes):,} bytes, found {len(content) - header:,}"
        raise DataError(f"{found}: its header announces {announced}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(sizes).copy())
