"""CIFAR-10 from its official files, in the binary or the Python layout: folder → bytes and labels.

A Python batch is a pickle. Nothing in it is ever called: the three names that a NumPy array needs are replaced by
records, every other name is refused, and the array is built here from the recorded bytes.

Source: https://www.cs.toronto.edu/~kriz/cifar.html (both layouts are described there).
"""

import pickle
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoyer_export.errors import DataError, one_line

_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = ("test_batch",)
_RECORDS = 10_000  # images a file
_PIXELS = 3 * 32 * 32  # bytes an image: the planes of red, green and blue
_Batch = tuple[NDArray[np.uint8], NDArray[np.uint8]]
HOW_TO_GET = "unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz in a folder and name that folder as root"


def read_cifar10(root: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Read the training and the test images.

    Args:
        root: holds ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, or is one of these folders itself.

    Returns:
        (images uint8 [count, 3, 32, 32], labels int64 [count]) for training (50,000) and test (10,000).

    Raises:
        DataError: a file is missing, truncated, or holds something else.
    """
    for folder, ending, read in (
        (root / "cifar-10-batches-bin", ".bin", _read_binary),
        (root / "cifar-10-batches-py", "", _read_python),
        (root, ".bin", _read_binary),
        (root, "", _read_python),
    ):
        if (folder / (_TEST[0] + ending)).is_file() or (folder / (_TRAIN[0] + ending)).is_file():
            train, test = ([_read(folder / (name + ending), read) for name in names] for names in (_TRAIN, _TEST))
            return _join(train), _join(test)
    raise DataError(
        f"no CIFAR-10 under {root}: expected cifar-10-batches-bin/data_batch_1.bin or "
        f"cifar-10-batches-py/data_batch_1 there; {HOW_TO_GET}"
    )


def _read(path: Path, read: Callable[[bytes], _Batch]) -> _Batch:
    """Return pixels uint8 [10000, 3072] and labels; whatever is wrong with the file is said in one line."""
    try:
        return read(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; {HOW_TO_GET}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}; {HOW_TO_GET}") from error
    except Exception as error:  # a damaged pickle fails in as many ways as there are instructions in it
        raise DataError(f"{path} is no CIFAR-10 batch ({one_line(error, typed=True)}); {HOW_TO_GET}") from error


def _join(files: list[_Batch]) -> tuple[Tensor, Tensor]:
    images = np.concatenate([pixels for pixels, _ in files]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in files])
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def _read_binary(content: bytes) -> _Batch:
    """Read records of one label byte and 3,072 pixel bytes."""
    size = 1 + _PIXELS
    if len(content) != _RECORDS * size:
        expected = f"{_RECORDS * size:,} bytes ({_RECORDS:,} records of {size:,})"
        raise DataError(f"expected {expected}, found {len(content):,}")
    records = np.frombuffer(content, np.uint8).reshape(_RECORDS, size)
    pixels, labels = records[:, 1:], records[:, 0]
    if labels.max() > 9:
        record = int(labels.argmax())
        raise DataError(f"record {record} has label {labels[record]}; expected 0 to 9")
    return pixels, labels


def _read_python(content: bytes) -> _Batch:
    """Read a pickled dict with ``data`` (uint8 [10000, 3072]) and ``labels`` (10,000 numbers)."""
    loaded = _BatchReader(BytesIO(content), encoding="bytes").load()
    # Written by Python 2: read as bytes, its keys are bytes.
    batch = {_text(key): value for key, value in loaded.items()} if isinstance(loaded, Mapping) else {}
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise DataError("expected a dict with an array 'data' and a list 'labels'")
    if not all(type(label) is int and 0 <= label <= 9 for label in labels) or len(labels) != _RECORDS:
        raise DataError(f"expected {_RECORDS:,} labels between 0 and 9")
    return data.pixels(), np.array(labels, np.uint8)


class _Dtype:
    """Stands for ``numpy.dtype``: remembers what it was asked for."""

    def __init__(self, code: str | bytes, *_flags: int) -> None:
        self.code = _text(code)

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and alignment, which a byte does not have."""


class _Array:
    """Stands for ``numpy.ndarray``: remembers its dtype, shape and bytes."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> NDArray[np.uint8]:
        """Return the array, if it is the one of a batch of CIFAR-10."""
        match self.state:
            case (_, (int(), int()) as shape, _Dtype(code="u1" | "|u1"), fortran_order, bytes(raw)):
                if shape == (_RECORDS, _PIXELS) and len(raw) == _RECORDS * _PIXELS:
                    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran_order else "C")
                found = f"{shape} with {len(raw):,} bytes"
            case _:
                found = "something else"
        raise DataError(f"expected 'data' to be bytes of shape ({_RECORDS}, {_PIXELS}), found {found}")


class _BatchReader(pickle.Unpickler):
    """Unpickles numbers, strings, bytes, lists, dicts and arrays; refuses every other name."""

    # NumPy 2 moved the module.
    _STAND_INS = {  # noqa: RUF012  (never changed)
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_arguments: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_arguments: _Array(),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name."""
        if (module, name) not in self._STAND_INS:
            wanted = repr(f"{module}.{name}")  # quoted, because the file chooses these letters
            raise DataError(f"refused: it asks for {wanted}, which no CIFAR-10 batch needs; do not trust this file")
        return self._STAND_INS[module, name]


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value
