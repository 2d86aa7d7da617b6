"""Training against a hand-written loop; a broken training against an unbroken one."""

import json
import math
import os
import re
import signal
import sys
from dataclasses import fields
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.channels.trace import trace_channels
from hoyer_export.errors import DataError, FileError, NetworkError, TrainingError
from hoyer_export.metric import evaluate as measured
from hoyer_export.sparsify.epoch import task_loss, train_epoch
from hoyer_export.sparsify.group_hs import GroupHS
from hoyer_export.sparsify.phase import EpochRecord, StepProgress, TrainSettings
from hoyer_export.sparsify.state import TrainState
from hoyer_export.sparsify.training import Hooks, train
from hoyer_export.stopping import Stop, stopped_by_signals

STEPS = 4
CLASSES = 3


class Tiny(nn.Module):
    """Convolutions, batch norm, and dropout, which needs random numbers."""

    def __init__(self, dropout: float = 0.2):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv1(x)))
        x = torch.relu(self.conv2(x)).mean((2, 3))
        return self.fc(self.dropout(x))


class Views(Tiny):
    """``view`` refuses activations in channels_last."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8 * 36, CLASSES)

    def forward(self, x):
        x = torch.relu(self.conv2(self.bn(self.conv1(x))))
        return self.fc(x.view(len(x), -1))


def tiny(dropout: float = 0.2) -> Tiny:
    torch.manual_seed(0)
    return Tiny(dropout)


def images_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(0, CLASSES, (STEPS * 8,), generator=generator)
    images = torch.randn(STEPS * 8, 1, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1)
    return images, labels


def batches(epoch: int):
    images, labels = images_and_labels()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
    for indices in order.split(8):
        yield images[indices], labels[indices]


def run(model: nn.Module, **changes):
    """Train by settings, hooks and other arguments of ``train``, each by its name."""
    options = {"phase": "dense", "steps_per_epoch": STEPS, "epochs": 4, "lr": 0.1, "batches": batches, **changes}
    settings, hooks = (
        kind(**{field.name: options.pop(field.name) for field in fields(kind) if field.name in options})
        for kind in (TrainSettings, Hooks)
    )
    return train(model, options.pop("batches"), settings, hooks=hooks, **options)


def learning_rate(lr: float, step: int, *, steps: int, warmup_steps: float = 0.0) -> float:
    settings = TrainSettings(phase="dense", steps_per_epoch=1, epochs=steps, lr=lr, warmup_epochs=warmup_steps)
    return settings.learning_rate(step)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_bit_identical(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def without_seconds(epochs) -> list[dict]:
    return [{**record.model_dump(), "seconds": None} for record in epochs]


# --- what it computes


@pytest.mark.parametrize("phase", ["dense", "sparse"])
def test_training_equals_a_hand_written_loop(phase):
    model, expected = tiny(dropout=0.0), tiny(dropout=0.0)
    channels = trace_channels(model, torch.randn(2, 1, 6, 6))
    regulariser = GroupHS(channels, model, 3e-3) if phase == "sparse" else None
    record = run(model, phase=phase, label_smoothing=0.1, regulariser=regulariser, epochs=2)

    by_autograd = GroupHS(channels, expected, 3e-3)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * STEPS)
    losses, correct, penalties = [], 0, []
    for epoch in range(2):
        for images, labels in batches(epoch):
            logits = expected(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
            penalty = by_autograd.penalty() if phase == "sparse" else torch.zeros(())
            optimizer.zero_grad()
            (loss + penalty).backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            penalties.append(penalty.item())
            correct += int((logits.argmax(1) == labels).sum())
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    first, second = record.epochs
    assert first.loss == pytest.approx(sum(losses[:STEPS]) / STEPS, rel=1e-5)
    assert second.loss == pytest.approx(sum(losses[STEPS:]) / STEPS, rel=1e-5)
    assert (first.train_accuracy + second.train_accuracy) / 2 == pytest.approx(100 * correct / (2 * STEPS * 8))
    if phase == "sparse":
        assert first.penalty == pytest.approx(sum(penalties[:STEPS]) / STEPS, rel=1e-5)
        assert 0 < second.effective_macs < 1
        assert 0 < second.alive_macs <= 1
    else:
        assert (first.penalty, first.effective_macs, first.alive_macs) == (None, None, None)


def test_the_loss_and_accuracy_are_means_over_images_when_the_last_batch_is_smaller():
    def uneven(epoch):
        images, labels = images_and_labels()
        yield images[:7], labels[:7]
        yield images[7:8], labels[7:8]

    model, expected = tiny(0.0), tiny(0.0)
    for module in (model, expected):
        module.bn = nn.Identity()
    record = run(model, batches=uneven, steps_per_epoch=2, epochs=1, lr=1e-12, weight_decay=0.0)
    images, labels = images_and_labels()
    loss = F.cross_entropy(expected(images[:8]), labels[:8]).item()
    assert record.epochs[0].loss == pytest.approx(loss, rel=1e-5)


def test_a_teacher_adds_the_divergence_of_what_is_softened_by_the_temperature():
    """Two classes: softmax(z / 2) of (2 ln 3, 0) is (3/4, 1/4), of (0, 0) (1/2, 1/2)."""
    how = TrainSettings(phase="sparse", steps_per_epoch=1, epochs=1, lr=1, distill_weight=0.7, temperature=2)
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]] * 2), torch.zeros(2, 2)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    expected = 0.3 * math.log(2) + 0.7 * 2**2 * divergence
    assert task_loss(student, torch.tensor([0, 1]), teacher, how).item() == pytest.approx(expected, rel=1e-6)


def test_the_teacher_runs_in_eval_mode_and_does_not_learn():
    model, expected, teacher = tiny(0.0), tiny(0.0), tiny(0.9)
    before = state(teacher)
    run(model, epochs=1, distill_weight=1.0, temperature=4.0, teacher=teacher, weight_decay=0.0)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for step, (images, _) in enumerate(batches(0)):
        optimizer.param_groups[0]["lr"] = learning_rate(0.1, step, steps=STEPS)
        optimizer.zero_grad()
        with torch.no_grad():
            soft = (teacher.eval()(images) / 4).softmax(1)
        student = (expected(images) / 4).log_softmax(1)
        (16 * (soft * (soft.log() - student)).sum(1).mean()).backward()
        optimizer.step()
    for name, tensor in state(expected).items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert_bit_identical(state(teacher), before)
    with pytest.raises(TrainingError, match=r"a teacher if and only if distill_weight is above 0, it is 0.5"):
        run(tiny(), distill_weight=0.5)


def test_adam_is_adam():
    model, expected = tiny(0.0), tiny(0.0)
    run(model, optimizer="adam", lr=1e-2, epochs=1, weight_decay=1e-3)
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-2, weight_decay=1e-3)
    for step, (images, labels) in enumerate(batches(0)):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * step / STEPS)) / 2
        optimizer.zero_grad()
        F.cross_entropy(expected(images), labels).backward()
        optimizer.step()
    assert_bit_identical(state(model), state(expected))


@pytest.mark.parametrize(
    ("step", "warmup_steps", "expected"),
    [
        (0, 0, 0.4),
        (50, 0, 0.2),
        (25, 0, 0.2 * (1 + math.sqrt(0.5))),
        (0, 10, 0.04),
        (4, 10, 0.2),
        (9, 10, 0.4),
        (10, 10, 0.4),
        (55, 10, 0.2),
        (0, 2.5, 0.16),
    ],
)
def test_the_learning_rate_rises_linearly_and_falls_by_half_a_cosine(step, warmup_steps, expected):
    assert learning_rate(0.4, step, steps=100, warmup_steps=warmup_steps) == pytest.approx(expected)


def test_the_learning_rate_of_the_last_step_is_nearly_zero():
    assert 0 < learning_rate(0.4, 99, steps=100) < 0.4 * 3e-4


def test_bfloat16_trains_float32_weights_close_to_float32():
    model, low = tiny(0.0), tiny(0.0)
    run(model, epochs=1)
    record = run(low, epochs=1, precision="bfloat16")
    assert all(weight.dtype == torch.float32 for weight in low.parameters())
    assert not torch.equal(low.conv2.weight, model.conv2.weight)
    torch.testing.assert_close(low.conv2.weight, model.conv2.weight, rtol=0, atol=2e-2)
    assert math.isfinite(record.epochs[0].loss)


def test_channels_last_is_used_where_the_network_takes_it():
    model, contiguous = tiny(0.0), tiny(0.0)
    run(model, channels_last=True)
    run(contiguous)
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.fc.weight, contiguous.fc.weight, rtol=1e-3, atol=1e-4)
    torch.manual_seed(0)
    views = Views()
    run(views, channels_last=True)
    assert views.conv2.weight.is_contiguous()
    run(nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES)), channels_last=True)  # nothing to convert


# --- records and callbacks


def test_the_records_hold_the_fields_of_metrics_jsonl():
    names = (
        "phase epoch seconds learning_rate loss penalty train_accuracy validation_accuracy metric effective_macs"
        " alive_macs"
    )
    assert list(EpochRecord.model_fields) == names.split()
    record = run(tiny(), evaluate=lambda model: 12.5)
    assert [epoch.epoch for epoch in record.epochs] == [0, 1, 2, 3]
    assert [epoch.learning_rate for epoch in record.epochs] == pytest.approx(
        [0.1 * (1 + math.cos(math.pi * share)) / 2 for share in (0, 0.25, 0.5, 0.75)]
    )
    assert {epoch.validation_accuracy for epoch in record.epochs} == {12.5}
    assert record.seconds == pytest.approx(sum(epoch.seconds for epoch in record.epochs))
    assert json.loads(record.epochs[0].model_dump_json())["phase"] == "dense"


def test_the_callbacks_see_every_epoch_and_step():
    histories, steps, modes = [], [], []

    def evaluate(model: nn.Module) -> float:
        modes.append(model.training)
        return measured(model, batches(0))

    record = run(tiny(), epochs=2, evaluate=evaluate, on_epoch=histories.append, progress=steps.append)
    assert histories == [record.epochs[:1], record.epochs]
    assert [(step.epoch, step.step) for step in steps] == [(epoch, step) for epoch in range(2) for step in (1, 2, 3, 4)]
    assert all(isinstance(step, StepProgress) and (step.epochs, step.steps) == (2, STEPS) for step in steps)
    assert steps[3].loss == pytest.approx(record.epochs[0].loss)
    assert 0 <= record.epochs[0].validation_accuracy <= 100


class StandsForAGpu:
    """What ``train_epoch`` asks of Fabric, on the CPU."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.setup_module = self.to_device = lambda given: given
        self.backward = lambda loss: loss.backward()


@pytest.mark.parametrize(("device", "told"), [("cpu", [1, 2, 3, 4]), ("cuda", [3, 4])])
def test_losses_are_read_in_bundles_on_a_gpu_and_are_the_same(monkeypatch, device, told):
    monkeypatch.setattr("hoyer_export.sparsify.epoch.GPU_BUNDLE_STEPS", 3)
    settings = TrainSettings(phase="dense", steps_per_epoch=STEPS, epochs=1, lr=0.1)

    def once(batches):
        model, steps = tiny(0.0), []
        state = TrainState(model, torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=5e-4))
        return train_epoch(state, batches, settings, 0, StandsForAGpu(device), steps.append), steps

    record, steps = once(batches(0))
    expected = run(tiny(0.0), epochs=1).epochs[0]
    assert (record.loss, record.train_accuracy) == (expected.loss, expected.train_accuracy)
    assert [step.step for step in steps] == told
    assert steps[-1].loss == record.loss
    poisoned = [(images / 0 if step == 1 else images, labels) for step, (images, labels) in enumerate(batches(0))]
    with pytest.raises(TrainingError, match="the loss is nan at step 2 of 4 of epoch 1 of 1"):
        once(poisoned)
    for count, got in ((3, "got 3"), (5, "got more")):
        with pytest.raises(DataError, match=got):
            once([*batches(0), *batches(1)][:count])


def test_a_penalty_that_is_not_finite_is_named():
    model = tiny()
    regulariser = GroupHS(trace_channels(model, torch.randn(2, 1, 6, 6)), model, 1e300)
    with pytest.raises(
        TrainingError, match=r"^sparse: the penalty is inf at step 1 of 4 of .*Group-HS, strength 1e\+300"
    ):
        run(model, phase="sparse", regulariser=regulariser)


@pytest.mark.parametrize("accuracy", [math.nan, -1.0, 100.5])
def test_a_validation_accuracy_that_is_none_is_named(accuracy):
    with pytest.raises(TrainingError, match=rf"expected an accuracy in %, 0 to 100, got {accuracy}"):
        run(tiny(), epochs=1, evaluate=lambda model: accuracy)


def test_no_epochs_train_nothing(tmp_path):
    model = tiny()
    before = state(model)
    record = run(model, epochs=0, checkpoint=tmp_path / "dense.safetensors", on_epoch=pytest.fail)
    assert (record.epochs, record.seconds) == ((), 0)
    assert_bit_identical(state(model), before)
    assert list(tmp_path.iterdir()) == []


def test_training_says_nothing_and_keeps_modes_and_random_state(capfd):
    model = tiny()
    model.bn.eval()
    model.dropout.eval()
    parameters = list(model.parameters())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(model, precision="bfloat16")
    assert torch.equal(torch.rand(3), expected)
    assert [model.training, model.bn.training, model.dropout.training] == [True, False, False]
    assert all(left is right for left, right in zip(model.parameters(), parameters, strict=True))
    assert capfd.readouterr() == ("", "")


def test_a_network_in_eval_mode_is_trained_in_training_mode():
    model, expected = tiny(), tiny()
    run(model.eval(), evaluate=lambda network: network.eval() and None)
    run(expected)
    assert_bit_identical(state(model), state(expected))
    assert not model.training


def test_the_seed_decides_what_dropout_drops():
    first, again, other = tiny(0.5), tiny(0.5), tiny(0.5)
    run(first, seed=1)
    torch.rand(10)  # the caller's random numbers have no say
    run(again, seed=1)
    run(other, seed=2)
    assert_bit_identical(state(first), state(again))
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_the_accuracy_equals_a_hand_number_and_restores_the_modes():
    class Echo(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(1.0)  # would zero everything in training mode

        def forward(self, x):
            assert torch.is_inference_mode_enabled()
            return self.dropout(x)

    model = Echo()
    logits = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1])]
    labels = torch.tensor([0, 1, 2, 2, 2])
    assert measured(model, [(logits[:4], labels[:4]), (logits[4:], labels[4:])]) == 60
    assert model.training
    assert model.dropout.training
    with pytest.raises(DataError, match="at least one image"):
        measured(model, [])


# --- breaking and going on

RESUMABLE = [
    {},
    {"precision": "bfloat16"},
    {"optimizer": "adam", "lr": 1e-3},
    {"channels_last": True},
    {"momentum": 0.0, "warmup_epochs": 1.5, "label_smoothing": 0.1},
    {"distill_weight": 0.7, "teacher": Tiny(), "precision": "bfloat16"},
]


class Break(Exception):
    pass


def breaking(epoch: int):
    """Batches that end in the middle of the third epoch."""
    for step, batch in enumerate(batches(epoch)):
        if (epoch, step) == (2, 2):
            raise Break
        yield batch


@pytest.mark.parametrize("options", RESUMABLE)
@pytest.mark.parametrize("phase", ["dense", "sparse"])
def test_a_broken_training_goes_on_to_the_same_bits(tmp_path, phase, options):
    def attempt(checkpoint: Path | None, batches, **more):
        model = tiny()
        channels = trace_channels(model, torch.randn(2, 1, 6, 6))
        regulariser = GroupHS(channels, model, 3e-3) if phase == "sparse" else None
        try:
            record = run(
                model, phase=phase, regulariser=regulariser, checkpoint=checkpoint, batches=batches, **options, **more
            )
        except Break:
            record = None
        return model, record

    unbroken, expected = attempt(None, batches)
    checkpoint = tmp_path / "sparse.safetensors"
    _, nothing = attempt(checkpoint, breaking)
    assert nothing is None
    asked, histories = [], []
    model, record = attempt(checkpoint, lambda epoch: asked.append(epoch) or batches(epoch), on_epoch=histories.append)
    assert [epoch for epoch in asked if epoch or not options.get("channels_last")] == [2, 3]
    assert_bit_identical(state(model), state(unbroken))
    assert without_seconds(record.epochs) == without_seconds(expected.epochs)
    assert [len(history) for history in histories] == [2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["sparse.safetensors"]

    finished, again = attempt(checkpoint, pytest.fail if not options.get("channels_last") else batches)
    assert_bit_identical(state(finished), state(unbroken))
    assert again == record


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("last", [1, 3, STEPS])
@pytest.mark.parametrize(("options", "skips"), [(RESUMABLE[1], True), (RESUMABLE[2], True), (RESUMABLE[5], False)])
def test_who_asks_to_stop_loses_no_step(tmp_path, options, skips, last):
    """The step is finished; what follows is the unbroken training's, to the last bit, and so are the epoch's sums."""

    def attempt(checkpoint: Path | None, tell):
        model = tiny()
        regulariser = GroupHS(trace_channels(model, torch.randn(2, 1, 6, 6)), model, 3e-3)
        rest = (lambda epoch, done: islice(batches(epoch), done, None)) if skips else None
        how = {"regulariser": regulariser, "checkpoint": checkpoint, "progress": tell, "rest": rest}
        return model, run(model, phase="sparse", **how, **options)

    def stop(at) -> None:
        if (at.epoch, at.step) == (2, last):
            os.kill(os.getpid(), signal.SIGTERM)

    told = []
    unbroken, expected = attempt(None, lambda at: None)
    with stopped_by_signals(), pytest.raises(Stop):
        attempt(tmp_path / "sparse.safetensors", stop)
    model, record = attempt(tmp_path / "sparse.safetensors", lambda at: told.append((at.epoch, at.step)))
    assert told == [(2, step) for step in range(last + 1, STEPS + 1)] + [(3, step) for step in range(1, STEPS + 1)]
    assert_bit_identical(state(model), state(unbroken))
    assert without_seconds(record.epochs) == without_seconds(expected.epochs)


def test_going_on_without_the_optimizers_state_would_be_seen(tmp_path):
    """The check above can fail: momentum that starts again at zero gives other weights."""
    unbroken = tiny(0.0)
    run(unbroken)
    broken = tiny(0.0)
    with pytest.raises(Break):
        run(broken, batches=breaking, checkpoint=tmp_path / "c")
    fresh = tiny(0.0)
    run(fresh, epochs=4, checkpoint=tmp_path / "c", momentum=0.9)
    assert torch.equal(fresh.fc.weight, unbroken.fc.weight)
    forgetful = tiny(0.0)
    optimizer = torch.optim.SGD(forgetful.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for epoch in range(4):
        for step, (images, labels) in enumerate(batches(epoch)):
            optimizer.param_groups[0]["lr"] = learning_rate(0.1, epoch * STEPS + step, steps=4 * STEPS)
            if (epoch, step) == (2, 0):
                optimizer.state.clear()
            optimizer.zero_grad()
            F.cross_entropy(forgetful(images), labels).backward()
            optimizer.step()
    assert not torch.equal(forgetful.fc.weight, unbroken.fc.weight)


# --- mistakes


def test_a_loss_that_is_not_finite_is_named_and_leaves_the_checkpoint(tmp_path):
    checkpoint = tmp_path / "dense.safetensors"
    whole = []

    def poisoned(epoch: int):
        for step, (images, labels) in enumerate(batches(epoch)):
            yield (images / 0 if (epoch, step) == (1, 2) else images), labels

    with pytest.raises(TrainingError) as caught:
        run(
            tiny(),
            batches=poisoned,
            checkpoint=checkpoint,
            on_epoch=lambda history: whole.append(checkpoint.read_bytes()),
        )
    message = str(caught.value)
    assert re.match(r"dense: the loss is nan at step 3 of 4 of epoch 2 of 4; lower the learning rate", message)
    assert "\n" not in message
    assert "strength" not in message
    assert [checkpoint.read_bytes()] == whole
    assert len(run(tiny(), checkpoint=checkpoint).epochs) == 4  # a cure: the same training without the poison


def test_weights_that_are_not_finite_after_the_last_step_are_named():
    model = tiny()
    channels = trace_channels(model, torch.randn(2, 1, 6, 6))
    with pytest.raises(TrainingError, match=r"^sparse: the weights are not finite after epoch 1 of 1; .* strength"):
        run(
            model,
            phase="sparse",
            epochs=1,
            steps_per_epoch=1,
            batches=lambda epoch: [next(batches(epoch))],
            lr=1e38,
            weight_decay=1e30,
            regulariser=GroupHS(channels, model),
        )


@pytest.mark.parametrize("steps", [STEPS - 1, STEPS + 1])
def test_another_number_of_batches_is_named(steps):
    got = "more" if steps < STEPS else str(STEPS)
    with pytest.raises(DataError, match=f"expected {steps} batches an epoch, got {got}"):
        run(tiny(), steps_per_epoch=steps)


def test_labels_and_outputs_that_do_not_fit_are_named():
    with pytest.raises(
        DataError, match=r"3 outputs, the data has labels \d+ to 12; set the network's number of classes"
    ):
        run(tiny(), batches=lambda epoch: ((images, labels + 10) for images, labels in batches(epoch)))
    with pytest.raises(NetworkError, match=r"logits \[images, classes\], got shape \(8, 1, 6, 6\)"):
        run(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_epochs": 4.0}, r"^dense: expected a warm-up shorter than the 4 epochs in all, got 4 epochs$"),
        ({"optimizer": "lion"}, r"\"adam\" or \"adamw\", got 'lion'"),
        ({"precision": "bf16"}, r"\"float32\" or \"bfloat16\", got 'bf16'"),
        ({"phase": "warm-up"}, r"\"dense\" or \"sparse\" or \"finetune\", got 'warm-up'"),
        ({"lr": math.nan}, r"expected lr of 0 or more, got nan"),
        ({"weight_decay": -1e-4}, r"expected weight_decay of 0 or more, got -0.0001"),
        ({"epochs": -1}, r"expected epochs and batches, got -1 epochs"),
        ({"steps_per_epoch": 0}, r"expected epochs and batches, got 4 epochs of 0 batches"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(options, message):
    with pytest.raises(TrainingError, match=message):
        run(tiny(), **options)


@pytest.mark.parametrize(
    ("gpu", "message"), [(False, "torch sees none; use the device"), (True, "this GPU does not compute in bfloat16")]
)
def test_a_gpu_that_is_absent_or_without_bfloat16_is_named(monkeypatch, gpu, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(TrainingError, match=message):
        run(tiny(), device="cuda", precision="bfloat16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.2}, r"another training \(lr was 0.1, now 0.2\)"),
        ({"seed": 3}, r"another training \(seed was 0, now 3\)"),
        ({"phase": "finetune"}, r"another training \(phase was dense, now finetune\)"),
        ({"precision": "bfloat16"}, r"another training \(precision was float32, now bfloat16\)"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(tmp_path, changes, message):
    checkpoint = tmp_path / "dense.safetensors"
    run(tiny(), checkpoint=checkpoint)
    model = tiny()
    before = state(model)
    with pytest.raises(FileError, match=message):
        run(model, checkpoint=checkpoint, **changes)
    assert_bit_identical(state(model), before)
