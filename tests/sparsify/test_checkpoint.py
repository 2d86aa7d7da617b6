"""Every kind of damage to a checkpoint is one line, and changes nothing."""

import json
import pickle
import struct
import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from hoyer_export.errors import FileError
from hoyer_export.sparsify.checkpoint import epochs_done, load_checkpoint, save_checkpoint
from hoyer_export.sparsify.phase import EpochRecord
from hoyer_export.sparsify.state import TrainState

SETTINGS = {"phase": "dense", "lr": 0.1, "strength": None}
HISTORY = (EpochRecord(phase="dense", epoch=0, loss=0.1 + 0.2),)


def trained(*, tied: bool = False, channels_last: bool = False, name: str = "sgd") -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model[0].bias.requires_grad_(False)
    if tied:
        model[3].weight = model[2].weight
    if channels_last:
        model.to(memory_format=torch.channels_last)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = kinds[name](model.parameters(), lr=0.1, **({"momentum": 0.9} if name == "sgd" else {}))
    for _ in range(2):
        model(torch.randn(2, 2, 5, 5)).square().sum().backward()
        optimizer.step()
    return TrainState(model, optimizer)


def fresh(**options) -> TrainState:
    state = trained(**options)
    with torch.no_grad():
        for tensor in state.model.state_dict().values():
            tensor.zero_()
    state.optimizer.state.clear()
    return state


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "dense.safetensors"
    save_checkpoint(path, trained(), settings=SETTINGS, history=HISTORY)
    return path


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"channels_last": True}, {"name": "adam"}])
def test_what_is_saved_comes_back_to_the_bit(tmp_path, options):
    saved, other = trained(**options), fresh(**options)
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, saved, settings=SETTINGS, history=HISTORY)
    assert load_checkpoint(path, other, settings=SETTINGS)[:2] == (other, HISTORY)
    for name, tensor in saved.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor), name
    state, other_state = saved.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
    assert state.keys() == other_state.keys()
    for index in state:
        assert state[index].keys() == other_state[index].keys()
        for key, value in state[index].items():
            assert torch.equal(other_state[index][key], value)
            assert other_state[index][key].stride() == value.stride()
            assert other_state[index][key].dtype == value.dtype


def test_a_later_checkpoint_replaces_an_earlier_one_and_nothing_else_is_left(path):
    save_checkpoint(path, trained(), settings=SETTINGS, history=HISTORY * 2)
    assert load_checkpoint(path, fresh(), settings=SETTINGS)[1] == HISTORY * 2
    assert epochs_done(path) == 2
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_folder_that_is_absent_is_one_line(tmp_path):
    with pytest.raises(FileError, match=r"^cannot write .*No such file") as caught:
        save_checkpoint(tmp_path / "absent" / "c", trained(), settings=SETTINGS, history=HISTORY)
    assert "\n" not in str(caught.value)


def test_the_epochs_of_a_checkpoint_are_counted_without_its_tensors(path):
    assert epochs_done(path) == 1
    assert epochs_done(path.with_name("absent")) == 0
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileError, match=r"is no whole checkpoint \(.+\); delete it"):
        epochs_done(path)


def flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def flip_history(content: bytes) -> bytes:
    return content.replace(b"hoyer-export-checkpoint/1", b"hoyer-export-checkpoint/9")


DAMAGE = {
    "truncated": lambda content: content[:-10],
    "halved": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit flipped": flip_last_bit,
    "of another format": flip_history,
    "a text": lambda content: b"dense weights, promised",
    "a pickle": lambda content: pickle.dumps({"model": 1}),
    "a huge header": lambda content: struct.pack("<Q", 2**62) + content[8:],
    "without metadata": lambda content: struct.pack("<Q", 2) + b"{}",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_one_line_and_changes_nothing(path, damage):
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    state = fresh()
    with pytest.raises(
        FileError, match=r"is no whole checkpoint \(.+\); delete it to train this phase anew$"
    ) as caught:
        load_checkpoint(path, state, settings=SETTINGS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all((tensor == 0).all() for tensor in state.model.state_dict().values())
    assert not state.optimizer.state


def test_a_file_that_is_absent_or_a_folder_is_one_line(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileError, match="is no whole checkpoint"):
            load_checkpoint(path, fresh(), settings=SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "lr": 0.2}, r"another training \(lr was 0.1, now 0.2\)"),
        ({**SETTINGS, "strength": 1e-3}, r"another training \(strength was None, now 0.001\)"),
        ({"phase": "dense", "lr": 0.1, "new": 1}, r"another training \(new was None, now 1\)"),
    ],
)
def test_other_settings_are_named(path, settings, message):
    with pytest.raises(FileError, match=message):
        load_checkpoint(path, fresh(), settings=settings)


def wider() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 3, 1))


def longer() -> nn.Module:
    return nn.Sequential(fresh().model, nn.Conv2d(3, 3, 1))


def shorter() -> nn.Module:
    return fresh().model[:3]


@pytest.mark.parametrize("other", [wider, longer, shorter, lambda: fresh().model.double()])
def test_another_network_is_refused_and_not_changed(path, other):
    model = other()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(FileError, match=r"another network \((model|optimizer)/.* does not fit\)"):
        load_checkpoint(path, TrainState(model, optimizer), settings=SETTINGS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_optimizer_entry_beyond_the_network_is_refused(path):
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["hoyer_export.checkpoint"])
    for name in ("optimizer/99/momentum_buffer", "optimizer/x/momentum_buffer", "optimizer/-1/momentum_buffer"):
        crc = crc_of({**tensors, name: torch.zeros(3)})
        save_file(
            {**tensors, name: torch.zeros(3)},
            path,
            metadata={"hoyer_export.checkpoint": json.dumps({**about, "crc32": crc})},
        )
        with pytest.raises(FileError, match=name):
            load_checkpoint(path, fresh(), settings=SETTINGS)


def crc_of(tensors) -> int:
    content = b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))
    return zlib.crc32(content)
