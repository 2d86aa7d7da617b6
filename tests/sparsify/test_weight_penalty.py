"""Penalties on weight tensors: values, gradients, zeros; the smallest weights go, and what is zero stays so."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from hoyer_export.errors import NetworkError, TrainingError
from hoyer_export.select.elements import element_weights, threshold_of_share, thresholds_of_spread
from hoyer_export.sparsify.penalties import effective_width
from hoyer_export.sparsify.weight_penalty import EVERY, MEASURES, WeightPenalty, hold_zeros_

OF_ELEMENTS = ("hs", "hoyer", "l1-elements", "transformed-l1")
SLOW = {
    "hs": lambda w: w.abs().sum() ** 2 / w.square().sum(),
    "hoyer": lambda w: w.abs().sum() / w.square().sum().sqrt(),
    "l1-elements": lambda w: w.abs().sum(),
    "transformed-l1": lambda w: (2 * w.abs() / (1 + w.abs())).sum(),
    "group-hs-layer": lambda w: 0.3 * effective_width(w.norm(dim=1)) + 0.7 * effective_width(w.norm(dim=0)),
}
OPTIONS = {"group-hs-layer": {"alpha_n": 0.3, "alpha_c": 0.7}}


def layer(*rows: list[float]) -> nn.Linear:
    made = nn.Linear(len(rows[0]), len(rows))
    made.weight.data = torch.tensor(rows)
    return made


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def count(model: nn.Module) -> int:
    return sum(int(weight.count_nonzero()) for weight in element_weights(model).values())


@pytest.mark.parametrize(
    ("measure", "value", "first"),
    [
        ("hs", 49 / 25, 2 * (7 / 25) * (1 - 3 * 7 / 25)),
        ("hoyer", 7 / 5, (1 - 3 * 7 / 25) / 5),
        ("l1-elements", 7, 1),
        ("transformed-l1", 2 * 3 / 4 + 2 * 4 / 5, 2 / 16),
    ],
)
def test_values_and_gradients_of_three_and_minus_four(measure: str, value: float, first: float) -> None:
    model = layer([3.0, -4.0, 0.0])
    penalty = WeightPenalty(measure, None, model, 0.5)
    assert penalty.add_gradient_().item() == pytest.approx(0.5 * value)
    assert model.weight.grad is not None
    assert model.bias.grad is None
    assert model.weight.grad[0, 0].item() == pytest.approx(0.5 * first, rel=1e-6)
    assert model.weight.grad[0, 2].item() == 0  # exactly: a zero is not drawn anywhere


@pytest.mark.parametrize("measure", sorted(SLOW))
def test_the_closed_gradient_is_autograds(measure: str) -> None:
    torch.manual_seed(1)
    weight = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    value = SLOW[measure](weight)
    value.backward()
    found = MEASURES[measure](weight.detach(), **OPTIONS.get(measure, {}))
    assert weight.grad is not None
    torch.testing.assert_close(found.gradient, weight.grad)
    assert found.value.item() == pytest.approx(value.item())


@pytest.mark.parametrize("measure", sorted(MEASURES))
@pytest.mark.parametrize("scale", [0.0, 1e-25, 1e25])
def test_zeros_and_extreme_weights_stay_finite(measure: str, scale: float) -> None:
    found = MEASURES[measure](scale * torch.tensor([[1.0, -2.0], [0.0, 0.5]]), **OPTIONS.get(measure, {}))
    assert found.gradient.isfinite().all()
    assert found.value.isfinite()
    if scale == 0:
        assert not found.gradient.any()
        assert found.value == 0
    elif measure == "hs":
        assert found.value.item() == pytest.approx(3.5**2 / 5.25)  # whatever the scale


def test_hs_lies_between_one_and_the_number_of_weights() -> None:
    assert MEASURES["hs"](torch.eye(1)).value == 1
    assert MEASURES["hs"](torch.full((4, 5), 0.1)).value.item() == pytest.approx(20)


def test_a_penalty_takes_convolution_and_linear_layers_once_and_nothing_else() -> None:
    model = network()
    assert list(element_weights(model)) == ["0.weight", "4.weight"]
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert list(element_weights(tied)) == ["0.weight"]
    with pytest.raises(NetworkError, match="expected convolution or linear layers"):
        element_weights(nn.Sequential(nn.BatchNorm2d(3)))


def test_frozen_weights_get_no_gradient() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    WeightPenalty("hs", None, model).add_gradient_()
    assert model[0].weight.grad is None
    assert model[4].weight.grad.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strength": -1.0}, "hs: expected strength of 0 or more, got -1.0"),
        ({"strength": math.nan}, "got nan"),
        ({"share": 0.0}, "share of 0 to 1"),
        ({"steps": 0}, "steps of 1 or more"),
        ({"alpha_n": 1.0}, "hs has no alpha_n"),
    ],
)
def test_numbers_without_sense_are_one_line(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        WeightPenalty("hs", None, network(), **wrong)  # type: ignore[arg-type]


def test_a_measure_that_does_not_exist_is_one_line() -> None:
    with pytest.raises(TrainingError, match=r"one of hs, hoyer, .*, got 'l0'"):
        WeightPenalty("l0", None, network())


@pytest.mark.parametrize(("share", "stay"), [(0.3, 3), (0.29, 2), (1.0, 10), (0.7, 7)])
def test_a_share_is_rounded_down_over_all_layers(share: float, stay: int) -> None:
    weights = {"a": torch.arange(1.0, 7.0), "b": -torch.arange(7.0, 11.0)}
    line = threshold_of_share(weights, share)
    assert sum(int((weight.abs() > line).sum()) for weight in weights.values()) == stay


def test_of_equal_weights_rather_too_few_stay_and_zeros_never_do() -> None:
    assert threshold_of_share({"a": torch.ones(10)}, 0.5) == 1
    assert threshold_of_share({"a": torch.tensor([0.0, 0.0, 0.0, 2.0])}, 0.5) == 0


def test_a_threshold_is_of_each_layers_own_spread() -> None:
    lines = thresholds_of_spread({"a": torch.tensor([-1.0, 1.0]), "b": torch.tensor([-20.0, 20.0])}, 0.5)
    assert (lines["a"], lines["b"]) == (0.5, 10)


def steps_of(penalty: WeightPenalty, model: nn.Module, number: int) -> Iterator[int]:
    for _ in range(number):
        penalty.after_step_(0.1)
        yield count(model)


def test_weights_go_along_a_cubic_in_the_last_share_of_the_steps() -> None:
    model = network()
    whole = count(model)
    penalty = WeightPenalty("magnitude-elements", None, model, 0.0, share=0.1, steps=10 * EVERY, ramp=0.5)
    left = list(steps_of(penalty, model, 10 * EVERY))
    assert set(left[: 6 * EVERY - 1]) == {whole}
    assert left[6 * EVERY - 1] == int(whole * (0.1 + 0.9 * 0.8**3))
    assert left == sorted(left, reverse=True)
    assert left[-1] == int(0.1 * whole)
    with torch.no_grad():
        model[4].weight += 1e-4  # what comes back only a little goes again, also after the last of the steps
    assert list(steps_of(penalty, model, EVERY))[-1] == int(0.1 * whole)


def test_a_ramp_goes_on_from_a_checkpoint_as_if_it_had_not_been_broken() -> None:
    runs = []
    for broken in (False, True):
        model = network()
        penalty = WeightPenalty("hs", None, model, share=0.1, steps=4 * EVERY, ramp=0.9)
        for step in range(4 * EVERY):
            if broken and step == 3 * EVERY - 7:
                state = penalty.state_dict()
                penalty = WeightPenalty("hs", None, model, share=0.1, steps=4 * EVERY, ramp=0.9)
                penalty.load_state_dict(state)
            with torch.no_grad():
                model[4].weight.add_(0.01 * math.sin(step))
            penalty.after_step_(0.1)
        runs.append(torch.cat([weight.flatten() for weight in model.parameters()]))
    assert torch.equal(*runs)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_what_is_zero_stays_zero_with_its_momenta_whatever_the_optimizer(name: str) -> None:
    model = network()
    images, classes = torch.randn(8, 1, 6, 6), torch.arange(8) % 5
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.05, weight_decay=0.1, **options)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), classes).backward()
        optimizer.step()

    step()  # momenta that would move a zero
    zeros: list[Tensor] = []
    with torch.no_grad():
        for weight in element_weights(model).values():
            weight.masked_fill_(weight.abs() < 0.1, 0)
            zeros.append(weight == 0)
    before = [weight.detach().clone() for weight in element_weights(model).values()]
    hold_zeros_(model, optimizer)
    for _ in range(3):
        step()
    for weight, zero, was in zip(element_weights(model).values(), zeros, before, strict=True):
        assert zero.any()
        assert not weight[zero].any()
        assert not torch.equal(weight[~zero], was[~zero])
        momenta = [value for value in optimizer.state[weight].values() if value.shape == weight.shape]
        assert momenta
        assert not any(value[zero].any() for value in momenta)
