"""Input features that a linear layer does not use are left out by a Gather, exactly."""

from pathlib import Path

import networks
import pytest
import torch
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.channels.cost import dense_macs, macs_of_keep
from hoyer_export.channels.trace import trace_channels
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.weight_sizes import torch_macs
from hoyer_export.errors import CutRefused
from hoyer_export.networks import build_network
from hoyer_export.store.slim_file import load_slim, save_slim
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.edits import GatherEdit
from hoyer_export.surgery.extras.gather import gather_inputs, with_input_features
from hoyer_export.surgery.plan import PruningPlan, with_plan
from hoyer_export.surgery.step import SlimModel
from hoyer_export.surgery.zero import zero_

IMAGE = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
PIXELS = torch.arange(100, 453)


def papers_network() -> SlimModel:
    """LeNet-300-100 cut to 784-45-11, with 353 pixels in use (Yang, Wen, Li 2020, table 2)."""
    torch.manual_seed(0)
    model = build_network("lenet300").eval()
    unused = torch.ones(784, dtype=torch.bool)
    unused[PIXELS] = False
    channels = trace_channels(model, IMAGE)
    keep = {"fc1": torch.arange(45), "fc2": torch.arange(11)}
    zero_(model, channels, keep)
    with torch.no_grad():
        model.fc1.weight[:, unused] = 0
    return cut(model, channels, keep, IMAGE)


def test_the_papers_macs_are_in_the_file_and_it_loads(tmp_path: Path) -> None:
    slim = papers_network()
    gathered = gather_inputs(slim, "fc1", IMAGE)
    assert gathered.plan.edits == (GatherEdit(module="fc1"),)
    assert torch.equal(gathered.plan.kept["fc1.weight"][1], PIXELS)
    assert gathered.max_rel_error <= 1e-9
    torch.testing.assert_close(gathered.model(IMAGE), slim.model(IMAGE))
    export_onnx(gathered.model, IMAGE, tmp_path / "slim.onnx")
    assert count_macs(tmp_path / "slim.onnx").macs == 353 * 45 + 45 * 11 + 11 * 10
    save_slim(gathered, tmp_path / "slim.safetensors", network="lenet300")
    loaded = load_slim(tmp_path / "slim.safetensors").model.eval()
    assert torch.equal(loaded(IMAGE), gathered.model(IMAGE))
    assert set(loaded.state_dict()) == set(build_network("lenet300").state_dict())


def test_a_gathered_network_is_cut_further() -> None:
    gathered = gather_inputs(papers_network(), ["fc1"], IMAGE)
    channels = trace_channels(gathered.model, IMAGE)
    keep = {"fc1": torch.arange(5, 45)}
    zero_(gathered.model, channels, keep)
    slim = cut(gathered, channels, keep, IMAGE)
    assert slim.model.fc1.weight.shape == (40, 353)
    assert slim.plan.edits == (GatherEdit(module="fc1"),)
    assert torch.equal(slim.plan.kept["fc1.weight"][0], torch.arange(5, 45))
    assert torch.equal(slim.plan.kept["fc1.weight"][1], PIXELS)


def test_hooks_and_other_names_of_the_layer_stay_and_training_goes_on() -> None:
    model = papers_network().model
    model.same = model.fc1
    called: list[int] = []
    model.fc1.register_forward_hook(lambda module, args, output: called.append(args[0].shape[-1]))
    gathered = gather_inputs(model, "fc1", IMAGE).model
    assert gathered.same is gathered.fc1
    called.clear()
    gathered(IMAGE).sum().backward()
    assert called == [784]
    assert gathered.fc1.weight.grad.shape == (45, 353)


def test_a_layer_that_uses_everything_stays_and_one_that_uses_nothing_keeps_one_feature() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    x = torch.randn(2, 6)
    assert gather_inputs(model, ["0", "1"], x).plan.edits == ()
    with torch.no_grad():
        model[0].weight.zero_()
    assert gather_inputs(model, "0", x).model[0].weight.shape == (4, 1)


def test_what_is_no_plain_linear_layer_is_refused() -> None:
    with pytest.raises(CutRefused, match="'fc9' is not the name of a linear layer"):
        gather_inputs(papers_network(), "fc9", IMAGE)
    with pytest.raises(CutRefused, match="'a' is not the name of a linear layer"):
        gather_inputs(networks.chain(), "a", torch.randn(1, 3, 8, 8))
    with pytest.raises(CutRefused, match="fc2 lost inputs in a cut already"):
        gather_inputs(papers_network(), "fc2", IMAGE)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    for name in "01":
        with pytest.raises(CutRefused, match=f"{name} shares its weight with another layer"):
            gather_inputs(tied, name, torch.randn(2, 4))


def test_a_weight_that_is_used_in_another_way_as_well_is_refused() -> None:
    def tied(n: networks.Net, x: Tensor) -> Tensor:
        return n.fc(x) @ n.fc.weight

    model = networks.Net(tied, fc=nn.Linear(6, 4))
    with torch.no_grad():
        model.fc.weight[:, 2] = 0
    with pytest.raises(CutRefused, match="another way"):
        gather_inputs(model, "fc", torch.randn(2, 6))


def test_input_features_are_a_group_and_are_cut_again() -> None:
    torch.manual_seed(0)
    model = SlimModel(build_network("lenet300").eval(), PruningPlan())
    for pixels, first in ((torch.arange(0, 706, 2), 45), (torch.arange(3, 103), 20)):
        channels = with_input_features(trace_channels(model.model, IMAGE), ["fc1", "fc2", "nothing"])
        assert [(group.name, group.gather) for group in channels.groups] == [
            ("fc1.input", "fc1"),
            ("fc1", ""),
            ("fc2", ""),
        ]
        assert dense_macs(channels) == count_in(model.model)
        keep = {"fc1.input": pixels, "fc1": torch.arange(first)}
        zero_(model.model, channels, keep)
        model = cut(model, channels, keep, IMAGE)
        assert count_in(model.model) == len(pixels) * first + first * 100 + 1000 == macs_of_keep(channels, keep)
    assert model.plan.edits == (GatherEdit(module="fc1"),)
    assert torch.equal(model.plan.kept["fc1.weight"][1], torch.arange(6, 206, 2))
    torch.manual_seed(0)
    again = with_plan(build_network("lenet300").eval(), model.plan)
    again.load_state_dict(model.model.state_dict())
    assert torch.equal(again(IMAGE), model.model(IMAGE))


def count_in(model: nn.Module) -> int:
    return torch_macs(model, Call.of(model, IMAGE)).macs
