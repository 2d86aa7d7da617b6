"""Recipes: what is right reads back the same; what is wrong is one line that names the key."""

from pathlib import Path

import pytest

from hoyer_export.errors import RecipeError
from hoyer_export.recipe.reading import dump_recipe, left_open, load_recipe, reopened, resolved

SMALL = """
[network]
name = "cifar_resnet20"
[data]
name = "digits"
[cut]
macs = 0.5
"""
ZOO = sorted((Path(__file__).parent.parent / "models").glob("*/recipe.toml"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(SMALL)
    return path


def reread(text: str, tmp_path: Path):
    path = tmp_path / "dumped.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize("path", ZOO, ids=[path.parent.name for path in ZOO])
def test_every_recipe_of_the_zoo_reads_back_the_same_after_a_dump(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert reread(dump_recipe(recipe), tmp_path) == recipe


def test_the_zoo_is_not_empty() -> None:
    assert {path.parent.name for path in ZOO} >= {"resnet20-digits", "lenet5-mnist", "resnet20-cifar10"}


@pytest.mark.parametrize(
    "override",
    [
        'network.name=package.module:"quoted"\\back',
        'data.root="with \\"quotes\\", ünïcode and \\\\ backslash"',
        "sparse.strength=1.2345678901234567e-3",
        "data.validation=1e-1",
        "cut.threshold=natural",
        "seed=4294967295",
    ],
)
def test_awkward_values_survive_dump_and_load_exactly(override: str, small: Path, tmp_path: Path) -> None:
    recipe = load_recipe(small, [override])
    assert reread(dump_recipe(recipe), tmp_path) == recipe


def test_what_a_recipe_leaves_out_is_sgd_with_momentum_0_9(small: Path) -> None:
    recipe = load_recipe(small)
    for phase in (recipe.dense, recipe.sparse, recipe.finetune):
        assert (phase.optimizer, phase.momentum, phase.precision) == ("sgd", 0.9, "float32")
    assert (recipe.bench.threads, recipe.bench.batch_size, recipe.cut.align) == (1, 1, None)
    assert recipe.sparse.norms == "weights"
    assert recipe.sparse.scale == "relative"


def test_a_recipe_cannot_be_changed_after_it_was_read(small: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(small).dense.lr = 1.0


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("dense.lr=0.25", "dense", "lr", 0.25),
        ("dense.lr = 1", "dense", "lr", 1.0),
        ("network.name=lenet5", "network", "name", "lenet5"),
        ('network.name="lenet5"', "network", "name", "lenet5"),
        ("data.mean=[0.5]", "data", "mean", (0.5,)),
        ("data.augment=false", "data", "augment", False),
        ("data.root=/a=b.c", "data", "root", "/a=b.c"),
        ("network.name=1.2.3", "network", "name", "1.2.3"),
        ("network.rules=my_net.rules:RULES", "network", "rules", "my_net.rules:RULES"),
    ],
)
def test_set_reads_the_value_as_toml_and_as_a_string_where_it_is_none(
    override: str, section: str, key: str, value: object, small: Path
) -> None:
    also = ["data.std=[0.5]"] if key == "mean" else []
    assert getattr(getattr(load_recipe(small, [override, *also]), section), key) == value


def test_set_cannot_smuggle_a_second_key_in_a_line_break(small: Path) -> None:
    assert load_recipe(small, ["data.root=1\nname='mnist'"]).data.name == "digits"


def test_paths_are_relative_to_the_recipe_and_those_of_set_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here, elsewhere = (tmp_path / name for name in ("there", "here", "elsewhere"))
    for folder in (there, here, elsewhere):
        folder.mkdir()
    path = there / "recipe.toml"
    path.write_text(SMALL.replace('name = "digits"', 'name = "mnist"\nroot = "../images"') + '[dense]\nweights = "w"\n')
    monkeypatch.chdir(here)
    recipe = load_recipe(Path("../there/recipe.toml"))
    assert recipe.data.root == str(tmp_path / "images")
    assert recipe.dense.weights == str(there / "w")
    recipe = load_recipe(path, ["dense.weights=w"])
    assert (recipe.data.root, recipe.dense.weights) == (str(tmp_path / "images"), str(here / "w"))
    monkeypatch.chdir(elsewhere)
    assert reread(dump_recipe(recipe), elsewhere) == recipe


@pytest.mark.parametrize("override", ["cut.params=0.4", "cut.threshold=0.3", "cut.threshold=natural", "cut.macs=0.25"])
def test_setting_one_budget_unsets_the_others(override: str, small: Path) -> None:
    key = override.partition("=")[0].removeprefix("cut.")
    assert list(load_recipe(small, [override]).cut.asked()) == [key]


def test_of_two_budgets_set_the_last_counts(small: Path) -> None:
    assert load_recipe(small, ["cut.params=0.4", "cut.threshold=0.3"]).cut.asked() == {"threshold": 0.3}


def test_a_new_head_is_trained(small: Path) -> None:
    with pytest.raises(RecipeError, match="dense: new_head starts a layer at random; set epochs, which train it"):
        load_recipe(small, ["dense.weights=w.pth", "dense.new_head=true", "dense.epochs=0"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dense.epoch=3", "dense.epoch: [dense] has no key 'epoch'; did you mean epochs?"),
        ("sead=3", "sead: a recipe has no key 'sead'; did you mean seed?"),
        ("dens.lr=3", "dens: a recipe has no key 'dens'; did you mean dense?"),
        ("bench.zzz=1", "[bench] has no key 'zzz'; it has runtime, threads, batch_size and min_seconds"),
        ("cut.speed=0.5", "[cut] has no key 'speed'; it has macs, params, weights, latency, latency_ms,"),
        ("dense.lr=fast", 'dense.lr: expected a number, got "fast"'),
        ("dense.lr=0", "dense.lr: expected a number above 0, got 0"),
        ("dense.lr=true", "dense.lr: expected a number, got true"),
        ("dense.epochs=3.5", "dense.epochs: expected a whole number, got 3.5"),
        ('dense.epochs="3"', 'dense.epochs: expected a whole number, got "3"'),
        ("dense.epochs=0", "dense: epochs = 0 needs weights"),
        ("dense.weights_key=model_ema", "dense: weights_key and new_head are about a file of weights; set weights"),
        ("dense.new_head=true", "dense: weights_key and new_head are about a file of weights; set weights"),
        ("device=gpu", 'device: expected "cpu" or "cuda", got "gpu"'),
        ("dense.warmup=30", "dense: warmup must be shorter than epochs"),
        ("dense=3", "dense: expected a table, got 3"),
        ("dense.optimizer=sdg", 'expected "sgd", "adam" or "adamw", got "sdg"; did you mean "sgd"?'),
        ("cut.macs=2", "cut.macs: expected a number of at most 1, got 2"),
        ("cut.macs=nan", "cut.macs: expected a finite number, got NaN"),
        ("cut.threshold=natral", 'cut.threshold: expected a number of at least 0, or "natural", got "natral"'),
        ("cut.threshold=-1", 'cut.threshold: expected a number of at least 0, or "natural", got -1'),
        ("cut.align=5", 'cut.align: expected 1, 4, 8, 16, 32, 64 or "auto", got 5'),
        ("data.mean=[0.1]", "data: mean and std belong together"),
        ("data.mean=0.1", "data.mean: expected a list of numbers, got 0.1"),
        ("network.name=", 'network.name: expected a string that is not empty, got ""'),
        ("seed.x=3", "seed: expected a whole number, got a table with x"),
        ("verify.batches=[1,0]", "verify.batches.1: expected a number of at least 1, got 0"),
        ("a.b.c=3", "`overrides` a.b.c=3: expected section.key=value"),
        ("dense.lr", "`overrides` dense.lr: expected section.key=value"),
    ],
)
def test_a_wrong_set_is_one_line_with_the_key_what_was_expected_and_what_came(
    override: str, said: str, small: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(small, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "network is missing: the table [network] is needed (and 1 more)"),
        ("x", "is not TOML: Expected '=' after a key"),
        (
            SMALL + "params = 0.5\n",
            "latency, latency_ms, threshold, max_drop and max_change, got macs and params",
        ),
        (
            SMALL.replace("macs = 0.5", ""),
            "cut: needs exactly one of macs, params, weights, latency, latency_ms, threshold, max_drop and max_change,"
            " got none",
        ),
        (SMALL.replace('name = "digits"', ""), "data.name is missing"),
        ('[network]\nnmae = "x"\n[data]\n[cut]\n', "network.nmae: [network] has no key 'nmae'; did you mean name?"),
        ("seed = 1\nseed = 2\n", "is not TOML"),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_the_file(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hostile_value_stays_one_printable_line(tmp_path: Path) -> None:
    path = tmp_path / "hostile.toml"
    path.write_text(SMALL + 'align = "\\u001b[31mred\\nline two"\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).isprintable()


def test_a_file_that_is_absent_a_folder_or_not_text_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for name, said in [("absent.toml", "No such file"), (".", "Is a directory"), ("bytes.toml", "not UTF-8")]:
        with pytest.raises(RecipeError, match=said):
            load_recipe(tmp_path / name)


def test_resolving_fills_in_what_is_open_and_leaves_what_is_set(small: Path, tmp_path: Path) -> None:
    given = load_recipe(small, ["threads=3"])
    found = {"threads": 8, "device": "cpu", "data.mean": (0.5,), "data.std": (0.25,), "network.classes": 10}
    settled = resolved(given, found)
    assert left_open(given, found) == ["device", "data.mean", "data.std", "network.classes"]
    assert (settled.threads, settled.device, settled.data.mean, settled.network.classes) == (3, "cpu", (0.5,), 10)
    assert resolved(settled, found) == reread(dump_recipe(settled), tmp_path) == settled
    assert reopened(given, settled, left_open(given, found)) == settled
    other = reopened(load_recipe(small, ["threads=2", "device=cuda"]), settled, left_open(given, found))
    assert (other.threads, other.device, other.data.mean) == (2, "cuda", (0.5,))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bench.min_seconds=0", "cut.latency needs bench.min_seconds above 0: it is measured"),
        ("cut.align=fast", 'cut.align: expected 1, 4, 8, 16, 32, 64 or "auto", got "fast"'),
    ],
)
def test_a_budget_of_time_is_measured(override: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(SMALL.replace("macs = 0.5", "latency = 0.5"))
    assert load_recipe(path).cut.by_time
    assert not load_recipe(path, ["cut.align=8"]).cut.by_time
    assert load_recipe(path, ["cut.macs=0.5", "cut.align=auto"]).cut.by_time
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert message in str(caught.value)


def test_widths_by_time_do_not_go_with_a_sparse_phase_that_decides(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(SMALL)
    with pytest.raises(RecipeError, match=r'cut\.align = "auto" does not go with norms = "function"'):
        load_recipe(path, ["cut.align=auto", "sparse.norms=function"])
