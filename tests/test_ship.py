"""A slim network that somebody fine-tuned in a loop of their own ends with the proof and the report of a run."""

import json
import shlex
import sys
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
    *("dense.onnx", "slim.onnx", "report.json", "report.html", "card.md"),
}

pytestmark = pytest.mark.usefixtures("exported_once")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The working directory, with a user's own network in it."""
    (tmp_path / "tiny.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("tiny", None)


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
