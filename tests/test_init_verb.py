"""``init``: what it finds is true, what it writes runs, and nothing that was there is lost."""

import json
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from hoyer_export.networks import build_network
from hoyer_export.recipe.keys import keys_of, table_class
from hoyer_export.recipe.reading import load_recipe

NETS = """
from torch import nn
def _net(channels, classes):
    return nn.Sequential(
        nn.Conv2d(channels, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 24, 3), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes))
def grey(): return _net(1, 10)
def coloured(classes=3): return _net(3, classes)
def tokens(): return nn.Sequential(
    nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 10))
def bare(): return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
"""
TINY = ["bench.min_seconds=0", "threads=1", "train.epochs=2", "train.warmup=0"]
SCRATCH = [*TINY, "dense.epochs=1", "dense.warmup=0"]
GREY = "--network nets_of_init:grey --allow-import nets_of_init --data digits --out r.toml"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_of_init.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes with names that are not easy; the images are 20 pixels wide, and 20 to 22 high."""
    drawn = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 4)):
        for name, level in (("red apples", 40), ("ünder", 140), ("c#3", 220)):
            folder = tmp_path / "my photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = drawn.normal(level, 20, (20 + number % 3, 20, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "my photos"


def init(call, words: str, code: int = 0) -> list[str]:
    found, out, err = call("init", *shlex.split(words))
    assert found == code, err
    return (err if code else out).strip().splitlines()


def run(call, last_line: str, changes: list[str]) -> dict:
    """Run what ``init`` says comes next, on fewer epochs, and return report.json."""
    program, *words = shlex.split(last_line.removeprefix("next: "))
    assert program == "hoyer-export"
    code, _, err = call(*words, *(word for change in changes for word in ("--set", change)))
    assert code == 0, err  # 3 where the budget is missed
    return json.loads(Path(words[words.index("--out") + 1], "report.json").read_text(encoding="utf-8"))


def test_from_scratch_on_digits_the_next_command_runs_as_it_is_printed(call) -> None:
    lines = init(call, GREY.replace("r.toml", "recipe.toml"))
    # 1,797 images, of which 360 test; 15 % of the others validate
    assert lines[0] == "data: digits, 10 classes, 1,221 training, 216 validation, 360 test images of 1×8×8"
    assert lines[-1] == "next: hoyer-export run recipe.toml --out runs/first --allow-import nets_of_init"
    text = Path("recipe.toml").read_text(encoding="utf-8")
    assert all(f"#   {line}\n" in text for line in lines if not line.startswith("written"))
    recipe = load_recipe("recipe.toml")
    assert recipe.dense.epochs > 0
    assert recipe.train is not None
    assert (recipe.cut.macs, recipe.cut.method, recipe.sparse.epochs) == (0.5, "function", 0)
    init(call, GREY.replace("r.toml", "deep.toml --macs 0.15"))
    deep = load_recipe("deep.toml")
    assert (deep.cut.macs, deep.cut.method, deep.sparse.norms) == (0.15, "group-hs", "function")
    run(call, lines[-1], SCRATCH)
    assert init(call, GREY.replace("r.toml", "recipe.toml --overwrite"))[-1].split()[5] == "runs/first-2"
    assert init(call, GREY)[-1].split()[5] == "runs/r"


def test_a_folder_of_images_is_looked_at_and_its_recipe_runs(call, photos: Path) -> None:
    asked = "--network nets_of_init:coloured --allow-import nets_of_init --data 'my photos'"
    lines = init(call, f"{asked} --out 'my photos/small.toml' --macs 0.4")
    # of 60 training images 15 % validate; val is the test set
    assert "3 classes, 51 training, 9 validation, 12 test images with a short side of 20 pixels" in lines[0]
    assert lines[0].endswith("brought to 3×20×20")
    written = tomllib.loads((photos / "small.toml").read_text(encoding="utf-8"))
    assert written["data"] == {"name": "imagefolder", "root": ".", "image_size": 20}
    run(call, lines[-1], SCRATCH)
    weights = Path("runs/small/dense.safetensors")
    lines = init(call, f"{asked} --weights {weights} --out sub/again.toml")
    written = tomllib.loads(Path("sub/again.toml").read_text(encoding="utf-8"))
    assert written["dense"] == {"epochs": 0, "weights": str(weights.absolute())}
    assert written["distill"]["weight"] > 0
    assert lines[3].startswith("weights of ")
    assert "of 9 validation images are right with these weights" in lines[4]
    assert run(call, lines[-1], TINY)["recipe"]["dense"]["epochs"] == 0


def test_a_folder_without_splits_is_split_and_what_cannot_be_read_is_left_out_where_that_is_asked(
    call, photos: Path
) -> None:
    asked = "--network nets_of_init:coloured --allow-import nets_of_init --data 'my photos/train' --out r.toml"
    for name in ("c#3", "ünder"):
        (photos / "train" / name / "0.png").write_bytes(b"hello")
    said = init(call, asked, code=1)[0]
    assert "cannot read 2 images of imagefolder: " in said
    assert "data.skip_unreadable = true (--skip-unreadable)" in said
    lines = init(call, f"{asked} --skip-unreadable")
    assert lines[-4].startswith("there is no folder val or test: 15 % of every class are held out as test images")
    assert lines[-3].startswith("2 unreadable images are left out: ")
    report = run(call, lines[-1], SCRATCH)
    assert sum(report["inputs"]["images"].values()) == 58
    assert sorted(name.split()[0] for name in report["inputs"]["left_out"]) == ["c#3/0.png", "ünder/0.png"]
    assert report["inputs"]["class_names"] == ["c#3", "red apples", "ünder"]


def test_weights_with_another_head_start_with_a_new_one_which_is_trained(call, photos: Path) -> None:
    save_file(build_network("cifar_resnet20", classes=7).state_dict(), "seven.safetensors")
    lines = init(call, "--network cifar_resnet20 --data 'my photos' --weights seven.safetensors --out r.toml")
    assert lines[3].endswith("a new head: 'linear.bias', 'linear.weight'")
    dense = load_recipe("r.toml").dense
    assert (dense.new_head, dense.epochs > 0, dense.file) == (True, True, Path("seven.safetensors").absolute())


@pytest.mark.parametrize(
    ("network", "side"),
    # 20 pixels fit a network for 32; one for 224 would have nothing left of them; one for 28 takes these alone.
    [("cifar_resnet20", 20), ("torchvision:squeezenet1_1", 112), ("lenet5", 28)],
)
def test_images_come_at_a_size_that_the_network_takes(call, photos: Path, network: str, side: int) -> None:
    init(call, f"--network {network} --data 'my photos' --out r.toml")
    assert load_recipe("r.toml").data.image_size == side


@pytest.mark.parametrize(
    ("name", "optimizer", "lr"), [("grey", "sgd", 0.05), ("bare", "sgd", 0.01), ("tokens", "adamw", 5e-4)]
)
def test_the_optimizer_suits_the_norms_that_the_network_has(call, name: str, optimizer: str, lr: float) -> None:
    init(call, GREY.replace("grey", name))
    train = load_recipe("r.toml").train
    assert (train.optimizer, train.lr) == (optimizer, lr)


@pytest.mark.parametrize(("macs", "align"), [("0.5", 16), ("0.1", 4)])  # with 16 the narrowest keeps 11.7 %
def test_a_narrow_network_gets_the_alignment_that_leaves_a_choice(call, macs: str, align: int) -> None:
    init(call, f"--network cifar_resnet20 --data digits --macs {macs} --out r.toml")
    assert load_recipe("r.toml").cut.align == align


def test_each_key_stands_under_its_meaning_or_is_named_as_not_set(call) -> None:
    init(call, GREY)
    text = Path("r.toml").read_text(encoding="utf-8")
    words = " ".join(line.removeprefix("# ") for line in text.splitlines())
    for name in ("network", "data", "train", "cut", "distill"):
        part = text.partition(f"[{name}]\n")[2].partition("\n[")[0]
        rest = " ".join(part.partition("# Not set: ")[2].replace("\n# ", " ").split())
        for key in keys_of(table_class(name)):
            if f"\n{key.name} = " in part:
                assert f"{key.meaning.replace('``', '')} {key.name} = " in words
            else:
                assert (key.name if key.default is None else f"{key.name} = {key.default}") in rest


def test_nothing_is_overwritten_unless_told(call) -> None:
    Path("r.toml").write_text("mine")
    said = "error: --out r.toml is there already; add --overwrite to replace it, or give another name"
    assert init(call, GREY, 1) == [said]
    assert Path("r.toml").read_text() == "mine"
    printed = json.loads("".join(init(call, f"{GREY} --overwrite --json")))
    assert (printed["recipe"], len(printed["found"])) == ("r.toml", 4)
    assert printed["next"] == "hoyer-export run r.toml --out runs/r --allow-import nets_of_init"
    assert load_recipe("r.toml").network.name == "nets_of_init:grey"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--network lenet5 --data cifra10", "--data cifra10 is no data set and no folder; did you mean cifar10?"),
        ("--network lenet5 --data photos", "is no data set and no folder; there are digits"),
        ("--network cifar_resnet21 --data digits", "unknown network 'cifar_resnet21'; did you mean"),
        ("--network lenet5 --data images --data-root 'my photos'", "training needs labels, and images has none"),
        ("--network lenet5 --data digits", "lenet5 cannot take the 1×8×8 images of digits"),
        ("--network nets_of_init:grey --data digits", "allow it with --allow-import nets_of_init"),
        ("--network cifar_resnet20 --data digits --macs 0.001", "cut.macs = 0.001 cannot be reached"),
        ("--network cifar_resnet20 --data digits --weights other.safetensors", "does not fit the network"),
        ("--network lenet5 --data digits --out .", "--out . is a folder; give the name of a file"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(call, photos: Path, words: str, said: str) -> None:
    save_file(build_network("lenet5").state_dict(), "other.safetensors")
    (line,) = init(call, words if "--out" in words else f"{words} --out r.toml", 1)
    assert said in line
    assert not Path("r.toml").exists()


@pytest.mark.parametrize("words", ["--data 'my photos' --data-root .", "--data digits --macs 2"])
def test_usage_that_contradicts_itself_is_exit_2(call, photos: Path, words: str) -> None:
    code, _, err = call("init", "--network", "lenet5", "--out", "r.toml", *shlex.split(words))
    assert (code, "Invalid value for --" in err) == (2, True)
