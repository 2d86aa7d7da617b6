"""What hangs on a network beside its tensors is kept by a cut, or refused with the way out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize, prune

from hoyer_export.channels.trace import trace_channels
from hoyer_export.channels.wrappers import check_wrappers
from hoyer_export.errors import CutRefused, NetworkError
from hoyer_export.store.slim_file import load_slim, save_slim
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.self_test import self_test
from hoyer_export.surgery.zero import zero_

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def chain() -> networks.Net:
    torch.manual_seed(0)
    return networks.perturbed(networks.chain())


def cut_in_half(model: nn.Module, groups: set[str] | None = None) -> nn.Module:
    channels = trace_channels(model, IMAGE)
    keep = {
        group.name: torch.arange(group.width // 2)
        for group in channels.groups
        if groups is None or group.name in groups
    }
    zero_(model, channels, keep)
    return cut(model, channels, keep, IMAGE).model


# --- kept ----------------------------------------------------------------------------------------------------------


def test_hooks_of_modules_run_on_the_slim_model() -> None:
    model = chain()
    called: list[tuple[str, int]] = []
    model.a.register_forward_pre_hook(lambda module, args: called.append(("before", module.out_channels)))
    model.a.register_forward_hook(lambda module, args, output: output * 0.5)
    model.b.register_full_backward_hook(lambda module, into, out: called.append(("backward", module.out_channels)))
    model.register_state_dict_post_hook(lambda module, state, prefix, local: state.__delitem__("fc.bias"))
    expected = 0.5 * chain().a(IMAGE)[:, :6]
    slim = cut_in_half(model)
    called.clear()
    torch.testing.assert_close(slim.a(IMAGE), expected)
    slim(IMAGE).sum().backward()
    assert called == [("before", 6), ("before", 6), ("backward", 4)]
    assert "fc.bias" not in slim.state_dict()


def test_a_forward_hook_that_counts_on_the_dense_width_is_refused() -> None:
    model = chain()
    model.b.register_forward_hook(lambda module, args, output: output * networks.hidden_width(module))
    with pytest.raises(CutRefused, match="depends on its width"):
        cut_in_half(model)


def test_python_attributes_of_parameters_and_buffers_are_kept() -> None:
    model = chain()
    marked = [model.a.weight, model.a.bias, model.fc.bias, model.bn.running_mean]
    for tensor in marked:
        tensor.decay = False
    slim = cut_in_half(model)
    for tensor in (slim.a.weight, slim.a.bias, slim.fc.bias, slim.bn.running_mean):
        assert tensor.decay is False
    assert not hasattr(slim.b.weight, "decay")


def test_they_come_back_from_a_file_with_the_network_that_is_passed(tmp_path: Path) -> None:
    model = chain()
    channels = trace_channels(model, IMAGE)
    keep = {"a": torch.arange(6)}
    zero_(model, channels, keep)
    save_slim(cut(model, channels, keep, IMAGE), tmp_path / "slim.safetensors")
    dense = networks.chain()
    dense.a.weight.decay = False
    assert load_slim(tmp_path / "slim.safetensors", into=dense).model.a.weight.decay is False


def test_a_network_that_compiles_in_place_is_cut() -> None:
    model = chain()
    model.compile()
    assert cut_in_half(model).a.out_channels == 6


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_a_script_is_left_whole_and_what_it_does_not_meet_is_cut() -> None:
    scripted = torch.jit.script(nn.Linear(8, 7))
    model = networks.Net(
        lambda n, x: n.script(n.b(n.a(x)).mean((2, 3))),
        a=networks.conv(3, 6), b=networks.conv(6, 8), script=scripted,
    )  # fmt: skip
    slim = cut_in_half(networks.perturbed(model))
    assert slim.a.out_channels == 3
    assert slim.b.out_channels == 8
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in slim.parameters())
    slim(IMAGE).sum().backward()
    assert slim.script.weight.grad.any()


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def doubled(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Doubled())


@pytest.mark.parametrize("parametrized", [doubled, parametrizations.spectral_norm, utils.spectral_norm])
def test_a_parametrized_weight_is_cut_through_what_computes_it(parametrized: Callable[[nn.Module], nn.Module]) -> None:
    model = chain()
    for layer in (model.a, model.b):
        parametrized(layer)
    slim = cut_in_half(model.eval())
    assert (slim.a.out_channels, slim.b.in_channels, slim.b.out_channels) == (6, 6, 4)
    before = slim(IMAGE).detach()
    (utils.remove_spectral_norm if parametrized is utils.spectral_norm else parametrize.remove_parametrizations)(
        slim.b, "weight"
    )
    assert slim.b.weight.shape == (4, 6, 3, 3)
    torch.testing.assert_close(slim(IMAGE), before)


def test_what_a_weight_normed_filter_reads_is_cut_and_the_filter_stays() -> None:
    model = chain()
    parametrizations.weight_norm(model.b)
    found = trace_channels(model, IMAGE)
    assert [(group.name, group.width) for group in found.groups] == [("a", 12)]
    assert "call remove_parametrizations first" in str(found)
    slim = cut_in_half(model, {"a"})
    assert parametrize.is_parametrized(slim.b, "weight")
    assert (slim.b.in_channels, slim.b.out_channels) == (6, 8)


# --- refused by the cut --------------------------------------------------------------------------------------------


class Marked(nn.Parameter):
    """A parameter of a class of its own."""


def hooked(model: networks.Net) -> None:
    model.fc.weight.register_hook(lambda gradient: 2 * gradient)


def accumulating(model: networks.Net) -> None:
    model.fc.bias.register_post_accumulate_grad_hook(lambda parameter: None)


def with_mask(model: networks.Net) -> None:
    model.b.weight.mask = torch.ones(8, 12, 3, 3)


def marked(model: networks.Net) -> None:
    model.a.weight = Marked(model.a.weight.detach())


REFUSED = [
    (hooked, r"fc\.weight has a gradient hook.*remove it"),
    (accumulating, r"fc\.bias has a gradient hook.*remove it"),
    (with_mask, r"b\.weight\.mask is a tensor.*delete it"),
    (marked, r"a\.weight is a .*\.Marked.*make it a plain parameter"),
]


@pytest.mark.parametrize(("hang", "message"), REFUSED, ids=[hang.__name__ for hang, _ in REFUSED])
def test_what_a_cut_would_lose_is_refused(hang: Callable[[networks.Net], None], message: str) -> None:
    model = chain()
    hang(model)
    with pytest.raises(CutRefused, match=message) as caught:
        cut_in_half(model)
    assert "\n" not in str(caught.value)


def test_each_way_out_works() -> None:
    model = chain()
    handle = model.fc.weight.register_hook(lambda gradient: 2 * gradient)
    handle.remove()
    assert cut_in_half(model).a.out_channels == 6


def test_the_self_test_says_so_before_any_training() -> None:
    model = chain()
    hooked(model)
    with pytest.raises(CutRefused, match="gradient hook"):
        self_test(model, IMAGE)


# --- refused before tracing ----------------------------------------------------------------------------------------


def lazy(model: networks.Net) -> nn.Module:
    model.fc = nn.LazyLinear(5)
    return model


def lazy_norm(model: networks.Net) -> nn.Module:
    model.bn = nn.LazyBatchNorm2d()
    return model


def masked(model: networks.Net) -> nn.Module:
    prune.random_unstructured(model.b, "weight", 0.5)
    return model


def masked_twice(model: networks.Net) -> nn.Module:
    return masked(masked(model))


def weight_normed(model: networks.Net) -> nn.Module:
    nn.utils.weight_norm(model.b)
    return model


def quantised(model: networks.Net) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def prepared(model: networks.Net) -> nn.Module:
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    return torch.ao.quantization.prepare_qat(model.train())


def scripted(model: networks.Net) -> nn.Module:
    return torch.jit.trace(model.eval(), torch.zeros(1, 3, 16, 16))


def exported(model: networks.Net) -> Any:
    return torch.export.export(model.eval(), (torch.zeros(1, 3, 16, 16),))


def exported_module(model: networks.Net) -> nn.Module:
    return exported(model).module()


def only_forward(model: networks.Net) -> Any:
    return model.forward


def sharded(model: networks.Net) -> nn.Module:
    fully_sharded = type("FullyShardedDataParallel", (nn.Sequential,), {"__module__": "torch.distributed.fsdp"})
    return fully_sharded(model)


WRAPPED = [
    (torch.compile, r"the network is compiled: pass .*_orig_mod"),
    (nn.DataParallel, r"the network is wrapped in DataParallel: pass its \.module"),
    (sharded, r"sharded by FSDP: cut the network first"),
    (lazy, r"fc has no shape for its weight yet: call the network once"),
    (lazy_norm, r"bn has no shape for its weight yet"),
    (masked, r"b has a pruning mask on its weight: call prune\.remove\(module, 'weight'\) first"),
    (masked_twice, r"b has a pruning mask on its weight"),
    (weight_normed, r"b has weight_norm on its weight: call torch\.nn\.utils\.remove_weight_norm"),
    (prepared, r"is prepared for quantisation: cut the network first, and prepare the slim model"),
    (scripted, r"the network is scripted: pass the nn\.Module that it was made of"),
    (exported, r"the network went through torch\.export: pass what went in"),
    (exported_module, r"the network went through torch\.export: pass what went in"),
    (only_forward, r"expected a network that is an nn\.Module, got method"),
    (quantised, r"fc is quantised.*quantise the slim model"),
]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("wrap", "message"), WRAPPED, ids=[wrap.__name__ for wrap, _ in WRAPPED])
def test_what_hides_a_network_is_taken_off_first(wrap: Callable[[nn.Module], nn.Module], message: str) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        check_wrappers(wrap(networks.chain()))
    assert "\n" not in str(caught.value)


def test_a_network_of_ones_own_is_no_wrapper_whatever_it_is_called() -> None:
    class DataParallel(nn.Sequential):
        """Not torch's."""

    check_wrappers(DataParallel(networks.chain()))
