"""The processes of one run: started here for ``--devices``, or met as torchrun and SLURM have started them.

Nothing here imports torch: the variables say how many there are, and ``parallel.py`` lets them meet.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hoyer_export.errors import HoyerExportError, RecipeError
from hoyer_export.stopping import Interrupted

_PARENT = "HOYER_EXPORT_PARENT"
_LAST_WORDS_S = 3.0
"""How long a process that fails waits for the first one to say it: mostly all fail alike."""

_A_MOMENT_S = 0.3
_STOPPED = 128
"""Above it are the exit codes of who was asked to stop."""


def rank() -> int:
    """Return which process of the run this is; 0 where it is the first, or alone."""
    return int(os.environ.get("RANK", 0))


@contextmanager
def processes(devices: int | None) -> Iterator[None]:
    """Be one of the processes of a run; the first of ``devices`` starts the others, and none outlives it.

    Raises:
        RecipeError: somebody else started processes already.
    """
    _as_torchrun_has_it()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns where it looked for heads and found none
    if os.environ.get(_PARENT):
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
    elif os.environ.get("WORLD_SIZE", "1") != "1" and devices is not None:
        raise RecipeError("--devices starts processes, and torchrun or SLURM has done so; leave it out")
    elif devices is not None and devices > 1:
        with _others(devices):
            yield
        return
    yield


def wait_for_the_first() -> None:
    """Give the first process time to say what is wrong: where it does, this one is ended, and says nothing."""
    if rank():
        time.sleep(_LAST_WORDS_S)


@contextmanager
def _others(count: int) -> Iterator[None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0"}
    os.environ |= shared | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "hoyer_export", *sys.argv[1:]],
            env=os.environ | {"RANK": str(number), "LOCAL_RANK": str(number), _PARENT: "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for number in range(1, count)
    ]
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(children, over), daemon=True)
    watcher.start()
    try:
        yield
    except Interrupted:
        raise
    except HoyerExportError:
        time.sleep(_A_MOMENT_S)
        if any(child.poll() for child in children):  # why it has ended is what counts
            watcher.join()
        raise
    finally:
        over.set()
        for child in children:
            child.kill()
            child.wait()


def _watch(children: list["subprocess.Popen[bytes]"], over: threading.Event) -> None:
    """End the run when a process of it does: the first one may wait for it inside a GPU, where nothing reaches it."""
    while not over.wait(_A_MOMENT_S):
        for number, child in enumerate(children, 1):
            code = child.poll()
            # Control-C reaches all of them: then the first one says so itself, maybe after a step.
            if code and not over.wait(_LAST_WORDS_S if code > _STOPPED else _A_MOMENT_S):
                for other in children:
                    other.kill()
                if code != 1:  # it has said a line of its own then
                    how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                    print(
                        f"error: process {number} of the {len(children) + 1} was {how}; go on with the same command"
                        " and --resume, with as many processes as you like",
                        file=sys.stderr,
                        flush=True,
                    )
                os._exit(1)


def _end_with_the_parent() -> None:
    os.read(0, 1)  # nothing ever comes; sys.stdin has a lock that is in the way when Python ends
    os._exit(1)


def _as_torchrun_has_it() -> None:
    """Say in torchrun's variables what srun says in its own."""
    if "RANK" not in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in os.environ:
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        tasks, here = os.environ["SLURM_NTASKS"], os.environ.get("SLURM_NTASKS_PER_NODE")
        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ |= {
            "RANK": str(slurm.global_rank()), "LOCAL_RANK": str(slurm.local_rank()), "WORLD_SIZE": tasks,
            "LOCAL_WORLD_SIZE": here or tasks, "MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port),
        }  # fmt: skip
