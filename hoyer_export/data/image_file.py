"""One image file: path → pixels, each of Pillow's modes by its own range, the right way up.

Colours become RGB of eight bits. Transparency is dropped, as torchvision and most training code do: a pixel counts with
its own colour, whatever would shine through. Grey images of more than eight bits keep their precision as numbers of
0..1: those of 16 bits, and those of 32 (Pillow's mode I, which holds 16-bit values in practice), over 65,535, or over
4,095 where a TIFF file says that it has 12 bits; floating-point ones as they are.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hoyer_export.errors import DataError, one_line

_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE = 258, 262, 281  # tags of TIFF 6.0, section 8
_ORIENTATION, _LYING = 274, 5  # of EXIF: from 5 on, rows and columns are exchanged
_DEEP = [2**bits - 1 for bits in range(9, 17)]


def read_image(path: Path | str, needed: Callable[[int, int], float] | None = None) -> Image.Image:
    """Read an image as mode RGB, or as mode F with values in 0..1 where it is grey of more than eight bits.

    Args:
        path: of the file.
        needed: (width, height) of the whole image, upright → how many times smaller is still large enough: a JPEG is
            decoded to a half, a quarter or an eighth of its sides, which leaves out the work for the rest.

    Raises:
        DataError: it cannot be read, or nobody can tell what its numbers mean.
    """
    try:
        with Image.open(path) as image:
            if needed is not None:
                factor = needed(*_upright_size(image))
                width, height = (ceil(side / max(1.0, factor)) for side in image.size)
                image.draft(None, (width, height))
            return _read(image)
    except Exception as error:  # each image format fails in its own way
        raise _unreadable(path, error) from error


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = False
    with suppress(Exception):  # a damaged EXIF block, as below
        turned = image.getexif().get(_ORIENTATION, 1) >= _LYING
    return (image.height, image.width) if turned else image.size


def size_of(path: Path | str) -> tuple[int, int]:
    """Return width and height of an image as they are stored, without decoding it; DataError as for ``read_image``."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path | str, error: Exception) -> DataError:
    return DataError(f"cannot read the image {path} ({one_line(error)}); replace it or take it out of the folder")


def why_unreadable(path: Path | str) -> str | None:
    """Return why an image cannot be read, or None.

    A PNG file carries check sums, and a JPEG file can be decoded to an eighth of its size: that is faster than reading
    it. What does not pass is read, which has the last word.
    """
    with suppress(Exception), Image.open(path) as image:
        if image.format == "PNG" and image.mode != "I":
            image.verify()
            return None
        if image.format == "JPEG":
            image.draft("RGB", (1, 1))
            image.load()
            return None
    try:
        with Image.open(path) as image:
            _read(image)
    except UnidentifiedImageError:
        return "no picture, or of a kind that Pillow does not know"
    except Exception as error:
        return one_line(error)
    return None


def _read(image: Image.Image) -> Image.Image:
    image.load()
    tags = dict(getattr(image, "tag_v2", {}))
    with suppress(Exception):  # a damaged EXIF block says nothing about the pixels
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _deep(image, tags)
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way
    return image.convert("RGB")


def _deep(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Return a grey image of more than eight bits as mode F, values in 0..1."""
    values = np.asarray(image)
    full_scale = 1 if image.mode == "F" else _full_scale(tags)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= full_scale):  # also where one is no number
        raise ValueError(
            f"its values go from {low:g} to {high:g}; expected 0 to {full_scale:,} in mode {image.mode}: scale them"
        )
    shares = (values / np.float32(full_scale)).astype(np.float32)
    return Image.fromarray(1 - shares if tags.get(_PHOTOMETRIC) == 0 else shares)  # 0: white is zero


def _full_scale(tags: Mapping[int, Any]) -> int:
    """Return the value that stands for 1.0: of all bits that a TIFF file says a pixel has, else 65,535.

    MaxSampleValue may also be the largest value of this one image, which says nothing: then it is no power of 2 less 1.
    """
    stated = [*tags.get(_MAX_SAMPLE_VALUE, ()), 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1]
    return next((int(value) for value in stated if value in _DEEP), _DEEP[-1])
