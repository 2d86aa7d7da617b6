"""Nobody who looks at a network flips the modes of its modules for good: a frozen batch norm stays frozen."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hoyer_export.channels.trace import trace_channels
from hoyer_export.data import load_data
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.verify import verify_onnx
from hoyer_export.errors import DataError
from hoyer_export.metric import evaluate
from hoyer_export.modes import kept_modes
from hoyer_export.recipe.reading import make_recipe
from hoyer_export.run.inputs import check_output
from hoyer_export.run.job import Job
from hoyer_export.run.progress import Silent
from hoyer_export.run_folder import RunFolder
from hoyer_export.select.choose import select_channels
from hoyer_export.select.rival import cross_check
from hoyer_export.sparsify.phase import TrainSettings
from hoyer_export.sparsify.training import train
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.extras.dead_blocks import remove_dead_blocks
from hoyer_export.surgery.extras.folding import fold_constants
from hoyer_export.surgery.self_test import self_test
from hoyer_export.surgery.zero import zero_

DATA = load_data("digits")
IMAGES, LABELS = next(DATA.validation.batches(8))
ONE_STEP = TrainSettings(phase="dense", steps_per_epoch=1, epochs=1, lr=0.1)


def half_frozen() -> nn.Sequential:
    """A network in training whose first batch norm was put in eval for good, and whose second was not."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, 10),
    )  # fmt: skip
    model[1].eval()
    model[7].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def cut_half(model: nn.Module) -> None:
    channels = trace_channels(model, IMAGES)
    keep = select_channels(channels, model, macs=0.5, align=1).keep
    model = copy.deepcopy(model)
    zero_(model, channels, keep)
    before = modes(model)
    slim = cut(model, channels, keep, IMAGES).model
    assert modes(model) == before
    assert modes(slim) == before


def fold(model: nn.Module) -> None:
    channels = trace_channels(model, IMAGES)
    fold_constants(model, channels, select_channels(channels, model, macs=0.5, align=1).keep, IMAGES)


def export_and_verify(model: nn.Module, tmp_path) -> None:
    export_onnx(model, IMAGES, tmp_path / "a.onnx")
    verify_onnx(tmp_path / "a.onnx", model, IMAGES, labelled=[(IMAGES, LABELS)])


def digits_job() -> Job:
    recipe = make_recipe({"network": {"name": "lenet5"}, "data": {"name": "digits"}, "cut": {"macs": 0.5}})
    return Job(recipe, RunFolder(Path()), Silent())


LOOKS: dict[str, Callable] = {
    "check_output": lambda model, tmp_path: check_output(digits_job(), model, DATA),
    "trace_channels": lambda model, tmp_path: trace_channels(model, IMAGES),
    "self_test": lambda model, tmp_path: self_test(model, IMAGES),
    "cross_check": lambda model, tmp_path: cross_check(model, IMAGES, trace_channels(model, IMAGES)),
    "dead": lambda model, tmp_path: select_channels(
        trace_channels(model, IMAGES), model, method="dead", inputs=[IMAGES]
    ),
    "cut": lambda model, tmp_path: cut_half(model),
    "fold_constants": lambda model, tmp_path: fold(model),
    "remove_dead_blocks": lambda model, tmp_path: remove_dead_blocks(model, IMAGES),
    "export and verify": export_and_verify,
    "evaluate": lambda model, tmp_path: evaluate(model, [(IMAGES, LABELS)]),
    "train": lambda model, tmp_path: train(model, lambda epoch: [(IMAGES, LABELS)], ONE_STEP, channels_last=True),
}


@pytest.mark.parametrize("look", LOOKS)
def test_every_module_has_its_own_mode_back(look: str, tmp_path) -> None:
    model = half_frozen()
    before = modes(model)
    LOOKS[look](model, tmp_path)
    assert modes(model) == before


def test_modes_come_back_also_where_the_body_raises() -> None:
    model = half_frozen()
    before = modes(model)

    def fail() -> None:
        with kept_modes(model):
            model.train()
            assert modes(model) != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert modes(model) == before


class KeepsItsNormsFrozen(nn.Module):
    """What many detection networks do: their own ``train()`` leaves the batch norms in eval."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.layers, self.frozen = half_frozen(), frozen

    def forward(self, x):
        return self.layers(x)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.frozen:
            self.layers[1].eval()
        return self


@pytest.mark.parametrize("frozen", [False, True])
def test_training_freezes_what_the_networks_own_train_freezes_and_nothing_else(frozen: bool) -> None:
    model = KeepsItsNormsFrozen(frozen)
    before = [model.layers[index].running_mean.clone() for index in (1, 4)]
    train(model, lambda epoch: [(IMAGES, LABELS)], ONE_STEP)
    moved = [
        not torch.equal(model.layers[index].running_mean, mean) for index, mean in zip((1, 4), before, strict=True)
    ]
    assert moved == [not frozen, True]


def test_a_single_validation_image_is_a_fault_of_the_data() -> None:
    job = digits_job()
    assert job.example.shape == (2, 1, 8, 8)

    class One:
        def batches(self, batch_size: int, **options: object):
            return iter([(IMAGES[:1], LABELS[:1])])

    job = digits_job()
    job.data = replace(DATA, validation=One())
    with pytest.raises(DataError, match="validation split of digits holds a single image; expected at least 2"):
        _ = job.example
