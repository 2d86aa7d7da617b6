"""A slim network that somebody fine-tuned in a loop of their own ends with the proof and the report of a run."""

import copy
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import hoyer_export as hx
from hoyer_export.deploy.verify import verify_onnx

NETWORK = """
from torch import nn

def small(classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes),
    )
"""
OWN = ("--network", "tiny:small", "--allow-import", "tiny", "--input", "1x8x8")
CUT = ("cut", *OWN, "--macs", "0.5", "--align", "4", "--min-seconds", "0")
NAMES = {
    *("recipe.toml", "stages.json", "channels.json", "dense.safetensors", "slim.safetensors", "widths.json"),
    *("dense.onnx", "slim.onnx", "report.json", "report.html", "card.md", "headline.svg", "headline.png"),
}

IMAGES = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
QUIET = {"bench": {"min_seconds": 0}}

pytestmark = pytest.mark.usefixtures("exported_once")


@pytest.fixture(autouse=True)
def home(own_module: Callable[[str, str], Path]) -> Path:
    """The working directory, with a user's own network in it."""
    return own_module("tiny", NETWORK)


def small() -> nn.Module:
    import tiny

    return tiny.small()


def moved_(model: nn.Module) -> None:
    """Stand for a training: every weight is another."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_what_cut_prints_as_the_next_step_is_done_as_it_stands(call, home: Path) -> None:
    code, out, err = call(*CUT, "--out", "a cut")
    assert code == 0, err
    printed = out.split("cutting has not:\n")[1].split("files:")[0].splitlines()
    *code_lines, command = (line.strip() for line in printed)
    here: dict = {"moved_": moved_}
    exec("\n".join(code_lines).replace("...  # train slim.model", "moved_(slim.model)"), here)
    before = (home / "a cut" / "slim.onnx").read_bytes()
    program, *arguments = shlex.split(command)
    assert program == "hoyer-export"
    code, out, err = call(*arguments)
    assert code == 0, err
    assert "next: fine-tune" not in out
    assert {path.name for path in (home / "a cut").iterdir()} == NAMES
    assert (home / "a cut" / "slim.onnx").read_bytes() != before
    assert verify_onnx("a cut/slim.onnx", here["slim"].model, torch.randn(4, 1, 8, 8)).passed
    card = (home / "a cut" / "card.md").read_text()
    assert "weights (finetuned.pth) come from a training loop of its user" in card
    assert "not trained after the cut" not in card


def test_the_verb_takes_a_slim_file_or_a_state_dict_and_judges_on_data_that_the_cut_never_saw(call, home: Path) -> None:
    call(*CUT, "--out", "cut")
    widths = (home / "cut" / "widths.json").read_bytes()
    slim = hx.load_slim("cut/slim.safetensors", into=small())
    moved_(slim.model)
    hx.save_slim(slim, "tuned.safetensors")
    torch.save({"state_dict": slim.model.state_dict()}, "tuned.pth")
    rows = []
    for file in ("tuned.safetensors", "tuned.pth"):
        code, out, err = call("ship", "cut", "--weights", file, "--data", "digits", "--allow-import", "tiny", "--json")
        assert code == 0, err
        report = json.loads(out)
        rows.append([it["accuracy"] for it in report["verify"]["artifacts"]])
        assert report["inputs"]["data"] == "digits"
        assert report["inputs"]["images"]["test"] == 360
        assert report["export"]["budget"]["met"] is report["verify"]["passed"] is True
    assert rows[0] == rows[1]
    assert all(0 <= accuracy <= 100 for accuracy in rows[0])
    assert (home / "cut" / "widths.json").read_bytes() == widths
    code, _, err = call("run", "cut/recipe.toml", "--out", "cut", "--resume", "--allow-import", "tiny")
    assert (code, "nothing to do" in err) == (0, True)


def cut_of(dense: nn.Module, macs: float = 0.5, *, fold: bool = False) -> hx.SlimModel:
    channels = hx.trace_channels(dense, IMAGES[:2])
    keep = hx.select_channels(channels, dense, macs=macs, align=4).keep
    zeroed = copy.deepcopy(dense)
    hx.zero_(zeroed, channels, keep)
    return hx.cut(zeroed, channels, keep, IMAGES[:2], fold=fold)


@pytest.fixture
def dense(home: Path) -> nn.Module:
    torch.manual_seed(0)
    model = small()
    moved_(model)
    return model


@pytest.mark.parametrize("loaded", [False, True])
def test_a_network_cut_and_trained_in_python_is_proved_as_it_is_now(dense: nn.Module, home: Path, loaded: bool) -> None:
    slim = cut_of(dense)
    moved_(slim.model)
    if loaded:
        hx.save_slim(slim, "slim.safetensors")
        slim = hx.load_slim("slim.safetensors", into=dense)
    labelled = [(IMAGES, dense.eval()(IMAGES).argmax(1))]
    report = hx.ship(dense=dense.train(), slim=slim, inputs=IMAGES, labelled=labelled, out="out", recipe=QUIET)
    assert report.passed
    assert report.cut.max_rel_error < 1e-12
    assert (report.dense.accuracy, report.metric) == (100, None)
    agree = slim.model.eval()(IMAGES).argmax(1) == labelled[0][1]
    assert report.slim.accuracy == 100 * int(agree.sum()) / 10
    assert {path.name for path in (home / "out").iterdir()} == NAMES
    widths = {name: len(kept) for name, kept in json.loads((home / "out" / "widths.json").read_text()).items()}
    assert widths == {"0": slim.model[0].out_channels, "3": slim.model[3].out_channels}
    assert [(it.group, it.dense, it.slim) for it in report.cut.widths] == [
        ("0", 16, widths["0"]),
        ("3", 24, widths["3"]),
    ]
    assert hx.verify_onnx("out/slim.onnx", slim.model, IMAGES).passed
    assert dense.training  # and all else of what was passed is as it was
    page, card = (home / "out" / "report.html").read_text(), (home / "out" / "card.md").read_text()
    assert "The channels that its user chose" in card
    assert "Group-HS" not in page


def test_what_was_folded_into_a_bias_of_its_own_is_proved_too(home: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )
    with torch.no_grad():
        dense[0].weight[[1, 5]] = 0
        dense[0].bias[[1, 5]] = 0.3  # constants, which go into a bias that the next layer did not have
    channels = hx.trace_channels(dense, IMAGES[:2])
    slim = hx.cut(dense, channels, {"0": torch.tensor([0, 2, 3, 4, 6, 7])}, IMAGES[:2], fold=True)
    assert slim.plan.edits
    moved_(slim.model)
    assert hx.ship(dense, slim, IMAGES, "out", recipe=QUIET).passed
    with torch.no_grad():
        slim.model[2].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(hx.CutRefused, match="not finite"):
        hx.ship(dense, slim, IMAGES, "other", recipe=QUIET)


def test_a_metric_is_named_wherever_accuracy_would_be_and_less_may_be_better(dense: nn.Module, home: Path) -> None:
    def brier(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.softmax(1) - targets).square().sum(1).mean()

    targets = dense.eval()(IMAGES).softmax(1).detach()
    labelled = [(IMAGES[:5], targets[:5]), (IMAGES[5:], targets[5:])]
    slim = cut_of(dense, macs=0.2)
    metric = hx.Metric(brier, higher_is_better=False)
    report = hx.ship(dense, slim, IMAGES, "out", labelled=labelled, metric=metric, recipe=QUIET)
    assert report.dense.accuracy == 0
    assert report.slim.accuracy == pytest.approx(float(brier(slim.model.eval()(IMAGES), targets).detach()), rel=1e-5)
    assert report.slim.verified.onnx_accuracy == pytest.approx(report.slim.accuracy, rel=1e-3)
    assert [check.name for check in report.slim.verified.checks].count("outputs on test images") == 1
    for name in ("card.md", "report.html"):
        text = (home / "out" / name).read_text()
        assert "brier" in text
        assert "accuracy" not in text.lower().replace("onnx_accuracy", "")
    assert "lower is better" in (home / "out" / "card.md").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slim": nn.Linear(2, 2)}, "expected what hx.cut returned"),
        ({"dense": nn.Linear(2, 2)}, "does not run|cannot take"),
        ({"labelled": iter([])}, "test: expected batches"),
        ({"labelled": [IMAGES]}, r"expected batches \(inputs, targets\), got a Tensor"),
        ({"metric": 3}, "metric: expected a function"),
        ({"metric": lambda outputs, targets: outputs}, r"expected one number, got a tensor \[10, 10\]"),
        ({"recipe": {"cut": {"macs": 0.5}}}, "was cut and trained already"),
        ({"recipe": {"bench": {"thread": 2}}}, "did you mean threads"),
    ],
)
def test_what_cannot_be_shipped_is_one_line_and_leaves_nothing(
    dense: nn.Module, home: Path, changes, said: str
) -> None:
    given = {"dense": dense, "slim": cut_of(dense), "inputs": IMAGES, "labelled": [(IMAGES, torch.zeros(10))]}
    with pytest.raises(hx.HoyerExportError, match=said) as error:
        hx.ship(**given | {"recipe": QUIET, "out": "out"} | changes)
    assert "\n" not in str(error.value)
    assert not (home / "out").exists()


def test_a_slim_network_of_another_dense_one_is_refused(dense: nn.Module, home: Path) -> None:
    other = nn.Sequential(*dense[:3], nn.Conv2d(16, 24, 3, padding=1), *dense[4:])  # of another stride
    with pytest.raises(hx.CutRefused, match="was not cut from this dense one"):
        hx.ship(other, cut_of(dense), IMAGES, "out", recipe=QUIET)


def test_what_was_made_in_python_says_so_on_the_command_line(call, dense: nn.Module, home: Path) -> None:
    hx.ship(dense, cut_of(dense), IMAGES, "out", recipe=QUIET)
    for arguments in (("verify", "out"), ("run", "out/recipe.toml", "--out", "new")):
        code, _, err = call(*arguments)
        assert code == 1
        assert "was passed in Python" in err
    assert call("report", "out")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cut", "--weights", "absent.pth"], "absent.pth: expected a file of weights"),
        (["cut", "--weights", "cut/dense.safetensors"], "does not fit the network: '0.weight' should be"),
        (["cut", "--weights", "other/slim.safetensors"], "was cut otherwise than cut"),
        (["cut", "--weights", "cut/slim.safetensors", "--data", "cifar10"], "needs a root"),
        (["empty", "--weights", "cut/slim.safetensors"], "holds no run"),
    ],
)
def test_what_does_not_fit_is_one_line_and_changes_nothing(call, home: Path, arguments: list[str], said: str) -> None:
    call(*CUT, "--out", "cut")
    call("cut", *OWN, "--macs", "0.2", "--align", "4", "--min-seconds", "0", "--out", "other")
    (home / "empty").mkdir()
    before = {path.name: path.read_bytes() for path in (home / "cut").iterdir()}
    code, out, err = call("ship", *arguments, "--allow-import", "tiny")
    assert (code, out) == (1, "")
    assert said in err.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in (home / "cut").iterdir()} == before
