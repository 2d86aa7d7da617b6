"""The whole chain on the digits with a small network: every file, the budget, resuming, and refusing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from hoyer_export.deploy.macs import count_macs
from hoyer_export.errors import DataError, FileError, HoyerExportError, NetworkError, RecipeError
from hoyer_export.recipe.reading import load_recipe
from hoyer_export.recipe.tables import Recipe
from hoyer_export.report.files import read_report
from hoyer_export.report.stage_records import BudgetRecord
from hoyer_export.run import inputs, train
from hoyer_export.run.chain import EXPORT, STAGES, export_run, run_recipe, verify_run
from hoyer_export.run.job import Job
from hoyer_export.run.log import read_log, write_log
from hoyer_export.run.progress import Silent
from hoyer_export.run.reporting import report_run
from hoyer_export.run.stage import record_of
from hoyer_export.run_folder import RunFolder
from hoyer_export.sparsify.phase import EpochRecord
from hoyer_export.store.slim_file import load_slim

NETWORK = """
from torch import nn

def small(in_channels=1, classes=10):
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes),
    )

def nothing_to_prune(in_channels=1, classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

class Net(nn.Module):
    def __init__(self, *more):
        super().__init__()
        self.a, self.more, self.fc = nn.Conv2d(1, 8, 3), nn.Sequential(*more), nn.Linear(8, 10)

    def forward(self, x):
        hidden = len(range(self.a.out_channels))  # Python makes a plain int of it, and nobody sees what for
        return self.fc(self.more(self.a(x) * hidden).mean((2, 3)))

def width_in_the_code():
    return Net(nn.Conv2d(8, 8, 3))

def only_width_in_the_code():
    return Net()

def flat(in_channels=1, classes=10):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, classes))


def eleven_outputs():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 11), nn.Unflatten(1, (1, 11)))
"""
RECIPE = """
[network]
name = "tiny_nets:small"
[data]
name = "digits"
validation = 0.2
[dense]
epochs = 3
lr = 0.1
[sparse]
epochs = 2
strength = 5e-3
[cut]
macs = 0.5
align = 4
[finetune]
epochs = 2
[bench]
min_seconds = 0.2
"""
DENSE_MACS = 64 * 8 * 9 + 16 * 16 * 8 * 9 + 16 * 10
FILES = {
    *(
        "recipe.toml",
        "metrics.jsonl",
        "stages.json",
        "channels.json",
        "dense.safetensors",
        "sparse.safetensors",
        "slim.safetensors",
    ),
    *(
        "widths.json",
        "dense.onnx",
        "slim.onnx",
        "report.json",
        "report.html",
        "card.md",
        "headline.svg",
        "headline.png",
    ),
}
# What depends on the clock and the machine.


class Stop(Exception):
    """Stands for a power cut."""


class StopAfter(Silent):
    """Cuts the power after an epoch, or when a stage begins."""

    def __init__(self, *, epoch: tuple[str, int] | None = None, headline: str | None = None) -> None:
        self._epoch = epoch
        self._headline = headline

    def epoch(self, epoch: EpochRecord, epochs: int) -> None:
        if (epoch.phase, epoch.epoch) == self._epoch:
            raise Stop

    def headline(self, text: str) -> None:
        if self._headline is not None and text.startswith(self._headline):
            raise Stop


class Listening(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def headline(self, text: str) -> None:
        self.said.append(text)

    def note(self, text: str) -> None:
        self.said.append(text)


class ListeningUntil(Listening):
    """Remembers what it was told until a stage begins."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def headline(self, text: str) -> None:
        super().headline(text)
        if text.startswith(self._stage):
            raise Stop


class StopAtDense(Silent):
    """Passes on what is said until the first training begins."""

    def __init__(self, listening: Listening) -> None:
        self._listening = listening

    def headline(self, text: str) -> None:
        if text.startswith("dense"):
            raise Stop

    def note(self, text: str) -> None:
        self._listening.note(text)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory):
    """A folder with a user's own network and recipe; one CPU thread, as bit-identity needs."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "tiny_nets.py").write_text(NETWORK)
    (folder / "recipe.toml").write_text(RECIPE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    torch.set_num_threads(threads)


Runner = Callable[..., Path]


@pytest.fixture(scope="module")
def run(home: Path) -> Runner:
    """Return a function that runs the recipe into a folder: (out, *overrides, progress, resume)."""

    def run(out: Path, *overrides: str, progress: Silent | None = None, resume: bool = False) -> Path:
        run_recipe(
            recipe(home, *overrides),
            out,
            resume=resume,
            allow_import=["tiny_nets"],
            progress=progress or Silent(),
        )
        return out

    return run


def recipe(home: Path, *overrides: str) -> Recipe:
    return load_recipe(home / "recipe.toml", overrides)


@pytest.fixture(scope="module")
def finished(home: Path, run: Runner) -> Path:
    """One unbroken run; nobody changes it."""
    return run(home / "finished")


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the unbroken run."""
    shutil.copytree(finished, tmp_path / "copied")
    return tmp_path / "copied"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def slim_content(folder: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the metadata and tensors of slim.safetensors; the order of the former is not fixed."""
    with safe_open(folder / "slim.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        return file.metadata(), {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def unmeasured(folder: Path) -> dict[str, object]:
    """Return the report without what was measured: times and the machine."""
    found = json.loads((folder / "report.json").read_text())
    del found["bench"], found["created"], found["inputs"]["settled"]
    for stage in (*found["training"].values(), *(found[name] for name in ("cut", "export", "verify"))):
        del stage["seconds"]
    return found


def test_a_run_leaves_exactly_the_files_of_the_contract(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES


def test_the_budget_holds_for_the_exported_graphs(finished: Path) -> None:
    dense, slim = count_macs(finished / "dense.onnx").macs, count_macs(finished / "slim.onnx").macs
    assert dense == DENSE_MACS
    assert slim <= 0.5 * dense
    report = read_report(finished)
    assert (report.dense.file.macs, report.slim.file.macs) == (dense, slim)
    assert report.budget == BudgetRecord(asked={"macs": 0.5}, met=True, reached={"macs": slim / dense})
    assert report.passed


def test_widths_and_weights_and_onnx_tell_the_same_story(finished: Path, home: Path) -> None:
    import tiny_nets

    keep = json.loads((finished / "widths.json").read_text())
    slim = load_slim(finished / "slim.safetensors", into=tiny_nets.small()).model
    assert {name: len(indices) for name, indices in keep.items()} == {
        "0": slim[0].out_channels,
        "3": slim[3].out_channels,
    }
    assert all(len(indices) % 4 == 0 for indices in keep.values())
    widths = {row.group: row.slim for row in read_report(finished).cut.widths}
    assert widths == {name: len(indices) for name, indices in keep.items()}
    params = sum(parameter.numel() for parameter in slim.parameters())
    assert read_report(finished).slim.file.params == params


def test_metrics_hold_one_line_an_epoch(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    phases = [("dense", 0), ("dense", 1), ("dense", 2), ("sparse", 0), ("sparse", 1), ("finetune", 0), ("finetune", 1)]
    assert [(line["phase"], line["epoch"]) for line in lines] == phases
    assert all((line["penalty"] is not None) == (line["phase"] == "sparse") for line in lines)


def test_the_recipe_in_the_folder_holds_what_was_in_force(finished: Path, home: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # The digits' own: no augmentation, 8×8 pixels; mean and deviation as the exported file has them.
    normal = read_report(finished).inputs
    in_force = [f"device={device}", "threads=1", "data.augment=false", "data.image_size=8"]
    in_force += [f"data.{key}={list(getattr(normal, key))}" for key in ("mean", "std")]
    resolved = load_recipe(finished / "recipe.toml")
    assert resolved == recipe(home, *in_force)
    assert read_report(finished).recipe == resolved.model_dump(mode="json", exclude_none=True)


def test_the_resolved_recipe_alone_makes_the_same_run_again(finished: Path, tmp_path: Path) -> None:
    again = load_recipe(finished / "recipe.toml")
    out = tmp_path / "again"
    torch.set_num_threads(2)  # not the number that was in force; the recipe says which
    try:
        run_recipe(again, out, allow_import=["tiny_nets"], progress=Silent())
    finally:
        torch.set_num_threads(1)
    assert (out / "recipe.toml").read_bytes() == (finished / "recipe.toml").read_bytes()
    for name in ("dense.safetensors", "sparse.safetensors", "slim.onnx", "widths.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name
    assert unmeasured(finished) == unmeasured(out)


def test_what_a_known_network_is_built_with_is_in_the_resolved_recipe(home: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(inputs, "proved_channels", lambda *_: None)
    monkeypatch.setattr(inputs, "write_channels", lambda *_: None)
    job = Job(recipe(home, "network.name=cifar_resnet20"), RunFolder(home), Silent())
    inputs.look_at_inputs(job)
    assert (job.recipe.network.in_channels, job.recipe.network.classes) == (1, 10)


def test_resume_takes_the_recipe_as_given_and_as_resolved_and_none_that_opens_what_was_set(
    run: Runner, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        run(out, "data.augment=true", progress=StopAfter(epoch=("dense", 0)))
    given, written = recipe(home, "data.augment=true"), load_recipe(out / "recipe.toml")
    assert given != written
    for again in (given, written):
        with pytest.raises(Stop):
            run_recipe(again, out, resume=True, allow_import=["tiny_nets"], progress=StopAfter(epoch=("dense", 1)))
    with pytest.raises(RecipeError, match=r"a run with data\.augment: true → null, and dense is trained"):
        run(out, resume=True)
    with pytest.raises(RecipeError, match=r"a run with data\.image_size: 8 → 9, and dense is trained"):
        run(out, "data.augment=true", "data.image_size=9", resume=True)


def test_a_run_that_ended_before_it_wrote_down_what_it_is_begins_anew(
    run: Runner, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(inputs, "check_export", lambda job: None)
    out = tmp_path / "out"
    with pytest.raises(Stop):
        run(out, progress=StopAfter(headline="dense"))
    (out / "stages.json").unlink()
    with pytest.raises(Stop):
        run(out, "seed=1", resume=True, progress=StopAfter(headline="dense"))
    assert load_recipe(out / "recipe.toml").seed == 1


def test_a_gpu_that_is_not_there_is_said_before_the_first_file_is_made(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match='device = "cuda", but torch sees no GPU'):
        run(tmp_path / "out", "device=cuda")
    assert list(tmp_path.iterdir()) == []


def test_weights_name_their_network_and_the_file_its_normalisation(finished: Path) -> None:
    with safe_open(finished / "dense.safetensors", "pt") as file:
        assert file.metadata().keys() == {"hoyer_export.network"}
        built = json.loads(file.metadata()["hoyer_export.network"])
    assert built == {"name": "tiny_nets:small", "in_channels": None, "classes": None}
    properties = {entry.key: entry.value for entry in onnx.load(finished / "slim.onnx").metadata_props}
    assert json.loads(properties["hoyer_export.mean"]) == list(read_report(finished).inputs.mean)
    assert json.loads(properties["hoyer_export.std"]) == list(read_report(finished).inputs.std)


@pytest.mark.parametrize(
    ("cut", "standing"),
    [
        ({"epoch": ("dense", 1)}, "dense, epoch 3 of 3"),
        ({"epoch": ("sparse", 0)}, "sparse, epoch 2 of 2"),
        ({"epoch": ("finetune", 0)}, "finetune, epoch 2 of 2"),
        ({"headline": "verify"}, "verify"),
    ],
    ids=str,
)
def test_a_run_that_was_cut_short_says_where_it_goes_on_and_resumes_to_the_same_bits(
    cut: dict[str, object], standing: str, finished: Path, run: Runner, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        run(out, progress=StopAfter(**cut))
    assert not (out / "report.json").exists()
    said = Listening()
    run(out, resume=True, progress=said)
    assert said.said[0] == f"going on with {standing}"
    whole, resumed = contents(finished), contents(out)
    assert resumed.keys() == whole.keys()
    for name in (
        "dense.safetensors",
        "sparse.safetensors",
        "dense.onnx",
        "slim.onnx",
        "widths.json",
    ):
        assert resumed[name] == whole[name], name
    assert slim_content(out) == slim_content(finished)
    without_seconds = [
        [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines.splitlines()]
        for lines in (whole["metrics.jsonl"], resumed["metrics.jsonl"])
    ]
    assert without_seconds[0] == without_seconds[1]
    assert unmeasured(finished) == unmeasured(out)


def test_the_sparse_phase_and_fine_tuning_learn_from_the_dense_network(
    copied: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[tuple[str, float, bool]] = []

    def listen(model, batches, settings, *, teacher, **more):
        dense = load_file(copied / "dense.safetensors")
        same = all(torch.equal(tensor, dense[name]) for name, tensor in teacher.state_dict().items())
        taught.append((settings.phase, settings.distill_weight, same))
        return trained(model, batches, settings, teacher=teacher, **more)

    trained = train.train
    monkeypatch.setattr(train, "train", listen)
    again = recipe(home, "distill.weight=0.7")
    run_recipe(again, copied, redo_from="sparse", allow_import=["tiny_nets"], progress=Silent())
    assert taught == [("sparse", 0.7, True), ("finetune", 0.7, True)]


def test_another_seed_gives_other_bits(finished: Path, run: Runner, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path / "out", "seed=1", progress=StopAfter(headline="sparse"))
    assert (tmp_path / "out" / "dense.safetensors").read_bytes() != (finished / "dense.safetensors").read_bytes()


def test_a_finished_run_is_left_untouched(copied: Path, run: Runner) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    said = Listening()
    run(copied, resume=True, progress=said)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before
    assert said.said == [f"{copied} is finished; nothing to do"]


def test_resume_refuses_another_recipe_and_names_the_difference(copied: Path, run: Runner) -> None:
    before = contents(copied)
    with pytest.raises(
        RecipeError,
        match=r"a run with dense\.lr: 0\.1 → 0\.2, and dense is trained already; give .* or --redo-from dense",
    ):
        run(copied, "dense.lr=0.2", resume=True)
    assert contents(copied) == before


def test_a_run_without_resume_never_enters_a_folder_that_holds_one(copied: Path, run: Runner) -> None:
    before = contents(copied)
    with pytest.raises(FileError, match="already holds a run"):
        run(copied)
    assert contents(copied) == before


def test_a_damaged_checkpoint_is_named_and_nothing_is_changed(run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        run(out, progress=StopAfter(epoch=("dense", 0)))
    checkpoint = out / "checkpoint" / "dense.safetensors"
    for content in (b"\x00" * 100, checkpoint.read_bytes()[:-10]):
        checkpoint.write_bytes(content)
        before = contents(out)
        with pytest.raises(FileError, match=r"checkpoint/dense\.safetensors"):
            run(out, resume=True)
        assert contents(out) == before


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (["network.name=tiny_nets:absent"], NetworkError, "no function 'absent'"),
        (["network.name=os:getcwd"], NetworkError, "--allow-import os"),
        (["network.name=lenet5"], NetworkError, "1×8×8 images of digits"),
        (
            ["network.name=tiny_nets:nothing_to_prune"],
            NetworkError,
            "tiny_nets:nothing_to_prune: nothing in the network can be pruned",
        ),
        (["network.name=tiny_nets:eleven_outputs"], NetworkError, r"logits \[N, 10\].*got \[2, 1, 11\]"),
        (["network.in_channels=3"], DataError, "network.in_channels is 3"),
        (["network.classes=9"], DataError, "network.classes is 9"),
        (["data.name=mnist"], DataError, "needs a root"),
        (["data.name=digit"], DataError, "did you mean 'digits'"),
        (["dense.weights=absent.safetensors"], FileError, "absent.safetensors"),
        (["cut.macs=0.001"], RecipeError, "cut.macs = 0.001 cannot be reached: .* keeps"),
        (["cut.params=0.001"], RecipeError, "cut.params = 0.001 cannot be reached"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_input_is_said_before_the_first_file_is_made(
    overrides: list[str], error: type[HoyerExportError], said: str, run: Runner, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said) as caught:
        run(tmp_path / "out", *overrides)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_test_image_is_said_before_the_first_epoch(run: Runner, tmp_path: Path) -> None:
    root = tmp_path / "images"
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for place in (f"{part}/{name}" for part in ("train", "val", "test") for name in "ab"):
        (root / place).mkdir(parents=True)
        Image.fromarray(pixels).save(root / place / "0.png")
    bad = root / "test" / "b" / "0.png"
    bad.write_bytes(bad.read_bytes()[:-40])
    told = ["network.in_channels=3", "network.classes=2"]
    data = ["data.name=imagefolder", f"data.root={root}", "data.image_size=8"]
    with pytest.raises(DataError, match="cannot read an image of imagefolder: ") as caught:
        run(tmp_path / "out", *data, *told)
    assert str(bad) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_dense_weights_are_where_training_starts_and_the_report_says_so(
    finished: Path, run: Runner, tmp_path: Path
) -> None:
    weights = finished / "dense.safetensors"
    out = run(tmp_path / "out", f"dense.weights={weights}", "dense.epochs=0", "sparse.epochs=0", "finetune.epochs=0")
    assert (out / "dense.safetensors").read_bytes() == weights.read_bytes()
    report = read_report(out)
    assert report.dense.accuracy == read_report(finished).dense.accuracy
    assert report.inputs.validation == "may have been seen in training"
    # The path of the weights was absolute; whose machine it is stays private.
    assert report.recipe["dense"]["weights"] == "dense.safetensors"
    assert str(tmp_path) not in (out / "report.json").read_text()


def test_a_new_head_starts_at_random_and_the_trunk_does_not(finished: Path, run: Runner, tmp_path: Path) -> None:
    weights = load_file(finished / "dense.safetensors")
    other = {name: torch.ones(7, *it.shape[1:]) if name.startswith("8.") else it for name, it in weights.items()}
    torch.save({"state_dict": other}, tmp_path / "seven.pth")
    told = [f"dense.weights={tmp_path / 'seven.pth'}", "dense.epochs=1"]
    with pytest.raises(NetworkError, match=r"got 7×16; all but the head fits: .*dense\.new_head = true"):
        run(tmp_path / "out", *told)
    with pytest.raises(Stop):
        run(tmp_path / "out", *told, "dense.new_head=true", "dense.lr=1e-9", progress=StopAfter(headline="sparse"))
    trained = load_file(tmp_path / "out" / "dense.safetensors")
    assert trained["8.weight"].shape == weights["8.weight"].shape
    assert torch.allclose(trained["0.weight"], weights["0.weight"])
    assert not torch.allclose(trained["8.weight"], weights["8.weight"])


@pytest.mark.parametrize("override", ["cut.params=0.5", "cut.threshold=0.95"])
def test_params_and_thresholds_cut_too(override: str, finished: Path, run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out"
    weights = finished / "sparse.safetensors"
    epochs = ["dense.epochs=0", "sparse.epochs=0", "finetune.epochs=0"]
    with pytest.raises(Stop):
        run(out, f"dense.weights={weights}", *epochs, override, progress=StopAfter(headline="verify"))
    dense, slim = (it.params for it in record_of(EXPORT, RunFolder(out)).artifacts)
    share = slim / dense
    assert share <= 0.5 if "params" in override else share < 1


@pytest.mark.parametrize(
    ("epochs", "strength", "said"),
    [
        (1, 1e-9, ["sparse: 1 epoch, Group-HS, strength 1e-09 (relative)", "Group-HS changed little: "]),
        (1, 0.0, ["sparse: 1 epoch, Group-HS, strength 0 (relative)"]),
        (0, 1e-3, []),
    ],
)
def test_what_group_hs_did_is_said_while_it_trains(
    epochs: int, strength: float, said: list[str], finished: Path, run: Runner, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(inputs, "check_export", lambda job: None)
    monkeypatch.setattr(train, "LITTLE_EFFECT", 0.0)  # however much of this tiny network is effective
    heard = ListeningUntil("cut")
    given = [f"dense.weights={finished / 'dense.safetensors'}", "dense.epochs=0"]
    with pytest.raises(Stop):
        run(tmp_path / "out", *given, f"sparse.epochs={epochs}", f"sparse.strength={strength}", progress=heard)
    about = [line for line in heard.said if "Group-HS" in line]
    assert [line.startswith(start) for line, start in zip(about, said, strict=True)] == [True] * len(said)


def test_a_training_that_diverges_is_said_with_its_phase(run: Runner, tmp_path: Path) -> None:
    with pytest.raises(HoyerExportError, match="dense"):
        run(tmp_path / "out", "dense.lr=1e30", "dense.momentum=0.99")


def test_verify_again_passes_and_a_perturbed_file_fails_and_stays_failed(copied: Path, home: Path) -> None:
    assert verify_run(copied, allow_import=["tiny_nets"], progress=Silent()).passed is True
    model = onnx.load(copied / "slim.onnx")
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, copied / "slim.onnx")
    for _ in range(2):  # a rejected file is judged again under its name
        found = verify_run(copied, allow_import=["tiny_nets"], progress=Silent())
        assert [(it.name, it.passed, it.departure is None) for it in found.artifacts] == [
            ("dense", True, True),
            ("slim", False, False),
        ]
        assert weight.name in found.artifacts[1].departure
        assert sorted(it.name for it in copied.glob("*.onnx*")) == ["dense.onnx", "slim.onnx.rejected"]
        assert not read_report(copied).passed
        card = (copied / "card.md").read_text(encoding="utf-8")
        assert "slim.onnx: the first node that departs is" in card.replace("\\_", "_")
        assert "it is left as slim.onnx.rejected" in card
    export_run(copied, allow_import=["tiny_nets"], progress=Silent())
    assert verify_run(copied, allow_import=["tiny_nets"], progress=Silent()).passed is True
    assert sorted(it.name for it in copied.glob("*.onnx*")) == ["dense.onnx", "slim.onnx"]


ONE_EPOCH = ("dense.epochs=1", "sparse.epochs=1", "finetune.epochs=1", "bench.min_seconds=0.05")


def test_the_files_have_the_names_that_are_asked_for_and_take_any_size(run: Runner, tmp_path: Path) -> None:
    asked = ('export.input_names=["image"]', 'export.output_names=["scores"]', "export.dynamic_size=true")
    out = run(tmp_path / "out", *ONE_EPOCH, *asked)
    for name in ("dense", "slim"):
        graph = onnx.load(out / f"{name}.onnx").graph
        assert ([it.name for it in graph.input], [it.name for it in graph.output]) == (["image"], ["scores"])
        assert [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim] == ["batch", "", "height", "width"]
    report = read_report(out)
    assert (report.verify.passed, report.dense.file.macs, len(report.bench.artifacts)) == (True, DENSE_MACS, 2)
    heard = ListeningUntil("dense")
    for key, said in (
        ('export.output_names=["a", "b"]', "output_names"),
        ("export.dynamic_size=true", "larger images"),
    ):
        with pytest.raises(NetworkError, match=said):  # before anything is trained
            run(tmp_path / "wrong", *ONE_EPOCH, 'network.name="tiny_nets:flat"', key, progress=heard)


def test_a_file_that_tells_its_client_another_mean_fails(copied: Path) -> None:
    model = onnx.load(copied / "slim.onnx")
    [mean] = [entry for entry in model.metadata_props if entry.key == "hoyer_export.mean"]
    mean.value = "[0.9]"
    onnx.save(model, copied / "slim.onnx")
    slim = verify_run(copied, allow_import=["tiny_nets"], progress=Silent()).artifacts[1]
    failed = [(it.name, it.value) for it in slim.checks if not it.passed]
    assert (slim.passed, failed) == (False, [("preprocessing in the file", 1)])


def test_a_run_that_loses_too_much_fails_at_its_gate_and_nothing_but_the_report_is_made_again(
    copied: Path, run: Runner
) -> None:
    before = read_report(copied)
    assert (before.gate.passed, before.gate.limits) == (True, ())
    said = Listening()
    limits = {"max_macs": 1.0, "max_latency": 1000.0, "max_accuracy_drop": 0.0, "max_bytes": 1e-6}
    run(copied, *(f"gate.{key}={value}" for key, value in limits.items()), resume=True, progress=said)
    assert said.said[0].endswith("report is done again; all else stays")
    found = read_report(copied)
    lost = before.dense.verified.onnx_accuracy - before.slim.verified.onnx_accuracy
    by_name = {it.name: it for it in found.gate.limits}
    assert by_name["max_accuracy_drop"].reached == lost
    assert {name: it.passed for name, it in by_name.items()} == {
        "max_macs": True,
        "max_bytes": False,
        "max_latency": True,
        "max_accuracy_drop": lost <= 0,
    }
    assert found.gate.passed is False
    for name in ("card.md", "report.html"):
        text = (copied / name).read_text(encoding="utf-8")
        assert "Gate failed:" in text
        assert "of dense, at most 0.0 %: FAILED" in text


def test_a_truncated_onnx_file_is_named_and_loses_no_record(copied: Path, home: Path) -> None:
    path = copied / "slim.onnx"
    before = read_log(RunFolder(copied))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match=r"slim\.onnx"):
        verify_run(copied, allow_import=["tiny_nets"], progress=Silent())
    assert read_log(RunFolder(copied)) == before


def test_another_bench_is_done_again_and_all_else_stays(copied: Path, run: Runner) -> None:
    before, said = contents(copied), Listening()
    run(copied, "bench.batch_size=2", resume=True, progress=said)
    assert said.said[0] == "bench.batch_size changed: bench and report are done again; all else stays"
    assert [
        line for line in said.said if line.startswith(("dense", "sparse", "cut", "fine-tune", "export", "verify"))
    ] == []
    assert read_report(copied).bench.batch_size == 2
    changed = {name for name, content in contents(copied).items() if content != before.get(name)}
    assert changed == {
        "recipe.toml",
        "stages.json",
        "report.json",
        "report.html",
        "card.md",
        "headline.svg",
        "headline.png",
    }


def test_another_budget_trains_the_slim_network_again_only_where_that_is_asked_for(
    copied: Path, run: Runner, home: Path, tmp_path: Path
) -> None:
    before = contents(copied)
    with pytest.raises(RecipeError, match=r"cut\.macs: 0\.5 → 0\.3, and finetune is trained .* --redo-from finetune$"):
        run(copied, "cut.macs=0.3", resume=True)
    assert contents(copied) == before
    again = recipe(home, "cut.macs=0.3")
    said = Listening()
    run_recipe(again, copied, redo_from="finetune", allow_import=["tiny_nets"], progress=said)
    first = "cut.macs changed: check, cut, finetune, export, verify, bench and report are done again; all else stays"
    assert said.said[0] == first
    for name in ("dense.safetensors", "sparse.safetensors"):
        assert (copied / name).read_bytes() == before[name]
    assert read_report(copied).slim.file.macs <= 0.3 * DENSE_MACS
    # It is what a run with that budget would have made.
    run_recipe(again, tmp_path / "other", allow_import=["tiny_nets"], progress=Silent())
    for name in ("slim.safetensors", "slim.onnx", "widths.json", "recipe.toml"):
        assert (copied / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


def test_a_stage_is_done_again_without_a_change_where_it_is_named(copied: Path, home: Path) -> None:
    before, said = contents(copied), Listening()
    run_recipe(recipe(home), copied, redo_from="finetune", allow_import=["tiny_nets"], progress=said)
    assert said.said[0] == "finetune, export, verify, bench and report are done again; all else stays"
    assert any(line.startswith("cut: ") for line in said.said)  # whose network is kept only until it is fine-tuned
    for name in ("slim.safetensors", "slim.onnx", "widths.json"):
        assert (copied / name).read_bytes() == before[name]
    with pytest.raises(RecipeError, match="--redo-from fine: expected one of inputs, check, dense"):
        run_recipe(recipe(home), copied, redo_from="fine", allow_import=["tiny_nets"], progress=Silent())


def test_a_fine_tuning_of_no_epochs_is_lost_to_nobody(home: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", ("dense.epochs=1", "sparse.epochs=0", "finetune.epochs=0", "cut.align=1")
    for macs, resume in (("0.8", False), ("0.6", True)):
        found = recipe(home, *options, f"cut.macs={macs}")
        run_recipe(found, out, resume=resume, allow_import=["tiny_nets"], progress=(said := Listening()))
    assert said.said[0].startswith("cut.macs changed: check, cut, finetune, export")
    assert read_report(out).slim.file.macs <= 0.6 * DENSE_MACS


def test_another_budget_forgets_the_checkpoint_of_another_fine_tuning(run: Runner, tmp_path: Path, home: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        run(out, progress=StopAfter(epoch=("finetune", 0)))
    assert (out / "checkpoint" / "finetune.safetensors").exists()
    with pytest.raises(RecipeError, match="finetune is trained already"):
        run(out, "cut.macs=0.3", resume=True)
    run_recipe(recipe(home, "cut.macs=0.3"), out, redo_from="finetune", allow_import=["tiny_nets"], progress=Silent())
    assert read_report(out).slim.file.macs <= 0.3 * DENSE_MACS


def test_what_was_settled_is_settled_anew_where_the_run_begins_anew(copied: Path, home: Path) -> None:
    run_recipe(recipe(home), copied, redo_from="inputs", allow_import=["tiny_nets"], progress=Silent())
    run_recipe(recipe(home), copied, resume=True, allow_import=["tiny_nets"], progress=(said := Listening()))
    assert said.said == [f"{copied} is finished; nothing to do"]


@pytest.mark.parametrize(
    ("redo_from", "override"), [("finetune", "cut.macs=0.001"), ("inputs", "dense.weights=absent.safetensors")]
)
def test_a_wrong_value_loses_nothing_of_a_finished_run(redo_from: str, override: str, copied: Path, home: Path) -> None:
    before = contents(copied)
    with pytest.raises(HoyerExportError, match=r"cannot be reached|absent"):
        run_recipe(recipe(home, override), copied, redo_from=redo_from, allow_import=["tiny_nets"], progress=Silent())
    assert contents(copied) == before


def test_what_is_trained_and_gone_is_named_and_not_trained_again(copied: Path, run: Runner, home: Path) -> None:
    (copied / "sparse.safetensors").unlink()
    with pytest.raises(FileError, match=r"sparse\.safetensors is gone, and sparse would have to be trained again"):
        run(copied, "verify.batches=[1]", resume=True)
    (copied / "stages.json").unlink()
    with pytest.raises(FileError, match=r"stages\.json is missing"):
        run(copied, resume=True)


@pytest.mark.parametrize("name", ["report.json", "slim.onnx"])
def test_a_file_of_a_finished_run_that_is_gone_is_made_again(name: str, copied: Path, run: Runner) -> None:
    before = contents(copied)
    (copied / name).unlink()
    run(copied, resume=True)
    assert (copied / name).exists()
    assert name == "report.json" or (copied / name).read_bytes() == before[name]


def test_another_opset_is_exported_without_training(copied: Path, run: Runner) -> None:
    said = Listening()
    run(copied, "export.opset=18", resume=True, progress=said)
    assert (
        said.said[0] == "export.opset changed: check, export, verify, bench and report are done again; all else stays"
    )


def test_a_phase_of_no_epochs_leaves_no_lines_of_an_earlier_one(copied: Path, home: Path) -> None:
    again = recipe(home, "finetune.epochs=0")
    run_recipe(again, copied, redo_from="finetune", allow_import=["tiny_nets"], progress=Silent())
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == {"dense", "sparse"}


def test_every_key_of_a_recipe_is_read_by_one_stage() -> None:
    read = [key for stage in STAGES for key in stage.reads]
    # ``check`` tries out before training what two are for; two phases may be one schedule, and learn from the dense;
    # a file is verified in the runtime in which it is measured. Nothing hangs on who is told of an epoch.
    assert sorted(read) == sorted(
        [
            *(Recipe.model_fields.keys() - {"track"}),
            "cut",
            "export",
            "distill",
            "train",
            "dense.weights",
            "dense.weights_key",
            "dense.new_head",
            "bench.runtime",
        ]
    )
    names = [stage.name for stage in STAGES]
    for at, stage in enumerate(STAGES):
        assert all(names.index(need) < at for need in stage.needs)


def test_the_self_test_and_the_trace_are_not_paid_for_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(inputs, "self_test", never)
    export_run(copied, allow_import=["tiny_nets"], progress=Silent())
    verify_run(copied, allow_import=["tiny_nets"], progress=Silent())


def forget(folder: Path, *stages: str) -> None:
    log = read_log(RunFolder(folder))
    write_log(RunFolder(folder), {name: entry for name, entry in log.items() if name not in stages})


def test_what_the_self_test_refutes_is_said_and_left_whole(run: Runner, tmp_path: Path) -> None:
    said = Listening()
    with pytest.raises(Stop):
        run(tmp_path / "out", "network.name=tiny_nets:width_in_the_code", "cut.macs=0.95", progress=StopAtDense(said))
    assert any(line.startswith("self-test: a is left whole (8 channels)") for line in said.said)
    with pytest.raises(NetworkError, match=r"can be pruned exactly .*refuted by the self-test"):
        run(tmp_path / "other", "network.name=tiny_nets:only_width_in_the_code")
    assert not (tmp_path / "other").exists()


def test_export_again_writes_the_same_bytes_and_forgets_nothing(copied: Path, home: Path) -> None:
    before = contents(copied)
    (copied / "slim.onnx").unlink()
    export_run(copied, allow_import=["tiny_nets"], progress=Silent())
    assert (copied / "slim.onnx").read_bytes() == before["slim.onnx"]
    assert read_log(RunFolder(copied)).keys() == {stage.name for stage in STAGES}


def test_report_again_writes_the_same_report(copied: Path) -> None:
    before = read_report(copied)
    for name in ("report.json", "report.html", "card.md", "headline.svg", "headline.png"):
        (copied / name).unlink()
    report_run(copied)
    after = read_report(copied)
    assert before.model_copy(update={"created": None}) == after.model_copy(update={"created": None})
    assert (copied / "card.md").exists()
    assert (copied / "report.html").exists()


def test_a_stage_that_has_nothing_to_start_from_says_what_to_do(copied: Path) -> None:
    forget(copied, "finetune", "export", "report")
    with pytest.raises(FileError, match="no record of export"):
        report_run(copied)
    for again in (export_run, verify_run):
        with pytest.raises(FileError, match="has not come that far"):
            again(copied, allow_import=["tiny_nets"], progress=Silent())


def test_damaged_records_are_named(copied: Path) -> None:
    stages = json.loads((copied / "stages.json").read_text())
    del stages["verify"]["found"]["artifacts"]
    (copied / "stages.json").write_text(json.dumps(stages))
    with pytest.raises(FileError, match=r"stages\.json is damaged"):
        report_run(copied)
