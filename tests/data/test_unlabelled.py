"""Pictures without labels in an array: which axis the channels are, and what is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hoyer_export.data import load_data
from hoyer_export.data.unlabelled import read_array
from hoyer_export.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_channels_may_come_last(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "last.npy", PIXELS.astype(dtype))
    np.savez(tmp_path / "first.npz", PIXELS.astype(dtype).transpose(0, 3, 1, 2))
    last, first = read_array(tmp_path / "last.npy"), read_array(tmp_path / "first.npz")
    assert last.shape == (6, 3, 5, 7)
    assert torch.equal(last, first)
    assert load_data("images", root=tmp_path / "last.npy").input_shape == (3, 5, 7)


@pytest.mark.parametrize("shape", [(6, 3, 5, 3), (6, 1, 28, 4), (6, 5, 7, 8)])
def test_channels_come_second_where_both_could_be(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "some.npy", np.zeros(shape, np.uint8))
    assert read_array(tmp_path / "some.npy").shape == shape


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_what_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    images = PIXELS.astype(np.float64)
    images[[2, 4], 0, 0, 0] = value
    np.save(tmp_path / "some.npy", images)
    with pytest.raises(DataError, match=r"some\.npy holds numbers that are not finite: image 2 and 1 more"):
        read_array(tmp_path / "some.npy")


@pytest.mark.parametrize(("name", "content"), [("notes.txt", b"some words"), ("a.npz", b"PK\x03\x04"), ("a.npy", b"")])
def test_a_file_of_another_kind_is_said_without_a_word_of_pickles(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_data("images", root=tmp_path / name)
    assert f"{name} is no .npy or .npz file with numbers, or a damaged one; expected a folder of pictures" in str(
        caught.value
    )
    assert "pickle" not in str(caught.value)
