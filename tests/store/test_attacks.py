"""A stranger's file runs no code, takes no memory that it does not hold itself, and is refused in one line."""

import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hoyer_export.errors import FileError, HoyerExportError, NetworkError
from hoyer_export.networks import build_network
from hoyer_export.store.slim_file import FORMAT, METADATA_KEY, load_slim, save_slim
from hoyer_export.store.widths_file import build_slim
from hoyer_export.surgery.plan import PruningPlan
from hoyer_export.surgery.step import SlimModel
from hoyer_export.weights import load_weights

MEBIBYTE = 2**20


class Attack:
    """What unpickling turns into a file that should not be there."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("attacked"),))


class Allocations(TorchFunctionMode):
    """Remembers the largest tensor that a torch function returned; one on the meta device takes no memory."""

    largest_bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and not output.is_meta:
            self.largest_bytes = max(self.largest_bytes, output.nbytes)
        return output


@pytest.fixture(autouse=True)
def nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each attack in an empty folder, and require that nothing ran and that memory stayed bounded."""
    monkeypatch.chdir(tmp_path)
    with Allocations() as allocations:
        yield
    assert not Path("attacked").exists()
    assert allocations.largest_bytes < 32 * MEBIBYTE


def refuse(
    load: Callable[[], object], match: str | None = None, kind: type[HoyerExportError] = HoyerExportError
) -> None:
    with pytest.raises(kind, match=match) as caught:
        load()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def small() -> nn.Module:
    return build_network("lenet5")


# --- the container -------------------------------------------------------------------------------------------------


def container(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


CONTAINERS = {
    "empty": b"",
    "text": b"hello",
    "a pickle": pickle.dumps(Attack()),
    "a header longer than the file": container({}, length=2**60),
    "a header of the largest length": container({}, length=2**64 - 1),
    "a truncated header": container({"x": entry([1], 0, 4)}, bytes(4))[:20],
    "truncated data": container({"x": entry([100], 0, 400)}, bytes(4)),
    "offsets beyond the file": container({"x": entry([1], 2**40, 2**40 + 4)}, bytes(4)),
    "negative offsets": container({"x": entry([1], -4, 0)}, bytes(4)),
    "offsets that overlap": container({"x": entry([2], 0, 8), "y": entry([2], 4, 12)}, bytes(12)),
    "offsets that leave a hole": container({"x": entry([1], 0, 4), "y": entry([1], 8, 12)}, bytes(12)),
    "a shape that is not its size": container({"x": entry([1000], 0, 4)}, bytes(4)),
    "a shape that overflows": container({"x": entry([2**63, 2], 0, 4)}, bytes(4)),
    "a shape that overflows to nothing": container({"x": entry([2**32, 2**32], 0, 0)}),
    "a negative shape": container({"x": entry([-1], 0, 4)}, bytes(4)),
    "an unknown type": container({"x": entry([1], 0, 4, "OBJECT")}, bytes(4)),
    "a header that is nested deep": container(b"[" * 100_000),
    "a header that is no object": container([1, 2]),
    "names twice": container(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2, bytes(4)),
    "metadata that is no text": container({"__metadata__": {METADATA_KEY: {"format": FORMAT}}}),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_damaged_container_is_refused(name: str) -> None:
    path = Path("slim.safetensors")
    path.write_bytes(CONTAINERS[name])
    refuse(lambda: load_slim(path), r"slim\.safetensors", FileError)
    refuse(lambda: load_weights(small(), path), r"slim\.safetensors", FileError)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_not_run_whatever_it_is_called(suffix: str, zipped: bool) -> None:
    path = Path(f"weights{suffix}")
    torch.save({"conv1.weight": Attack()}, path, _use_new_zipfile_serialization=zipped)
    refuse(lambda: load_weights(small(), path), "weights", FileError)
    refuse(lambda: load_slim(path), "weights", FileError)


def test_the_pickle_of_these_tests_would_attack() -> None:
    pickle.loads(pickle.dumps(Attack()))
    Path("attacked").unlink()


# --- the metadata --------------------------------------------------------------------------------------------------


def facts(**changed: object) -> str:
    network = {"name": "lenet5", "in_channels": 1, "classes": 10}
    plan = {"version": 1, "keep": {}, "edits": []}
    return json.dumps({"format": FORMAT, "network": network, "plan": plan, **changed})


def slim_with(text: str, tensors: dict[str, Tensor] | None = None) -> Path:
    path = Path("slim.safetensors")
    save_file(small().state_dict() if tensors is None else tensors, path, {METADATA_KEY: text})
    return path


def test_a_file_that_means_no_harm_loads() -> None:
    """Each attack below is this file with one thing changed."""
    assert load_slim(slim_with(facts())).model.conv1.out_channels == 20


METADATA = {
    "nothing": "",
    "no JSON": "{",
    "JSON that is nested deep": "[" * 100_000,
    "a plan that is nested deep": facts(plan=0).replace('"plan": 0', '"plan": ' + "[" * 100_000 + "]" * 100_000),
    "a list": "[]",
    "a number": "1",
    "a number of many digits": "9" * 10_000,
    "another format": facts(format="other\nformat" * 1000),
    "a format that is no text": facts(format=[1] * 1000),
    "no plan": facts(plan=None),
    "a plan that is a list": facts(plan=[]),
    "no network": facts(network=None),
    "a network that is a list": facts(network=["lenet5"]),
    "a network without a name": facts(network={"name": None, "in_channels": 1, "classes": 10}),
}


@pytest.mark.parametrize("name", METADATA)
def test_damaged_metadata_is_refused(name: str) -> None:
    path = slim_with(METADATA[name])
    refuse(lambda: load_slim(path))


NAMES = [
    "os.path:join", "os:system", "../../x", "/etc/passwd", "torchvision:../x", "torchvision:__init__", "timm:../x",
    "timm:hf_hub:a/b", "timm:hf-hub:a/b", "timm:local-dir:/tmp", "lenet5\n", "\n:x", "torchvision:\nx", "", "x" * 10**6,
    "__import__('pathlib').Path('attacked').touch()",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:20]))
def test_a_network_is_built_by_a_known_name_or_not_at_all(name: str) -> None:
    path = slim_with(facts(network={"name": name, "in_channels": None, "classes": None}))
    refuse(lambda: load_slim(path), kind=NetworkError)


@pytest.mark.parametrize("key", ["classes", "in_channels"])
@pytest.mark.parametrize("value", ["x", 2.5, [1], {}, 0, -1, True, 10**13, 2**63, 2**200, 1e300])
def test_a_file_cannot_ask_for_a_network_of_any_size(key: str, value: object) -> None:
    network = {"name": "lenet5", "in_channels": 1, "classes": 10, key: value}
    path = slim_with(facts(network=network))
    refuse(lambda: load_slim(path), f"{key} in its metadata is", FileError)


@pytest.mark.parametrize("name", ["lenet300", "torchvision:vgg16"])
def test_sizes_that_are_allowed_alone_do_not_multiply(name: str) -> None:
    in_channels = 100_000 if name == "lenet300" else 3
    path = slim_with(facts(network={"name": name, "in_channels": in_channels, "classes": 100_000}))
    refuse(lambda: load_slim(path), "parameters, expected at most|unlike the network", FileError)


def test_a_network_too_large_for_a_file_can_still_be_passed() -> None:
    model = small()
    save_slim(SlimModel(model, PruningPlan({}, {})), Path("slim.safetensors"), network="lenet300", in_channels=100_000)
    refuse(lambda: load_slim(Path("slim.safetensors")), "23520031410 parameters.*pass it as into=", FileError)
    assert torch.equal(load_slim(Path("slim.safetensors"), into=small()).model.fc2.bias, model.fc2.bias)


# --- the plan ------------------------------------------------------------------------------------------------------


def keep(name: str = "conv1.weight", shape: object = (20, 1, 5, 5), **ranges: object) -> dict[str, object]:
    return {"version": 1, "keep": {name: {"shape": shape, **ranges}}, "edits": []}


def edit(**fields: object) -> dict[str, object]:
    return {"version": 1, "keep": {}, "edits": [fields]}


def attribute(module: str, attribute: str, dense: int = 20, slim: int = 10) -> dict[str, object]:
    return edit(kind="attribute", module=module, attribute=attribute, index=None, dense=dense, slim=slim)


PLANS = {
    "text": "{",
    "no keep": {"version": 1, "edits": []},
    "no edits": {"version": 1, "keep": {}},
    "another version": {"version": 2, "keep": {}, "edits": []},
    "a keep that is a list": {"version": 1, "keep": [], "edits": []},
    "edits that are no list": {"version": 1, "keep": {}, "edits": 7},
    "an index out of range": keep(**{"0": "3,20"}),
    "a negative index": keep(**{"0": "-3"}),
    "a repeated index": keep(**{"0": "3,3"}),
    "unsorted indices": keep(**{"0": "4,3"}),
    "a range backwards": keep(**{"0": "9-3"}),
    "a huge range": keep(**{"0": "0-999999999999"}),
    "a range of huge numbers": keep(**{"0": f"0-{2**200}"}),
    "a number of many digits": keep(**{"0": "9" * 10_000}),
    "many commas": keep(**{"0": "," * 1_000_000}),
    "no index": keep(**{"0": ""}),
    "indices that are a list": keep(**{"0": [0, 1]}),
    "indices that are a number": keep(**{"0": 5}),
    "other digits": keep(**{"0": "٣"}),
    "blanks and signs": keep(**{"0": " +1_0 "}),
    "a dimension that is not there": keep(**{"7": "0"}),
    "a negative dimension": keep(**{"-4": "8-15"}),
    "a dimension that is no number": keep(**{"__class__": "0"}),
    "a shape that does not fit": keep(shape=[21, 1, 5, 5], **{"0": "0-3"}),
    "a shape that overflows": keep(shape=[2**63, 1, 5, 5], **{"0": "0"}),
    "a shape beyond all bounds": keep(shape=[float("inf"), 1, 5, 5], **{"0": "0"}),
    "no shape": {"version": 1, "keep": {"conv1.weight": {"0": "0"}}, "edits": []},
    "a path": keep("../../etc/passwd", [17], **{"0": "0-3"}),
    "a method": keep("conv1.forward", [17], **{"0": "0-3"}),
    "a name of two lines": keep("conv1\n.weight", [17], **{"0": "0-3"}),
    "an edit of unknown kind": edit(kind="run", module="conv1"),
    "an edit of no kind": edit(module="conv1"),
    "an edit of a kind that is a list": edit(kind=["bias"], module="conv1"),
    "an edit with another field": edit(kind="bias", module="conv1", command="rm"),
    "an edit of another type": edit(kind="bias", module=["conv1"]),
    "an edit that is text": {"version": 1, "keep": {}, "edits": ["rm"]},
    "an edit of a module that is not there": edit(kind="bias", module="../../x"),
    "an edit of a module of two lines": edit(kind="bias", module="a\nb" * 1000),
    "an edit of a hidden attribute": attribute("conv1", "__class__"),
    "an edit of the code": attribute("conv1", "forward"),
    "an edit of a hook": attribute("conv1", "_forward_hooks"),
    "an edit of the modules": attribute("", "_modules"),
    "an edit of a flag": attribute("conv1", "training", 1, 1),
    "an edit to a huge size": attribute("conv1", "out_channels", 20, 2**63),
    "a shortcut through what is not there": edit(kind="shortcut", module="conv1", children=["__class__"], relu=True),
    "a shortcut of the whole": edit(kind="shortcut", module="", children=["conv1"], relu=True),
    "inputs gathered without a plan": edit(kind="gather", module="fc1"),
    "a bias on what has one": edit(kind="bias", module="fc1"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_damaged_plan_is_refused(name: str) -> None:
    path = slim_with(facts(plan=PLANS[name]))
    refuse(lambda: load_slim(path), kind=FileError)
    refuse(lambda: load_slim(path, into=small()), kind=FileError)


# --- the weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "loads"),
    [(torch.float16, True), (torch.bfloat16, True), (torch.float64, True), (torch.int64, False), (torch.bool, False),
     (torch.uint8, False), (torch.complex64, False)],
)  # fmt: skip
def test_weights_are_numbers_of_the_networks_kind(dtype: torch.dtype, loads: bool) -> None:
    state = small().state_dict()
    path = slim_with(facts(), {**state, "fc2.bias": torch.zeros(10, dtype=dtype)})
    if loads:
        assert load_slim(path).model.fc2.bias.dtype is dtype
    else:
        refuse(lambda: load_slim(path), f"fc2.bias has type {dtype}, the network's is torch.float32", FileError)


def test_a_counter_is_no_complex_number() -> None:
    model = nn.BatchNorm1d(3)
    state = {**model.state_dict(), "num_batches_tracked": torch.zeros((), dtype=torch.complex64)}
    path = slim_with(facts(), state)
    refuse(lambda: load_slim(path, into=model), "num_batches_tracked has type torch.complex64", FileError)


def test_names_in_the_file_are_only_names() -> None:
    state = small().state_dict()
    path = slim_with(facts(), {**state, "../../x\n" * 1000: torch.zeros(1)})
    refuse(lambda: load_slim(path), "unlike the network", FileError)
    assert list(Path.cwd().iterdir()) == [path.absolute()]


def test_a_tensor_that_broadcasts_is_not_taken() -> None:
    path = slim_with(facts(), {**small().state_dict(), "fc2.bias": torch.zeros(1)})
    refuse(lambda: load_slim(path), r"fc2.bias has shape \(1,\), the slim network's is \(10,\)", FileError)


def test_the_watch_on_memory_sees_a_large_network() -> None:
    with Allocations() as allocations:
        build_network("lenet300", in_channels=20)  # the fixture allows it
    assert allocations.largest_bytes == 4 * 300 * 20 * 28 * 28


# --- widths.json ---------------------------------------------------------------------------------------------------

WIDTHS = {
    "nothing": "",
    "no JSON": "{",
    "nested deep": "[" * 100_000,
    "a list": "[]",
    "no text": b"\xff\xfe",
    "a pickle": pickle.dumps(Attack()),
    "an unknown group": {"../../x": [0]},
    "a group of two lines": {"a\nb" * 1000: [0]},
    "no channel": {"conv1": []},
    "text": {"conv1": "0-3"},
    "a number": {"conv1": 7},
    "fractions": {"conv1": [0, 1.0]},
    "truth values": {"conv1": [False, True]},
    "an index out of range": {"conv1": [0, 20]},
    "a negative index": {"conv1": [-1, 0]},
    "a huge index": {"conv1": [0, 2**63]},
    "a huge index between": {"conv1": [0, 2**63, 5]},
    "a repeated index": {"conv1": [3, 3]},
    "unsorted indices": {"conv1": [4, 3]},
    "nested indices": {"conv1": [[0, 1]]},
    "infinity": '{"conv1": [0, Infinity]}',
    "a number of many digits": '{"conv1": [' + "9" * 10_000 + "]}",
}


@pytest.mark.parametrize("name", WIDTHS)
def test_damaged_widths_are_refused(name: str) -> None:
    content = WIDTHS[name]
    text = json.dumps(content) if isinstance(content, dict) else content
    path = Path("widths.json")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refuse(lambda: build_slim(path, "lenet5"), r"widths\.json", FileError)


def test_widths_never_name_the_code_that_is_run() -> None:
    Path("widths.json").write_text("{}")
    refuse(lambda: build_slim("widths.json", "os.path:join", input_shape=(1, 28, 28)), kind=NetworkError)


def test_what_is_saved_holds_no_pickle() -> None:
    save_slim(SlimModel(small(), PruningPlan({}, {})), Path("slim.safetensors"), network="lenet5")
    content = Path("slim.safetensors").read_bytes()
    assert content[8:9] == b"{"
    assert save(small().state_dict())[8:9] == b"{"
