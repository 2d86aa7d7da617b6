"""Many runs in one folder: a grid shares its dense parts, goes on, and says what failed; a search survives a killed
worker, with PostgreSQL too."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from test_run import NETWORK

from hoyer_export.errors import RecipeError
from hoyer_export.lock import only_writer
from hoyer_export.recipe.reading import load_recipe
from hoyer_export.report.files import read_report
from hoyer_export.report.metrics import read_metrics
from hoyer_export.report.sweep import Spread, SweepFile, SweepRun, front, means, points
from hoyer_export.run.chain import run_recipe
from hoyer_export.run.grid import grid, hash_of, split_methods
from hoyer_export.run.progress import Silent
from hoyer_export.run.search import Search, search, usual_keys
from hoyer_export.run.sweep import Sweep, do_grid, look

RECIPE = """
threads = 1
[network]
name = "swept_nets:small"
[data]
name = "digits"
[dense]
epochs = 1
[train]
epochs = 2
[sparse]
norms = "function"
[cut]
macs = 0.5
align = 4
[bench]
min_seconds = 0
"""
PACKAGE = ["swept_nets"]


class Headlines(Silent):
    """Remembers which stages began."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def headline(self, text: str) -> None:
        self.said.append(text)

    def trained(self) -> list[str]:
        return [text.partition(":")[0] for text in self.said if re.match("dense|sparse|fine-tune", text)]


class StopAt(Silent):
    """Presses Control-C when a stage begins."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def headline(self, text: str) -> None:
        if text.startswith(self._stage):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a recipe and its network."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "swept_nets.py").write_text(NETWORK)
    (folder / "recipe.toml").write_text(RECIPE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("swept_nets", None)


@pytest.fixture(scope="module")
def swept(here: Path) -> tuple[Path, Headlines]:
    """A grid of two methods and two budgets, one of which cannot be met."""
    heard = Headlines()
    sweep = Sweep(here / "grid", heard, PACKAGE)
    sweep.begin(load_recipe(here / "recipe.toml"))
    methods = ["group-hs", "magnitude"]
    do_grid(sweep, grid(here / "recipe.toml", methods=methods, budgets=[0.7, 0.01], seeds=[0]))
    return sweep.out, heard


def test_runs_of_one_seed_share_the_dense_network_and_are_what_a_run_alone_would_be(here, swept) -> None:
    out, heard = swept
    assert heard.trained() == ["dense", "sparse", "fine-tune", "fine-tune"]
    assert len(list((out / "dense").iterdir())) == 1
    (cell,) = grid(here / "recipe.toml", methods=["group-hs"], budgets=[0.7], seeds=[0])
    run_recipe(cell.recipe, here / "alone", allow_import=PACKAGE, progress=Silent())
    for name in ("dense.safetensors", "slim.safetensors", "slim.onnx", "recipe.toml", "widths.json"):
        assert (here / "alone" / name).read_bytes() == (out / "runs" / cell.name / name).read_bytes()


def test_a_run_that_fails_does_not_end_the_sweep_and_is_named(swept, call) -> None:
    out, _ = swept
    found = {run.name: run for run in look(out).runs}
    states = {"group-hs-macs-0.7-seed-0": "done", "group-hs-macs-0.01-seed-0": "failed"}
    states |= {"magnitude-macs-0.7-seed-0": "done", "magnitude-macs-0.01-seed-0": "failed"}
    assert {name: run.state for name, run in found.items()} == states
    assert "cut.macs = 0.01 cannot be reached" in found["magnitude-macs-0.01-seed-0"].error
    page = (out / "sweep.html").read_text(encoding="utf-8")
    assert "cut.macs = 0.01 cannot be reached" in page
    code, printed, _ = call("sweep", out, "--status")
    assert code == 0
    assert "2 done, 2 failed" in printed
    assert "cannot be reached" in printed


def test_the_record_fits_its_schema_and_has_the_figures_of_the_reports(swept, call) -> None:
    out, _ = swept
    _, printed, _ = call("sweep", out, "--status", "--json")
    assert json.loads(printed) == json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    schema = json.loads((Path(__file__).parents[1] / "docs" / "schemas" / "sweep.json").read_text(encoding="utf-8"))
    assert list(Draft202012Validator(schema).iter_errors(json.loads(printed))) == []
    assert list(Draft202012Validator(schema).iter_errors({"runs": [{}]})) != []
    for run in look(out).runs:
        if run.state == "done":
            report = read_report(out / "runs" / run.name)
            assert [it.name for it in run.files] == ["dense", "slim"]
            assert run.file("slim").accuracy == report.slim.accuracy
            assert run.file("slim").macs_share == report.slim.file.macs / report.dense.file.macs <= 0.7
            assert run.validation_accuracy == read_metrics(out / "runs" / run.name)[-1].validation_accuracy


def test_every_point_of_the_page_opens_a_report(swept) -> None:
    out, _ = swept
    page = (out / "sweep.html").read_text(encoding="utf-8")
    linked = re.findall('href="([^"]+)"', page)
    assert len(linked) == 1 + 2 + 2  # dense once, two slim files, two rows
    assert all((out / path).is_file() for path in linked)
    assert str(out) not in page


def test_the_same_command_again_does_what_is_missing(here, swept, call, monkeypatch) -> None:
    out, _ = swept
    monkeypatch.chdir(here)
    kept = out / "runs" / "group-hs-macs-0.7-seed-0" / "slim.onnx"
    before = kept.stat().st_mtime_ns
    asked = ["--methods", "group-hs,magnitude", "--allow-import", "swept_nets"]
    code, printed, said = call("sweep", "recipe.toml", "--out", out, "--budgets", "0.7,0.01", *asked)
    assert code == 3
    assert kept.stat().st_mtime_ns == before
    assert "dense: " not in said
    assert "sweep.html" in printed
    code, _, said = call("sweep", "recipe.toml", "--out", out, "--budgets", "0.7", "--set", "train.epochs=3")
    assert code == 1
    assert said.startswith(f"error: --out {out} holds a sweep of another recipe")


def test_a_broken_run_goes_on(here, tmp_path) -> None:
    cells = tuple(grid(here / "recipe.toml", budgets=[0.7], seeds=[3]))
    broken = Sweep(tmp_path / "s", StopAt("fine-tune"), PACKAGE)
    broken.begin(cells[0].recipe)
    with pytest.raises(KeyboardInterrupt):
        do_grid(broken, cells)
    (run,) = look(broken.out).runs
    assert (run.state, run.at) == ("stopped", "finetune, epoch 1 of 1")
    with only_writer(broken.folder(run.name).path):
        assert look(broken.out).runs[0].state == "running"
        left_alone = do_grid(Sweep(broken.out, Silent(), PACKAGE), cells)  # as another process sees it
        assert left_alone.runs[0].state == "running"
    heard = Headlines()
    assert do_grid(Sweep(broken.out, heard, PACKAGE), cells).count("done") == 1
    assert heard.trained() == ["fine-tune"]


def file(name: str, accuracy: float | None, share: float) -> SweepFile:
    return SweepFile(name=name, accuracy=accuracy, macs=int(1000 * share), macs_share=share)


def run(name: str, *files: SweepFile, seed: int = 0, **more) -> SweepRun:
    given = {"method": "m", "budget": 0.5, "settings": (), "state": "done", "validation_accuracy": 50.0} | more
    return SweepRun(name=name, seed=seed, files=files, **given)


def test_the_front_is_what_no_other_file_beats_in_both() -> None:
    dense = file("dense", 90.0, 1.0)
    runs = [
        run("a", dense, file("slim", 89.0, 0.5)),
        run("b", dense, file("slim", 88.0, 0.5)),  # dearer nor cheaper, and worse
        run("c", dense, file("slim", 80.0, 0.2)),
        run("d", dense, file("slim", 79.0, 0.3)),  # beaten by c in both
        run("e", dense, file("slim", 99.0, 0.1), state="failed"),
        run("f", dense, file("slim", None, 0.1)),
    ]
    found = points(runs, lambda it: it.macs_share)
    assert [it.run.name for it in found if it.file.name == "dense"] == ["a"]
    assert [(it.run.name, it.file.name) for it in front(found)] == [("c", "slim"), ("a", "slim"), ("a", "dense")]


def test_means_are_over_seeds_and_pairs() -> None:
    runs = [
        run("a", file("dense", 90.0, 1.0), file("slim", 89.0, 0.4), seed=0),
        run("b", file("dense", 92.0, 1.0), file("slim", 93.0, 0.6), seed=1),
        run("c", file("dense", 90.0, 1.0), file("slim", 50.0, 0.2), seed=0, budget=0.3),
    ]
    runs.append(run("d", file("slim", 10.0, 0.5), seed=2, settings=("train.lr=1",)))
    (found,) = means(runs)  # a search may ask for one budget twice, with other settings
    assert found.of("accuracy") == Spread(91.0, pytest.approx(8**0.5))
    assert found.change == Spread(0.0, pytest.approx(2**0.5))
    assert found.of("macs_share").mean == pytest.approx(0.5)
    assert found.of("latency_ms") == Spread(None, None)


def test_a_method_takes_what_is_set_for_it_along() -> None:
    assert split_methods("group-hs,sparse.ramp=0.4,train.cut_at=0.1,function") == (
        "group-hs,sparse.ramp=0.4,train.cut_at=0.1",
        "function",
    )
    assert split_methods("") == ()


def test_methods_share_a_schedule(tmp_path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace("[train]\nepochs = 2\n", "").replace('norms = "function"\n', ""))
    with pytest.raises(RecipeError, match=r"`methods` magnitude: the recipe needs a table \[train\]"):
        list(grid(tmp_path / "r.toml", methods=["magnitude"], budgets=[0.5], seeds=[0]))


def test_finished_comparisons_keep_their_names() -> None:
    home = Path(__file__).parents[1]
    made = {
        hash_of(cell.recipe)
        for cell in grid(
            home / "scripts" / "proxy.toml",
            ["train.epochs=10"],
            methods=["function", "magnitude"],
            budgets=[0.5, 0.3, 0.15],
            seeds=[0, 1, 2],
        )
    }
    assert made <= {it.stem for it in (home / "results").glob("*.json")}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--out", "o"], 2, "give shares that may stay"),
        (["--out", "o", "--budgets", "0.5,half"], 2, "expected numbers with commas"),
        (["--out", "o", "--budgets", "0.5,1.5"], 2, "expected a share above 0 and at most 1"),
        (["--budgets", "0.5"], 2, "give the folder of the sweep"),
        (["--out", "o", "--budgets", "0.5", "--storage", "x"], 2, "only together with --trials"),
        (["--out", "o", "--trials", "2", "--seeds", "2"], 2, "only without --trials"),
        (["--out", "o", "--budgets", "0.5", "--methods", "magic"], 1, "--methods magic: expected some of group-hs"),
        (["--out", "o", "--trials", "2", "--search", "train.lr=fast"], 1, "--search train.lr=fast: expected KEY=LOW"),
        (["--out", "o", "--trials", "2", "--search", "train.lr=2:1"], 1, "--search train.lr=2:1: expected KEY=LOW"),
        (["--out", "o", "--trials", "2", "--search", "train.lro=1:2"], 1, "[train] has no key 'lro'"),
        (["--out", "recipe.toml", "--budgets", "0.5"], 1, "recipe.toml is a file"),
        (["--out", ".", "--budgets", "0.5"], 1, "holds other files"),
        (["--out", "o", "--budgets", "0.5"], 1, "allow it with --allow-import swept_nets"),
        (["--out", "o", "--budgets", "0.5", "--set", "data.name=mnist"], 1, "error: the data"),
        (["--out", "o", "--trials", "1", "--set", "network.name=lenet9"], 1, "lenet9"),
        (["--status"], 1, "holds no sweep"),
        (["--out", "o", "--trials", "1", "--storage", "nonsense"], 1, "cannot use the database nonsense"),
        (["--out", "o", "--trials", "1", "--storage", "db://h/d?password=hidpw"], 1, "database db://h/d?password=***:"),
        (["--out", "o", "--trials", "1", "--storage", "db://u:hid%40den@h/d"], 1, "database db://u:***@h/d:"),
        (
            ["--out", "o", "--trials", "1", "--storage", "postgresql://u:hidpw@h:x/d"],
            1,
            "://u:***@h:x/d: invalid literal",
        ),
        (["--out", "o", "--trials", "1", "--storage", "mysql://u:hid%40den@h/d"], 1, "that database needs it"),
    ],
)
def test_bad_input_is_one_line(here, call, monkeypatch, tmp_path, arguments: Sequence[str], code: int, said: str):
    shutil.copy(here / "recipe.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    found = call("sweep", "recipe.toml", *arguments)
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", found[2]).split())
    assert found[0] == code
    assert said in words
    assert "Traceback" not in words
    assert "hid" not in words.replace("hidden", "")
    assert code == 2 or found[2].splitlines()[-1].startswith("error: ")


def test_a_sweep_trains_in_one_process(here, call, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, _, said = call("sweep", str(here / "recipe.toml"), "--out", str(tmp_path / "o"), "--budgets", "0.5")
    assert (code, (tmp_path / "o").exists()) == (1, False)
    assert "start it without torchrun" in said


def asked(here: Path) -> Search:
    return Search(here / "recipe.toml", (), (0.4, 0.8), ("train.lr=0.02:0.2", "cut.align=1,4", "train.epochs=2:3"))


def trials_of(url: str) -> list:
    """Return the trials of the one study in a database."""
    import optuna

    storage = optuna.storages.RDBStorage(url)
    (study,) = storage.get_all_studies()
    found = storage.get_all_trials(study._study_id)
    storage.remove_session()
    storage.engine.dispose()
    return found


def test_a_search_goes_on_with_the_trial_that_was_interrupted(here, tmp_path) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(KeyboardInterrupt):
        search(Sweep(tmp_path / "s", StopAt("fine-tune"), PACKAGE), asked(here), 2)
    heard = Headlines()
    found = search(Sweep(tmp_path / "s", heard, PACKAGE), asked(here), 2)
    assert found.count("done") == len(found.runs) == 2
    assert heard.trained() == ["fine-tune", "sparse", "fine-tune"]
    assert [it.partition(":")[0] for it in heard.said if it.startswith("trial ")] == [
        "trial 0",
        "trial 2",
    ]  # the second one retries the first
    trials = trials_of(f"sqlite:///{tmp_path / 's' / 'sweep.db'}")
    assert [it.state.name for it in trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert all(it.params["train.epochs"] in (2, 3) and it.params["cut.align"] in ("1", "4") for it in trials)
    by_setting = {run.settings[0]: run for run in found.runs}
    for trial in trials[1:]:
        done = by_setting[f"cut.macs={trial.params['cut.macs']:.4g}"]
        assert trial.values == [done.validation_accuracy, done.file("slim").macs_share]
    nothing = Headlines()
    search(Sweep(tmp_path / "s", nothing, PACKAGE), asked(here), 2)
    assert nothing.trained() == []


def test_trials_that_fail_are_counted_and_named(here, tmp_path) -> None:
    pytest.importorskip("optuna")
    out_of_reach = Search(here / "recipe.toml", (), (0.01, 0.02), ("train.lr=0.02:0.2",))
    found = search(Sweep(tmp_path / "s", Silent(), PACKAGE), out_of_reach, 2)
    assert [run.state for run in found.runs] == ["failed", "failed"]


def test_what_is_searched_where_nobody_says_what(here) -> None:
    recipe = load_recipe(here / "recipe.toml", ["train.epochs=10", "train.lr=0.06"])
    assert usual_keys(recipe) == ("train.lr=0.02:0.18", "train.cut_at=0.1:0.6")
    assert usual_keys(load_recipe(here / "recipe.toml"))[1] == "train.cut_at=0.1:0.5"
    by_weights = load_recipe(here / "recipe.toml", ["sparse.norms=weights", "sparse.strength=3e-3"])
    assert "sparse.strength=0.001:0.009" in usual_keys(by_weights)


def test_a_search_needs_training(here) -> None:
    pytest.importorskip("optuna")
    trained = RECIPE.replace("[train]\nepochs = 2\n", "").replace('norms = "function"', "epochs = 0")
    untrained = trained.replace("epochs = 1\n", 'epochs = 0\nweights = "random"\n') + "[finetune]\nepochs = 0\n"
    (here / "untrained.toml").write_text(untrained)
    with pytest.raises(RecipeError, match="trains nothing"):
        search(Sweep(here / "never", Silent()), Search(here / "untrained.toml", (), (0.2, 0.8)), 1)
    assert not (here / "never").exists()
    with pytest.raises(RecipeError, match="expected KEY=LOW:HIGH"):
        search(Sweep(here / "never", Silent()), Search(here / "recipe.toml", (), (0.2, 0.8), ("train.lr",)), 1)


PASSWORD, WRITTEN = "s3cret@w{0}rd", "s3cret%40w%7B0%7Drd"


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The URL of a database of a server that is started for these tests; it refuses to run as root."""
    pytest.importorskip("optuna")
    psycopg = pytest.importorskip("psycopg")
    pwd = pytest.importorskip("pwd")
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), *filter(None, [shutil.which("initdb")])]
    if not found:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    programs = Path(found[0]).parent
    as_root = os.geteuid() == 0
    names = {it.pw_name: it for it in pwd.getpwall()}
    user = next((names[name] for name in ("postgres", "nobody") if name in names), None) if as_root else None
    owner = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as home, socket.socket() as probe:
        (Path(home) / "password").write_text(PASSWORD)
        if user is not None:
            for path in (Path(home), Path(home) / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        data = ["-D", f"{home}/data"]
        secret = ["-U", "sweeper", "--auth=scram-sha-256", f"--pwfile={home}/password", "--no-sync"]
        subprocess.run([programs / "initdb", *data, *secret], check=True, capture_output=True, cwd=home, **owner)
        options = ["-p", port, "-k", home, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with open(os.devnull, "w") as nowhere:
            server = subprocess.Popen(
                [programs / "postgres", *data, *options], cwd=home, stdout=nowhere, stderr=nowhere, **owner
            )
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    at = {"host": "127.0.0.1", "port": port, "user": "sweeper", "dbname": "postgres"}
                    psycopg.connect(**at, password=PASSWORD).close()
                    break
                except psycopg.OperationalError:
                    assert time.monotonic() < deadline, "the server does not come up"
                    time.sleep(0.2)
            yield f"postgresql://sweeper:{WRITTEN}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=60)


WORKER = """
import sys
from hoyer_export.run import search
search.HEARTBEAT_SECONDS = 1
from hoyer_export.cli import main
main()
"""


def worker(here: Path, out: Path, url: str, log: Path) -> subprocess.Popen:
    command = ["sweep", "recipe.toml", "--out", out, "--trials", "2", "--budgets", "0.5,0.8"]
    command += ["--search", "train.lr=0.02:0.2", "--set", "train.epochs=24", "--allow-import", "swept_nets"]
    told = os.environ | {"HOYER_EXPORT_STORAGE": url}
    with log.open("w") as said:
        return subprocess.Popen([sys.executable, "-c", WORKER, *command], cwd=here, env=told, stdout=said, stderr=said)


def wait_for(what, seconds: float = 240):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_of_two_workers_one_is_killed_and_the_other_goes_on_in_its_folder(here, postgresql, tmp_path) -> None:
    out = tmp_path / "many"
    first = worker(here, out, postgresql, tmp_path / "first")
    try:
        lines = wait_for(lambda: [it for it in out.glob("runs/*/metrics.jsonl") if "sparse" in it.read_text()])
        second = worker(here, out, postgresql, tmp_path / "second")
    finally:
        first.kill()
        first.wait()
    (before,) = [it.read_text() for it in lines]
    try:
        assert second.wait(timeout=300) == 0, (tmp_path / "second").read_text()
    finally:
        second.kill()
    after = lines[0].read_text()
    assert after.startswith(before)  # with the seconds that each epoch took: none was trained again
    assert len(after.splitlines()) > len(before.splitlines())
    assert look(out).count("done") == len(look(out).runs) == 2
    trials = trials_of(postgresql.replace("{", "{{").replace("postgresql:", "postgresql+psycopg:"))
    assert sorted(it.state.name for it in trials) == ["COMPLETE", "COMPLETE", "FAIL"]
    killed = next(it for it in trials if it.state.name == "FAIL")
    (again,) = [it for it in trials if it.system_attrs.get("failed_trial") == killed.number]
    assert again.params == killed.params
    assert again.values is not None
    for written in (*(it for it in out.rglob("*") if it.is_file()), tmp_path / "first", tmp_path / "second"):
        assert not any(secret.encode() in written.read_bytes() for secret in (PASSWORD, WRITTEN, "s3cret")), written


def test_a_wrong_password_is_one_line_without_it(here, postgresql, call, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(here)
    wrong = postgresql.replace(WRITTEN, "wr0ng-s3cret")
    code, _, said = call("sweep", "recipe.toml", "--out", tmp_path / "o", "--trials", "1", "--storage", wrong)
    assert code == 1
    assert len(said.splitlines()) == 1
    assert "password authentication failed" in said
    assert "wr0ng" not in said
