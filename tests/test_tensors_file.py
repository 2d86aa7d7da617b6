"""Tensors and what is said about them come back as they were; the same ones give the same bytes."""

import json
from pathlib import Path

import pytest
import torch

from hoyer_export.errors import FileError
from hoyer_export.tensors_file import read_tensors, write_tensors


def test_tensors_of_any_layout_and_shared_ones_come_back(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last).requires_grad_()
    tensors = {
        "weight": weight,
        "tied": weight,
        "turned": weight.detach().permute(1, 0, 2, 3),
        "count": torch.tensor(7),
    }
    for name in ("a", "b"):
        write_tensors(tmp_path / name, tensors, {"words": ["x", 1, None]}, "key")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found, metadata = read_tensors(tmp_path / "a")
    assert json.loads(metadata["key"]) == {"words": ["x", 1, None]}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert list(metadata) == ["key"]


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist"), (b"no", "cannot be read as safetensors")])
def test_what_is_no_such_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "f").write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_tensors(tmp_path / "f")
