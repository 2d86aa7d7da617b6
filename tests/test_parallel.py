"""Two processes train as one does on the same batches, and where one dies all end with one line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from parallel_worker import IMAGES, network, split, trained
from torch import Tensor

from hoyer_export import parallel
from hoyer_export.errors import TrainingError
from hoyer_export.sparsify.checkpoint import epochs_done
from hoyer_export.sparsify.phase import TrainSettings
from hoyer_export.sparsify.training import train

NETWORK = """
from torch import nn


def tiny_network():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
"""
HERE = Path(__file__).parent
RECIPE = """
threads = 1
network = { name = "tiny_network:tiny_network" }
data = { name = "digits" }
dense = { epochs = 3, batch_size = 50, lr = 0.01 }
sparse = { epochs = 0 }
cut = { macs = 0.9, align = 1 }
finetune = { epochs = 0 }
bench = { min_seconds = 0 }
"""


def environment(**more: str) -> dict[str, str]:
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where two processes have left what came out, with the variables that torchrun sets."""
    place = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = [
        subprocess.Popen(
            [sys.executable, HERE / "parallel_worker.py", place],
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in (0, 1)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    return place


def of(folder: Path, rank: int) -> dict[str, Tensor]:
    return torch.load(folder / f"of_{rank}.pt", weights_only=True)


@pytest.mark.parametrize("kind", ["weights", "function"])
def test_two_processes_train_as_one_does(folder: Path, kind: str) -> None:
    weights, losses, regulariser = trained(kind)
    found = of(folder, 0)
    for name, tensor in weights.items():
        torch.testing.assert_close(found[f"{kind}/{name}"], tensor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[f"{kind}/losses"], torch.tensor(losses, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    for name, norms in regulariser.norms().items():
        torch.testing.assert_close(found[f"{kind}/norms/{name}"], norms, rtol=1e-4, atol=1e-6)


def test_both_have_the_same_bits_and_the_same_dead_channels(folder: Path) -> None:
    one, other = of(folder, 0), of(folder, 1)
    assert all(torch.equal(one[name], other[name]) for name in one if name != "own")
    assert any(bool(one[name].any()) for name in one if "/dead/" in name)
    assert "norm/1.running_mean" in one  # of the first's images, and handed to the other


def test_one_alone_goes_on_where_two_were_broken_off(folder: Path) -> None:
    assert epochs_done(folder / "weights.safetensors") == 2
    unbroken, losses, _ = trained("weights")
    weights, same, _ = trained("weights", folder)
    assert epochs_done(folder / "weights.safetensors") == 3
    assert same[:6] == of(folder, 0)["weights/losses"].tolist()[:6]
    assert same == pytest.approx(losses, rel=1e-4)
    for name, tensor in unbroken.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)


def test_batches_are_shared_by_epoch_and_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [labels for _, labels in split().batches(14, epoch=3, shuffle=True)]
    monkeypatch.setattr(parallel, "size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        parts.append([labels for _, labels in split().batches(14, epoch=3, shuffle=True, shared=True)])
    for batch, one, other in zip(whole[:-1], *(part[:-1] for part in parts), strict=True):
        assert torch.equal(torch.stack([one, other], 1).flatten(), batch)
    assert torch.equal(parts[0][-1], whole[-1])  # three images: too few to share, so both take all of them
    assert torch.equal(parts[1][-1], whole[-1])
    assert sum(map(len, whole)) == IMAGES


def test_the_rows_of_an_own_loader_are_shared(folder: Path) -> None:
    one, other = of(folder, 0)["own"].tolist(), of(folder, 1)["own"].tolist()
    assert (len(one), len(other)) == (6, 6)
    assert sorted(one + other) == list(range(12))
    assert one != sorted(one)


def test_batch_norms_cannot_be_synchronised_on_a_cpu() -> None:
    settings = TrainSettings(phase="dense", steps_per_epoch=1, epochs=1, lr=0.1, sync_batch_norm=True)
    with pytest.raises(TrainingError, match=r"^sync_batch_norm: torch has it for GPUs alone; leave it out"):
        train(network(norm=True), lambda epoch: [], settings)


@pytest.mark.parametrize("count", ["2", "two"])
def test_half_of_what_torchrun_sets_is_one_line(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", count)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(TrainingError, match=rf"^WORLD_SIZE is {count}, and RANK is not set; expected both"):
        parallel.expected()


def test_a_process_that_dies_ends_all_with_one_line_and_two_finish(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("epochs = 3", "epochs = 3000"))
    (tmp_path / "tiny_network.py").write_text(NETWORK)
    command = [sys.executable, "-m", "hoyer_export", "run", "recipe.toml", "--out", "run"]
    command += ["--allow-import", "tiny_network"]
    first = subprocess.Popen([*command, "--devices", "2"], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
    try:
        metrics = tmp_path / "run/metrics.jsonl"
        for _ in range(600):
            if first.poll() is not None or (metrics.exists() and len(metrics.read_text().splitlines()) >= 2):
                break
            time.sleep(0.1)
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
        if not children.exists():
            pytest.skip("this system does not say whose child a process is")
        (child,) = children.read_text().split()
        os.kill(int(child), signal.SIGKILL)
        errors = first.communicate(timeout=60)[1].decode().splitlines()
    finally:
        first.kill()
    said = "error: process 1 of the 2 was killed by signal 9; go on with the same command and --resume"
    assert first.returncode == 1
    assert [line for line in errors if "error" in line.lower()] == [errors[-1]]
    assert errors[-1].startswith(said)
    done = len(metrics.read_text().splitlines())
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("epochs = 3", f"epochs = {done + 1}"))
    again = [*command, "--redo-from", "dense"]
    subprocess.run([*again, "--devices", "2"], cwd=tmp_path, env=environment(), check=True, capture_output=True)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(done + 1))
    assert (tmp_path / "run/report.json").exists()
