"""A residual block whose branch is zero or constant becomes its shortcut, exactly; any other block stays."""

import copy
from pathlib import Path

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.channels.cost import dense_macs
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import CutRefused
from hoyer_export.networks import build_network
from hoyer_export.store.slim_file import load_slim, save_slim
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.edits import ShortcutEdit
from hoyer_export.surgery.extras.dead_blocks import remove_dead_blocks
from hoyer_export.surgery.zero import zero_

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """relu(norm(conv(x)) + shortcut(x)), its ReLU a module (which writes into its input) or a function."""

    def __init__(self, i: int, o: int, *, relu: bool, project: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = networks.conv(i, o), nn.BatchNorm2d(o)
        self.project = nn.Sequential(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o)) if project else None
        self.act = nn.ReLU(inplace=True) if relu else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)) + (x if self.project is None else self.project(x))
        return F.relu(y) if self.act is None else self.act(y)


class Linear(nn.Module):
    """x + norm(conv(x)), as in a MobileNetV2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = networks.conv(channels, channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x))


def network(block: nn.Module, width: int = 8) -> nn.Module:
    """Stem → block → head, where also the stem's own output is read: nobody may write into it."""
    torch.manual_seed(0)
    return networks.perturbed(
        networks.Net(
            lambda n, x: (lambda y: n.fc(n.block(y).mean((2, 3))) + n.side(y.mean((2, 3))))(n.stem(x)),
            stem=networks.conv(3, 8), block=block, fc=nn.Linear(width, 5), side=nn.Linear(8, 5),
        )
    )  # fmt: skip


def kill(block: nn.Module, constant: bool = False) -> None:
    with torch.no_grad():
        block.norm.weight.zero_()
        if not constant:
            block.norm.bias.zero_()


@pytest.mark.parametrize(
    ("block", "width", "edit"),
    [
        (Block(8, 8, relu=True), 8, ShortcutEdit(module="block", children=("act",), relu=False)),
        (Block(8, 8, relu=False), 8, ShortcutEdit(module="block", children=(), relu=True)),
        (
            Block(8, 6, relu=True, project=True),
            6,
            ShortcutEdit(module="block", children=("project", "act"), relu=False),
        ),
        (Block(8, 6, relu=False, project=True), 6, ShortcutEdit(module="block", children=("project",), relu=True)),
        (Linear(8), 8, ShortcutEdit(module="block", children=(), relu=False)),
    ],
)
def test_a_block_becomes_what_its_shortcut_computes(
    block: nn.Module, width: int, edit: ShortcutEdit, tmp_path: Path
) -> None:
    model = network(copy.deepcopy(block), width)
    assert remove_dead_blocks(model, IMAGE).plan.edits == ()
    kill(model.block)
    before = copy.deepcopy(model.state_dict())
    slim = remove_dead_blocks(model, IMAGE)
    assert slim.plan.edits == (edit,)
    assert slim.max_rel_error <= 1e-9
    assert torch.equal(slim.model(IMAGE), model(IMAGE))
    assert not any(name.startswith("block.conv") for name in slim.model.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in slim.model.state_dict().items())
    save_slim(slim, tmp_path / "slim.safetensors")
    loaded = load_slim(tmp_path / "slim.safetensors", into=network(copy.deepcopy(block), width)).model
    assert torch.equal(loaded(IMAGE), slim.model(IMAGE))


def test_a_constant_branch_is_folded_into_the_projection_or_left() -> None:
    model = network(Block(8, 6, relu=False, project=True), 6)
    kill(model.block, constant=True)
    slim = remove_dead_blocks(model, IMAGE)
    assert slim.plan.edits == (ShortcutEdit(module="block", children=("project",), relu=True),)
    torch.testing.assert_close(slim.model.block.project[1].bias, model.block.project[1].bias + model.block.norm.bias)
    torch.testing.assert_close(slim.model(IMAGE), model(IMAGE))
    plain = network(Block(8, 8, relu=False))
    kill(plain.block, constant=True)
    assert remove_dead_blocks(plain, IMAGE).model is plain


class Asleep(nn.Module):
    """Two branches: one is zero, and of the other the ReLU does not fire on any image."""

    def __init__(self) -> None:
        super().__init__()
        self.zero, self.into, self.out = (nn.Conv2d(8, 8, 1, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.zero(x) + self.out(F.relu(self.into(x) - 1000))


def test_a_branch_that_is_only_asleep_stays() -> None:
    model = network(Asleep())
    with torch.no_grad():
        model.block.zero.weight.zero_()
    x = model.stem(IMAGE)
    assert torch.equal(model.block(x), x)
    assert remove_dead_blocks(model, IMAGE).plan.edits == ()
    with torch.no_grad():
        model.block.out.weight.zero_()
    assert remove_dead_blocks(model, IMAGE).plan.edits == (ShortcutEdit(module="block", children=(), relu=False),)


def test_a_dead_stage_goes_as_a_whole_and_a_module_of_zeros_is_no_block() -> None:
    model = network(nn.Sequential(Linear(8), Linear(8)))
    for block in model.block:
        kill(block)
    assert remove_dead_blocks(model, IMAGE).plan.edits == (ShortcutEdit(module="block", children=(), relu=False),)
    silent = network(nn.Sequential(networks.conv(8, 8), nn.BatchNorm2d(8)))
    with torch.no_grad():
        for parameter in silent.block.parameters():
            parameter.zero_()
    assert remove_dead_blocks(silent, IMAGE).plan.edits == ()


def test_hooks_of_the_block_stay_and_its_mode() -> None:
    model = network(Linear(8))
    kill(model.block)
    model.train()
    model.block.eval()
    called: list[torch.Size] = []
    model.block.register_forward_hook(lambda module, args, output: called.append(output.shape))
    slim = remove_dead_blocks(model, IMAGE).model
    called.clear()
    slim(IMAGE)
    assert called == [torch.Size([2, 8, 16, 16])]
    assert slim.training
    assert not slim.block.training


def test_code_that_uses_a_part_of_the_block_is_refused() -> None:
    model = network(Linear(8))
    kill(model.block)
    wiring = model.wiring
    model.wiring = lambda n, x: wiring(n, x) * networks.hidden_width(n.block.norm)
    with pytest.raises(CutRefused, match="does not run"):
        remove_dead_blocks(model, IMAGE)


def test_a_resnet_loses_the_macs_of_its_dead_blocks_and_is_then_cut(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = networks.perturbed(build_network("cifar_resnet20"))
    for name in ("layer1.1", "layer2.0"):
        block = model.get_submodule(name)
        with torch.no_grad():
            for parameter in (block.conv2.weight, block.bn2.weight, block.bn2.bias):
                parameter.zero_()
    slim = remove_dead_blocks(model, IMAGE)
    channels = trace_channels(slim.model, IMAGE)
    gone = 2 * 16 * 16 * (16 * 16 * 9) + 8 * 8 * (16 * 32 * 9 + 32 * 32 * 9)
    assert dense_macs(channels) == dense_macs(trace_channels(model, IMAGE)) - gone
    keep = {group.name: torch.arange(1, group.width) for group in channels.groups}
    zero_(slim.model, channels, keep)
    slimmer = cut(slim, channels, keep, IMAGE)
    assert slimmer.plan.edits == slim.plan.edits
    save_slim(slimmer, tmp_path / "slim.safetensors", network="cifar_resnet20")
    loaded = load_slim(tmp_path / "slim.safetensors").model.eval()
    assert torch.equal(loaded(IMAGE), slimmer.model(IMAGE))


class Dropping(Linear):
    """x + norm(conv(x)), some of which is dropped in training."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(super().forward(x))


def test_a_block_keeps_what_it_does_in_training() -> None:
    model = network(Dropping(8))
    kill(model.block)
    slim = remove_dead_blocks(model, IMAGE)
    assert slim.plan.edits == (ShortcutEdit(module="block", children=("drop",), relu=False),)


def test_a_block_that_shares_a_weight_stays_and_so_does_its_name() -> None:
    model = network(Linear(8))
    kill(model.block)
    model.stem = nn.Sequential(model.stem, copy.deepcopy(model.block.conv))
    model.stem[1].weight = model.block.conv.weight
    assert remove_dead_blocks(model, IMAGE).plan.edits == ()
