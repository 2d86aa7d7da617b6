"""docs/adding-a-regulariser.md does what it says: its blocks are run as a reader would; and what a recipe may name."""

import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import FileError, NetworkError, TrainingError
from hoyer_export.recipe.tables import Sparse
from hoyer_export.sparsify.group_hs import GroupHS
from hoyer_export.sparsify.phase import TrainSettings
from hoyer_export.sparsify.regulariser import REGULARISERS, Regulariser, make_regulariser
from hoyer_export.sparsify.training import Hooks, train

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-regulariser.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MEMBERS = {name for name in vars(Regulariser) if not name.startswith("_")}


@pytest.fixture(scope="module")
def followed() -> dict[str, Any]:
    """Return what is defined after the page's blocks."""
    names: dict[str, Any] = {"print": lambda *said: None}
    for block in BLOCKS:
        exec(block, names)
    return names


def network() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 2))
    return model, trace_channels(model, torch.randn(2, 1, 6, 6))


def test_the_page_trains_channels_towards_zero(followed: dict[str, Any]) -> None:
    first, *_, last = followed["record"].epochs
    assert last.penalty < first.penalty
    assert last.effective_macs < 0.6 * first.effective_macs
    unpulled, _ = network()
    train(unpulled, lambda epoch: followed["batches"], followed["settings"])
    pulled = followed["model"][0].weight.flatten(1).norm(dim=1).sum()
    assert pulled < 0.7 * unpulled[0].weight.flatten(1).norm(dim=1).sum()


def test_the_gradient_on_the_page_is_the_group_lassos(followed: dict[str, Any]) -> None:
    """∂(s Σ n)/∂w = s w / n_k for a weight of one channel."""
    model, channels = network()
    mine = followed["GroupLasso"](channels, model, strength=0.5)
    value = mine.add_gradient_()
    first, second = model[0].weight.detach(), model[3].weight.detach()
    norms = (first.flatten(1).square().sum(1) + second.view(2, 12, 16).square().sum((0, 2))).sqrt()
    assert value.item() == pytest.approx(0.5 * norms.sum().item(), rel=1e-5)
    torch.testing.assert_close(model[0].weight.grad, 0.5 * first / norms.view(-1, 1, 1, 1))


def test_the_pages_table_and_class_hold_every_member_of_the_protocol(followed: dict[str, Any]) -> None:
    named = set(re.findall(r"`(\w+)(?:\(\w*\))?`", "".join(re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE))))
    assert named == MEMBERS
    model, channels = network()
    for regulariser in (followed["GroupLasso"](channels, model), GroupHS(channels, model)):
        assert isinstance(regulariser, Regulariser)


def test_the_names_in_a_recipe_are_those_in_the_table() -> None:
    names = get_args(Sparse.model_fields["regulariser"].annotation)
    assert set(REGULARISERS) == {*names, "group-hs-function", "group-hs-layer"}


def test_a_regulariser_is_made_by_its_name_with_its_options() -> None:
    model, channels = network()
    made = make_regulariser("group-hs", channels, model, {"strength": 2e-3, "scale": "paper"})
    assert made.settings == GroupHS(channels, model, 2e-3, scale="paper").settings
    assert made.describe() == "Group-HS, strength 0.002 (paper)"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lasso", {}, r"one of group-hs, group-hs-function, hs, .*, got 'lasso'"),
        ("group-hs", {"temperature": 1.0}, r"group-hs: .*'temperature'; leave that option out"),
        ("group-hs", {"strength": -1.0}, r"0 or more, got -1.0"),
    ],
)
def test_a_name_or_option_that_does_not_exist_is_one_line(name: str, options: dict[str, Any], message: str) -> None:
    model, channels = network()
    with pytest.raises(TrainingError, match=message):
        make_regulariser(name, channels, model, options)


class Watching:
    """Counts in every way that a regulariser is called, and halves the bias after each step."""

    def __init__(self, channels, model):
        self.channels, self.model = channels, model
        self.calls, self.seen = [], torch.zeros(1)

    settings = {"kind": "watching"}  # noqa: RUF012

    def describe(self):
        return "watching"

    @contextmanager
    def observe(self, model):
        def count(module, args, output):
            self.seen += 1

        self.calls.append("observe")
        handle = model[0].register_forward_hook(count)
        yield
        handle.remove()

    def add_gradient_(self):
        assert self.model[0].bias.grad is not None
        self.calls.append("gradient")
        return torch.tensor(3.0)

    @torch.no_grad()
    def after_step_(self, lr):
        self.calls.append(lr)
        self.model[0].bias.zero_()

    def norms(self):
        return {group.name: torch.ones(group.width) for group in self.channels.groups}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"].clone()


SETTINGS = TrainSettings(phase="sparse", steps_per_epoch=2, epochs=2, lr=0.1)


def batches(epoch: int):
    generator = torch.Generator().manual_seed(epoch)
    return [(torch.randn(4, 1, 6, 6, generator=generator), torch.tensor([0, 1, 0, 1])) for _ in range(2)]


def test_a_regulariser_is_called_around_every_step_and_its_state_is_kept(tmp_path: Path) -> None:
    model, channels = network()
    mine = Watching(channels, model)

    def look(network: nn.Module) -> None:
        network(batches(0)[0][0])  # outside of the context: not seen

    record = train(
        model, batches, SETTINGS, regulariser=mine, hooks=Hooks(evaluate=look), checkpoint=tmp_path / "c.safetensors"
    )
    rates = [SETTINGS.learning_rate(step) for step in range(4)]
    first = ["observe", "gradient", rates[0], "gradient", rates[1]]
    assert mine.calls == [*first, "observe", "gradient", rates[2], "gradient", rates[3]]
    assert [epoch.penalty for epoch in record.epochs] == [3, 3]
    assert (model[0].bias == 0).all()
    assert mine.seen == 4
    other, channels = network()
    later = Watching(channels, other)
    train(other, batches, SETTINGS, regulariser=later, checkpoint=tmp_path / "c.safetensors")
    assert (later.seen, later.calls) == (4, [])
    assert torch.equal(other[3].weight, model[3].weight)


def test_the_checkpoint_of_another_regulariser_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    model, channels = network()
    train(model, batches, SETTINGS, regulariser=GroupHS(channels, model, 1e-3), checkpoint=path)
    for other, message in (
        (GroupHS(channels, model, 2e-3), r"regulariser.strength was 0.001, now 0.002"),
        (GroupHS(channels, model, 1e-3, costs={"0": 2.0}), r"regulariser.costs.0 was None, now 2.0"),
        (Watching(channels, model), r"regulariser was GroupHS, now Watching"),
        (None, r"regulariser was GroupHS, now None"),
    ):
        with pytest.raises(FileError, match=message):
            train(model, batches, SETTINGS, regulariser=other, checkpoint=path)


def test_a_strength_that_was_steered_is_kept_in_the_checkpoint(tmp_path: Path) -> None:
    model, channels = network()
    steered = GroupHS(channels, model, 1e-3, max_rate=float("inf"))

    def double(state, epochs_done):
        steered.strength *= 2
        return state

    path = tmp_path / "c.safetensors"
    train(model, batches, SETTINGS, regulariser=steered, hooks=Hooks(shrink=double), checkpoint=path)
    other = GroupHS(channels, model, 1e-3, max_rate=float("inf"))
    train(model, batches, SETTINGS, regulariser=other, checkpoint=path)
    assert other.strength == steered.strength == 4e-3


def test_what_is_no_regulariser_or_acts_on_another_model_is_named() -> None:
    model, channels = network()
    with pytest.raises(TrainingError, match=r"expected a regulariser, got a Linear: docs/adding-a-regulariser"):
        train(model, batches, SETTINGS, regulariser=nn.Linear(1, 1))
    other, _ = network()
    with pytest.raises(NetworkError, match="acts on the weights of another model"):
        train(model, batches, SETTINGS, regulariser=GroupHS(channels, other))
