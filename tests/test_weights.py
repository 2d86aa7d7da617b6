"""Weights from files: all of them or none, and no code from the file runs."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hoyer_export.errors import FileError, NetworkError
from hoyer_export.weights import load_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def save(weights: dict[str, Tensor], path: Path, wrap: str) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    elif wrap in ("state_dict", "model"):
        torch.save({"epoch": 3, wrap: weights}, path)
    elif wrap == "module":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, path)
    elif wrap == "legacy":
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(weights, path)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("w.safetensors", ""),
        ("w.pt", ""),
        ("w.pth", "state_dict"),
        ("w.pth", "model"),
        ("w.th", "module"),
        ("w.pth", "legacy"),
    ],
)
def test_every_kind_of_file_gives_back_the_weights_bit_for_bit(tmp_path: Path, name: str, wrap: str) -> None:
    source, target = network(), network()
    source(torch.rand(4, 1, 4, 4))  # moves the running statistics
    save(source.state_dict(), tmp_path / name, wrap)
    load_weights(target, tmp_path / name)
    for key, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], tensor), key


class Parameters(nn.Module):
    """A network whose own parameters have the names that a checkpoint's keys have."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.rand(2)))


def of(**children: nn.Module) -> nn.Module:
    parent = nn.Module()
    for name, child in children.items():
        parent.add_module(name, child)
    return parent


NAMED_LIKE_A_KEY = {
    "module alone": lambda: of(module=nn.Linear(2, 3)),
    "module in module": lambda: of(module=of(module=nn.Linear(2, 3))),
    "module beside others": lambda: of(module=nn.Linear(2, 3), fc=nn.Linear(3, 2)),
    "model": lambda: of(model=nn.Linear(2, 3)),
    "model alone in module": lambda: of(module=of(model=nn.Linear(2, 3))),
    "a parameter called model": lambda: Parameters("model"),
    "parameters called model and module": lambda: Parameters("model", "module", "other"),
    "ordinary names": network,
}


@pytest.mark.parametrize("wrap", ["", "state_dict", "model", "module", "module twice", "in model beside it"])
@pytest.mark.parametrize("name", NAMED_LIKE_A_KEY)
def test_a_network_whose_names_are_like_a_checkpoints_own_reads_what_was_saved(
    tmp_path: Path, name: str, wrap: str
) -> None:
    source, target = NAMED_LIKE_A_KEY[name](), NAMED_LIKE_A_KEY[name]()
    weights = source.state_dict()
    if wrap == "module twice":
        torch.save({f"module.module.{key}": tensor for key, tensor in weights.items()}, tmp_path / "w.pt")
    elif wrap == "in model beside it":  # what is under state_dict is somebody else's
        torch.save({"state_dict": {"teacher.weight": torch.rand(3)}, "model": weights}, tmp_path / "w.pt")
    else:
        save(weights, tmp_path / "w.pt", wrap)
    load_weights(target, tmp_path / "w.pt")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in target.state_dict().items())


def test_checkpoints_without_the_counters_of_batch_norm_are_read(tmp_path: Path) -> None:
    weights = {key: value for key, value in network().state_dict().items() if "num_batches" not in key}
    save(weights, tmp_path / "w.pt", "")
    target = network()
    load_weights(target, tmp_path / "w.pt")
    assert torch.equal(target.state_dict()["0.weight"], weights["0.weight"])


def test_the_model_keeps_its_dtype(tmp_path: Path) -> None:
    source = network()
    save(source.state_dict(), tmp_path / "w.safetensors", "")
    target = network().double()
    load_weights(target, tmp_path / "w.safetensors")
    assert target[0].weight.dtype == torch.float64
    assert torch.equal(target[0].weight, source[0].weight.double())


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    weights = {**network().state_dict(), **{key.replace("_", ".", 1): value for key, value in changes.items()}}
    return {key: value for key, value in weights.items() if value is not None}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (changed(**{"3_bias": None}), "'3.bias' is missing"),
        (changed(**{"9_bias": torch.zeros(1)}), "the network, which has no '9.bias'"),
        (changed(**{"0_weight": torch.zeros(4, 1, 3, 3)}), "'0.weight' should be 2×1×3×3, got 4×1×3×3"),
        (changed(**{"0_bias": torch.zeros(())}), "'0.bias' should be 2, got a single number"),
        (
            changed(**{"0_bias": torch.zeros(2, dtype=torch.int32)}),
            "'0.bias' should hold floating-point numbers, got int",
        ),
        (changed(**{"0_bias": torch.zeros(2) + 0j}), "'0.bias' should hold floating-point numbers, got complex"),
        (
            changed(**{"1_num_batches_tracked": torch.tensor(7.0)}),
            "'1.num_batches_tracked' should hold integer numbers",
        ),
    ],
)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_weights_of_another_network_are_refused_by_name_and_nothing_is_copied(
    tmp_path: Path, name: str, weights: dict[str, Tensor], message: str
) -> None:
    save(weights, tmp_path / name, "")
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(NetworkError) as caught:
        load_weights(model, tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("damage", ["empty", "half", "garbage", "missing", "folder"])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    save(network().state_dict(), path, "")
    whole = path.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "half":
            path.write_bytes(whole[: len(whole) // 2])
        case "garbage":
            path.write_bytes(bytes(range(256)) * 4)
        case "missing":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
    with pytest.raises(FileError) as caught:
        load_weights(network(), path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1.0], "got an object of type list"),
        ({}, "got an empty dict"),
        ({"a": 1}, "'a' holds an object of type int"),
        ({"state_dict": {}}, "'state_dict' holds an empty dict"),
        (torch.zeros(3), "got an object of type Tensor"),
        ({"a": torch.eye(3).to_sparse()}, "'a' is a sparse tensor"),
        ({"a": torch.zeros(3, device="meta")}, "'a' is a meta tensor"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(FileError, match=message):
        load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("bad", "dtype"),
    [(float("nan"), torch.float32), (float("inf"), torch.float64), (float("nan"), torch.float8_e4m3fn)],
)
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    save(changed(**{"3_bias": torch.tensor([0.0, bad, 0.0]).to(dtype)}), tmp_path / "w.pt", "")
    with pytest.raises(FileError, match=r"'3\.bias' holds numbers that are not finite"):
        load_weights(network(), tmp_path / "w.pt")


class Attack:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"state_dict": Attack(tmp_path / "trace")}, tmp_path / "w.pt")
    with pytest.raises(FileError, match="code from a file is never run") as caught:
        load_weights(network(), tmp_path / "w.pt")
    assert "weights_only" not in str(caught.value)  # torch's message advises to run it
    assert not (tmp_path / "trace").exists()
    # The attack works where nobody guards against it.
    pickle.Unpickler(io.BytesIO(zipfile.ZipFile(tmp_path / "w.pt").read("w/data.pkl"))).load()
    assert (tmp_path / "trace").exists()
