"""``hoyer-export cut``: a network and its weights in, verified files out; nothing at all where an input is wrong."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from hoyer_export import choices
from hoyer_export.cli import arguments
from hoyer_export.data import load_data
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.verify import verify_onnx
from hoyer_export.metric import evaluate
from hoyer_export.networks import build_network
from hoyer_export.run import cut as cutting
from hoyer_export.run import cut_to_budget as reaching
from hoyer_export.run import exporting, ship
from hoyer_export.store.slim_file import load_slim
from hoyer_export.store.widths_file import build_slim

NETWORK = """
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function_unary

import hoyer_export as hx

def small(in_channels=1, classes=10):
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes),
    )

def nothing_to_prune():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def two_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 1)
        def forward(self, x):
            y = self.head(self.body(x)).mean((2, 3))
            return y, 2 * y
    return Two()

def logits_and_mask():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 1)
        def forward(self, x):
            y = self.head(self.body(x)).mean((2, 3))
            return y, y > 0
    return Masked()

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.conv1(x).relu())

def two_blocks():
    ends = nn.Conv2d(1, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    return nn.Sequential(ends[0], Block(), Block(), *ends[1:])

def soften(x):
    if has_torch_function_unary(x):
        return handle_torch_function(soften, (x,), x)
    return x / (1 + x.abs())

def by_width(x):
    if has_torch_function_unary(x):
        return handle_torch_function(by_width, (x,), x)
    return x / x.shape[1] if x.ndim > 3 else x

RULES = {soften: hx.rules.elementwise, by_width: hx.rules.elementwise}  # the second is wrong: it depends on the width

class Ruled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.c(soften(self.b(by_width(self.a(x))))).relu().mean((2, 3)))

def without_biases():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 30, bias=False), nn.ReLU(),
        nn.Linear(30, 30, bias=False),
    )
"""
FILES = {
    *("recipe.toml", "stages.json", "channels.json", "dense.safetensors", "slim.safetensors", "widths.json"),
    *("dense.onnx", "slim.onnx", "report.json", "report.html", "card.md", "headline.svg", "headline.png"),
}
QUICK = ("--min-seconds", "0")  # no latency
SMALL = ("cut", "--network", "tiny:small", "--allow-import", "tiny", *QUICK)
DENSE_MACS = 64 * 16 * 9 + 16 * 24 * 16 * 9 + 24 * 10
DEAD = [1, 5, 6]  # of the first convolution


pytestmark = pytest.mark.usefixtures("exported_once")


@pytest.fixture(autouse=True)
def home(own_module: Callable[[str, str], Path]) -> Path:
    """The working directory, with a user's own network in it."""
    return own_module("tiny", NETWORK)


@pytest.fixture
def dense(home: Path) -> nn.Module:
    """The user's trained network, three channels of which never fire; its weights are in w.safetensors and w.pth."""
    torch.manual_seed(3)
    model = build_network("tiny:small", allow_import=["tiny"])
    with torch.no_grad():
        model[0].bias[DEAD] = -1e3
    safetensors.torch.save_file(model.state_dict(), home / "w.safetensors")
    torch.save(model.state_dict(), home / "w.pth")
    return model.eval()


def shipped(report: dict) -> dict[str, dict]:
    """Return the figures of every file of a report by its name, with its accuracy."""
    accuracy = {it["name"]: it["accuracy"] for it in report["verify"]["artifacts"]}
    return {it["name"]: it | {"accuracy": accuracy[it["name"]]} for it in report["export"]["artifacts"]}


@pytest.mark.parametrize(("weights", "method"), [("w.safetensors", "group-hs"), ("w.pth", "magnitude")])
def test_a_network_of_ones_own_is_cut_to_its_budget_and_verified(
    call, dense: nn.Module, home: Path, weights: str, method: str
) -> None:
    code, out, err = call(
        *SMALL, "--weights", weights, "--input", "1x8x8", "--macs", "0.5", "--align", "4", "--method", method,
        "--out", "cut", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert {path.name for path in (home / "cut").iterdir()} == FILES
    macs = {file: count_macs(home / "cut" / f"{file}.onnx").macs for file in ("dense", "slim")}
    assert macs == {file: shipped(found)[file]["macs"] for file in macs}
    assert macs["dense"] == DENSE_MACS
    assert macs["slim"] <= 0.5 * DENSE_MACS
    assert found["export"]["budget"]["met"] is found["verify"]["passed"] is True
    assert 0 <= found["cut"]["max_rel_error"] < 1e-12
    slim = load_slim(home / "cut" / "slim.safetensors", into=dense).model
    assert verify_onnx(home / "cut" / "slim.onnx", slim, torch.randn(8, 1, 8, 8)).passed
    assert verify_onnx(home / "cut" / "dense.onnx", dense, torch.randn(8, 1, 8, 8)).passed
    keep = json.loads((home / "cut" / "widths.json").read_text())
    assert {name: len(kept) for name, kept in keep.items()} == {
        it["group"]: it["slim"] for it in found["cut"]["widths"]
    }


def test_a_checkpoint_says_which_of_its_weights_were_taken_and_a_key_takes_others(
    call, dense: nn.Module, home: Path
) -> None:
    averaged = {f"module.{name}": 2 * tensor for name, tensor in dense.state_dict().items()}
    torch.save({"model": dense.state_dict(), "model_ema": averaged, "args": argparse.Namespace()}, "both.pth")
    asked = (*SMALL, "--input", "1x8x8", "--macs", "1", "--align", "1", "--weights", "both.pth")
    for more, factor, said in (
        (
            (),
            1,
            "key 'model'; 'model_ema.module' would fit too (--weights-key, dense.weights_key); left out: 'argparse.",
        ),
        (("--weights-key", "model_ema"), 2, "key 'model_ema', prefix 'module.'; left out: 'argparse.Namespace'"),
    ):
        code, _, err = call(*asked, *more, "--out", f"cut{factor}")
        assert code == 0, err
        assert said in " ".join(err.split())
        written = safetensors.torch.load_file(home / f"cut{factor}" / "dense.safetensors")
        assert torch.equal(written["0.weight"], factor * dense[0].weight)
    code, _, err = call(*SMALL, "--input", "1x8x8", "--macs", "1", "--weights-key", "model", "--out", "cut")
    assert code == 2
    assert "only together with --weights" in err


def test_people_get_a_table_and_are_told_what_to_do_next(call, dense: nn.Module) -> None:
    code, out, _ = call(*SMALL, "--input", "1x8x8", "--params", "0.6", "--align", "4", "--out", "cut")
    assert code == 0
    assert f"{DENSE_MACS:,}" in out
    assert "at most 60.0 % of the dense parameters asked" in out
    assert "the weights are random" in out
    assert "next: fine-tune" in out
    assert 'load_slim("cut/slim.safetensors", into=small())' in out  # tests/test_ship.py does what is printed
    code, out, _ = call(
        *SMALL, "--weights", "w.pth", "--input", "1x8x8", "--macs", "1", "--align", "4", "--out", "whole"
    )
    assert code == 0
    assert "random" not in out
    assert "next: fine-tune" not in out  # nothing was zeroed


@pytest.mark.parametrize("out", ["absent/deep", "empty"])
def test_dead_channels_go_and_nothing_moves(call, dense: nn.Module, home: Path, out: str) -> None:
    (home / "empty").mkdir()
    asked = ("--method", "dead", "--data", "digits", "--calibration", "400")
    code, text, err = call(*SMALL, "--weights", "w.pth", *asked, "--out", out, "--json")
    assert code == 0, err
    found = json.loads(text)
    keep = json.loads((home / out / "widths.json").read_text())
    assert [channel for channel in range(16) if channel not in keep["0"]] == DEAD
    assert [(moved["images"], moved["max_change"]) for moved in found["cut"]["moved"]] == [
        ("calibration", 0),
        ("held-out", 0),
    ]
    # 216 of 1,437 training images are held out.
    assert [moved["count"] for moved in found["cut"]["moved"]] == [400, 216]
    accuracy = evaluate(dense, load_data("digits").test.batches(100))
    files = shipped(found)
    assert files["dense"]["accuracy"] == files["slim"]["accuracy"] == pytest.approx(accuracy)
    assert files["slim"]["macs"] < files["dense"]["macs"]


def test_dead_channels_go_first_where_that_is_asked(call, dense: nn.Module, home: Path) -> None:
    for flags, out in (((), "without"), (("--dead-first",), "with")):
        code, _, err = call(
            *SMALL, "--weights", "w.pth", "--macs", "0.8", "--align", "1", "--data", "digits", *flags, "--out", out
        )
        assert code == 0, err
    refit = ("--refit", "--macs", "0.9", "--step", "0.1", "--align", "1", "--data", "digits", "--calibration", "64")
    assert call(*SMALL, "--weights", "w.pth", *refit, "--dead-first", "--out", "steps")[0] == 0
    kept = {out: set(json.loads((home / out / "widths.json").read_text())["0"]) for out in ("with", "without", "steps")}
    assert not (kept["with"] | kept["steps"]) & set(DEAD)
    assert kept["without"] & set(DEAD)


def test_the_mean_and_deviation_of_the_data_can_be_given(call, dense: nn.Module, home: Path) -> None:
    import onnx

    code, _, err = call(
        *SMALL, "--macs", "0.8", "--align", "1", "--data", "digits", "--mean", "0.25", "--std", "0.5", "--out", "cut"
    )
    assert code == 0, err
    facts = {entry.key: entry.value for entry in onnx.load(home / "cut" / "slim.onnx").metadata_props}
    assert json.loads(facts["hoyer_export.mean"]) == [0.25]
    assert json.loads(facts["hoyer_export.std"]) == [0.5]


def test_a_threshold_of_zero_keeps_everything(call, home: Path) -> None:
    code, out, err = call("cut", "--network", "lenet5", *QUICK, "--threshold", "0", "--out", "cut", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["export"]["budget"]["asked"] == {"threshold": 0}
    assert shipped(found)["slim"]["macs"] == shipped(found)["dense"]["macs"]
    assert found["cut"]["moved"][0]["max_change"] == 0


def test_a_slim_file_of_a_named_network_loads_by_itself(call, home: Path) -> None:
    code, _, err = call("cut", "--network", "lenet5", *QUICK, "--macs", "0.3", "--classes", "7", "--out", "cut")
    assert code == 0, err
    slim = load_slim(home / "cut" / "slim.safetensors").model
    assert verify_onnx(home / "cut" / "slim.onnx", slim, torch.randn(8, 1, 28, 28)).passed
    assert slim(torch.randn(2, 1, 28, 28)).shape == (2, 7)


def test_dead_blocks_become_their_shortcuts_and_the_budget_is_the_whole_networks(call, home: Path) -> None:
    model = build_network("tiny:two_blocks", allow_import=["tiny"])
    torch.nn.init.zeros_(model[1].conv2.weight)
    torch.nn.init.zeros_(model[1].conv2.bias)
    safetensors.torch.save_file(model.state_dict(), home / "dead.safetensors")
    code, out, err = call(
        *SMALL, "--network", "tiny:two_blocks", "--input", "1x8x8", "--weights", "dead.safetensors", "--macs", "0.4",
        "--align", "1", "--dead-blocks", "--out", "cut", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["cut"]["dead_blocks"] == ["1"]
    assert found["export"]["budget"]["asked"] == {"macs": 0.4}
    assert 0.35 < shipped(found)["slim"]["macs"] / shipped(found)["dense"]["macs"] <= 0.4
    slim = load_slim(home / "cut" / "slim.safetensors", into=build_network("tiny:two_blocks", allow_import=["tiny"]))
    assert verify_onnx(home / "cut" / "slim.onnx", slim.model, torch.randn(4, 1, 8, 8)).passed


def test_the_way_down_starts_where_the_dead_blocks_left_it(call, home: Path) -> None:
    torch.manual_seed(0)
    model = build_network("tiny:two_blocks", allow_import=["tiny"])
    torch.nn.init.zeros_(model[1].conv2.weight)
    torch.nn.init.zeros_(model[1].conv2.bias)
    safetensors.torch.save_file(model.state_dict(), home / "dead.safetensors")
    code, out, err = call(
        *SMALL, "--network", "tiny:two_blocks", "--weights", "dead.safetensors", "--data", "digits", "--refit",
        "--macs", "0.4", "--step", "0.1", "--align", "1", "--dead-blocks", "--out", "cut", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    steps, files = found["cut"]["refit"]["steps"], shipped(found)
    assert steps[0]["macs"] == pytest.approx(0.51, abs=0.02)
    assert steps[-1]["macs"] == pytest.approx(files["slim"]["macs"] / files["dense"]["macs"])
    assert found["cut"]["refit"]["images"] == 1024, "as many as a refit takes unless it is told"


def test_constants_are_folded_and_not_zeroed(call, dense: nn.Module, home: Path) -> None:
    model = build_network("lenet5")
    with torch.no_grad():
        model.conv2.weight[:40] = 0  # what is left of these channels is their bias, and a linear layer reads them
        model.conv2.bias[:40] = 1
        model.conv2.weight[40:] *= 20
    safetensors.torch.save_file(model.state_dict(), home / "constant.safetensors")
    asked = ("--weights", "constant.safetensors", "--threshold", "0.4", "--align", "1")
    code, out, err = call("cut", "--network", "lenet5", *QUICK, *asked, "--out", "cut", "--json")
    assert code == 0, err
    cut = json.loads(out)["cut"]
    widths = {it["group"]: (it["dense"], it["slim"]) for it in cut["widths"]}
    assert widths == {"conv1": (20, 20), "conv2": (50, 10), "fc1": (500, 500)}
    (moved,) = cut["moved"]
    assert moved["max_change"] < 1e-5 * moved["max_output"], "zeroing the shifts would have moved the outputs"


def test_the_biases_that_folding_adds_are_within_the_budget_too(call, home: Path) -> None:
    torch.manual_seed(0)
    model = build_network("tiny:without_biases", allow_import=["tiny"])
    with torch.no_grad():
        model[1].weight[:20] = 0  # what is left of them is their bias, and the next layer has none to take it over
        model[1].bias[:20] = 0.1
    safetensors.torch.save_file(model.state_dict(), home / "constant.safetensors")
    whole = sum(parameter.numel() for parameter in model.parameters())
    # Exactly what stays without those 20 channels: not one parameter is left for a bias.
    budget = (whole - 20 * (12 + 1 + 30)) / whole
    code, out, err = call(
        *SMALL, "--network", "tiny:without_biases", "--weights", "constant.safetensors", "--input", "1x3x4",
        "--params", str(budget), "--align", "1", "--out", "cut", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert shipped(found)["slim"]["params"] <= budget * shipped(found)["dense"]["params"]
    names = safetensors.torch.load_file(home / "cut" / "slim.safetensors")
    assert "3.bias" in names, "nothing was folded, so that nothing was tested"


@pytest.mark.parametrize("method", ["group-hs", "magnitude"])
def test_what_a_linear_layer_reads_of_the_input_is_chosen_within_the_budget(call, home: Path, method: str) -> None:
    model = build_network("lenet300")
    with torch.no_grad():
        model.fc1.weight[:, ::2] *= 1e-3
    safetensors.torch.save_file(model.state_dict(), home / "half.safetensors")
    asked = ("cut", "--network", "lenet300", *QUICK, "--weights", "half.safetensors", "--macs", "0.1", "--align", "1")
    code, out, err = call(*asked, "--gather", "fc1", "--method", method, "--out", "cut", "--json")
    assert code == 0, err
    found = json.loads(out)
    widths = {it["group"]: it["slim"] for it in found["cut"]["widths"]}
    pixels, first, second = widths["fc1.input"], widths["fc1"], widths["fc2"]
    assert found["cut"]["gathered"] == {"fc1": [784, pixels]}
    assert shipped(found)["slim"]["macs"] == pixels * first + first * second + second * 10
    assert 0.099 * 266_200 < shipped(found)["slim"]["macs"] <= 0.1 * 266_200
    kept = json.loads((home / "cut" / "widths.json").read_text())["fc1.input"]
    assert all(pixel % 2 for pixel in kept), "a weak pixel stayed beside strong ones that went"
    slim = load_slim(home / "cut" / "slim.safetensors")
    assert torch.equal(slim.plan.kept["fc1.weight"][1], torch.tensor(kept))
    assert build_slim(home / "cut" / "widths.json", "lenet300").plan.to_dict() == slim.plan.to_dict()


@pytest.mark.parametrize(
    ("layer", "said"),
    [("fc9", "'fc9' is not the name of a linear layer"), ("fc2", "cut.gather: fc2 reads the channels of fc1")],
)
def test_what_cannot_be_gathered_is_said_first(call, home: Path, layer: str, said: str) -> None:
    code, out, err = call("cut", "--network", "lenet300", *QUICK, "--macs", "0.5", "--gather", layer, "--out", "other")
    assert (code, out) == (1, "")
    assert said in err
    assert not (home / "other").exists()


@pytest.mark.parametrize(
    ("module", "step"),
    [(cutting, "remove_dead_blocks"), (reaching, "fold_constants"), (reaching, "cut")],
)
def test_the_largest_error_of_any_step_is_the_one_that_is_said(
    call, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str
) -> None:
    real = getattr(module, step)
    monkeypatch.setattr(module, step, lambda *arguments: replace(real(*arguments), max_rel_error=1e-10))
    asked = ("cut", "--network", "lenet300", *QUICK, "--macs", "0.5", "--dead-blocks", "--gather", "fc1")
    code, out, err = call(*asked, "--out", "cut", "--json")
    assert code == 0, err
    assert json.loads(out)["cut"]["max_rel_error"] == 1e-10


def test_the_same_command_leaves_the_same_bytes(call, home: Path, exported_once: dict[str, bytes]) -> None:
    for out in ("a", "b"):
        exported_once.clear()
        assert call("cut", "--network", "lenet5", *QUICK, "--macs", "0.3", "--seed", "5", "--out", out)[0] == 0
    for name in ("dense.onnx", "slim.onnx", "slim.safetensors", "widths.json"):
        assert (home / "a" / name).read_bytes() == (home / "b" / name).read_bytes(), name


@pytest.mark.parametrize("broken", ["budget", "verification"])
def test_a_missed_budget_and_a_failed_verification_exit_3_and_keep_the_files(
    call, home: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "budget":  # a graph that does more than was traced
        real = ship.count_macs
        monkeypatch.setattr(ship, "count_macs", lambda path, **sizes: real(path.with_name("dense.onnx"), **sizes))
    else:
        weights = exporting.export_onnx

        def other_weights(model: nn.Module, *arguments: object, **options: object) -> object:
            with torch.no_grad():
                model.fc2.bias += 0.1
            record = weights(model, *arguments, **options)
            with torch.no_grad():
                model.fc2.bias -= 0.1
            return record

        monkeypatch.setattr(exporting, "export_onnx", other_weights)
    code, out, _ = call("cut", "--network", "lenet5", *QUICK, "--macs", "0.3", "--out", "cut")
    assert code == 3
    assert ("Budget missed" in out) == (broken == "budget")
    assert "Verification failed" in out
    assert ("onnx, outputs" in " ".join(out.split())) == (broken == "verification")
    rejected = {"slim.onnx"} if broken == "budget" else {"dense.onnx", "slim.onnx"}
    left = {f"{name}.rejected" if name in rejected else name for name in FILES}
    assert {path.name for path in (home / "cut").iterdir()} == left


def test_rules_of_ones_own_and_what_the_self_test_refuted_hold_on_the_whole_way(call, home: Path) -> None:
    asked = ("--refit", "--macs", "0.6", "--step", "0.2", "--align", "1", "--data", "digits", "--calibration", "64")
    code, out, err = call(
        *SMALL, "--network", "tiny:Ruled", "--rules", "tiny:RULES", *asked, "--out", "cut", "--json"
    )  # fmt: skip
    assert code == 0, err
    assert "self-test: a is left whole (16 channels)" in err
    cut = json.loads(out)["cut"]
    widths = {it["group"]: it["slim"] for it in cut["widths"]}
    assert set(widths) == {"b", "c"}
    assert min(widths.values()) < 16
    assert len(cut["refit"]["steps"]) >= 3
    assert (
        len(
            load_slim(
                home / "cut" / "slim.safetensors", into=build_network("tiny:Ruled", allow_import=["tiny"])
            ).model.a.weight
        )
        == 16
    )


NAMED = ("cut", "--network", "lenet5", "--out", "out")
REFIT = (*NAMED, "--data", "digits", "--refit")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cut"], "Missing option '--network'"),
        (["cut", "DIR", *NAMED[1:]], "unexpected extra argument"),
        (["cut", "--network", "lenet5", *QUICK, "--macs", "0.5"], "Missing option '--out'"),
        ([*NAMED], "got none"),
        ([*NAMED, "--macs", "0.5", "--params", "0.5"], "got --macs and"),
        ([*NAMED, "--macs", "1.5"], "above 0"),
        ([*NAMED, "--macs", "0"], "above 0"),
        ([*NAMED, "--params", "nan"], "above 0"),
        ([*NAMED, "--threshold", "half"], "expected a number"),
        ([*NAMED, "--threshold", "1,2"], "expected a number"),
        ([*NAMED, "--threshold", "inf"], "expected a number"),
        ([*NAMED, "--threshold", "-1"], "expected a number"),
        ([*NAMED, "--macs", "0.5", "--align", "5"], "expected 1, 4, 8"),
        ([*NAMED, "--macs", "0.5", "--seed", "99999999999999999999999"], "should be less than"),
        ([*NAMED, "--macs", "0.5", "--classes", "100000000000"], "should be less than"),
        ([*NAMED, "--macs", "0.5", "--method", "taylor"], "group-hs"),
        ([*NAMED, "--macs", "0.5", "--input", "1x28"], "CxHxW"),
        ([*NAMED, "--macs", "0.5", "--mean", "0.5"], "only together with"),
        ([*NAMED, "--macs", "0.5", "--data-root", "."], "only together with"),
        ([*NAMED, "--macs", "0.5", "--data", "digits", "--mean", "0.5"], "belong together"),
        ([*NAMED, "--macs", "0.5", "--data", "digits", "--mean", "a", "--std", "1"], "numbers with commas"),
        ([*REFIT, "--macs", "0.5", "--step", "0"], "Invalid value for --step: expected a share above 0"),
        ([*REFIT, "--macs", "0.5", "--step", "nan"], "Invalid value for --step: expected a share above 0"),
        ([*REFIT, "--max-change", "0"], "Invalid value for --max-change: expected a number above 0, got 0"),
        ([*REFIT, "--max-change", "inf"], "Invalid value for --max-change: expected a number above 0, got inf"),
        ([*REFIT, "--max-drop", "-1"], "Invalid value for --max-drop: expected a number of at least 0, got -1"),
        ([*REFIT, "--max-drop", "nan"], "Invalid value for --max-drop: expected a number of at least 0, got nan"),
        ([*NAMED, "--method", "dead"], "name a data set"),
        ([*NAMED, "--macs", "0.5", "--dead-first"], "name a data set"),
        ([*NAMED, "--method", "dead", "--data", "digits", "--macs", "0.5"], "leave it"),
        ([*NAMED, "--method", "dead", "--data", "digits", "--dead-first"], "does nothing else"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_exits_2_and_leaves_nothing(call, home: Path, arguments: list[str], said: str) -> None:
    code, _, err = call(*arguments)
    assert code == 2
    assert " ".join(said.split()) in " ".join(err.replace("│", " ").split())
    assert not (home / "out").exists()


def others(home: Path) -> Path:
    (home / "full").mkdir()
    (home / "full" / "thesis.tex").write_text("precious")
    return home / "full"


OWN = (*SMALL, "--out", "out", "--macs", "0.5", "--align", "1")


@pytest.mark.parametrize("name", ["two_outputs", "logits_and_mask"])
def test_a_network_of_two_outputs_is_cut_and_both_are_verified(call, name: str, home: Path) -> None:
    code, out, _ = call(*OWN, "--input", "1x8x8", "--network", f"tiny:{name}", "--json")
    assert code == 0
    (slim,) = [it for it in json.loads(out)["verify"]["artifacts"] if it["name"] == "slim"]
    assert slim["passed"]
    assert len({it["output"] for it in slim["onnx"]}) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cut", "--network", "lenet6", "--macs", "0.5", "--out", "out"], "unknown network 'lenet6'"),
        (["cut", "--network", "tiny:small", "--macs", "0.5", "--out", "out"], "--allow-import tiny"),
        ([*OWN], "give --input 3x224x224"),
        ([*OWN, "--input", "3x8x8"], "fails on an input of shape"),
        ([*OWN, "--input", "1x8x8", "--weights", "absent.pth"], "found nothing"),
        ([*OWN, "--input", "1x8x8", "--weights", "tiny.py"], "no state dict"),
        ([*OWN, "--input", "1x8x8", "--weights", "w.pth", "--classes", "7"], "'6.weight' should be 7×24, got 10×24"),
        ([*OWN, "--input", "1x9x9", "--data", "digits"], "network.input is 1x9x9, but the images of digits are 1x8x8"),
        ([*OWN, "--data", "digits", "--classes", "5"], "network.classes is 5, but digits has 10 classes"),
        ([*OWN, "--data", "mnist"], "needs a root"),
        ([*OWN, "--data", "digit"], "did you mean 'digits'"),
        ([*NAMED, "--macs", "0.5", "--data", "digits"], "lenet5 cannot take the 1×8×8 images of digits"),
        ([*NAMED, "--macs", "0.0001"], "lenet5 at its narrowest with align = 16 keeps 0.0954 of its macs"),
        ([*NAMED, "--threshold", "natural", "--method", "magnitude"], "give magnitude a number"),
        (["cut", "--network", "lenet5", *QUICK, "--macs", "0.5", "--out", "full"], "holds other files"),
        (["cut", "--network", "lenet5", *QUICK, "--macs", "0.5", "--out", "tiny.py"], "is a file"),
        ([*OWN, "--input", "1x8x8", "--network", "tiny:nothing_to_prune"], "can be pruned exactly"),
        (
            [*OWN, "--data", "digits", "--gather", "6"],
            "cut.gather: 6 reads the channels of 2",
        ),
        ([*OWN, "--data", "images", "--data-root", "nan.npy", "--refit"], "image 3 and 1 more"),
        ([*OWN, "--data", "images", "--data-root", "tiny.py", "--refit"], "expected a folder of pictures, or an .npy"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    call, dense: nn.Module, home: Path, arguments: list[str], said: str
) -> None:
    full = others(home)
    images = np.zeros((8, 1, 8, 8), np.float32)
    images[[3, 5]] = np.nan
    np.save(home / "nan.npy", images)
    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    lines = [line for line in err.splitlines() if not line.startswith(("[", "  "))]  # progress apart
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert not (home / "out").exists()
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]


def test_the_command_line_has_the_list_of_methods_that_loads_no_torch() -> None:
    assert arguments.METHODS is choices.METHODS
