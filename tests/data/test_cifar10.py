"""CIFAR-10's official files, in both layouts, whole, damaged and hostile."""

import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from hoyer_export.data import load_data
from hoyer_export.data.cifar10 import read_cifar10
from hoyer_export.errors import DataError

NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
PIXELS = np.random.default_rng(0).integers(0, 256, (10_000, 3072), dtype=np.uint8)
LABELS = np.arange(10_000) % 10


def binary(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    return np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1).tobytes()


def python2(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """Write the pickle that Python 2 wrote: protocol 2, every string and the array's bytes as byte strings."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    raw = pixels.tobytes()
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    shape = number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86"
    array += b"(" + number(1) + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    entries = text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + numbers
    return b"\x80\x02}(" + entries + text(b"data") + array + b"u."


def numpy_pickle(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    return pickle.dumps({b"labels": labels.tolist(), b"data": pixels}, protocol=4)


LAYOUTS = {
    "binary": ("cifar-10-batches-bin", ".bin", binary),
    "python2": ("cifar-10-batches-py", "", python2),
    "numpy": ("cifar-10-batches-py", "", numpy_pickle),
}


def write_set(folder: Path, ending: str, batch: bytes, test: bytes) -> None:
    folder.mkdir()
    (folder / (NAMES[0] + ending)).write_bytes(batch)
    (folder / (NAMES[-1] + ending)).write_bytes(test)
    for name in NAMES[1:-1]:
        os.link(folder / (NAMES[0] + ending), folder / (name + ending))  # one copy on disk is enough


@pytest.fixture(scope="module", params=LAYOUTS)
def whole_set(request, tmp_path_factory) -> tuple[Path, str]:
    folder, ending, write = LAYOUTS[request.param]
    root = tmp_path_factory.mktemp(request.param)
    write_set(root / folder, ending, write(PIXELS, LABELS), write(PIXELS[::-1].copy(), LABELS[::-1]))
    return root, folder


@pytest.mark.parametrize("inside", [False, True])
def test_images_and_labels_come_back_as_they_were_written(whole_set, inside: bool) -> None:
    root, folder = whole_set
    (images, labels), (test_images, test_labels) = read_cifar10(root / folder if inside else root)
    assert images.shape == (50_000, 3, 32, 32)
    assert np.array_equal(images[40_000:].flatten(1).numpy(), PIXELS)
    assert np.array_equal(test_images.flatten(1).numpy(), PIXELS[::-1])
    assert np.array_equal(labels[:10_000].numpy(), LABELS)
    assert np.array_equal(test_labels.numpy(), LABELS[::-1])


def test_cifar10_16_is_the_mean_of_four_pixels_with_half_the_padding(tmp_path: Path) -> None:
    write_set(tmp_path / "cifar-10-batches-bin", ".bin", binary(PIXELS, LABELS), binary(PIXELS, LABELS))
    data = load_data("cifar10-16", root=tmp_path, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert data.input_shape == (3, 16, 16)
    planes = PIXELS[:50].reshape(50, 3, 16, 2, 16, 2)
    images, labels = next(data.test.batches(50))
    assert np.allclose(images.numpy() * 255, np.rint(planes.mean((3, 5))), atol=1e-4)
    assert np.array_equal(labels.numpy(), LABELS[:50])
    moved, _ = next(data.train.batches(128, augment=True))
    assert (moved == 0).all((1, 3)).sum(1).max() == 2  # rows of padding


def test_the_pickle_of_python_2_in_these_tests_is_one_that_numpy_reads() -> None:
    batch = pickle.Unpickler(io.BytesIO(python2(PIXELS[:5], LABELS[:5])), encoding="bytes").load()
    assert np.array_equal(batch[b"data"], PIXELS[:5])
    assert batch[b"labels"] == LABELS[:5].tolist()


def read_one(tmp_path: Path, folder: str, ending: str, content: bytes) -> str:
    """Return the error that a first file with this content gives."""
    write_set(tmp_path / folder, ending, content, b"")
    with pytest.raises(DataError) as caught:
        read_cifar10(tmp_path)
    assert "\n" not in str(caught.value)
    assert "data_batch_1" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected 30,730,000 bytes (10,000 records of 3,073), found 0"),
        (bytes(3073 * 9_999), "found 30,726,927"),  # truncated between two records
        (bytes(3073 * 7) + bytes([10]) + bytes(3073 * 9_993 - 1), "record 7 has label 10; expected 0 to 9"),
    ],
)
def test_a_damaged_binary_file_is_one_line_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in read_one(tmp_path, "cifar-10-batches-bin", ".bin", content)


SMALL = {"labels": LABELS.tolist(), "data": PIXELS[:9]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no CIFAR-10 batch (EOFError"),
        (b"not a pickle", "is no CIFAR-10 batch"),
        (python2(PIXELS, LABELS)[:-1000], "is no CIFAR-10 batch"),
        (pickle.dumps([1, 2]), "expected a dict with an array 'data' and a list 'labels'"),
        (pickle.dumps({"labels": LABELS.tolist()}), "expected a dict with an array 'data'"),
        (pickle.dumps({"labels": [0] * 9_999, "data": PIXELS[:9]}, 4), "expected 10,000 labels between 0 and 9"),
        (pickle.dumps({"labels": [10] * 10_000, "data": PIXELS[:9]}, 4), "expected 10,000 labels between 0 and 9"),
        (pickle.dumps(SMALL, 4), "bytes of shape (10000, 3072), found (9, 3072) with 27,648 bytes"),
        (pickle.dumps({**SMALL, "data": PIXELS[:9].astype(float)}, 4), "found something else"),
        (pickle.dumps({**SMALL, "data": np.array([None, {}], object)}, 4), "found something else"),
    ],
)
def test_a_damaged_python_file_is_one_line_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in read_one(tmp_path, "cifar-10-batches-py", "", content)


def test_a_damaged_test_batch_is_found_where_the_data_is_loaded(whole_set) -> None:
    root, folder = whole_set
    path = next(iter((root / folder).glob("test_batch*")))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    try:
        with pytest.raises(DataError, match="test_batch"):
            read_cifar10(root)
    finally:
        path.write_bytes(content)


def test_a_missing_file_is_named(whole_set) -> None:
    root, folder = whole_set
    path = next(iter((root / folder).glob("data_batch_3*")))
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(DataError, match=r"cannot read .*data_batch_3.*: No such file or directory; unpack https"):
            read_cifar10(root)
    finally:
        path.write_bytes(content)


def test_a_folder_without_the_set_says_what_was_expected_and_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected cifar-10-batches-bin/data_batch_1.bin or .*; unpack https://www.cs"):
        read_cifar10(tmp_path)


class Attack:
    """Unpickled by a reader that trusts it, calls ``function(*arguments)``."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize("place", ["the whole file", "data", "in a list"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_batch_cannot_run_code(tmp_path: Path, place: str, protocol: int) -> None:
    trace = tmp_path / "trace"
    attack = Attack(os.mkdir, str(trace))
    content = {"the whole file": attack, "data": {"data": attack}, "in a list": {"labels": [attack]}}[place]
    hostile = pickle.dumps(content, protocol)
    message = read_one(tmp_path, "cifar-10-batches-py", "", hostile)
    assert "refused: it asks for 'posix.mkdir'" in message or "refused: it asks for 'nt.mkdir'" in message
    assert not trace.exists()
    pickle.Unpickler(io.BytesIO(hostile)).load()  # the attack works where nobody guards against it
    assert trace.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("numpy", "dtype.type"),
        ("numpy.core.multiarray", "scalar"),
        ("hoyer_export.data.cifar10", "pickle.loads"),
        ("two\nlines", "\x1b[31m"),
    ],
)
def test_any_other_name_is_refused_and_quoted(tmp_path: Path, module: str, name: str) -> None:
    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value.encode())]) + value.encode()

    message = read_one(tmp_path, "cifar-10-batches-py", "", b"\x80\x04" + text(module) + text(name) + b"\x93.")
    assert f"refused: it asks for {f'{module}.{name}'!r}" in message
    assert message.isprintable()


def test_a_batch_cannot_make_numpy_build_anything(tmp_path: Path) -> None:
    # An array of a petabyte, and an array of pointers taken from the file: both names are allowed, neither is called.
    huge = b"\x80\x04cnumpy\nndarray\n\x8a\x07" + (2**50).to_bytes(7, "little") + b"\x85\x85R."
    pointers = numpy_pickle(PIXELS[:1], LABELS).replace(b"u1", b"O8")
    assert "is no CIFAR-10 batch" in read_one(tmp_path, "cifar-10-batches-py", "", huge)
    (tmp_path / "second").mkdir()
    assert "found something else" in read_one(tmp_path / "second", "cifar-10-batches-py", "", pointers)
