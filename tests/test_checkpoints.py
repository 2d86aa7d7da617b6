"""Checkpoints as other people's training scripts write them: where the weights are, what is left out or refused."""

import argparse
import datetime
import functools
import shutil
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import hoyer_export as hx
from hoyer_export.errors import FileError, HoyerExportError, NetworkError
from hoyer_export.weights import LoadedWeights, load_weights

State = dict[str, Tensor]


class Net(nn.Module):
    def __init__(self, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn1(self.conv1(x)).mean((2, 3)))


class EasyDict(dict):
    """A dict with attributes, as configurations often are."""


class Color(Enum):
    RED = 1


@dataclass
class Options:
    lr: float = 0.1


class Slots:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 3


def state(seed: int = 1, classes: int = 3) -> State:
    return Net(classes, seed).state_dict()


def behind(prefix: str, weights: State) -> State:
    return {prefix + name: tensor for name, tensor in weights.items()}


def loaded(tmp_path: Path, content: object, model: nn.Module | None = None, **options: object) -> LoadedWeights:
    torch.save(content, tmp_path / "w.pth")
    return load_weights(model or Net(), tmp_path / "w.pth", **options)


def same(model: nn.Module, weights: State) -> bool:
    return all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def momenta() -> dict[str, object]:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(4, 1, 6, 6)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def lightning() -> dict[str, object]:
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**behind("model.", state()), "criterion.weight": torch.ones(3)},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.0), "at": Path("a")}},
        "optimizer_states": [momenta()],
        "lr_schedulers": [],
        "hyper_parameters": {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "loss": nn.CrossEntropyLoss()},
    }


KEYS = ["state_dict", "model", "model_state_dict", "net", "ema", "state_dict_ema", "model_ema", "params", "weights"]
PREFIXES = ["module.", "_orig_mod.", "model.", "net.", "backbone.", "module._orig_mod.", "_orig_mod.module.", "a.b.c."]
WRITTEN: dict[str, tuple[Callable[[], object], str, str]] = {
    **{key: (lambda key=key: {"epoch": 3, key: state()}, key, "") for key in KEYS},
    **{prefix: (lambda prefix=prefix: behind(prefix, state()), "", prefix) for prefix in PREFIXES},
    "timm": (
        lambda: {"epoch": 1, "state_dict": state(), "optimizer": momenta(), "args": argparse.Namespace(lr=1)},
        "state_dict",
        "",
    ),
    "torchvision": (
        lambda: {
            "model": state(),
            "optimizer": momenta(),
            "lr_scheduler": {"_step_count": 3, "best": np.float64(0.5)},
            "args": argparse.Namespace(output=Path("out"), model="resnet18"),
            "epoch": 2,
            "model_ema": {"n_averaged": torch.tensor(7), **behind("module.", state(2))},
        },
        "model",
        "",
    ),
    "lightning": (lightning, "state_dict", "model."),
    "mmcv": (lambda: {"meta": {"CLASSES": ("a",), "config": EasyDict(a=1)}, "state_dict": state()}, "state_dict", ""),
    "keys within keys": (lambda: {"ema": {"module": state(), "updates": 5}}, "ema.module", ""),
    "a tuple": (lambda: (state(), momenta()), "0", ""),
    "parameters": (lambda: OrderedDict(Net(seed=1).state_dict(keep_vars=True)), "", ""),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_weights_are_found_by_the_networks_names_and_where_is_said(tmp_path: Path, name: str) -> None:
    make, key, prefix = WRITTEN[name]
    model = Net()
    found = loaded(tmp_path, make(), model)
    assert same(model, state())
    assert (found.key, found.prefix) == (key, prefix)
    assert (f"key {key!r}" in found.describe()) == bool(key)
    assert (f"prefix {prefix!r}" in found.describe()) == bool(prefix)


LEFT_OUT: dict[str, tuple[object, str]] = {
    "options": (argparse.Namespace(lr=0.1, names=["a"], nested=argparse.Namespace()), "argparse.Namespace"),
    "a number of numpy": (np.float64(93.5), "scalar"),
    "an array of numpy": (np.arange(3), "numpy.ndarray"),
    "numpy's generator": (np.random.RandomState(0), "numpy.random"),
    "a path": (Path("here"), "Path"),
    "a date": (datetime.datetime(2026, 1, 1), "datetime.datetime"),
    "a dict with a default": (defaultdict(list, a=[1]), "collections.defaultdict"),
    "a queue": (deque([1.0, 2.0], maxlen=5), "collections.deque"),
    "a dict of one's own": (EasyDict(a=EasyDict(b=1)), "EasyDict"),
    "a choice": (Color.RED, "Color"),
    "a dataclass": (Options(), "Options"),
    "slots": (Slots(), "Slots"),
    "part of a call": (functools.partial(print, 1), "functools.partial"),
    "a class": (nn.Linear, "Linear"),
    "a loss": (nn.CrossEntropyLoss(weight=torch.ones(3)), "CrossEntropyLoss"),
    "everything": ([argparse.Namespace(a=np.float32(1), b=EasyDict(c=deque()))], "argparse.Namespace"),
}


MODULES = ("a class", "a loss")
"""Of which old files hold the source code, in a way that torch's reader does not take."""


@pytest.mark.parametrize(
    ("name", "old"),
    [*((name, False) for name in LEFT_OUT), *((name, True) for name in LEFT_OUT if name not in MODULES)],
)
def test_what_is_no_tensor_is_left_out_and_named(tmp_path: Path, name: str, old: bool) -> None:
    thing, word = LEFT_OUT[name]
    before = torch.serialization.get_safe_globals()
    torch.save({"args": thing, "state_dict": state()}, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    model = Net()
    found = load_weights(model, tmp_path / "w.pth")
    assert same(model, state())
    assert any(word in it for it in found.left_out)
    assert "left out: " in found.describe()
    assert not any(it.startswith(("torch._", "collections.OrderedDict")) for it in found.left_out)
    assert set(torch.serialization.get_safe_globals()) == set(before)


class Call:
    def __reduce__(self) -> tuple[object, ...]:
        return shutil.copy, ("w.pth", "attacked")


@pytest.mark.parametrize("old", [False, True])
def test_a_stand_in_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"args": Call(), "model": state()}, "w.pth", _use_new_zipfile_serialization=not old)
    found = load_weights(Net(), "w.pth")
    assert found.left_out == ("shutil.copy",)
    assert not Path("attacked").exists()
    torch.load("w.pth", weights_only=False)
    assert Path("attacked").exists()


@pytest.mark.parametrize(
    ("content", "raw", "averaged"),
    [
        ({"state_dict": state(1), "state_dict_ema": state(2)}, "state_dict", "state_dict_ema"),
        ({"ema": state(2), "model": state(1)}, "model", "ema"),
        ({"model": state(1), "model_ema": {"n_averaged": torch.tensor(1), **behind("module.", state(2))}},
         "model", "model_ema.module"),
        ({"state_dict": behind("ema_model.", state(2)) | behind("model.", state(1))},
         "state_dict.model", "state_dict.ema_model"),
        (behind("module.encoder_k.", state(2)) | behind("module.encoder_q.", state(1)),
         "module.encoder_q", "module.encoder_k"),
    ],
)  # fmt: skip
def test_of_raw_and_averaged_weights_the_choice_is_named_and_a_key_makes_it(
    tmp_path: Path, content: object, raw: str, averaged: str
) -> None:
    model = Net()
    found = loaded(tmp_path, content, model)
    assert same(model, state(1))
    assert (found.place, found.others) == (raw, (averaged,))
    assert f"'{averaged}' would fit too (--weights-key" in found.describe()
    found = loaded(tmp_path, content, model, key=averaged)
    assert same(model, state(2))
    assert (found.place, found.others) == (averaged, ())
    assert same(model, state(2))
    with pytest.raises(FileError, match="no weights under 'x'; expected ") as caught:
        loaded(tmp_path, content, model, key="x")
    assert sorted(str(caught.value).split("expected ")[1].split(", ")) == sorted([repr(raw), repr(averaged)])
    with pytest.raises(FileError, match="leave the key out"):
        loaded(tmp_path, state(), model, key="x")


def test_a_key_is_enough_without_the_prefix_behind_it(tmp_path: Path) -> None:
    content = {"model": state(1), "model_ema": behind("module.", state(2))}
    model = Net()
    assert loaded(tmp_path, content, model, key="model_ema").prefix == "module."
    assert same(model, state(2))
    loaded(tmp_path, content, model, key="model")  # the start of the other's name too
    assert same(model, state(1))


@pytest.mark.parametrize(
    ("file", "write"),
    [("w.pt", safetensors.torch.save_file), ("w.safetensors", lambda tensors, path: torch.save(tensors, path))],
)
def test_the_content_of_a_file_says_what_it_is_and_not_its_name(
    tmp_path: Path, file: str, write: Callable[[State, Path], object]
) -> None:
    write(state(), tmp_path / file)
    model = Net()
    load_weights(model, tmp_path / file)
    assert same(model, state())


def test_half_precision_is_read_and_said(tmp_path: Path) -> None:
    model = Net()
    found = loaded(
        tmp_path, {"model": {n: t.half() if t.is_floating_point() else t for n, t in state().items()}}, model
    )
    assert model.conv1.weight.dtype == torch.float32
    assert torch.equal(model.conv1.weight, state()["conv1.weight"].half().float())
    assert "float16" in found.describe()


@pytest.mark.parametrize("extra", ["total_ops", "bn1.total_params", "conv1.num_batches_tracked"])
def test_counters_of_others_do_not_matter(tmp_path: Path, extra: str) -> None:
    model = Net()
    loaded(tmp_path, {**state(), extra: torch.zeros(1)}, model)
    assert same(model, state())


def test_a_network_that_wraps_another_takes_the_others_weights(tmp_path: Path) -> None:
    outer = nn.Module()
    outer.backbone = Net()
    loaded(tmp_path, {"state_dict": behind("module.", state())}, outer)
    assert same(outer.backbone, state())


def test_what_stands_beside_the_prefix_is_named(tmp_path: Path) -> None:
    found = loaded(tmp_path, lightning())
    assert found.unused == ("criterion.weight",)
    assert "'criterion.weight'" in found.describe()
    assert found.others == ()


def test_tied_weights_of_safetensors_save_model_are_whole(tmp_path: Path) -> None:
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    source, target = tied(0), tied(1)
    safetensors.torch.save_model(source, str(tmp_path / "w.safetensors"))
    load_weights(target, tmp_path / "w.safetensors")
    assert same(target, source.state_dict())


def test_another_head_is_said_with_both_shapes_and_the_trunk_can_be_kept(tmp_path: Path) -> None:
    with pytest.raises(NetworkError) as caught:
        loaded(tmp_path, {"model": state(1, classes=10)})
    message = str(caught.value)
    assert "'fc.weight' should be 3×4, got 10×4; all but the head fits" in message
    assert "build it with 10 classes (network.classes, --classes)" in message
    assert "dense.new_head" in message
    model = Net(10)
    loaded(tmp_path, {"model": state(1, classes=10)}, model)
    assert same(model, state(1, classes=10))


def test_no_head_at_all_is_said_too(tmp_path: Path) -> None:
    trunk = {name: tensor for name, tensor in state().items() if not name.startswith("fc.")}
    with pytest.raises(NetworkError, match=r"'fc\.weight' is missing; all but the head fits: keep the rest and train"):
        loaded(tmp_path, {"model": trunk})


@pytest.mark.parametrize("head", ["other", "none", "two layers"])
def test_a_new_head_keeps_what_the_network_had_there_and_nowhere_else(tmp_path: Path, head: str) -> None:
    weights = {name: tensor for name, tensor in state().items() if not name.startswith("fc.")}
    if head == "other":
        weights |= {"fc.weight": torch.ones(10, 4), "fc.bias": torch.ones(10)}
    elif head == "two layers":
        weights |= {"fc.0.weight": torch.ones(8, 4), "fc.2.weight": torch.ones(8, 8)}
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = loaded(tmp_path, {"model": weights}, model, new_head=True)
    own = {name: tensor for name, tensor in before.items() if name.startswith("fc.")}
    assert same(model, {**weights, **own})
    assert found.new_head == ("fc.bias", "fc.weight")
    assert "a new head: 'fc.bias', 'fc.weight'" in found.describe()
    assert found.unused == (("fc.0.weight", "fc.2.weight") if head == "two layers" else ())


@pytest.mark.parametrize(
    "change",
    [
        {"conv1.weight": torch.zeros(4, 3, 3, 3)},
        {"fc.weight": torch.zeros(3, 5)},
        {"fc.weight": torch.zeros(5, 4)},
        {"bn1.weight": torch.zeros(6), "fc.weight": torch.zeros(5, 4), "fc.bias": torch.zeros(5)},
    ],
)
def test_a_new_head_excuses_nothing_else(tmp_path: Path, change: State) -> None:
    with pytest.raises(NetworkError, match="should be"):
        loaded(tmp_path, {**state(), **change}, new_head=True)


def whole_module(path: Path) -> None:
    torch.save({"epoch": -1, "model": Net(), "ema": None, "optimizer": None}, path)


def torch_script(path: Path) -> None:
    torch.jit.trace(Net().eval(), torch.rand(1, 1, 6, 6)).save(str(path))


def exported_program(path: Path) -> None:
    torch.export.save(torch.export.export(Net().eval(), (torch.rand(1, 1, 6, 6),)), path)


def slim_file(path: Path) -> None:
    model, example = Net(), torch.rand(2, 1, 6, 6)
    channels = hx.trace_channels(model, example)
    hx.save_slim(hx.cut(model, channels, {}, example), path)


def cut_short(path: Path) -> None:
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:-100])


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a whole module": ("w.pt", whole_module, "a whole pickled network, whose code is never run"),
    "a module alone": ("w.pt", lambda path: torch.save(Net(), path), "a whole pickled network"),
    "TorchScript": ("w.pt", torch_script, "TorchScript, not weights; save torch.save\\(torch.jit.load"),
    "torch.export": ("w.pt2", exported_program, "a program of torch.export, not weights"),
    "ONNX": ("w.onnx", lambda path: path.write_bytes(b"\x08\x07"), "an ONNX file"),
    "an optimizer": ("w.pt", lambda path: torch.save(momenta(), path), "the state of an optimizer"),
    "an optimizer beside the epoch": (
        "w.pt",
        lambda path: torch.save({"epoch": 3, "optimizer": momenta(), "args": argparse.Namespace()}, path),
        "the state of an optimizer",
    ),
    "a slim file": ("w.safetensors", slim_file, "a slim network, cut already; load it with hx.load_slim"),
    "a slim file of another name": ("w.pt", slim_file, "a slim network, cut already; load it with hx.load_slim"),
    "an empty file": ("w.pt", lambda path: path.write_bytes(b""), "found an empty file"),
    "numpy's arrays": (
        "w.pt",
        lambda path: torch.save({name: tensor.numpy() for name, tensor in state().items()}, path),
        r"'conv1.weight' holds an object of type numpy\._core\.multiarray\._reconstruct",
    ),
    "cut short": ("w.pt", cut_short, "its end is missing"),
    "another protocol": (
        "w.pt",
        lambda path: torch.save({"a": argparse.Namespace()}, path, pickle_protocol=4),
        "code from a file is never run; save",
    ),
    "another network": ("w.pt", lambda path: torch.save({"model": {"stem": torch.rand(1)}}, path), "such as 'stem'"),
    "nothing but options": ("w.pt", lambda path: torch.save({"args": argparse.Namespace()}, path), "'args' holds"),
    "quantized": (
        "w.pt",
        lambda path: torch.save({"fc.bias": torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8)}, path),
        "'fc.bias' is a quantized tensor",
    ),
    "a name with a line in it": ("w.pt", lambda path: torch.save({"a\n\x1b[31m": torch.rand(1)}, path), "does not fit"),
}


@pytest.mark.filterwarnings("ignore")  # of torch: TorchScript, quantization and storages will go
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_checkpoint_is_one_line_with_the_way_out(tmp_path: Path, name: str) -> None:
    file, write, message = REFUSED[name]
    write(tmp_path / file)
    with pytest.raises(HoyerExportError, match=message) as caught:
        load_weights(Net(), tmp_path / file)
    assert str(tmp_path / file) in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_dict_that_holds_itself_comes_to_an_end(tmp_path: Path) -> None:
    content: dict[str, object] = {"model": state()}
    content |= {str(number): content for number in range(100)}
    model = Net()
    loaded(tmp_path, content, model)
    assert same(model, state())
