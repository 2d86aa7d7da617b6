"""A slim file rebuilds its model bit for bit; a damaged or foreign one is refused in one line and runs nothing."""

import json
import pickle
from pathlib import Path

import networks
import pytest
import torch
from safetensors.torch import save_file

from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import FileError, HoyerExportError, NetworkError
from hoyer_export.networks import build_network
from hoyer_export.surgery.cut import SlimModel, cut
from hoyer_export.surgery.plan import PruningPlan
from hoyer_export.surgery.selection import select_channels
from hoyer_export.surgery.slim_file import FORMAT, METADATA_KEY, load_slim, save_slim
from hoyer_export.surgery.zero import zero_

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def slim() -> SlimModel:
    torch.manual_seed(0)
    model = networks.unsettled(build_network("cifar_resnet20"))
    channels = trace_channels(model, IMAGE)
    keep = select_channels(channels, model, macs=0.5, align=4).keep
    zero_(model, channels, keep)
    return cut(model, channels, keep, IMAGE)


def test_a_named_network_comes_back_bit_for_bit(slim: SlimModel, tmp_path: Path) -> None:
    save_slim(slim, tmp_path / "slim.safetensors", network="cifar_resnet20", in_channels=3, classes=10)
    back = load_slim(tmp_path / "slim.safetensors")
    assert torch.equal(back.model.eval()(IMAGE), slim.model(IMAGE))
    assert back.plan.to_dict() == slim.plan.to_dict()


def test_the_same_model_gives_the_same_bytes(slim: SlimModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_slim(slim, tmp_path / name, network="cifar_resnet20", in_channels=3, classes=10)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_ones_own_network_is_filled_and_not_changed(slim: SlimModel, tmp_path: Path) -> None:
    save_slim(slim, tmp_path / "slim.safetensors")
    dense = build_network("cifar_resnet20").eval()
    back = load_slim(tmp_path / "slim.safetensors", into=dense)
    assert torch.equal(back.model(IMAGE), slim.model(IMAGE))
    assert dense.conv1.out_channels == 16
    with pytest.raises(NetworkError, match=r"does not say which network"):
        load_slim(tmp_path / "slim.safetensors")


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    model = networks.unsettled(networks.tied())
    image = torch.randn(2, 3, 16, 16)
    channels = trace_channels(model, image)
    keep = {"a": torch.tensor([1, 2, 6])}
    zero_(model, channels, keep)
    small = cut(model, channels, keep, image)
    save_slim(small, tmp_path / "slim.safetensors")
    back = load_slim(tmp_path / "slim.safetensors", into=networks.tied().eval())
    assert torch.equal(back.model(image), small.model(image))
    assert back.model.b.weight is back.model.c.weight


def test_the_plan_is_small_readable_and_says_the_dense_shapes(slim: SlimModel) -> None:
    plan = slim.plan.to_dict()
    assert plan["version"] == 1
    entry = plan["keep"]["layer1.0.conv1.weight"]
    assert entry["shape"] == [16, 16, 3, 3]
    assert all(set(kept) <= set("0123456789,-") for dim, kept in entry.items() if dim != "shape")
    assert PruningPlan.from_dict(json.loads(json.dumps(plan)), slim.plan.shapes).to_dict() == plan


def test_a_network_of_somebody_is_never_imported(slim: SlimModel, tmp_path: Path) -> None:
    save_slim(slim, tmp_path / "slim.safetensors", network="os.path:join")
    with pytest.raises(NetworkError, match="never imported from a file: pass the network as into="):
        load_slim(tmp_path / "slim.safetensors")


class Attack:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("attacked"),))


def plan(entry: object, name: str = "conv1.weight") -> dict[str, object]:
    return {"version": 1, "keep": {name: entry}, "edits": []}


def metadata(plan: object) -> dict[str, str]:
    return {METADATA_KEY: json.dumps({"format": FORMAT, "network": {}, "plan": plan})}


DAMAGED_PLANS = {
    "not a plan": "{",
    "none": None,
    "no keep": {"version": 1, "edits": []},
    "another version": {"version": 2, "keep": {}, "edits": []},
    "an edit nobody knows": {"version": 1, "keep": {}, "edits": [{"run": "rm"}]},
    "an index out of range": plan({"shape": [16, 3, 3, 3], "0": "3,16"}),
    "a repeated index": plan({"shape": [16, 3, 3, 3], "0": "3,3"}),
    "a huge range": plan({"shape": [16, 3, 3, 3], "0": "0-99999999999"}),
    "no index": plan({"shape": [16, 3, 3, 3], "0": ""}),
    "a dimension that is not there": plan({"shape": [16, 3, 3, 3], "7": "0"}),
    "a shape that does not fit": plan({"shape": [17, 3, 3, 3], "0": "0-3"}),
    "a shape beyond all bounds": plan({"shape": [float("inf"), 3, 3, 3], "0": "0"}),
    "a negative dimension": plan({"shape": [16, 3, 3, 3], "-4": "8-15"}),
    "a parameter that is not there": plan({"shape": [17], "0": "0-3"}, "../../etc/passwd"),
}


@pytest.mark.parametrize("classes", ["x", 2.5, [1], 0, 10**13, True])
def test_a_file_cannot_ask_for_a_network_of_any_size(classes: object, slim: SlimModel, tmp_path: Path) -> None:
    save_slim(slim, tmp_path / "slim.safetensors", network="cifar_resnet20", classes=classes)  # type: ignore[arg-type]
    with pytest.raises(FileError, match="classes in its metadata"):
        load_slim(tmp_path / "slim.safetensors")


@pytest.mark.parametrize("name", DAMAGED_PLANS)
def test_a_damaged_plan_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "slim.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata(DAMAGED_PLANS[name]))
    with pytest.raises(FileError) as caught:
        load_slim(path, into=build_network("cifar_resnet20"))
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused_in_one_line(
    slim: SlimModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "slim.safetensors"
    save_slim(slim, path, network="cifar_resnet20")
    whole = path.read_bytes()
    contents = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "oversized header": (2**60).to_bytes(8, "little") + whole[8:],
        "pickle": pickle.dumps(Attack()),
        "text": b"hello",
    }
    for content in contents.values():
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"slim\.safetensors"):
            load_slim(path)
    assert not Path("attacked").exists()
    with pytest.raises(FileError, match="does not exist"):
        load_slim(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(FileError, match="no slim file"):
        load_slim(path)


def test_weights_that_are_not_the_plans_are_named(slim: SlimModel, tmp_path: Path) -> None:
    path = tmp_path / "slim.safetensors"
    state = {name: tensor.contiguous() for name, tensor in slim.model.state_dict().items()}
    for wrong, message in [
        ({**state, "extra": torch.zeros(1)}, "holds extra"),
        ({name: tensor for name, tensor in state.items() if name != "bn1.bias"}, "lacks bn1.bias"),
        ({**state, "bn1.bias": torch.zeros(99)}, r"bn1.bias has shape \(99,\)"),
    ]:
        save_file(wrong, path, metadata(slim.plan.to_dict()))
        with pytest.raises(HoyerExportError, match=message):
            load_slim(path, into=build_network("cifar_resnet20"))


def test_a_file_that_cannot_be_written_leaves_nothing(slim: SlimModel, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write"):
        save_slim(slim, tmp_path / "no" / "such" / "folder.safetensors")
    assert not list(tmp_path.iterdir())
