"""models/: what was run is what its files say, and what was not run can be, on files of the same layout."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import load, numpy_helper
from PIL import Image

from hoyer_export.call import Call
from hoyer_export.data import load_data
from hoyer_export.deploy.accuracy import file_accuracy
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.weight_sizes import torch_macs
from hoyer_export.networks import build_network
from hoyer_export.recipe.reading import load_recipe
from hoyer_export.report.files import read_report
from hoyer_export.run.chain import run_recipe
from hoyer_export.run.inputs import check_budget, look_at_inputs
from hoyer_export.run.job import Job
from hoyer_export.run.progress import Silent
from hoyer_export.run_folder import RunFolder
from hoyer_export.store.widths_file import build_slim

MODELS = Path(__file__).parents[1] / "models"
RUN = sorted(path.parent.name for path in MODELS.glob("*/report.json"))
NOT_RUN = sorted(path.parent.name for path in MODELS.glob("*/recipe.toml") if path.parent.name not in RUN)
SMALL_SIDE = 64
"""AlexNet needs 63 pixels."""


def test_every_folder_is_one_of_the_two() -> None:
    assert sorted(path.name for path in MODELS.iterdir() if path.is_dir()) == sorted([*RUN, *NOT_RUN])
    assert {"lenet5-mnist", "resnet20-digits"} <= set(RUN)


@pytest.mark.parametrize("name", RUN)
def test_a_file_has_the_macs_and_widths_that_are_claimed(name: str) -> None:
    folder = MODELS / name
    report, file = read_report(folder).slim.file, folder / "slim.onnx"
    assert file.stat().st_size == report.size_bytes <= 2**22
    counted = count_macs(file)
    assert counted.macs == report.macs
    recipe, (channels, *size) = load_recipe(folder / "recipe.toml"), count_shape(file)
    built = build_slim(
        folder / "widths.json", recipe.network.name, in_channels=channels, classes=10, input_shape=(channels, *size)
    ).model.eval()
    assert torch_macs(built, Call.of(built, torch.zeros(2, channels, *size))).distinct == counted.macs
    budget = read_report(folder).budget
    assert budget.met
    assert counted.macs <= budget.asked.get("macs", 1) * read_report(folder).dense.file.macs


def count_shape(file: Path) -> tuple[int, ...]:
    return tuple(it.dim_value for it in load(file).graph.input[0].type.tensor_type.shape.dim)[1:]


@pytest.mark.parametrize("name", RUN)
def test_a_file_has_the_accuracy_that_is_claimed(name: str) -> None:
    table = load_recipe(MODELS / name / "recipe.toml").data
    assert table is not None
    root = os.environ.get("HOYER_EXPORT_DATA")
    if root is None and table.name != "digits":
        pytest.skip(f"set HOYER_EXPORT_DATA to a folder that holds {table.name}")
    data = load_data(table.name, root=root and Path(root), mean=table.mean, std=table.std)
    claimed = read_report(MODELS / name).artifact("slim").verified.onnx_accuracy
    assert file_accuracy(MODELS / name / "slim.onnx", data.test.batches) == pytest.approx(claimed, abs=0.011)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's layout, four classes of it, CIFAR-10's and MNIST's, of noise."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for name in ("n01440764", "n01443537", "n01484850", "n01491361"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (80, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.JPEG")
    batches = root / "cifar-10-batches-bin"
    batches.mkdir()
    records = random.integers(0, 256, (10_000, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(10_000) % 10
    for batch in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        if batch == "data_batch_1":
            (batches / f"{batch}.bin").write_bytes(records.tobytes())
        else:
            os.link(batches / "data_batch_1.bin", batches / f"{batch}.bin")  # one copy on disk is enough
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 240), ("t10k", 20)):
        pixels, labels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
            (raw / f"{split}-{kind}-ubyte").write_bytes(head + array.tobytes())
    return root


def small(name: str, root: Path, folder: Path, *changed: str) -> Job:
    """Return a job for a recipe, on generated images and from random weights."""
    network = load_recipe(MODELS / name / "recipe.toml").network.name
    weights = folder / "dense.pth"
    torch.manual_seed(0)
    torch.save(build_network(network).state_dict(), weights)
    sets = [f"data.root={root}", f"dense.weights={weights}", *changed]
    if network.startswith("torchvision:"):
        sets += [f"data.image_size={SMALL_SIDE}", "network.classes=1000", "data.workers=0", "data.validation=0.25"]
    return Job(load_recipe(MODELS / name / "recipe.toml", sets), RunFolder(folder / "run"), Silent())


@pytest.mark.parametrize("name", NOT_RUN)
def test_a_recipe_that_was_not_run_loads_its_data_and_can_reach_its_budget(
    name: str, images: Path, tmp_path: Path
) -> None:
    job = small(name, images, tmp_path)
    job.folder.path.mkdir()
    found = look_at_inputs(job)
    assert found.images.train > found.images.validation > 0
    least = check_budget(job)
    assert least is not None
    assert least < 0.9 * float(next(iter(job.recipe.cut.asked().values())))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NOT_RUN if name.endswith("imagenet")])
def test_a_recipe_that_was_not_run_comes_to_its_end(name: str, images: Path, tmp_path: Path) -> None:
    job = small(name, images, tmp_path, "train.epochs=1", "train.warmup=0", "train.batch_size=8", "bench.min_seconds=0")
    report = run_recipe(job.recipe, job.folder.path, progress=Silent())
    assert report.verify.passed
    (asked,) = job.recipe.cut.asked().items()
    left, dense = (getattr(it.file, asked[0]) for it in (report.slim, report.dense))
    assert left <= float(asked[1]) * dense
    assert all(np.isfinite(numpy_helper.to_array(it)).all() for it in load(job.folder.slim_onnx).graph.initializer)
