"""A slim file rebuilds its model bit for bit, whatever it is of; files that mean harm are in ``test_attacks.py``."""

import json
from pathlib import Path

import networks
import pytest
import torch
from safetensors.torch import save_file

from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import FileError, HoyerExportError, NetworkError
from hoyer_export.networks import build_network
from hoyer_export.select.choose import select_channels
from hoyer_export.store.slim_file import FORMAT, METADATA_KEY, load_slim, save_slim
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.plan import PruningPlan
from hoyer_export.surgery.step import SlimModel
from hoyer_export.surgery.zero import zero_

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def slim() -> SlimModel:
    torch.manual_seed(0)
    model = networks.perturbed(build_network("cifar_resnet20"))
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
    model = networks.perturbed(networks.tied())
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
    assert PruningPlan.from_dict(json.loads(json.dumps(plan)), build_network("cifar_resnet20")).to_dict() == plan


def test_weights_that_are_not_the_plans_are_named(slim: SlimModel, tmp_path: Path) -> None:
    path = tmp_path / "slim.safetensors"
    state = {name: tensor.contiguous() for name, tensor in slim.model.state_dict().items()}
    for wrong, message in [
        ({**state, "extra": torch.zeros(1)}, "holds 'extra'"),
        ({name: tensor for name, tensor in state.items() if name != "bn1.bias"}, "lacks 'bn1.bias'"),
        ({**state, "bn1.bias": torch.zeros(99)}, r"bn1.bias has shape \(99,\)"),
    ]:
        facts = {"format": FORMAT, "network": {}, "plan": slim.plan.to_dict()}
        save_file(wrong, path, {METADATA_KEY: json.dumps(facts)})
        with pytest.raises(HoyerExportError, match=message):
            load_slim(path, into=build_network("cifar_resnet20"))


def test_a_file_that_cannot_be_written_leaves_nothing(slim: SlimModel, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write"):
        save_slim(slim, tmp_path / "no" / "such" / "folder.safetensors")
    assert not list(tmp_path.iterdir())
