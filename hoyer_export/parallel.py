"""Several processes that train one network together: who this one is, and what they say to each other.

torchrun, SLURM or ``run --devices N`` starts them, and they find each other by the variables that torchrun sets. The
first one makes the run. The others hear which stage trains, get the files that it works from, and train along; what
they write is nobody's. While the first does all else they wait, asleep, for as long as it takes.
"""

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, distributed

from hoyer_export.errors import HoyerExportError, TrainingError

_A_WEEK = timedelta(days=7)
_groups: dict[str, Any] = {}
"""The group in which the first calls the others; its own, because of how long they wait there."""


def rank() -> int:
    """Return which process this is; 0 is the first."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def size() -> int:
    """Return how many processes train together; 1: this one alone."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def local_rank() -> int:
    """Return which of this machine's processes this is: it has the GPU of this number."""
    return int(os.environ.get("LOCAL_RANK", 0)) if size() > 1 else 0


def expected() -> int:
    """Return how many processes the environment speaks of; TrainingError where it makes no sense."""
    count = os.environ.get("WORLD_SIZE", "1")
    if not count.isdecimal() or (int(count) > 1 and "RANK" not in os.environ):
        raise TrainingError(
            f"WORLD_SIZE is {count}, and RANK {os.environ.get('RANK', 'is not set')}; expected both as torchrun sets"
            " them, or neither: unset WORLD_SIZE"
        )
    return int(count)


@contextmanager
def together() -> Iterator[None]:
    """Meet the other processes, if the environment speaks of any, and say in one line when one is gone.

    Raises:
        TrainingError: they do not find each other, or one has ended.
    """
    count = expected()
    if count <= 1:
        yield
        return
    try:
        if not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(backend)
        if torch.cuda.is_available() and local_rank() < torch.cuda.device_count():
            torch.cuda.set_device(local_rank())  # or each would also take memory of the first GPU
        _groups["calls"] = distributed.new_group(backend="gloo", timeout=_A_WEEK)
        yield
    except HoyerExportError:
        raise
    except (RuntimeError, ValueError) as error:
        if not isinstance(error, distributed.DistError) and not _speaks_of_peers(error):
            raise
        raise TrainingError(
            f"another of the {count} processes has ended, or cannot be reached; go on with the same command and"
            " --resume, with as many processes as you like"
        ) from error


def _speaks_of_peers(error: Exception) -> bool:
    return any(word in str(error).lower() for word in ("gloo", "nccl", "peer", "tcpstore", "rendezvous", "connection"))


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of the tensors that all processes hold; all get the same bits."""
    if size() > 1:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def of_first(tensor: Tensor) -> Tensor:
    """Return the first process's tensor, to all of them."""
    if size() > 1:
        distributed.broadcast(tensor, 0)
    return tensor


def part(batch: Tensor) -> Tensor:
    """Return this process's part of the images of a batch; all of it where there are too few to share."""
    return batch[rank() :: size()] if len(batch) >= 2 * size() else batch


def call_others(word: str, files: Sequence[Path] = (), folder: Path = Path()) -> None:
    """Tell the other processes what to do, and hand them the files of ``folder`` that it takes."""
    if size() > 1 and rank() == 0:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", strict_timestamps=False) as bundle:
            bundle.comment = word.encode()
            for file in files:
                bundle.write(file, file.relative_to(folder))
        data = torch.frombuffer(bytearray(packed.getvalue()), dtype=torch.uint8)
        for tensor in (torch.tensor(len(data)), data):
            distributed.broadcast(tensor, 0, group=_groups["calls"])


@contextmanager
def called() -> Iterator[tuple[str, Path]]:
    """Wait for the first process, and yield what it says and a folder with the files that belong to it."""
    length = torch.tensor(0)
    distributed.broadcast(length, 0, group=_groups["calls"])
    data = torch.empty(int(length), dtype=torch.uint8)
    distributed.broadcast(data, 0, group=_groups["calls"])
    with TemporaryDirectory() as place, zipfile.ZipFile(io.BytesIO(data.numpy().tobytes())) as bundle:
        bundle.extractall(place)
        yield bundle.comment.decode(), Path(place)
