"""Group-HS on function: only the doomed fade, in what reads them, to exact zero at the budget, and no trap springs."""

from pathlib import Path

import networks
import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

import hoyer_export as hx
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import dense_macs, macs_of_keep
from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import NetworkError, TrainingError
from hoyer_export.select.budget import MACS, PARAMS, Budget
from hoyer_export.sparsify.function_hs import FunctionHS
from hoyer_export.sparsify.phase import TrainSettings
from hoyer_export.sparsify.training import Hooks, train

STEPS = 40


def network() -> tuple[nn.Module, ChannelMap]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 10, 3), nn.BatchNorm2d(10),
        nn.ReLU(), nn.Flatten(), nn.Linear(160, 3),
    )  # fmt: skip
    return model, hx.trace_channels(model, torch.randn(2, 1, 6, 6))


def batches(epoch: int):
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(10):
        targets = torch.randint(0, 3, (16,), generator=generator)
        yield torch.randn(16, 1, 6, 6, generator=generator) + targets.view(-1, 1, 1, 1), targets


def settings(epochs: int = 4) -> TrainSettings:
    return TrainSettings(phase="sparse", steps_per_epoch=10, epochs=epochs, lr=0.05)


def made(share: float = 0.4, **options) -> tuple[nn.Module, ChannelMap, FunctionHS]:
    model, channels = network()
    options = {"align": 1, "every": 5, **options}
    return model, channels, FunctionHS(channels, model, Budget(MACS, share), STEPS, **options)


def steps(model: nn.Module, regulariser: FunctionHS, count: int) -> None:
    """Make steps of the regulariser alone, without an optimizer."""
    images = next(iter(batches(0)))[0]
    with regulariser.observe(model):
        for _ in range(count):
            model(images)
            regulariser.after_step_(0.1)


@pytest.mark.parametrize("share", [0.6, 0.3])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_it_ends_at_the_budget_with_a_cut_that_costs_nothing(share: float, optimizer: str) -> None:
    model, channels, regulariser = made(share)
    how = TrainSettings(phase="sparse", steps_per_epoch=10, epochs=4, lr=0.01, optimizer=optimizer)
    record = train(model, batches, how, regulariser=regulariser)
    keep = hx.select_channels(channels, model, method="zero").keep
    assert share - 0.1 < macs_of_keep(channels, keep) / dense_macs(channels) <= share
    images = torch.randn(8, 1, 6, 6)
    before = model.eval()(images)
    slim = hx.cut(model, channels, keep, images[:2])  # nothing was zeroed: it is zero
    assert slim.max_rel_error < 1e-9
    torch.testing.assert_close(slim.model(images), before, rtol=1e-5, atol=1e-6)
    effective = [epoch.effective_macs for epoch in record.epochs]
    assert effective[-1] < effective[0]
    assert effective[-1] <= share


def test_params_are_a_budget_too_and_widths_are_aligned() -> None:
    model, channels = network()
    regulariser = FunctionHS(channels, model, Budget(PARAMS, 0.6), STEPS, align=4)
    train(model, batches, settings(), regulariser=regulariser)
    kept = hx.select_channels(channels, model, method="zero", align=4)
    assert PARAMS.of_keep(channels, kept.keep) <= 0.6 * PARAMS.of_keep(channels, {})
    assert all(len(each) % 4 == 0 or len(each) == 10 for each in kept.keep.values())


def test_filters_and_kept_channels_keep_their_weights() -> None:
    """Without an optimizer only readers' slices of doomed channels change, and by one factor each."""
    model, _, regulariser = made(0.5)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    steps(model, regulariser, 30)
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed <= {"3.weight", "7.weight"}
    factor = (model[3].weight / before["3.weight"]).flatten(2)
    torch.testing.assert_close(factor, factor[:1, :, :1].expand_as(factor))
    assert 0 < int((factor[0, :, 0] == 1).sum()) < 12


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_a_filter_before_a_batch_norm_says_nothing(scale: float) -> None:
    """The norm undoes it: the same channels go, whereas by its weights the scaled one would go first or last."""
    found = []
    for factor in (1.0, scale):
        model, _, regulariser = made(0.4)
        model[1].eps = model[4].eps = 1e-30
        with torch.no_grad():
            model[0].weight[3] *= factor
            model[0].bias[3] *= factor
        steps(model, regulariser, STEPS)
        found.append(regulariser.dead())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_gamma_does_not_make_up_for_it() -> None:
    """γ of a doomed channel grows tenfold in every step; the channel dies all the same and stays dead."""
    model, _, regulariser = made(0.4)
    steps(model, regulariser, 25)
    doomed = regulariser.dead()["0"] | (regulariser._fading[0].doomed)
    images = next(iter(batches(0)))[0]
    with regulariser.observe(model):
        for _ in range(STEPS - 25):
            with torch.no_grad():
                model[1].weight[regulariser._fading[0].doomed] *= 1.5
            model(images)
            regulariser.after_step_(0.1)
    assert int(doomed.sum()) > 0
    assert bool((model[3].weight[:, regulariser.dead()["0"]] == 0).all())
    assert not regulariser._fading[0].doomed.any()


def test_a_doomed_channel_that_comes_back_is_kept() -> None:
    model, _, regulariser = made(0.5, ramp=0.5)
    steps(model, regulariser, 11)
    fading = regulariser._fading[0]
    weakest = int(fading.doomed.nonzero()[0])
    with torch.no_grad():
        model[3].weight[:, weakest] *= 100
    steps(model, regulariser, STEPS - 11)
    assert not regulariser.dead()["0"][weakest]
    assert bool(model[3].weight[:, weakest].any())


def test_the_momentum_of_a_dead_channel_does_not_wake_it() -> None:
    model, _, regulariser = made(0.4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.99)
    images, targets = next(iter(batches(0)))
    with regulariser.observe(model):
        for _ in range(STEPS + 5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
            regulariser.after_step_(0.1)
            for name, reader in (("0", model[3].weight), ("3", model[7].weight.view(3, 10, 16))):
                assert bool((reader[:, regulariser.dead()[name]] == 0).all())
    assert any(dead.any() for dead in regulariser.dead().values())


class Break(Exception):
    """Stands for a power cut."""


def test_a_training_broken_inside_the_ramp_goes_on_to_the_bit(tmp_path: Path) -> None:
    def breaking(epoch: int):
        for step, batch in enumerate(batches(epoch)):
            if (epoch, step) == (2, 4):
                raise Break
            yield batch

    whole, _, regulariser = made(ramp=0.5)
    expected = train(whole, batches, settings(), regulariser=regulariser)
    model, _, regulariser = made(ramp=0.5)
    with pytest.raises(Break):
        train(model, breaking, settings(), regulariser=regulariser, checkpoint=tmp_path / "sparse.safetensors")
    model, _, regulariser = made(ramp=0.5)
    found = train(model, batches, settings(), regulariser=regulariser, checkpoint=tmp_path / "sparse.safetensors")
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in model.state_dict().items())
    same = {"seconds": None}
    assert [each.model_copy(update=same) for each in found.epochs] == [
        each.model_copy(update=same) for each in expected.epochs
    ]


def test_nan_is_noticed_within_the_epoch() -> None:
    model, _, regulariser = made()
    hooks = Hooks(on_epoch=lambda history: model[0].weight.data.fill_(float("nan")) if len(history) == 1 else None)
    with pytest.raises(TrainingError, match="epoch 2 of 4"):
        train(model, batches, settings(), regulariser=regulariser, hooks=hooks)


@pytest.mark.parametrize(
    "make",
    [
        networks.residual,
        networks.squeeze_excite,
        networks.depthwise,
        networks.concatenated,
        networks.explicit_attention,
        networks.tied,
    ],
)
def test_networks_of_other_kinds_end_at_the_budget(make) -> None:
    torch.manual_seed(1)
    model = make().train()
    images = torch.randn(8, 3, 8, 8)
    channels = hx.trace_channels(model.eval(), images[:2])
    model.train()
    regulariser = FunctionHS(channels, model, Budget(MACS, 0.6), STEPS, align=1, every=5)
    steps_images = images
    with regulariser.observe(model):
        for _ in range(STEPS):
            model(steps_images)
            regulariser.after_step_(0.1)
    model.eval()
    keep = hx.select_channels(channels, model, method="zero").keep
    assert macs_of_keep(channels, keep) <= 0.6 * dense_macs(channels)
    assert hx.cut(model, channels, keep, images[:2]).max_rel_error < 1e-9


def test_a_norm_without_gamma_between_channels_that_meet_dies_too() -> None:
    """Its running mean is all that is left of a channel there, and every step fills it again."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12, affine=False)
            self.b, self.fc = nn.Conv2d(12, 8, 3), nn.Linear(8, 3)

        def forward(self, x):
            y = torch.relu(self.norm(self.a(x)))
            y = y / (y.pow(2).sum(1, keepdim=True) + 1).sqrt()
            return self.fc(self.b(y).mean((2, 3)))

    torch.manual_seed(0)
    model, images = Normalised(), torch.randn(8, 3, 8, 8)
    channels = hx.trace_channels(model.eval(), images[:2])
    model.train()
    regulariser = FunctionHS(channels, model, Budget(MACS, 0.6), STEPS, align=1, every=5)
    with regulariser.observe(model):
        for _ in range(STEPS + 3):
            model(images)
            regulariser.after_step_(0.1)
    keep = hx.select_channels(channels, model.eval(), method="zero").keep
    assert macs_of_keep(channels, keep) <= 0.6 * dense_macs(channels)
    assert hx.cut(model, channels, keep, images[:2]).max_rel_error < 1e-9


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_forward_that_is_broken_off_leaves_nothing_on(error: type[BaseException]) -> None:
    def fail(*_: object) -> None:
        raise error

    model, _, regulariser = made()
    model[2].register_forward_hook(fail)
    with pytest.raises(error), regulariser.observe(model):
        model(next(iter(batches(0)))[0])
    assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1e-6}, "cannot be met"),
        ({"every": 0}, "steps and every of 1 or more"),
        ({"ramp": 1.0}, "a ramp below 1"),
    ],
)
def test_what_makes_no_sense_is_one_line(options: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        made(**options)


def test_where_everything_is_frozen_or_nothing_can_go_that_is_said() -> None:
    model, images = network()[0], next(iter(batches(0)))[0]
    channels = trace_channels(model, images)
    with pytest.raises(TrainingError, match="every parameter is frozen"):
        FunctionHS(channels, model.requires_grad_(False), Budget(MACS, 0.5), 10)
    layer = nn.Linear(3, 2)
    with pytest.raises(TrainingError, match=r"nothing in the network can be pruned exactly \(the model's output"):
        FunctionHS(trace_channels(layer, torch.ones(2, 3)), layer, Budget(MACS, 0.5), 10)


def test_another_model_is_refused() -> None:
    _, _, regulariser = made()
    with pytest.raises(NetworkError, match="another model"), regulariser.observe(network()[0]):
        pass
