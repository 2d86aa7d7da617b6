"""A file of tensors: the same bytes as safetensors' own writer, back to the bit, and one line where it is damaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from hoyer_export.errors import FileError
from hoyer_export.record import Record
from hoyer_export.tensors_file import read_about, read_tensors, write_tensors

KEY = "hoyer_export.network"
EXPECTED = {"kind": "slim file", "advice": "make it again"}
WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "c": torch.zeros(0, 2, dtype=torch.bfloat16)}


class Network(Record):
    name: str


@pytest.mark.parametrize("about", [Network(name="lenet5"), '{"name":"lenet5"}'])
def test_it_is_what_safetensors_writes(tmp_path: Path, about: Network | str) -> None:
    path = tmp_path / "w.safetensors"
    write_tensors(path, WEIGHTS, about, KEY)
    assert path.read_bytes() == save(WEIGHTS, {KEY: '{"name":"lenet5"}'})
    text, tensors = read_tensors(path, KEY, **EXPECTED)
    assert json.loads(text) == {"name": "lenet5"}
    assert read_about(path, KEY, **EXPECTED) == text
    assert tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_tensors_may_share_memory_need_a_gradient_and_lie_in_any_layout(tmp_path: Path) -> None:
    shared = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    write_tensors(tmp_path / "w", {"one": shared, "tied": shared, "turned": shared.transpose(0, 1)}, "{}", KEY)
    _, tensors = read_tensors(tmp_path / "w", KEY, **EXPECTED)
    assert torch.equal(tensors["one"], shared)
    assert torch.equal(tensors["tied"], shared)
    assert torch.equal(tensors["turned"], shared.transpose(0, 1))


@pytest.mark.parametrize("damage", ["absent", "folder", "text", "cut", "other key", "no metadata"])
def test_what_is_no_such_file_is_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "w.safetensors"
    if damage == "folder":
        path.mkdir()
    elif damage == "text":
        path.write_text("weights, promised")
    elif damage == "cut":
        path.write_bytes(save(WEIGHTS, {KEY: "{}"})[:-3])
    elif damage != "absent":
        save_file(WEIGHTS, path, metadata={"other": "{}"} if damage == "other key" else None)
    for read in (read_tensors, read_about):
        with pytest.raises(FileError, match=r"w\.safetensors is no whole slim file \(.+\); make it again$") as raised:
            read(path, KEY, **EXPECTED)
        assert "\n" not in str(raised.value)
