"""After a cut training goes on: the slim model's step is the zeroed model's step on the surviving weights."""

import copy
from collections.abc import Callable

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from hoyer_export.channels.channel_map import removed_channels
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import HoyerExportError
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.optimizer_state import slice_optimizer
from hoyer_export.surgery.plan import PruningPlan
from hoyer_export.surgery.step import SlimModel
from hoyer_export.surgery.zero import zero_

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])

MakeOptimizer = Callable[[nn.Module], Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "plain SGD": lambda model: SGD(model.parameters(), lr=0.05),
    "SGD with momentum": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2),
    "Nesterov": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "dampened": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, dampening=0.5),
    "Adam": lambda model: Adam(model.parameters(), lr=1e-2, weight_decay=1e-2),
    "AMSGrad": lambda model: Adam(model.parameters(), lr=1e-2, amsgrad=True),
    "AdamW": lambda model: AdamW(model.parameters(), lr=1e-2, weight_decay=0.1),
}


def normed() -> nn.Module:
    net = networks.chain()
    net.a.bias = None  # its gradient, before a batch norm, is nothing but rounding, which Adam divides by itself
    return net


NETWORKS = {
    "batch norm": (normed, {"a": torch.tensor([0, 3, 4, 9]), "b": torch.tensor([1, 6])}),
    "tied": (networks.tied, {"a": torch.tensor([0, 5, 7])}),
    "grouped": (networks.grouped, {"a": torch.tensor([1, 2])}),
}


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()


def trained_and_cut(
    make: MakeOptimizer, network: str, layout: torch.memory_format = torch.contiguous_format
) -> tuple[nn.Module, Optimizer, SlimModel, dict[str, dict[int, Tensor]]]:
    """Return a network that was trained, then zeroed; its optimizer; the slim model; and the slices that went."""
    build, keep = NETWORKS[network]
    torch.manual_seed(0)
    model = networks.perturbed(build()).double().to(memory_format=layout)
    channels = trace_channels(model, IMAGES)
    optimizer = make(model)
    train(model, optimizer, 3)
    zero_(model, channels, keep)
    gone: dict[str, dict[int, Tensor]] = {}
    for group in channels.groups:
        channels_gone = removed_channels(group, keep.get(group.name, torch.arange(group.width)))
        for member in group.members:
            indices = torch.isin(member.owner, channels_gone).nonzero().flatten()
            gone.setdefault(member.parameter, {})[member.dim] = indices
    return model, optimizer, cut(model, channels, keep, IMAGES), gone


def assert_surviving_state_is_equal(model: nn.Module, slim: SlimModel) -> None:
    for name, found in [*slim.model.named_parameters(), *slim.model.named_buffers()]:
        expected = model.state_dict()[name]
        for dim, kept in slim.plan.kept.get(name, {}).items():
            expected = expected.index_select(dim, kept)
        torch.testing.assert_close(
            found, expected, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_step_is_the_zeroed_models_on_the_surviving_weights(name: str, network: str) -> None:
    model, optimizer, slim, _ = trained_and_cut(OPTIMIZERS[name], network)
    sliced = slice_optimizer(optimizer, model, slim)
    before = copy.deepcopy(slim.model.state_dict())
    train(model, optimizer, 1)
    train(slim.model, sliced, 1)
    assert_surviving_state_is_equal(model, slim)
    assert not torch.allclose(slim.model.fc.weight, before["fc.weight"], atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_later_steps_are_too_where_the_removed_slices_have_no_momentum(name: str, network: str) -> None:
    model, optimizer, slim, gone = trained_and_cut(OPTIMIZERS[name], network)
    sliced = slice_optimizer(optimizer, model, slim)
    for parameter_name, parameter in model.named_parameters():
        for dim, indices in gone.get(parameter_name, {}).items():
            for value in optimizer.state[parameter].values():
                if isinstance(value, Tensor) and value.ndim:
                    value.index_fill_(dim, indices, 0)
    train(model, optimizer, 5)
    train(slim.model, sliced, 5)
    assert_surviving_state_is_equal(model, slim)


@pytest.mark.parametrize("name", ["SGD with momentum", "Adam", "AdamW"])
def test_a_new_optimizer_without_the_state_would_step_elsewhere(name: str) -> None:
    model, optimizer, slim, _ = trained_and_cut(OPTIMIZERS[name], "batch norm")
    train(model, optimizer, 1)
    train(slim.model, OPTIMIZERS[name](slim.model), 1)
    with pytest.raises(AssertionError):
        assert_surviving_state_is_equal(model, slim)


def test_parameter_groups_keep_their_order_options_and_members() -> None:
    def make(model: nn.Module) -> Optimizer:
        weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
        return SGD(
            [{"params": vectors, "weight_decay": 0.0, "name": "vectors"}, {"params": weights, "lr": 0.2}], 0.1, 0.9
        )

    model, optimizer, slim, _ = trained_and_cut(make, "batch norm")
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    sliced = slice_optimizer(optimizer, model, slim)
    assert type(sliced) is SGD
    assert sliced.defaults == optimizer.defaults
    names = {id(parameter): name for m in (model, slim.model) for name, parameter in m.named_parameters()}
    for old, new in zip(optimizer.param_groups, sliced.param_groups, strict=True):
        assert {key: value for key, value in old.items() if key != "params"} == {
            key: value for key, value in new.items() if key != "params"
        }
        assert [names[id(parameter)] for parameter in old["params"]] == [names[id(p)] for p in new["params"]]
    assert sliced.param_groups[1]["initial_lr"] == 0.2
    train(model, optimizer, 1)
    train(slim.model, sliced, 1)
    assert_surviving_state_is_equal(model, slim)


def test_a_frozen_parameter_stays_out() -> None:
    def make(model: nn.Module) -> Optimizer:
        model.a.requires_grad_(False)
        return SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.1, 0.9)

    model, optimizer, slim, _ = trained_and_cut(make, "batch norm")
    sliced = slice_optimizer(optimizer, model, slim)
    owned = {id(parameter) for group in sliced.param_groups for parameter in group["params"]}
    assert {name for name, parameter in slim.model.named_parameters() if id(parameter) not in owned} == {"a.weight"}
    assert slim.model.a.weight.shape[0] == 4


def test_the_old_optimizer_and_model_are_not_changed() -> None:
    model, optimizer, slim, _ = trained_and_cut(OPTIMIZERS["Adam"], "batch norm")
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    sliced = slice_optimizer(optimizer, model, slim)
    train(slim.model, sliced, 2)
    after = (model.state_dict(), optimizer.state_dict())
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_momenta_lie_in_memory_as_their_parameters_do() -> None:
    model, optimizer, slim, _ = trained_and_cut(OPTIMIZERS["SGD with momentum"], "batch norm", torch.channels_last)
    sliced = slice_optimizer(optimizer, model, slim)
    momentum = sliced.state[slim.model.b.weight]["momentum_buffer"]
    assert momentum.is_contiguous(memory_format=torch.channels_last)
    assert not momentum.is_contiguous()


def test_what_the_cut_added_joins_its_modules_group_and_what_it_removed_is_gone() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = SGD([{"params": dense[2].parameters()}, {"params": dense[:2].parameters(), "lr": 0.5}], 0.1, 0.9)
    dense(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    other = copy.deepcopy(dense)
    other[0].bias = nn.Parameter(torch.zeros(4))
    other[1] = nn.Identity()
    sliced = slice_optimizer(optimizer, dense, SlimModel(other, PruningPlan({}, {})))
    assert [len(group["params"]) for group in sliced.param_groups] == [2, 2]
    assert sliced.param_groups[1]["params"][1] is other[0].bias
    assert other[0].bias not in sliced.state
    assert len(sliced.state) == 3


def test_what_cannot_be_sliced_is_refused_in_one_line() -> None:
    model, optimizer, slim, _ = trained_and_cut(OPTIMIZERS["Adam"], "batch norm")
    with pytest.raises(HoyerExportError, match=r"state of RMSprop cannot be sliced \(only SGD, Adam, AdamW's\)"):
        slice_optimizer(RMSprop(model.parameters()), model, slim)
    with pytest.raises(HoyerExportError, match=r"group 0 .* is not the model's: pass the model"):
        slice_optimizer(optimizer, copy.deepcopy(model), slim)
    with pytest.raises(HoyerExportError, match=r"a.weight has shape \(4, 3, 3, 3\), but the plan starts from"):
        slice_optimizer(SGD(slim.model.parameters(), 0.1), slim.model, slim)
    optimizer.state[model.fc.weight]["exp_avg"] = torch.zeros(5)
    with pytest.raises(HoyerExportError, match=r"exp_avg of fc.weight has shape \(5,\), expected .* \(5, 8\)"):
        slice_optimizer(optimizer, model, slim)
