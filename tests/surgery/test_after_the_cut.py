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
