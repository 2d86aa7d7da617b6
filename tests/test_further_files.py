"""A run that ships every file there is: each verified, measured where onnxruntime runs it, reported, and made again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from hoyer_export.errors import RecipeError
from hoyer_export.recipe.reading import make_recipe
from hoyer_export.report.files import read_report
from hoyer_export.report.further import withheld
from hoyer_export.report.hub import write_hub_folder
from hoyer_export.report.report import Report
from hoyer_export.run.chain import cut_network, run_recipe, verify_run
from hoyer_export.run.progress import Silent

NETWORK = """
from torch import nn

def small(in_channels=1, classes=10):
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, classes),
    )
"""
ALL = {"fp16": True, "int8": True, "preprocess": True, "pt2": True}
NOTHING = {"epochs": 0}
FILES = ["slim-fp16.onnx", "slim-int8.onnx", "slim-preprocess.onnx", "slim.pt2"]


def tables(**more: object) -> dict[str, object]:
    return {
        "network": {"name": "tiny_further:small"},
        "data": {"name": "digits"},
        "threads": 1,
        "dense": {"epochs": 3, "lr": 0.05},
        "sparse": NOTHING,
        "finetune": {"epochs": 1},
        "cut": {"macs": 0.7, "align": 4},
        "export": ALL,
        "bench": {"min_seconds": 0.1},
    } | more


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, exported_once: dict[str, bytes]):
    home = tmp_path_factory.mktemp("further")
    (home / "tiny_further.py").write_text(NETWORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home)
        yield home


@pytest.fixture(scope="module")
def run(home: Path) -> tuple[Path, Report]:
    recipe = make_recipe(tables())
    return home / "run", run_recipe(recipe, home / "run", allow_import=["tiny_further"], progress=Silent())


def test_every_file_is_verified_measured_and_reported(run: tuple[Path, Report]) -> None:
    folder, report = run
    assert [it.file.file for it in report.artifacts] == ["dense.onnx", "slim.onnx", *FILES]
    assert report.passed
    assert [it.file.name for it in report.artifacts if it.latency is None] == ["slim-pt2"]
    assert len({it.file.macs for it in report.artifacts[1:]}) == 1
    kept_back = withheld(report)
    for it in report.artifacts:
        rejected = ".rejected" if it.file.name in kept_back else ""
        assert (folder / (it.file.file + rejected)).stat().st_size == it.file.size_bytes
    assert kept_back.keys() <= {"slim-int8"}
    int8, slim = report.artifact("slim-int8"), report.slim
    assert int8.accuracy == int8.verified.onnx_accuracy
    assert abs(int8.accuracy - slim.accuracy) < 3
    assert [it.images for it in int8.verified.by_class] == [it.images for it in slim.verified.by_class]
    for name in ("card.md", "report.html"):
        text = (folder / name).read_text(encoding="utf-8")
        assert all(file in text for file in FILES)


def test_a_folder_for_the_hub_has_what_is_shipped(run: tuple[Path, Report], tmp_path: Path) -> None:
    folder, report = run
    write_hub_folder(folder, report, tmp_path / "hub")
    shipped = {it.file.file for it in report.artifacts if it.file.name not in withheld(report)} - {"dense.onnx"}
    assert {path.name for path in (tmp_path / "hub").iterdir() if path.name.startswith("slim")} == {
        *shipped,
        "slim.safetensors",
    }


def test_the_file_with_preprocessing_takes_pictures(run: tuple[Path, Report]) -> None:
    folder, report = run
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    (logits,) = onnxruntime.InferenceSession(folder / "slim-preprocess.onnx").run(None, {"images": pictures})
    prepared = (pictures.transpose(0, 3, 1, 2) / 255 - report.inputs.mean[0]) / report.inputs.std[0]
    slim = onnxruntime.InferenceSession(folder / "slim.onnx")
    assert np.allclose(logits, slim.run(None, {"input": prepared.astype("f")})[0], atol=1e-5)
    facts = {it.key: it.value for it in onnx.load(folder / "slim-preprocess.onnx").metadata_props}
    assert facts["hoyer_export.inside"] == "mean, std"
    assert json.loads(facts["hoyer_export.inputs"]) == {"images": [8, 8, 1]}
    assert "hoyer_export.mean" not in facts


def test_a_file_names_the_versions_that_made_it(run: tuple[Path, Report], call) -> None:
    for name in ("slim.onnx", "slim-preprocess.onnx", "slim-fp16.onnx"):
        code, out, _ = call("info", run[0] / name, "--json")
        made = json.loads(json.loads(out)["metadata"]["hoyer_export.versions"])
        assert code == 0
        assert made["torch"] == torch.__version__.partition("+")[0]
        assert {"python", "onnx", "onnxruntime", "hoyer-export"} <= made.keys()
    assert "hoyer_export.versions = {" in call("info", run[0] / "slim.onnx")[1]


def test_verified_again_all_is_written_again_and_has_the_same_bytes(run: tuple[Path, Report]) -> None:
    folder, _ = run
    names = sorted(file.name for file in folder.iterdir())
    found = verify_run(folder, allow_import=["tiny_further"], progress=Silent())
    assert found.passed
    assert sorted(file.name for file in folder.iterdir()) == names
    program = folder / "slim.pt2"
    program.write_bytes(program.read_bytes() + b"!")
    found = verify_run(folder, allow_import=["tiny_further"], progress=Silent())
    assert [it.name for it in found.artifacts if not it.passed] == ["slim-pt2"]
    assert (folder / "slim.pt2.rejected").exists()
    assert not program.exists()
    assert not read_report(folder).passed


def test_what_is_asked_for_no_longer_goes(run: tuple[Path, Report]) -> None:
    folder, _ = run
    recipe = make_recipe(tables(export={"fp16": True}))
    report = run_recipe(recipe, folder, resume=True, allow_import=["tiny_further"], progress=Silent())
    assert [it.file.name for it in report.artifacts] == ["dense", "slim", "slim-fp16"]
    assert not [file.name for file in folder.iterdir() if file.name.startswith(tuple(FILES[1:]))]


def test_pictures_of_a_folder_are_resized_inside(home: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 4)):
        for label in ("a", "b"):
            (home / "pictures" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (20 + 9 * number, 30, 3), np.uint8)
                Image.fromarray(pixels).resize((90, 40 + 30 * number)).save(
                    home / "pictures" / split / label / f"{number}.png"
                )
    recipe = make_recipe(
        tables(
            network={"name": "tiny_further:small", "in_channels": 3, "classes": 2},
            data={"name": "imagefolder", "root": str(home / "pictures"), "image_size": 16, "validation": 0.4},
            dense=NOTHING | {"weights": "random"},
            finetune=NOTHING,
            export={"preprocess": True},
        )
    )
    report = cut_network(recipe, home / "folder", allow_import=["tiny_further"], progress=Silent())
    made = report.artifact("slim-preprocess")
    levels = {check.name: check.value for check in made.verified.checks}["pictures, levels of 255"]
    assert report.passed
    assert levels <= 2.5
    assert made.verified.onnx_accuracy == made.verified.accuracy == report.slim.accuracy
    picture = home / "pictures" / "val" / "b" / "3.png"
    (logits,) = onnxruntime.InferenceSession(home / "folder" / "slim-preprocess.onnx").run(
        None, {"images": np.asarray(Image.open(picture))[None]}
    )
    client = Path(__file__).parents[1] / "examples" / "02_onnx_client.py"
    commands = [
        [sys.executable, client, home / "folder" / name, picture] for name in ("slim-preprocess.onnx", "slim.onnx")
    ]
    answers = [subprocess.run(command, capture_output=True, check=True).stdout for command in commands]
    assert answers[0] == answers[1]
    assert answers[0].decode().startswith("ab"[logits[0].argmax()])


@pytest.mark.parametrize(
    ("beside", "why"),
    [
        ({"dynamic_size": True}, "leave export.dynamic_size out"),
        ({"input_names": ["images"]}, "has its own images in slim-preprocess.onnx; give another name"),
        ({"output_names": ["prepared"]}, "has its own prepared in slim-preprocess.onnx; give another name"),
    ],
)
def test_what_does_not_go_with_preprocessing_inside_is_refused(beside: dict[str, object], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        make_recipe(tables(export={"preprocess": True} | beside))


@pytest.mark.parametrize("key", ["int8", "preprocess"])
def test_without_images_what_needs_them_is_refused(key: str) -> None:
    nothing = {"dense": NOTHING | {"weights": "random"}, "finetune": NOTHING}
    made = {name: table for name, table in tables(export={key: True}, **nothing).items() if name != "data"}
    with pytest.raises(RecipeError, match=rf"export\.{key} needs \[data\]"):
        make_recipe(made)


MAKES = """
import hashlib, sys
from pathlib import Path
import torch
from torch import nn
from hoyer_export.call import Call
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.half import write_half
from hoyer_export.deploy.pictures import write_pictures
from hoyer_export.deploy.program import write_program
from hoyer_export.deploy.quantise import write_int8
from hoyer_export.preprocessing import Preprocessing

folder = Path(sys.argv[1])
torch.manual_seed(0)
layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(), nn.Flatten(), nn.Linear(8 * 36, 5)
network, images = nn.Sequential(*layers), torch.randn(16, 3, 8, 8)
how = Preprocessing(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, resize="pad", interpolation="bilinear")
export_onnx(network, images, folder / "f.onnx", metadata=how.metadata())
write_half(folder / "f.onnx", folder / "half.onnx")
write_int8(folder / "f.onnx", folder / "int8.onnx", [Call((images,), {})])
write_pictures(folder / "f.onnx", folder / "pictures.onnx", how)
write_program(network, images, folder / "f.pt2", metadata=how.metadata())
for file in sorted(folder.iterdir()):
    print(file.name, hashlib.sha256(file.read_bytes()).hexdigest())
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = []
    for seed in ("1", "2"):  # the order of a set would differ
        (tmp_path / seed).mkdir()
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        running.append(
            subprocess.Popen([sys.executable, "-c", MAKES, tmp_path / seed], stdout=subprocess.PIPE, text=True)
        )
    written = [process.communicate()[0] for process in running]
    assert written[0] == written[1]
    assert len(written[0].splitlines()) == 5
