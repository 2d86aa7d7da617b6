"""After the cut nothing is lost: whatever a tensor or a module was besides its size, it still is."""

import networks
import pytest
import torch
from torch import Tensor, nn

from hoyer_export.channels.trace import trace_channels
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.zero import zero_

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
KEEP = {"a": torch.tensor([0, 3, 4, 9]), "b": torch.tensor([1, 6])}


def chain() -> networks.Net:
    torch.manual_seed(0)
    return networks.perturbed(networks.chain())


def after_the_cut(model: nn.Module, keep: dict[str, Tensor] = KEEP, example: Tensor = IMAGE) -> nn.Module:
    channels = trace_channels(model, example)
    zero_(model, channels, keep)
    slim = cut(model, channels, keep, example).model
    sizes = {name: (tensor.numel(), slim.get_parameter(name).numel()) for name, tensor in model.named_parameters()}
    assert any(after < before for before, after in sizes.values())
    return slim


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_type_of_every_tensor(dtype: torch.dtype) -> None:
    model = chain()
    channels = trace_channels(model, IMAGE)
    zero_(model, channels, KEEP)
    model.to(dtype).bn.float()  # as mixed precision leaves it
    slim = cut(model, channels, KEEP, IMAGE).model
    types = {name: tensor.dtype for name, tensor in slim.state_dict().items()}
    assert types == {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert (slim.a.weight.dtype, slim.bn.weight.dtype) == (dtype, torch.float32)
    assert torch.equal(slim.a.weight, model.a.weight[KEEP["a"]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_the_device_of_every_tensor() -> None:
    slim = after_the_cut(chain().cuda(), KEEP, IMAGE.cuda())
    assert {tensor.device.type for tensor in slim.state_dict().values()} == {"cuda"}


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_memory_format_of_every_weight(layout: torch.memory_format) -> None:
    slim = after_the_cut(chain().to(memory_format=layout))
    for layer in (slim.a, slim.b):
        assert layer.weight.is_contiguous(memory_format=layout)
        assert not layer.weight.is_contiguous(
            memory_format=torch.contiguous_format if layout is torch.channels_last else torch.channels_last
        )


def test_the_memory_format_of_volumes() -> None:
    torch.manual_seed(0)
    model = networks.Net(
        lambda n, x: n.fc(n.a(x).mean((2, 3, 4))), a=nn.Conv3d(3, 8, 3), fc=nn.Linear(8, 5)
    ).to(memory_format=torch.channels_last_3d)  # fmt: skip
    slim = after_the_cut(model, {"a": torch.tensor([1, 5])}, torch.randn(2, 3, 6, 6, 6))
    assert slim.a.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not slim.a.weight.is_contiguous()


def test_the_training_mode_of_every_module() -> None:
    model = chain().train()
    model.bn.eval()
    slim = after_the_cut(model)
    assert {name: module.training for name, module in slim.named_modules()} == {
        "": True, "a": True, "bn": False, "b": True, "fc": True,
    }  # fmt: skip
    assert {name: module.training for name, module in model.named_modules()} == {
        name: module.training for name, module in slim.named_modules()
    }


def test_which_parameters_train_and_frozen_layers_are_cut_like_any_other() -> None:
    model = chain()
    model.a.requires_grad_(False)
    model.fc.bias.requires_grad_(False)
    slim = after_the_cut(model)
    assert {name for name, parameter in slim.named_parameters() if not parameter.requires_grad} == {
        "a.weight", "a.bias", "fc.bias",
    }  # fmt: skip
    assert slim.a.weight.shape == (4, 3, 3, 3)
    assert all(parameter.is_leaf for parameter in slim.parameters())


def test_buffers_that_are_saved_and_those_that_are_not() -> None:
    model = chain()
    model.bn.num_batches_tracked += 7
    model.register_buffer("untouched", torch.arange(3), persistent=False)
    scale = torch.rand(1, 12, 1, 1)
    model.a.register_buffer("scale", scale.clone(), persistent=False)
    model.wiring = lambda n, x: n.fc(n.b(n.bn(n.a(x) * n.a.scale).relu()).mean((2, 3)))
    slim = after_the_cut(model)
    assert torch.equal(slim.a.scale, scale[:, KEEP["a"]])
    assert torch.equal(slim.untouched, torch.arange(3))
    assert not {"a.scale", "untouched"} & slim.state_dict().keys()
    assert int(slim.bn.num_batches_tracked) == 7
    assert slim.bn.running_mean.shape == (4,)


def test_tied_weights_are_one_tensor_under_all_their_names() -> None:
    torch.manual_seed(0)
    model = networks.perturbed(networks.tied())
    model.alias = model.b
    slim = after_the_cut(model, {"a": torch.tensor([0, 5, 7])})
    assert slim.b.weight is slim.c.weight
    assert slim.alias is slim.b
    assert slim.b.weight.shape == (3, 3, 3, 3)
    assert [name for name, _ in slim.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_a_module_that_is_used_twice_is_one_module() -> None:
    torch.manual_seed(0)
    model = networks.perturbed(
        networks.Net(
            lambda n, x: n.fc(n.b(n.b(n.a(x)).relu()).mean((2, 3))),
            a=networks.conv(3, 8), b=networks.conv(8, 8), fc=nn.Linear(8, 5),
        )
    )  # fmt: skip
    slim = after_the_cut(model, {"a": torch.tensor([2, 3, 6])})
    assert slim.b.weight.shape == (3, 3, 3, 3)
    assert (slim.b.in_channels, slim.b.out_channels) == (3, 3)


def test_nothing_is_shared_with_the_dense_network() -> None:
    model = chain()
    slim = after_the_cut(model)
    storages = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert not storages & {tensor.untyped_storage().data_ptr() for tensor in slim.state_dict().values()}


def test_other_attributes_of_modules() -> None:
    model = chain()
    model.classes = ["cat", "dog"]
    model.b.note = {"stage": 3}
    slim = after_the_cut(model)
    assert (slim.classes, slim.b.note) == (["cat", "dog"], {"stage": 3})
    assert type(slim) is type(model)


class Branches(nn.Module):
    """Two convolutions and a norm side by side, or once deployed one: in the manner of RepVGG and MobileOne."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.in_channels, self.groups, self.kernel_size = width, groups, 3
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.point = nn.Conv2d(width, width, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if self.point is None else self.conv(x) + self.point(x) + self.norm(x)

    def deploy(self) -> None:
        one = nn.Conv2d(self.in_channels, self.in_channels, 3, padding=1, groups=self.groups)
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        kernel = self.conv.weight.detach().clone()
        kernel[:, :, 1, 1] += self.point.weight[:, :, 0, 0]
        for i in range(self.in_channels):
            kernel[i, i % (self.in_channels // self.groups), 1, 1] += scale[i]
        one.weight.data, one.bias.data = kernel, self.norm.bias - self.norm.running_mean * scale
        self.conv, self.point = one, None


@pytest.mark.parametrize("groups", [1, 12])
def test_sizes_that_only_other_methods_read(groups: int) -> None:
    model = networks.perturbed(networks.Net(
        lambda n, x: n.fc(n.block(n.a(x)).relu().mean((2, 3))),
        a=networks.conv(3, 12), block=Branches(12, groups), fc=nn.Linear(12, 5),
    )).eval()  # fmt: skip
    slim = after_the_cut(model, {"a": torch.arange(7)})
    assert (slim.block.in_channels, slim.block.groups, slim.block.kernel_size) == (7, min(groups, 7), 3)
    with torch.no_grad():
        expected = slim(IMAGE)
        slim.block.deploy()
        torch.testing.assert_close(slim(IMAGE), expected)


class Cached(nn.Module):
    """Keeps what it made of its weight until it is moved, as timm's LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.cache = nn.Parameter(torch.rand(12)), None

    def _apply(self, fn, recurse=True):
        self.cache = None
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        self.cache = self.scale.detach()[:, None, None] if self.cache is None else self.cache
        return x * self.cache


def test_what_a_module_keeps_until_it_is_moved_is_made_anew() -> None:
    model = networks.Net(
        lambda n, x: n.fc(n.scale(n.a(x)).mean((2, 3))), a=networks.conv(3, 12), scale=Cached(), fc=nn.Linear(12, 5)
    )
    channels = trace_channels(model, IMAGE)
    zero_(model, channels, {"a": torch.arange(7)})
    model(IMAGE)
    slim = cut(model, channels, {"a": torch.arange(7)}, IMAGE).model
    assert slim(IMAGE).shape == (len(IMAGE), 5)
