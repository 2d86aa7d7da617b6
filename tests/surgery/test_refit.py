"""The least-squares refit: exact where the removed channels are combinations of kept ones, on every kind of reader."""

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hoyer_export as hx
import hoyer_export.surgery.extras.refit as refit_module
from hoyer_export.call import Call
from hoyer_export.surgery.extras import dense_outputs
from hoyer_export.surgery.extras.dense_outputs import DenseOutputs
from hoyer_export.surgery.extras.least_squares import LeastSquares
from hoyer_export.surgery.extras.refit import Refit, refit_
from hoyer_export.surgery.extras.waiting_run import Stop, stops

IMAGES = torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def repeated_(layer: nn.Module, dim: int = 0) -> nn.Module:
    """Make the second half of a layer's filters combinations of the first half's."""
    with torch.no_grad():
        weight = layer.get_parameter("weight").movedim(dim, 0)
        half = len(weight) // 2
        mix = torch.randn(half, half, generator=torch.Generator().manual_seed(1)).to(weight)
        weight[half:] = (mix @ weight[:half].flatten(1)).view_as(weight[half:])
        layer.get_parameter("bias")[half:] = mix @ layer.get_parameter("bias")[:half]
    return layer


def halved(model: nn.Module, images: Tensor, group: str = "a") -> hx.SlimModel:
    """Cut the second half of one group's channels."""
    channels = hx.trace_channels(model, images[:2])
    keep = {group: torch.arange(channels.group(group).width // 2)}
    zeroed = copy.deepcopy(model)
    hx.zero_(zeroed, channels, keep)
    return hx.cut(zeroed, channels, keep, images[:2])


def difference(model: nn.Module, other: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        expected = model(images)
        return float((other(images) - expected).norm() / expected.norm())


def net(images: Tensor, a: nn.Module, b: nn.Module, wiring: Callable[[networks.Net, Tensor], Tensor]) -> networks.Net:
    features = wiring(networks.Net(wiring, a=a, b=b, fc=nn.Identity()).double(), images.double()).shape[1]
    return networks.Net(wiring, a=a, b=b, fc=nn.Linear(features, 5)).double().eval()


def mean(n: networks.Net, x: Tensor) -> Tensor:
    y = n.b(n.a(x))
    return n.fc(y.flatten(2).mean(2))


CONVOLUTIONS = {
    "2-d, strided, dilated": (2, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, stride=2, dilation=2, padding=2)),
    "same": (2, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, (3, 5), padding="same")),
    "1-d": (1, nn.Conv1d(3, 8, 3), nn.Conv1d(8, 6, 3, padding=1, padding_mode="circular")),
    "3-d": (3, nn.Conv3d(3, 8, 1), nn.Conv3d(8, 6, (1, 2, 3))),
    "grouped": (2, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, padding=1, groups=2)),
    "transposed": (2, nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)),
    "transposed in groups": (2, nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 3, dilation=2, groups=2)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_combinations_of_kept_channels_are_restored(name: str) -> None:
    torch.manual_seed(0)
    dims, a, b = copy.deepcopy(CONVOLUTIONS[name])
    for layer in (a, b):
        layer.reset_parameters()  # the same ones every time
    images = torch.randn(48, 3, *[9 if dims < 3 else 5] * dims, dtype=torch.float64)
    if "groups" in name or name == "grouped":  # each group's second half of its own first half
        with torch.no_grad():
            a.weight[2::4], a.weight[3::4] = a.weight[0::4], a.weight[1::4] - 2 * a.weight[0::4]
            a.bias[2::4], a.bias[3::4] = a.bias[0::4], a.bias[1::4] - 2 * a.bias[0::4]
    else:
        repeated_(a)
    model = net(images, a, b, mean)
    slim = halved(model, images)
    before = difference(model, slim.model, images)
    result = refit_(slim, model, images.split(20), ridge=1e-14)
    assert result.slim.model is slim.model
    assert set(result.refitted) == {"b.weight", "fc.weight"}
    assert not result.left
    assert difference(model, slim.model, torch.randn_like(images)) < 1e-6 < 0.01 < before


def test_a_linear_layer_behind_flatten() -> None:
    torch.manual_seed(0)
    model = networks.Net(
        lambda n, x: n.fc(n.a(x[:, :, :4, :4]).flatten(1)), a=repeated_(nn.Conv2d(3, 4, 1)), fc=nn.Linear(64, 5)
    )  # fmt: skip
    model.double().eval()
    slim = halved(model, IMAGES.double())
    refit_(slim, model, [IMAGES.double()], ridge=1e-14)
    assert difference(model, slim.model, torch.randn(9, 3, 12, 12, dtype=torch.float64)) < 1e-6


def shared() -> networks.Net:
    def wiring(n: networks.Net, x: Tensor) -> Tensor:
        return n.fc(F.relu(n.b(n.a(x)) + n.b(n.a(x.flip(3)))).mean((2, 3)))

    torch.manual_seed(0)
    layers = {"a": repeated_(networks.conv(3, 8)), "b": networks.conv(8, 6), "fc": nn.Linear(6, 5)}
    return networks.Net(wiring, **layers).double().eval()


def test_a_layer_that_is_called_twice_gets_one_fit() -> None:
    model = shared()
    slim = halved(model, IMAGES.double())
    found = refit_(slim, model, IMAGES.double().split(20), ridge=1e-14)
    assert {"b.weight", "fc.weight"} <= set(found.refitted)
    assert difference(model, slim.model, IMAGES.double().flip(2)) < 1e-6


def test_without_a_bias_the_batch_norm_behind_takes_the_constant() -> None:
    torch.manual_seed(0)
    model = networks.Net(
        lambda n, x: n.fc(F.relu(n.bn(n.b(n.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 6, 1, bias=False), bn=nn.BatchNorm2d(6), fc=nn.Linear(6, 5),
    )  # fmt: skip
    with torch.no_grad():
        model.a.weight[4:] = 0
        model.a.bias[4:] = 3  # constants, which no kept channel can stand for
    model.double().eval()
    slim = halved(model, IMAGES.double())
    assert difference(model, slim.model, IMAGES.double()) > 0.01
    refit_(slim, model, IMAGES.double(), ridge=1e-14)
    assert difference(model, slim.model, IMAGES.double()) < 1e-6
    assert not torch.equal(slim.model.bn.running_mean, model.bn.running_mean)


def test_it_is_least_squares_and_the_ridge_holds_the_weights() -> None:
    torch.manual_seed(0)
    model = networks.Net(lambda n, x: n.fc(F.relu(n.a(x.mean((2, 3))))), a=nn.Linear(3, 10), fc=nn.Linear(10, 4))
    model.double().eval()
    images = IMAGES.double()
    slim = halved(model, images)
    before = slim.model.fc.weight.detach().clone()
    x = F.relu(slim.model.a(images.mean((2, 3)))).detach()
    x, y = x - x.mean(0), model(images).detach()
    penalty = 0.1 * x.square().sum(1).mean()
    expected = (y.T @ x + penalty * before) @ torch.linalg.inv(x.T @ x + penalty * torch.eye(5, dtype=torch.float64))
    refit_(slim, model, images, ridge=0.1)
    torch.testing.assert_close(slim.model.fc.weight.detach(), expected)
    few = halved(model, images)
    assert refit_(few, model, images[:3], ridge=0.1).wanted == 5
    x = F.relu(few.model.a(images[:3].mean((2, 3)))).detach()
    x, y = x - x.mean(0), model(images[:3]).detach()
    penalty = 0.1 * x.square().sum(1).mean()
    expected = (y.T @ x + penalty * before) @ torch.linalg.inv(x.T @ x + penalty * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(few.model.fc.weight.detach(), expected)


def trained_on(model: nn.Module, **options: int) -> tuple[Refit, dict[str, Tensor]]:
    slim = halved(model, IMAGES)
    result = refit_(slim, model, IMAGES.split(16), **options)
    return result, slim.model.state_dict()


def test_the_same_seed_gives_the_same_weights_and_the_plan_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = networks.chain().train()
    result, weights = trained_on(model, positions=5)
    same, other = trained_on(model, positions=5)[1], trained_on(model, positions=5, seed=1)[1]
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not torch.equal(weights["b.weight"], other["b.weight"])
    assert model.training
    hx.save_slim(result.slim, tmp_path / "slim.safetensors")
    loaded = hx.load_slim(tmp_path / "slim.safetensors", into=networks.chain())
    assert loaded.plan == result.slim.plan
    assert all(torch.equal(weights[name], tensor) for name, tensor in loaded.model.state_dict().items())
    (edit,) = loaded.plan.edits
    assert (edit.images, edit.weights) == (48, ("b.weight", "fc.weight"))
    again = refit_(loaded, DenseOutputs(model, IMAGES)).slim
    assert [edit.kind for edit in again.plan.edits] == ["refit"]


def test_what_cannot_be_refitted_stays_and_is_named() -> None:
    torch.manual_seed(0)
    model = networks.Net(
        lambda n, x: n.fc(n.c(F.relu(n.b(F.relu(n.a(x)))).mean((2, 3)))) @ n.c.weight.detach(),
        a=networks.conv(3, 8), b=networks.conv(8, 8), c=nn.Linear(8, 5), fc=nn.Linear(5, 5),
    ).eval()  # fmt: skip
    slim = halved(model, IMAGES)
    before = slim.model.c.weight.detach().clone()
    result = refit_(slim, model, IMAGES)
    assert result.left == {"c.weight": "the weight is used in another way too"}
    assert torch.equal(slim.model.c.weight, before)
    with pytest.raises(hx.HoyerExportError, match="calibration images, got no batch"):
        refit_(slim, model, [])
    with pytest.raises(hx.NetworkError, match="does not run on a calibration batch of shape 2×4×9×9"):
        refit_(slim, model, torch.zeros(2, 4, 9, 9))


def test_samples_are_held_only_while_they_are_fewer_than_unknowns(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = LeastSquares(centred=True)
    x, y = torch.randn(60, 1, 9), torch.randn(60, 1, 4)
    for part in range(0, 60, 6):
        fit.add(x[part : part + 6], y[part : part + 6])
        assert sum(len(held) for held, _ in fit._held) <= 9
    torch.manual_seed(0)
    model = networks.chain().eval()
    whole = trained_on(model)[1]
    monkeypatch.setattr(refit_module, "_CHUNK", 1)  # one image at a time
    for name, tensor in trained_on(model)[1].items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-5)


def test_what_reads_a_cut_channel_in_another_way_is_named() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3)
            self.matrix = nn.Parameter(torch.randn(12, 5))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.first(x).relu()
            return self.second(y), y @ self.matrix

    torch.manual_seed(0)
    model, images = Product().eval(), torch.randn(64, 6)
    channels = hx.trace_channels(model, images[:2])
    keep = hx.select_channels(channels, model, macs=0.7, align=1, method="function", inputs=images).keep
    zeroed = copy.deepcopy(model)
    hx.zero_(zeroed, channels, keep)
    found = hx.refit_(hx.cut(zeroed, channels, keep, images[:2]), model, images)
    assert found.refitted == ("second.weight",)
    assert found.left == {"matrix": "no convolution or linear layer was seen to read with it"}


@pytest.mark.parametrize("value", [0.0, 0.5, 1000.0])
def test_inputs_that_do_not_vary_leave_the_weights_as_they_were(value: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 10), nn.ReLU(), nn.Linear(10, 4)).eval()
    channels = hx.trace_channels(model, torch.randn(8, 3))
    keep = {channels.groups[0].name: torch.arange(5)}
    zeroed = copy.deepcopy(model)
    hx.zero_(zeroed, channels, keep)
    slim = hx.cut(zeroed, channels, keep, torch.randn(8, 3))
    before = slim.model[2].weight.clone()
    hx.refit_(slim, model, torch.full((100, 3), value))
    torch.testing.assert_close(slim.model[2].weight, before, atol=1e-4, rtol=1e-4)


def test_a_batch_norm_takes_no_constant_where_the_output_goes_elsewhere_too() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.b(self.a(x).relu())
            return self.bn(y), y

    torch.manual_seed(0)
    model = Both().double().eval()
    slim = halved(model, IMAGES.double())
    refit_(slim, model, IMAGES.double())
    assert torch.equal(slim.model.bn.running_mean, model.bn.running_mean)


def tokens_first() -> networks.Net:
    torch.manual_seed(0)
    return networks.Net(
        lambda n, x: n.fc(F.relu(n.b(n.a(x).flatten(2).permute(2, 0, 1))).mean(0)),
        a=repeated_(nn.Conv2d(3, 8, 1)), b=nn.Linear(8, 6), fc=nn.Linear(6, 5),
    )  # fmt: skip


def windows() -> networks.Net:
    def wiring(n: networks.Net, x: Tensor) -> Tensor:
        rows = n.a(x).permute(2, 0, 1, 3).flatten(0, 1)  # [H · N, C, W]
        return n.fc(F.relu(n.b(rows)).unflatten(0, (-1, len(x))).mean((0, 3)))

    torch.manual_seed(0)
    return networks.Net(wiring, a=repeated_(nn.Conv2d(3, 8, 1)), b=nn.Conv1d(8, 6, 3), fc=nn.Linear(6, 5))


@pytest.mark.parametrize("made", [tokens_first, windows])
def test_places_belong_to_the_same_image_in_both_networks_whatever_axis_the_batch_is(
    made: Callable[[], networks.Net],
) -> None:
    model, images = made().double().eval(), IMAGES.double()
    slim = halved(model, images)
    refit_(slim, model, images.split(20), positions=5, ridge=1e-14)
    assert difference(model, slim.model, images.flip(2)) < 1e-6


def test_only_the_slim_record_says_what_was_cut() -> None:
    model = networks.chain().eval()
    slim = halved(model, IMAGES)
    with pytest.raises(hx.HoyerExportError, match=r"a SlimModel \(slim, not slim.model\), got Net"):
        refit_(slim.model, model, IMAGES)  # type: ignore[arg-type]


def test_a_layer_behind_a_product_of_cut_channels_is_refitted() -> None:
    torch.manual_seed(0)
    model = networks.labelled_products().eval()
    channels = hx.trace_channels(model, IMAGES[:2])
    name = next(group.name for group in channels.groups if "q.weight" in {m.parameter for m in group.members})
    slim = halved(model, IMAGES, name)
    before = difference(model, slim.model, IMAGES.flip(2))
    result = refit_(slim, model, IMAGES)
    assert "c.weight" in result.refitted, "no weight of it was cut, but what it reads is another now"
    assert difference(model, slim.model, IMAGES.flip(2)) < before


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_named(wrong: float) -> None:
    model = networks.chain().eval()
    images = IMAGES.clone()
    images[21, 0, 3, 3] = wrong
    channels = hx.trace_channels(model, IMAGES[:2])
    for call in (
        lambda: refit_(halved(model, IMAGES), model, images.split(16)),
        lambda: hx.select_channels(channels, model, macs=0.5, method="function", inputs=images.split(16)),
    ):
        with pytest.raises(hx.DataError, match=r"must be finite: batch 1, counted from 0, image 5$"):
            call()


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        (7, "got int"),
        ("images", "got str"),
        (None, "got NoneType"),
        (["images"], "batch 0 holds str"),
        ([torch.zeros(())], r"batch 0 holds a tensor \[\]"),
        ([IMAGES, torch.zeros(0, 3, 12, 12)], r"batch 1 holds a tensor \[0, 3, 12, 12\]"),
        ([IMAGES[:, 0]], "does not run on a calibration batch of shape 2×12×12"),
    ],
)
def test_what_is_no_batch_is_said_in_one_line(batches: object, said: str) -> None:
    model = networks.chain().eval()
    with pytest.raises(hx.HoyerExportError, match=said) as caught:
        refit_(halved(model, IMAGES), model, batches)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_transposed_convolution_of_which_only_outputs_went_is_not_named() -> None:
    torch.manual_seed(0)
    model = networks.Net(
        lambda n, x: n.fc(n.b(n.a(x)).relu().mean((2, 3))),
        a=networks.conv(3, 8), b=nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1), fc=nn.Linear(6, 5),
    ).eval()  # fmt: skip
    result = refit_(halved(model, IMAGES, "b"), model, IMAGES)
    assert (result.refitted, result.left) == (("fc.weight",), {})


class Remembers(nn.Module):
    """A network that keeps a part of its forward in itself, as those with hooks do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = repeated_(networks.conv(3, 8)), networks.conv(8, 8), networks.conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.a(x)
        y = self.b(self.kept.relu())
        return self.c(y + self.kept).mean((2, 3))


def test_batches_go_side_by_side_and_give_what_one_batch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.active_count()
    torch.manual_seed(0)
    model, images = Remembers().double().eval(), IMAGES.double()
    runs: list[int] = []

    def counted(network: nn.Module, batch: Call) -> Iterator[Stop]:
        runs.append(batch.batch_size)
        return stops(network, batch)

    def refitted(batches: list[Tensor]) -> dict[str, Tensor]:
        slim = halved(model, images, "a")
        runs.clear()
        assert refit_(slim, model, batches, positions=10**6).refitted == ("b.weight", "c.weight")
        return slim.model.state_dict()

    monkeypatch.setattr(refit_module, "stops", counted)
    whole, parts = refitted([images]), list(images.split(20))
    for setting, made in [("_HELD", 3), ("_WAITING_BYTES", 6), ("_WAITING_RUNS", 5)]:
        monkeypatch.setattr(
            dense_outputs if setting == "_HELD" else refit_module, setting, 1
        )  # outputs of one layer at a time; no room; room for one run
        for name, tensor in refitted(parts).items():
            torch.testing.assert_close(tensor, whole[name], rtol=1e-6, atol=1e-8)
        assert len(runs) == made, setting
        monkeypatch.undo()
        monkeypatch.setattr(refit_module, "stops", counted)
    assert threading.active_count() == threads
    assert set(runs) == {20, 8}


def test_a_run_waits_in_front_of_each_layer_and_says_what_it_holds() -> None:
    threads = threading.active_count()
    model, images = Remembers().eval(), IMAGES[:2]
    run = stops(model, Call((images,)))
    held = {}
    while (stop := next(run, None)) is not None:
        held[stop.key[0]] = stop.held_bytes
        del stop  # it holds what the layer reads
    pixels = 4 * 2 * 12 * 12
    assert held == {"a.weight": 0, "b.weight": pixels * 16, "c.weight": pixels * 24}
    run = stops(model, Call((images,)))
    next(run)
    with torch.no_grad():
        model.a.weight.zero_()  # it shares the weights
        model.a.bias.zero_()
    assert not next(run).call.input.any()
    run.close()
    with pytest.raises(hx.NetworkError, match="does not run on a calibration batch of shape 2×4×9×9"):
        list(stops(model, Call((torch.zeros(2, 4, 9, 9),))))
    assert threading.active_count() == threads


def test_numbers_out_of_range_are_said() -> None:
    model = networks.chain().eval()
    slim = halved(model, IMAGES)
    for options in (
        {"positions": 0}, {"positions": 2.5}, {"positions": "all"}, {"seed": -1}, {"seed": None},
        {"ridge": -1}, {"ridge": float("nan")}, {"ridge": float("inf")}, {"ridge": None},
    ):  # fmt: skip
        ((name, value),) = options.items()
        with pytest.raises(hx.HoyerExportError, match=f"^{name} .*, got {value!r}$"):
            refit_(slim, model, IMAGES, **options)  # type: ignore[arg-type]
