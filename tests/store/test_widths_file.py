"""``widths.json`` and a name rebuild the slim network, untrained."""

import json
from pathlib import Path

import networks
import pytest
import torch

from hoyer_export.channels.labels import Tracer
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import FileError, NetworkError
from hoyer_export.networks import build_network
from hoyer_export.select.choose import select_channels
from hoyer_export.store.widths_file import build_slim
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.zero import zero_

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_widths_of_a_cut_and_a_name_give_the_same_architecture(tmp_path: Path) -> None:
    model = networks.perturbed(build_network("cifar_resnet20", classes=7))
    channels = trace_channels(model, IMAGE)
    keep = select_channels(channels, model, macs=0.5, align=4).keep
    zero_(model, channels, keep)
    slim = cut(model, channels, keep, IMAGE)
    (tmp_path / "widths.json").write_text(json.dumps({name: kept.tolist() for name, kept in keep.items()}))
    torch.manual_seed(0)
    built = build_slim(tmp_path / "widths.json", "cifar_resnet20", classes=7)
    assert built.plan.to_dict() == slim.plan.to_dict()
    assert built.max_rel_error is None
    built.model.load_state_dict(slim.model.state_dict())
    assert torch.equal(built.model.eval()(IMAGE), slim.model(IMAGE))


def test_it_starts_from_the_dense_networks_weights(tmp_path: Path) -> None:
    (tmp_path / "widths.json").write_text('{"conv1": [1, 4]}')
    torch.manual_seed(0)
    dense = build_network("lenet5")
    torch.manual_seed(0)
    slim = build_slim(tmp_path / "widths.json", "lenet5").model
    assert torch.equal(slim.conv1.weight, dense.conv1.weight[[1, 4]])
    assert torch.equal(slim.conv2.weight, dense.conv2.weight[:, [1, 4]])
    assert torch.equal(slim.fc2.weight, dense.fc2.weight)


def test_rules_of_ones_own_reach_the_tracing(tmp_path: Path) -> None:
    class Doubled(torch.autograd.Function):
        """An operation that no rule is there for."""

        @staticmethod
        def forward(context: object, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    def double(x: torch.Tensor) -> torch.Tensor:
        if torch.overrides.has_torch_function_unary(x):
            return torch.overrides.handle_torch_function(double, (x,), x)
        return Doubled.apply(x)

    dense = networks.Net(
        lambda n, x: n.fc(double(n.a(x)).mean((2, 3))), a=networks.conv(3, 8), fc=torch.nn.Linear(8, 5)
    )
    (tmp_path / "widths.json").write_text('{"a": [0, 7]}')
    with pytest.raises(FileError, match="'a', which the network does not have"):
        build_slim(tmp_path / "widths.json", dense, input_shape=(3, 8, 8))

    def rule(tracer: Tracer, output: torch.Tensor, x: torch.Tensor) -> None:
        tracer.put(output, tracer.axes(x))

    slim = build_slim(tmp_path / "widths.json", dense, input_shape=(3, 8, 8), rules={double: rule}).model
    assert slim.a.out_channels == 2


def test_ones_own_network_is_passed_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "widths.json").write_text('{"b": [0, 7]}')
    dense = networks.chain()
    slim = build_slim(tmp_path / "widths.json", dense, input_shape=(3, 16, 16)).model
    assert (slim.b.out_channels, dense.b.out_channels) == (2, 8)
    with pytest.raises(NetworkError, match="give input_shape"):
        build_slim(tmp_path / "widths.json", dense)
