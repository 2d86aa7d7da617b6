"""A network that shrinks while it trains, broken off and gone on with: to the bits of the unbroken training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import FileError, NetworkError, TrainingError
from hoyer_export.sparsify.group_hs import GroupHS
from hoyer_export.sparsify.phase import TrainSettings
from hoyer_export.sparsify.state import TrainState, macs_shares
from hoyer_export.sparsify.training import Hooks, TrainingRecord, train
from hoyer_export.surgery.cut import SlimModel, cut
from hoyer_export.surgery.optimizer_state import slice_optimizer
from hoyer_export.surgery.plan import PruningPlan, compose, with_plan
from hoyer_export.surgery.zero import zero_

IMAGES = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(3))
STRENGTH = 5e-3


class Break(Exception):
    """Stands for a power cut."""


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.Dropout(0.1), nn.Flatten(), nn.Linear(6 * 16, 3),
    )  # fmt: skip


def batches(epoch: int):
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(3):
        targets = torch.randint(0, 3, (8,), generator=generator)
        yield torch.randn(8, 1, 6, 6, generator=generator) + targets.view(-1, 1, 1, 1), targets


def breaking(epoch: int):
    """Batches that end in the middle of the fourth epoch."""
    for step, batch in enumerate(batches(epoch)):
        if (epoch, step) == (3, 1):
            raise Break
        yield batch


def around(slim: SlimModel, before: TrainState) -> TrainState:
    """Return the state of ``slim``, which came from ``before``."""
    channels = trace_channels(slim.model, IMAGES)
    return TrainState(
        slim.model,
        slice_optimizer(before.optimizer, before.model, slim),
        channels,
        GroupHS(channels, slim.model, STRENGTH, dense_widths={"0": 8, "3": 6}),
        json.dumps(slim.plan.to_dict()),
    )


class Shrinking:
    """Takes the weakest channel of a group out after the first, and after the second epoch."""

    def __init__(self) -> None:
        self.plan = PruningPlan({}, {})

    def shrink(self, state: TrainState, epochs_done: int) -> TrainState:
        group = {1: "0", 2: "3"}.get(epochs_done)
        if group is None:
            return state
        norms = state.model.get_submodule(group).weight.detach().flatten(1).norm(dim=1)
        keep = {group: norms.argsort()[1:].sort().values}
        zero_(state.model, state.channels, keep)
        step = cut(state.model, state.channels, keep, IMAGES)
        self.plan = compose(self.plan, step.plan)
        return replace(around(step, state), plan=json.dumps(self.plan.to_dict()))

    def rebuild(self, state: TrainState, plan: str) -> TrainState:
        self.plan = PruningPlan.from_dict(json.loads(plan), state.model)
        return around(SlimModel(with_plan(state.model, self.plan), self.plan), state)

    def hooks(self, **more: Any) -> Hooks:
        return Hooks(shrink=self.shrink, rebuild=self.rebuild, **more)


def attempt(checkpoint: Path | None, batches, **options) -> TrainingRecord:
    model = dense()
    settings = TrainSettings(phase="sparse", steps_per_epoch=3, epochs=5, lr=0.05, **options)
    channels = trace_channels(model, IMAGES)
    regulariser = GroupHS(channels, model, STRENGTH)
    return train(model, batches, settings, regulariser=regulariser, hooks=Shrinking().hooks(), checkpoint=checkpoint)


def widths(state: TrainState) -> list[int]:
    return [group.width for group in state.channels.groups]


def tensors(state: TrainState) -> dict[str, Tensor]:
    moments = state.optimizer.state_dict()["state"]
    return dict(state.model.state_dict()) | {
        f"{index}/{key}": value for index, each in moments.items() for key, value in each.items()
    }


@pytest.mark.parametrize("options", [{}, {"optimizer": "adam"}])
def test_a_network_that_shrinks_goes_on_to_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    unbroken = attempt(None, batches, **options)
    assert widths(unbroken.state) == [7, 5]
    assert unbroken.state.model[3].weight.shape == (5, 7, 3, 3)
    path = tmp_path / "sparse.safetensors"
    with pytest.raises(Break):
        attempt(path, breaking, **options)
    asked: list[int] = []
    resumed = attempt(path, lambda epoch: asked.append(epoch) or batches(epoch), **options)
    assert asked == [3, 4]
    expected, found = tensors(unbroken.state), tensors(resumed.state)
    assert expected.keys() == found.keys()
    assert len(found) > len(resumed.state.model.state_dict())
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert resumed.state.plan == unbroken.state.plan
    assert [epoch.model_copy(update={"seconds": None}) for epoch in resumed.epochs] == [
        epoch.model_copy(update={"seconds": None}) for epoch in unbroken.epochs
    ]
    finished = attempt(path, pytest.fail, **options)
    assert torch.equal(finished.state.model[7].weight, unbroken.state.model[7].weight)


def test_the_records_say_the_share_of_the_dense_network() -> None:
    """Two channels gone: 36 · 9 · 8 + 16 · 9 · 8 · 6 + 96 · 3 MACs become 36 · 9 · 7 + 16 · 9 · 7 · 5 + 80 · 3."""
    record = attempt(None, batches)
    state = record.state
    left, whole = 36 * 9 * 7 + 16 * 9 * 7 * 5 + 80 * 3, 36 * 9 * 8 + 16 * 9 * 8 * 6 + 96 * 3
    of_itself = macs_shares(state.channels, state.model)
    assert record.epochs[-1].effective_macs == pytest.approx(of_itself.effective * left / whole)
    assert record.epochs[-1].alive_macs == pytest.approx(of_itself.alive * left / whole)


def test_a_checkpoint_of_a_smaller_network_asks_how_to_rebuild_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    with pytest.raises(Break):
        attempt(path, breaking)
    model = dense()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = TrainSettings(phase="sparse", steps_per_epoch=3, epochs=5, lr=0.05)
    regulariser = GroupHS(trace_channels(model, IMAGES), model, STRENGTH)
    with pytest.raises(FileError, match="holds a network that has shrunk"):
        train(model, batches, settings, regulariser=regulariser, checkpoint=path)
    # Rebuilt wrongly: the dense one in its place.
    with pytest.raises(FileError, match=r"another network \(model/.* does not fit\)"):
        train(
            model,
            batches,
            settings,
            regulariser=regulariser,
            hooks=Hooks(rebuild=lambda state, plan: state),
            checkpoint=path,
        )
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_smaller_network_without_its_plan_or_its_optimizer_is_refused() -> None:
    def without_plan(state: TrainState, epochs_done: int) -> TrainState:
        return replace(Shrinking().shrink(state, epochs_done), plan=None)

    def with_the_old_optimizer(state: TrainState, epochs_done: int) -> TrainState:
        return replace(Shrinking().shrink(state, epochs_done), optimizer=state.optimizer)

    settings = TrainSettings(phase="sparse", steps_per_epoch=3, epochs=1, lr=0.05)
    for shrink, message in ((without_plan, "without a plan"), (with_the_old_optimizer, "make it for this very model")):
        model = dense()
        channels = trace_channels(model, IMAGES)
        with pytest.raises(TrainingError, match=message):
            train(model, batches, settings, channels=channels, hooks=Hooks(shrink=shrink))


def test_a_regulariser_that_was_left_behind_is_named() -> None:
    model = dense()
    channels = trace_channels(model, IMAGES)
    left_behind = GroupHS(channels, model, STRENGTH)

    def shrink(state: TrainState, epochs_done: int) -> TrainState:
        return replace(Shrinking().shrink(state, epochs_done), regulariser=left_behind)

    settings = TrainSettings(phase="sparse", steps_per_epoch=3, epochs=2, lr=0.05)
    with pytest.raises(NetworkError, match="acts on the weights of another model"):
        train(model, batches, settings, regulariser=left_behind, hooks=Hooks(shrink=shrink))
