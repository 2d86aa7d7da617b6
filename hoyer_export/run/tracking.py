"""Where an epoch's numbers go beside metrics.jsonl: TensorBoard, Weights & Biases, by the loggers that Fabric takes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from hoyer_export import parallel
from hoyer_export.errors import RecipeError
from hoyer_export.run_folder import RunFolder
from hoyer_export.sparsify.phase import EpochRecord

NEEDS = {"tensorboard": ("tensorboard",), "wandb": ("wandb", "lightning")}
"""Name of a tracker → the packages of its extra."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise RecipeError where a package that a tracker needs is not installed."""
    for name in names:
        for package in NEEDS[name]:
            if find_spec(package) is None:
                raise RecipeError(f"track: {name} needs {package}; pip install 'hoyer-export[{name}]', or leave it out")


@contextmanager
def trackers(names: Sequence[str], folder: RunFolder) -> Iterator[list[Logger]]:
    """Yield those that are asked for, closed afterwards; none where another process writes."""
    check_trackers(names)
    made = [_made(name, folder) for name in names] if parallel.rank() == 0 else []
    status = "failed"
    try:
        yield made
        status = "success"
    finally:
        for tracker in made:
            tracker.finalize(status)


def track(trackers: Sequence[Logger], epoch: EpochRecord, step: int) -> None:
    """Send the numbers of an epoch, each as ``PHASE/NAME``; ``step`` counts epochs from the start of the run."""
    numbers = epoch.model_dump(exclude={"phase", "epoch", "metric"}, exclude_none=True)
    for tracker in trackers:
        tracker.log_metrics({f"{epoch.phase}/{name}": value for name, value in numbers.items()}, step)


def _made(name: str, folder: RunFolder) -> Logger:
    if name == "tensorboard":
        return TensorBoardLogger(folder.path, name="tensorboard", version="")
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    begun = wandb.run  # one for all phases, and another for another run of this process
    if begun is not None and not Path(begun.dir).resolve().is_relative_to(folder.path.resolve()):
        begun.finish()
        begun = None
    logger: Logger = WandbLogger(name=folder.path.name, save_dir=folder.path, experiment=begun)
    return logger
