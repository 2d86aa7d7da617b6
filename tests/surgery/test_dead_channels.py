"""What never fires goes for nothing: found by construction, left alone where it cannot be seen."""

import copy
from collections.abc import Callable

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import DataError, HoyerExportError, NetworkError
from hoyer_export.select.choose import select_channels
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.extras.dead_channels import firing_channels
from hoyer_export.surgery.zero import zero_

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Activation = Callable[[Tensor], Tensor]
NEVER = -1e3  # a shift that no activation of these networks makes up for


def silence(*biases: tuple[nn.Module, list[int]]) -> None:
    with torch.no_grad():
        for module, channels in biases:
            module.bias[channels] = NEVER


def dead(model: nn.Module, inputs: Tensor | list[Tensor] = IMAGES) -> dict[str, list[int]]:
    firing = firing_channels(model, trace_channels(model, IMAGES[:2]), inputs)
    return {name: (~fires).nonzero().flatten().tolist() for name, fires in firing.items() if not fires.all()}


def chain() -> nn.Module:
    model = networks.Net(
        lambda n, x: n.fc(F.relu(n.b(F.relu(n.a(x)))).mean((2, 3))),
        a=networks.conv(3, 12), b=networks.conv(12, 8), fc=nn.Linear(8, 5),
    )  # fmt: skip
    silence((model.a, [2, 7]), (model.b, [0]))
    return model


def flattened() -> nn.Module:
    model = networks.flattened()
    silence((model.a, [1, 4]))
    return model


def grouped() -> nn.Module:
    """Three groups of four inputs: channel k stands on positions k, k + 4 and k + 8 of the convolution's input."""
    model = networks.grouped()
    silence((model.a, [1, 5, 9, 2, 6]))  # channel 1 at all its positions, channel 2 at two of three
    return model


def depthwise() -> nn.Module:
    model = networks.Net(
        lambda n, x: n.fc(n.c(F.relu(n.b(n.a(x)))).mean((2, 3))),
        a=networks.conv(3, 8), b=networks.conv(8, 8, groups=8), c=networks.conv(8, 6), fc=nn.Linear(6, 5),
    )  # fmt: skip
    silence((model.b, [3]), (model.a, [6]))  # a's own activations go through b, which may make them positive
    return model


def transposed() -> nn.Module:
    model = networks.Net(
        lambda n, x: n.fc(n.b(F.relu(n.a(x))).mean((2, 3))),
        a=networks.conv(3, 8), b=nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), fc=nn.Linear(6, 5),
    )  # fmt: skip
    silence((model.a, [0, 4]))
    return model


def stream() -> nn.Module:
    """A residual stream that two blocks read: channel 3 is silent for both, channel 5 for the first alone."""

    def wiring(n: networks.Net, x: Tensor) -> Tensor:
        x = F.relu(n.stem(x))
        x = F.relu(x + n.first(x))
        return n.fc(F.relu(x + n.second(x)).mean((2, 3)))

    model = networks.Net(
        wiring, stem=networks.conv(3, 8), first=networks.conv(8, 8), second=networks.conv(8, 8), fc=nn.Linear(8, 5)
    )
    silence((model.stem, [3, 5]), (model.first, [3]), (model.second, [3]))
    with torch.no_grad():
        model.first.bias[5] = 1.0
    return model


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (chain, {"a": [2, 7], "b": [0]}),
        (flattened, {"a": [1, 4]}),
        (grouped, {"a": [1]}),
        (depthwise, {"a": [3]}),
        (transposed, {"a": [0]}),
        (stream, {"stem": [3]}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_dead_channels_are_those_that_were_silenced_and_no_other(
    build: Callable[[], nn.Module], expected: dict[str, list[int]]
) -> None:
    torch.manual_seed(0)
    assert dead(build()) == expected


@pytest.mark.parametrize("build", [chain, flattened, grouped, depthwise, transposed, stream])
def test_removing_them_moves_no_output_of_the_calibration_images_by_a_bit(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    channels = trace_channels(model, IMAGES[:2])
    chosen = select_channels(channels, model, method="dead", inputs=[IMAGES[:4], IMAGES[4:]])
    zeroed = copy.deepcopy(model)
    zero_(zeroed, channels, chosen.keep)
    assert torch.equal(zeroed(IMAGES), model(IMAGES))
    slim = cut(zeroed, channels, chosen.keep, IMAGES[:2])
    assert chosen.macs < chosen.dense_macs
    torch.testing.assert_close(slim.model.double()(IMAGES.double()), model.double()(IMAGES.double()))


def test_a_channel_that_fires_on_one_image_is_alive() -> None:
    torch.manual_seed(0)
    model = chain()
    bright = IMAGES.clone()
    bright[5] *= 1e6
    assert dead(model, [bright[:5]]) == {"a": [2, 7], "b": [0]}
    assert dead(model, [bright[:5], bright[5:]]) == {}
    assert dead(model, [bright[5:], bright[:5]]) == {}


def test_what_is_small_but_not_zero_is_alive() -> None:
    model = networks.Net(lambda n, x: n.fc((1e-30 * n.a(x)).mean((2, 3))), a=networks.conv(3, 8), fc=nn.Linear(8, 5))
    assert dead(model) == {}


@pytest.mark.parametrize(("first", "second"), [(F.relu, F.leaky_relu), (F.leaky_relu, F.relu)])
def test_a_layer_that_is_used_twice_has_to_be_silent_both_times(first: Activation, second: Activation) -> None:
    torch.manual_seed(0)
    model = networks.Net(
        lambda n, x: n.fc((n.b(first(n.a(x))) + n.b(second(n.a(x)))).mean((2, 3))),
        a=networks.conv(3, 8), b=networks.conv(8, 8), fc=nn.Linear(8, 5),
    )  # fmt: skip
    silence((model.a, [2]))
    assert dead(model) == {}


class Standardised(nn.Conv2d):
    """Computes its weight before it reads with it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 2.0, self.bias, padding=1)


def weight_used_twice(n: networks.Net, x: Tensor) -> Tensor:
    """A convolution reads the channel as 0, a matrix product with the same weight as anything but that."""
    leaking = F.leaky_relu(n.a(x)).mean((2, 3)) @ n.b.weight[:, :, 0, 0].t()
    return n.fc(n.b(F.relu(n.a(x))).mean((2, 3)) + leaking)


def products_of_activations(n: networks.Net, x: Tensor) -> Tensor:
    """A convolution reads the channel as 0, a product with another activation as anything but that."""
    product = F.leaky_relu(n.a(x)).flatten(2).transpose(1, 2) @ n.q(x).flatten(2)
    return n.fc(n.b(F.relu(n.a(x))).mean((2, 3))) + product.mean((1, 2))[:, None]


UNSEEN = {
    "a reader that computes its weight": lambda: networks.Net(
        lambda n, x: n.fc(n.b(F.relu(n.a(x))).mean((2, 3))),
        a=networks.conv(3, 8), b=Standardised(8, 6, 3), fc=nn.Linear(6, 5),
    ),
    "a reader that is a matrix product": lambda: networks.Net(
        lambda n, x: n.fc((F.relu(n.a(x)).mean((2, 3)) @ n.w.t()).relu()),
        a=networks.conv(3, 8), w=nn.Parameter(torch.randn(10, 8)), fc=nn.Linear(10, 5),
    ),
    "a weight that is also used otherwise": lambda: networks.Net(
        weight_used_twice, a=networks.conv(3, 8), b=networks.conv(8, 5), fc=nn.Linear(5, 5)
    ),
    "activations that are multiplied with each other": lambda: networks.Net(
        products_of_activations,
        a=networks.conv(3, 8), q=networks.conv(3, 8), b=networks.conv(8, 5), fc=nn.Linear(5, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("build", UNSEEN.values(), ids=UNSEEN)
def test_what_cannot_be_seen_is_left_alone(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build()
    silence((model.a, [2]))
    channels = trace_channels(model, IMAGES[:2])
    groups = {g.name for g in channels.groups if any(member.parameter == "a.weight" for member in g.members)}
    assert len(groups) == 1
    assert not groups & dead(model).keys()


def test_a_group_that_is_all_dead_keeps_one_channel() -> None:
    model = chain()
    silence((model.a, list(range(12))))
    channels = trace_channels(model, IMAGES[:2])
    assert len(select_channels(channels, model, method="dead", inputs=IMAGES).keep["a"]) == 1


@pytest.mark.parametrize(("align", "width"), [(None, 10), (1, 10), (4, 12), (16, 12)])
def test_alignment_keeps_dead_channels_and_removes_no_live_one(align: int | None, width: int) -> None:
    torch.manual_seed(0)
    model = chain()
    channels = trace_channels(model, IMAGES[:2])
    keep = select_channels(channels, model, method="dead", inputs=IMAGES, align=align).keep["a"]
    assert len(keep) == width
    assert {0, 1, 3, 4, 5, 6, 8, 9, 10, 11} <= set(keep.tolist())


def test_once_zeroed_they_go_first_by_any_other_method() -> None:
    torch.manual_seed(0)
    model = chain()
    channels = trace_channels(model, IMAGES[:2])
    zero_(model, channels, select_channels(channels, model, method="dead", inputs=IMAGES).keep)
    for method in ("group-hs", "magnitude"):
        chosen = select_channels(channels, model, macs=0.8, align=1, method=method, inputs=IMAGES)
        assert not {2, 7} & set(chosen.keep["a"].tolist()), method


def test_the_model_is_not_touched() -> None:
    model = chain().train()
    before = copy.deepcopy(model.state_dict())
    dead(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_network_of_several_inputs_takes_a_tuple_a_batch() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = networks.conv(3, 8), networks.conv(3, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.fc(F.relu(self.a(x) + self.b(y)).mean((2, 3)))

    torch.manual_seed(0)
    model = Sum()
    silence((model.a, [2]))
    channels = trace_channels(model, (IMAGES, IMAGES))
    firing = firing_channels(model, channels, [(IMAGES[:3], IMAGES[3:]), (IMAGES[3:], IMAGES[:3])])
    assert (~firing["a"]).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"inputs": None}, HoyerExportError, "method = 'dead' needs inputs"),
        ({"inputs": []}, DataError, "got no batch"),
        ({"inputs": [(IMAGES, torch.zeros(6))]}, NetworkError, "without labels"),
        ({"inputs": IMAGES[:, :1]}, NetworkError, "calibration batch of shape 6×1×16×16"),
        ({"inputs": IMAGES, "macs": 0.5}, HoyerExportError, "takes no macs"),
        ({"inputs": IMAGES, "threshold": "natural"}, HoyerExportError, "takes no threshold"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_said_in_one_line(
    options: dict[str, object], error: type[HoyerExportError], said: str
) -> None:
    model = chain()
    with pytest.raises(error, match=said) as caught:
        select_channels(trace_channels(model, IMAGES[:2]), model, method="dead", **options)
    assert "\n" not in str(caught.value)
