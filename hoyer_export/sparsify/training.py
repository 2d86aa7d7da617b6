"""One phase of training: a model and batches → the same model, trained, and one record an epoch.

SGD with momentum (or Adam, AdamW), half a cosine of learning rate over all steps, cross-entropy (mixed with what a
teacher says, where there is one: ``epoch.task_loss``), and in the sparse phase the gradient of a regulariser, added
after ``backward``. Lightning Fabric's part is where and in which precision the model runs: device placement, bfloat16
autocast, ``backward``. Schedule, checkpoints and random numbers are here.

A training that was broken goes on from the checkpoint of its last whole epoch; one that was asked to stop by a signal
(``stopping.py``) finishes its step, and goes on from there. What is random in an epoch depends on
(seed, phase, epoch) only: the batches that the caller makes, and torch's generators of the CPU and of the device,
which are seeded anew for each epoch (dropout). So the result is the unbroken run's: on one CPU thread of the same
machine, with the same versions, to the last bit.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from hoyer_export import parallel
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import dense_macs
from hoyer_export.errors import TrainingError
from hoyer_export.modes import kept_modes
from hoyer_export.random_state import kept_random_state, seed_generators, set_generator_states
from hoyer_export.sparsify.checkpoint import load_checkpoint, save_checkpoint
from hoyer_export.sparsify.epoch import Batches, Loss, train_epoch
from hoyer_export.sparsify.phase import EpochPart, EpochRecord, PrecisionName, StepProgress, TrainSettings
from hoyer_export.sparsify.regulariser import Regulariser, Setting
from hoyer_export.sparsify.state import TrainState, macs_shares
from hoyer_export.stopping import held_back


def make_optimizer(model: nn.Module, how: TrainSettings) -> torch.optim.Optimizer:
    """Return a new optimizer of ``model`` as the settings say."""
    if how.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=how.lr, weight_decay=how.weight_decay)
    if how.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=how.lr, weight_decay=how.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=how.lr, momentum=how.momentum, weight_decay=how.weight_decay)


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Who is called while a phase trains; by default nobody.

    Args:
        optimizer: makes that of the model, called once; its state is gone on with.
        loss: (outputs, targets) → 0-d, in the place of cross-entropy.
        evaluate: called after each epoch for the validation accuracy in %, or ``metric``, or None.
        metric: what ``evaluate`` returns, where that is no accuracy in %.
        on_epoch: called after each epoch with all records of the phase, the newest last; also once, with those of the
            checkpoint, when a training goes on.
        progress: called after every step on a CPU, every 20th on a GPU.
        shrink: (state, epochs done) → the same state, or that of a smaller network, with its plan: called after each
            epoch, before that is evaluated and kept.
        rebuild: (state of the network that ``train`` was given, plan in the checkpoint) → state of the smaller
            network, with whatever weights: called where a training that has shrunk goes on.
        rest: (epoch, steps done) → the batches that are left of it; where None, those before are made and left out.
    """

    optimizer: Callable[[nn.Module, TrainSettings], torch.optim.Optimizer] = make_optimizer
    loss: Loss | None = None
    evaluate: Callable[[nn.Module], float | None] = lambda model: None
    metric: str | None = None
    on_epoch: Callable[[tuple[EpochRecord, ...]], None] = lambda history: None
    progress: Callable[[StepProgress], None] = lambda step: None
    shrink: Callable[[TrainState, int], TrainState] = lambda state, epochs_done: state
    rebuild: Callable[[TrainState, str], TrainState] | None = None
    rest: Callable[[int, int], Batches] | None = None


@dataclass(frozen=True)
class TrainingRecord:
    """One phase of training.

    Args:
        epochs: all of them, also those that were trained before a break.
        state: what they ended with; its model is the one that ``train`` was given, unless that has shrunk.
    """

    epochs: tuple[EpochRecord, ...]
    state: TrainState = field(compare=False, repr=False)

    @property
    def seconds(self) -> float:
        """Wall time of all epochs."""
        return sum(record.seconds or 0.0 for record in self.epochs)


_NOBODY = Hooks()


def train(
    model: nn.Module,
    batches: Callable[[int], Batches],
    settings: TrainSettings,
    *,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    regulariser: Regulariser | None = None,
    channels: ChannelMap | None = None,
    teacher: nn.Module | None = None,
    hooks: Hooks = _NOBODY,
    checkpoint: Path | None = None,
) -> TrainingRecord:
    """Train ``model`` in place for one phase, all of it in training mode; torch's global generators keep their states.

    Args:
        model: takes images, returns logits [N, classes]; or whatever ``hooks.loss`` takes.
            Its parameters stay the same objects; afterwards it is on
            ``device``, its modules in the modes (train, eval) that they had. A smaller network that ``hooks.shrink``
            puts in its place is another object, in training mode.
        batches: epoch → (images [N, ...], int64 targets [N]), on any device; what it yields depends on the epoch only.
            With ``channels_last`` the first batch of epoch 0 is asked for once more, to try each network on.
        settings: how.
        device: where to train.
        channels_last: use this memory format where the network has 4-d weights and accepts it.
        regulariser: of this very ``model``.
        channels: for the MACs in the records; None: the regulariser's, if there is one.
        teacher: what the network also learns from where ``settings.distill_weight`` is above 0; images → logits. It is
            put into eval mode and on ``device``.
        hooks: who is called meanwhile.
        checkpoint: written after each epoch, and within one that a signal stops, in a folder that exists. If the file
            is there already, training goes on from it; at the last epoch it only loads.

    Raises:
        TrainingError: the loss or a weight is not a finite number (the checkpoint of the epoch before is intact), or
            an argument makes no sense.
        FileError: the checkpoint is damaged, of another training, or cannot be written.
        DataError: another number of batches than ``settings`` say, or a target beyond the network's outputs.
    """
    same = _same(settings, regulariser)
    if regulariser is not None and channels is None:
        channels = regulariser.channels
    if (teacher is None) != (settings.distill_weight == 0):
        raise TrainingError(
            f"expected a teacher if and only if distill_weight is above 0, it is {settings.distill_weight}"
        )
    optimizer = hooks.optimizer(model, settings)
    if settings.epochs == 0:
        return TrainingRecord((), TrainState(model, optimizer, channels, regulariser))
    fabric, alone = (_fabric(torch.device(device), settings.precision, together=it) for it in (True, False))
    if settings.sync_batch_norm and fabric.device.type == "cpu":
        raise TrainingError("sync_batch_norm: torch has it for GPUs alone; leave it out, or train on GPUs")
    history: tuple[EpochRecord, ...] = ()
    part = EpochPart()
    with kept_modes(model), kept_random_state():
        for network in (model,) if teacher is None else (model, teacher.eval()):
            network.to(device)
            if channels_last:
                _to_channels_last(network, batches(0))
        optimizer.load_state_dict(optimizer.state_dict())  # which takes its state to where the parameters are now
        state = TrainState(model, optimizer, channels, regulariser)
        if checkpoint is not None and checkpoint.exists():
            state, history, part = load_checkpoint(checkpoint, state, settings=same, rebuild=hooks.rebuild)
            if history:
                hooks.on_epoch(history)
        if settings.sync_batch_norm and parallel.size() > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(state.model)  # type: ignore[no-untyped-call]
        network = fabric.setup_module(state.model)
        guide = None if teacher is None else alone.setup_module(teacher)
        whole_macs = None if channels is None else dense_macs(channels)
        for epoch in range(len(history), settings.epochs):
            with held_back(parallel.size() == 1):
                started = time.perf_counter() - part.seconds
                seed_generators(_epoch_seed(settings, epoch), fabric.device)
                state.model.train()
                left = _left(batches, hooks, epoch, part, fabric.device)
                trained = train_epoch(
                    state, left, settings, epoch, fabric, hooks.progress, guide, hooks.loss, network, part
                )
                if isinstance(trained, EpochPart):
                    if checkpoint is not None:
                        part = trained.model_copy(update={"seconds": time.perf_counter() - started})
                        save_checkpoint(checkpoint, state, settings=same, history=history, part=part)
                    continue  # which says that somebody asked to stop
                part = EpochPart()
                _share_buffers_(state.model)
                before, state = state, hooks.shrink(state, epoch + 1)
                if state.model is not before.model:
                    network = fabric.setup_module(state.model)
                if state.model is not before.model and state.plan is None:
                    raise TrainingError(
                        "shrink returned another network without a plan, so that no checkpoint can hold it"
                    )
                history = (*history, _measured(trained, state, hooks, whole_macs, started))
                if checkpoint is not None and parallel.rank() == 0:
                    save_checkpoint(checkpoint, state, settings=same, history=history)
                hooks.on_epoch(history)
    return TrainingRecord(history, state)


def _same(settings: TrainSettings, regulariser: Regulariser | None) -> dict[str, Setting]:
    """Return what must be the same for a training to go on; TrainingError where the regulariser is none."""
    same: dict[str, Setting] = asdict(settings)
    for key in ("compile", "sync_batch_norm"):  # checkpoints from before there were such keys go on
        if not same[key]:
            del same[key]
    if settings.class_weights is not None:
        same["class_weights"] = str(settings.class_weights)
    if regulariser is not None:
        if not isinstance(regulariser, Regulariser):
            got = type(regulariser).__name__
            raise TrainingError(f"expected a regulariser, got a {got}: docs/adding-a-regulariser.md says what one has")
        same["regulariser"] = type(regulariser).__name__
        same |= {f"regulariser.{key}": value for key, value in regulariser.settings.items()}
    return same


def _norms(state: TrainState) -> dict[str, Tensor] | None:
    """Return the norms that the regulariser acts on, if it acts on these channels."""
    regulariser = state.regulariser
    return None if regulariser is None or regulariser.channels is not state.channels else regulariser.norms()


def _left(
    batches: Callable[[int], Batches], hooks: Hooks, epoch: int, part: EpochPart, device: torch.device
) -> Batches:
    """Return the batches of an epoch that come after a part of it, with the generators as they were then."""
    if not part.steps:
        return batches(epoch)
    left = iter(batches(epoch) if hooks.rest is None else hooks.rest(epoch, part.steps))
    if hooks.rest is None:
        deque(islice(left, part.steps), maxlen=0)
    set_generator_states(part.generators, device)
    return left


def _measured(
    trained: EpochRecord, state: TrainState, hooks: Hooks, whole_macs: int | None, started: float
) -> EpochRecord:
    """Return the record of an epoch with all that is measured after its last step."""
    accuracy = hooks.evaluate(state.model)
    if accuracy is not None and hooks.metric is None and not 0 <= accuracy <= 100:
        raise TrainingError(f"evaluate: expected an accuracy in %, 0 to 100, got {accuracy}")
    found: dict[str, float | str | None] = {"validation_accuracy": None if accuracy is None else float(accuracy)}
    found["metric"] = hooks.metric
    if state.channels is not None:
        shares = macs_shares(state.channels, state.model, whole_macs, _norms(state))
        found |= {"effective_macs": shares.effective, "alive_macs": shares.alive}
    found["seconds"] = time.perf_counter() - started
    return EpochRecord(**trained.model_dump() | found)


def _share_buffers_(model: nn.Module) -> None:
    """Let all processes go on with the first one's running statistics, which it keeps."""
    if parallel.size() > 1:
        for buffer in model.buffers():
            parallel.of_first(buffer)


def _fabric(device: torch.device, precision: PrecisionName, *, together: bool = False) -> Fabric:
    """Make a Fabric for one device. Plugins instead of names: it then neither looks for a cluster nor says hello.

    Args:
        device: of this process.
        precision: of the forward pass.
        together: gradients become the means over all processes that there are.
    """
    if device.type == "cuda":  # every CPU computes bfloat16, those without the instructions slowly
        if not torch.cuda.is_available():
            raise TrainingError(f'expected a GPU for the device "{device}", torch sees none; use the device "cpu"')
        if precision == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise TrainingError('this GPU does not compute in bfloat16; use the precision "float32"')
        torch.cuda.init()  # type: ignore[no-untyped-call]  # so that its generator has a state to be kept
    mixed = MixedPrecision("bf16-mixed", device.type) if precision == "bfloat16" else Precision()
    if together and parallel.size() > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", parallel.size()))
        if parallel.size() % here:
            raise TrainingError(f"expected as many processes on every machine, got {parallel.size()} with {here} here")
        if device.type == "cuda" and torch.cuda.device_count() < here:
            raise TrainingError(
                f"{here} processes train on this machine, and torch sees {torch.cuda.device_count()} GPUs; start one a"
                " GPU"
            )
        # Heads that only some losses read get no gradient in a step: DDP has to look which.
        fabric = Fabric(
            accelerator=device.type,
            devices=here,
            num_nodes=parallel.size() // here,
            strategy=DDPStrategy(find_unused_parameters=True),
            plugins=[mixed, TorchElasticEnvironment()],
        )
        fabric.launch()
        return fabric
    devices = 1 if device.type == "cpu" else [device.index or 0]
    return Fabric(accelerator=device.type, devices=devices, plugins=[mixed, LightningEnvironment()])


def _to_channels_last(model: nn.Module, batches: Batches) -> None:
    """Use the memory format that convolutions are faster in, unless the network refuses it (``view`` may)."""
    images = next((images for images, _ in batches), None)
    if not isinstance(images, Tensor) or images.ndim != 4:
        return
    model.to(memory_format=torch.channels_last)
    try:
        # The weights decide the format of the activations: the images may come in any.
        with torch.no_grad():
            model.eval()(images[:2].to(next(model.parameters()).device))
    except RuntimeError:
        model.to(memory_format=torch.contiguous_format)


def _epoch_seed(settings: TrainSettings, epoch: int) -> int:
    """Return 63 bits that differ for every epoch of every phase: torch's generator is seeded with them."""
    of_process = f"/{parallel.rank()}" if parallel.rank() else ""
    digest = hashlib.sha256(f"{settings.seed}/{settings.phase}/{epoch}{of_process}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
