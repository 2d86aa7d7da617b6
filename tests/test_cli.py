"""The command line: pure JSON for machines, one line for a mistake, and the exit code that says which kind."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from rich.console import Console
from torch import nn

from hoyer_export import choices, networks
from hoyer_export.cli import arguments
from hoyer_export.console import runs
from hoyer_export.data import load
from hoyer_export.deploy import macs as macs_module
from hoyer_export.deploy.export import export_onnx
from hoyer_export.errors import FileError, HoyerExportError, NetworkError, VerificationFailed
from hoyer_export.run import chain, inspecting
from hoyer_export.run.inspecting import GroupCost

RECIPE = '[network]\nname = "cifar_resnet20"\n[data]\nname = "digits"\n[cut]\nmacs = 0.5\nalign = 4\n'


@pytest.fixture(scope="module")
def linear_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of 12·5 MACs."""
    path = tmp_path_factory.mktemp("onnx") / "linear.onnx"
    export_onnx(nn.Linear(12, 5), torch.zeros(2, 12), path)
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_macs_prints_the_closed_formula_to_people_and_pure_json_to_machines(call, linear_file: Path) -> None:
    code, out, err = call("macs", str(linear_file))
    assert (code, err) == (0, "")
    assert "60 MACs = 120 FLOPs for one image" in out
    code, out, err = call("macs", str(linear_file), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["macs"] == 60


def test_sizes_that_are_missing_are_asked_for_in_the_words_of_the_command_line(call, tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    for name in ("image", "x"):
        fed = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3, "height", None])
        out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
        graph = onnx.helper.make_graph([onnx.helper.make_node("Conv", [name, "w"], ["y"])], "g", [fed], [out], [weight])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
        onnx.save(model, tmp_path / f"{name}.onnx")
    files = [str(tmp_path / f"{name}.onnx") for name in ("image", "x")]
    for verb in ("macs", "bench"):
        code, _, err = call(verb, files[0])
        assert code == 1
        assert "axes 2 (height) and 3 (?) of the input 'image' are dynamic" in err
        assert err.endswith("give sizes: --shape image=1x3xHEIGHTx?\n")
    code, out, _ = call("macs", files[0], "--shape", "image=1x3x6x7")
    assert (code, f"{4 * 4 * 5 * 27:,} MACs" in out) == (0, True)
    both = ("bench", *files, "--min-seconds", "0.1", "--shape", "image=2x3x6x7", "--json")
    code, out, _ = call(*both, "--shape", "x=2X3×9x9")
    assert (code, json.loads(out)["batch_size"]) == (0, 2)
    code, _, err = call(*both)
    assert (code, "--shape x=2x3xHEIGHTx?" in err) == (1, True)
    for wrong in ("image", "=1x3", "image=1x3xN", "image=-1x3", "image=1x3x8x8"):  # the last one twice
        code, _, err = call(*both, "--shape", wrong)
        assert code == 2
        assert "expected NAME=SIZES" in " ".join(err.replace("│", " ").split())


def test_macs_are_sorted_by_cost_and_the_light_ones_summed_up(call, tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"node{i}") for i in range(30)]
    widths = [*range(1, 31), 5]
    kept = [onnx.numpy_helper.from_array(np.zeros(widths[i : i + 2], np.float32), f"w{i}") for i in range(30)]
    fed = onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, ["n", 1])
    out = onnx.helper.make_tensor_value_info("x30", onnx.TensorProto.FLOAT, None)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [fed], [out], kept), opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    model.ir_version = 8
    onnx.save(model, tmp_path / "f.onnx")
    code, out, _ = call("macs", str(tmp_path / "f.onnx"))
    rows = re.findall(r"│ (node\d+|10 more \(--all\))", out)
    assert code == 0
    assert (rows[0], rows[1], rows[-1], len(rows)) == ("node28", "node27", "10 more (--all)", 21)
    code, out, _ = call("macs", str(tmp_path / "f.onnx"), "--all")
    assert re.findall(r"│ node(\d+)", out)[-1] == "0"


def test_bench_compares_every_file_with_the_first(call, linear_file: Path) -> None:
    code, out, _ = call("bench", str(linear_file), str(linear_file), "--min-seconds", "0.1", "--json")
    assert code == 0
    found = json.loads(out)
    assert [file["file"] for file in found["files"]] == ["linear.onnx", "linear.onnx"]
    assert len(found["speedups"]) == 1
    code, out, _ = call("bench", str(linear_file), str(linear_file), "--min-seconds", "0.1")
    assert code == 0
    assert "linear.onnx" in out


def test_inspect_says_what_each_group_carries_and_what_can_be_reached(call) -> None:
    code, out, _ = call("inspect", "--network", "lenet5", "--macs", "0.5", "--align", "1", "--json")
    assert code == 0
    found = json.loads(out)
    # 24²·20·25 + 8²·50·20·25 + 800·500 + 500·10
    conv1, conv2, fc1, fc2 = 288_000, 1_600_000, 400_000, 5_000
    assert found["macs"] == conv1 + conv2 + fc1 + fc2
    carried = {group["name"]: group["macs"] for group in found["groups"]}
    assert carried == {"conv1": conv1 + conv2, "conv2": conv2 + fc1, "fc1": fc1 + fc2}
    # one channel each: 24²·25 + 8²·25 + 16 + 10
    assert found["least_macs"] == pytest.approx((14_400 + 1_600 + 16 + 10) / found["macs"])
    assert found["reachable"] is True
    assert any("output" in reason["reason"] for reason in found["unprunable"])


def test_inspect_proves_every_group_before_any_training(call) -> None:
    code, out, _ = call("inspect", "--network", "lenet5", "--prove")
    assert code == 0
    assert "self-test: 3 of 3 groups proved; zeroed and cut networks agree to" in out
    assert "torch.onnx exports it" in out
    code, out, _ = call("inspect", "--network", "lenet5", "--prove", "--json")
    verdicts = json.loads(out)["verdicts"]
    assert [it["group"] for it in verdicts if it["verdict"] == "proved"] == ["conv1", "conv2", "fc1"]
    assert {it["verdict"] for it in verdicts} == {"proved", "unprunable"}
    assert json.loads(call("inspect", "--network", "lenet5", "--json")[1])["verdicts"] is None


def test_inspect_prints_the_same_twice_and_another_seed_other_numbers(call) -> None:
    asked = ("inspect", "--network", "lenet5", "--prove", "--json")
    first = call(*asked)[1]
    torch.rand(3)  # whatever was drawn before
    assert call(*asked)[1] == call(*asked, "--seed", "0")[1] == first
    assert call(*asked, "--seed", "1")[1] != first


def test_inspect_names_what_the_self_test_refutes(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wide.py").write_text(
        "from torch import nn\n"
        "class Wide(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b, self.c = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)\n"
        "    def forward(self, x):\n"
        "        y = self.a(x)\n"
        "        y = y * len(range(self.a.out_channels))\n"  # Python makes a plain int of it, and nobody sees what for
        "        return self.c(self.b(y)).mean((2, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    asked = ("inspect", "--network", "wide:Wide", "--input", "1x9x9", "--allow-import", "wide")
    code, out, _ = call(*asked, "--prove")
    assert code == 0
    assert "self-test: 1 of 2 groups proved" in out
    assert "refuted, left whole: a:" in " ".join(out.split())
    assert "refuted by the self-test" in out


def test_a_network_of_many_groups_fits_on_a_screen_the_heaviest_first(call) -> None:
    asked = ("inspect", "--network", "cifar_resnet110", "--align", "4")
    groups = json.loads(call(*asked, "--json")[1])["groups"]
    assert len(groups) == 57
    rows = [line.split("│") for line in call(*asked)[1].splitlines() if line.startswith("│")]
    shown = [row for row in rows if len(row) == 8]  # piped, so that there is room for params
    assert len(shown) == 21
    heaviest = sorted(groups, key=lambda group: -group["macs"])
    assert [row[1].strip() for row in shown[:20]] == [group["name"] for group in heaviest[:20]]
    rest = {key: sum(group[key] for group in heaviest[20:]) for key in ("width", "least")}
    assert shown[20][1].strip() == "37 more (--all)"
    assert shown[20][4].strip() == ""  # layers between two groups count in both: a sum of shares would mislead
    assert (shown[20][2].strip(), shown[20][6].strip()) == (f"{rest['width']:,}", f"{rest['least']:,}")
    everything = [line for line in call(*asked, "--all")[1].splitlines() if line.startswith("│")]
    assert len(everything) == len(rows) - 21 + 57


@pytest.mark.parametrize(("width", "params"), [(80, False), (120, True)])
def test_long_names_of_groups_stay_on_one_line_of_a_terminal(call, width: int, params: bool) -> None:
    name, records = "features.denseblock4.denselayer32.conv1", io.StringIO()
    group = GroupCost(name, 1_024, 2_345_678_901, 0.234, 123_456_789, 1_024)
    runs._print_groups(Console(file=records, width=width), SimpleNamespace(groups=[group]), everything=False)
    printed = records.getvalue()
    assert name in printed
    assert "2.35 G" in printed
    assert printed.count("\n│") == 1
    assert max(map(len, printed.splitlines())) <= width
    assert ("params" in printed) == params


def test_a_group_carries_the_params_that_would_go_with_it(call) -> None:
    found = json.loads(call("inspect", "--network", "lenet5", "--json")[1])
    carried = {group["name"]: group["params"] for group in found["groups"]}
    conv1, conv2, fc1, fc2 = 20 * 25, 50 * 20 * 25, 800 * 500, 500 * 10
    assert carried == {"conv1": conv1 + 20 + conv2, "conv2": conv2 + 50 + fc1, "fc1": fc1 + 500 + fc2}


def test_inspect_asks_torch_pruning_for_a_second_opinion(call) -> None:
    code, out, _ = call("inspect", "--network", "cifar_resnet20", "--cross-check")
    assert code == 0
    assert "torch-pruning couples 448 of these 448 channels in the same way" in out
    assert "it would also remove channels of linear.weight" in out


def test_where_torch_pruning_fails_what_was_found_here_is_still_said(call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise NetworkError("torch-pruning cannot trace the network (no)")

    monkeypatch.setattr(inspecting, "cross_check", fail)
    code, out, _ = call("inspect", "--network", "lenet5", "--cross-check")
    assert code == 0
    assert "3 channel groups" in out
    assert "no second opinion: torch-pruning cannot trace the network (no)" in out
    found = json.loads(call("inspect", "--network", "lenet5", "--cross-check", "--json")[1])
    assert (found["cross_check"], found["cross_check_failed"]) == (None, "torch-pruning cannot trace the network (no)")


def test_ones_own_package_in_the_working_directory_is_found_once_it_is_allowed(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def small():\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])  # as in an installed command
    installed = [*sys.path]
    asked = ("inspect", "--network", "my_networks:small", "--input", "1x8x8")
    code, _, err = call(*asked)
    assert (code, err.count("\n")) == (1, 1)
    assert "--allow-import my_networks" in err
    code, out, _ = call(*asked, "--allow-import", "my_networks")
    assert code == 0
    assert "1 channel group" in out
    assert sys.path == [*installed, ""]  # whatever is installed comes first


def test_inspect_of_a_recipe_uses_its_data_budget_and_alignment(call, recipe: Path) -> None:
    code, out, _ = call("inspect", str(recipe))
    assert code == 0
    assert "cifar_resnet20, input 1×8×8" in out
    assert "macs = 0.5 can be reached" in out
    code, out, _ = call("inspect", str(recipe), "--set", "cut.macs=0.001", "--set", "cut.align=16")
    assert code == 0
    assert "macs = 0.001 cannot be reached" in out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run"],
        ["run", "r.toml"],
        ["run", "r.toml", "--out", "d", "--fast"],
        ["bench"],
        ["bench", "a.onnx", "--threads", "0"],
        ["inspect"],
        ["inspect", "r.toml", "--network", "lenet5"],
        ["inspect", "r.toml", "--seed", "3"],
        ["inspect", "--network", "lenet5", "--seed", "-1"],
        ["inspect", "--network", "lenet5", "--input", "3x224"],
        ["inspect", "--network", "lenet5", "--classes", "100000000000"],
        ["inspect", "--network", "lenet5", "--macs", "2"],
        ["inspect", "--network", "lenet5", "--align", "5"],
        ["inspect", "--network", "lenet5", "--set", "cut.macs=1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(call, arguments: list[str]) -> None:
    code, out, err = call(*arguments)
    assert code == 2
    assert out + err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["macs", "absent.onnx"], "absent.onnx"),
        (["bench", "absent.onnx"], "absent.onnx"),
        (["report", "absent"], "absent is absent"),
        (["export", "absent"], "absent is absent"),
        (["verify", "absent"], "absent is absent"),
        (["run", "absent.toml", "--out", "out"], "absent.toml"),
        (["inspect", "absent.toml"], "absent.toml"),
        (["inspect", "--network", "lenet6"], "unknown network 'lenet6'"),
        (["inspect", "--network", "os:system"], "--allow-import os"),
        (["inspect", "--network", "lenet5", "--input", "1x8x8"], "fails on an input"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_on_stderr_and_exits_1(
    call, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"), [(HoyerExportError("x"), 1), (FileError("x"), 1), (VerificationFailed("x"), 3)]
)
def test_every_error_of_ours_has_its_exit_code(
    call, error: HoyerExportError, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *, shapes: object) -> None:
        raise error

    monkeypatch.setattr(macs_module, "count_macs", fail)
    assert call("macs", "any.onnx") == (code, "", "error: x\n")
    found, out, err = call("macs", "any.onnx", "--json")
    assert (found, err) == (code, "error: x\n")
    assert json.loads(out) == {"error": {"message": "x", "exit_code": code}}


@pytest.mark.parametrize(
    "arguments", [["fly", "--json"], ["bench", "--json"], ["bench", "--json", "a", "--threads", "0"]]
)
def test_wrong_usage_is_an_object_too_for_a_machine(call, arguments: list[str]) -> None:
    code, out, err = call(*arguments)
    assert (code, json.loads(out)["error"]["exit_code"]) == (2, 2)
    assert json.loads(out)["error"]["message"] in " ".join(err.replace("│", "").split())


@pytest.mark.parametrize(
    ("python", "option"),
    [
        ("`out` x is a file", "--out x is a file"),
        ("add `resume=True` to go on", "add --resume to go on"),
        ('allow it with `allow_import=["nets"]`', "allow it with --allow-import nets"),
        ("give it with `input_shape=(3, 8, 8)`", "give it with --input 3x8x8"),
        ("`redo_from='cut'`; `a` b, `Tensor`", "--redo-from cut; --a b, `Tensor`"),
        ("a path `a=b`/`c", "a path --a b/`c"),
    ],
)
def test_the_library_speaks_python_and_the_command_line_its_options(python: str, option: str) -> None:
    assert arguments.in_options(python) == option


@pytest.mark.parametrize("verb", ["run", "inspect", "cut", "export", "verify", "report", "macs", "bench"])
def test_help_shows_an_example_the_exit_codes_and_no_type_for_a_flag(call, verb: str) -> None:
    code, out, _ = call(verb, "--help")
    assert code == 0
    assert f"Example: hoyer-export {verb} " in out
    assert "Exit codes: 0 done; 1 the input is wrong;" in out
    assert "bool" not in out.lower()
    assert "int range" not in out.lower()


def test_the_shell_completes_names() -> None:
    assert arguments.methods("ma") == ["magnitude"]
    assert arguments.data_sets("fa") == ["fashion-mnist"]
    assert arguments.networks("lenet") == ["lenet300", "lenet5"]
    assert {"torchvision:", "timm:"} <= set(arguments.networks(""))
    assert set(arguments.networks("torchvision:resnet1")) == {f"torchvision:resnet{depth}" for depth in (18, 101, 152)}
    assert "timm:resnet50" in arguments.networks("timm:res")
    asked = {"_HOYER_EXPORT_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "hoyer-export cut --network lenet"}
    code = (
        "import sys; from hoyer_export.cli import app\n"
        "try: app(prog_name='hoyer-export')\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True)
    assert re.findall(r'"(.+?)"', done.stdout) == ["lenet300", "lenet5"]
    assert done.stdout.endswith("False\n")


def test_what_the_shell_offers_is_what_there_is() -> None:
    assert tuple(load._DEFAULTS) == choices.DATA_SETS
    assert all(networks.default_input_shape(name) is not None for name in choices.NETWORKS)


def test_what_the_encoding_of_stdout_lacks_is_no_crash() -> None:
    asked = [sys.executable, "-m", "hoyer_export", "inspect", "--network", "lenet5"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    assert "lenet5, input 1?28?28" in done.stdout


def test_a_bug_keeps_its_traceback_and_exits_70(call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *, shapes: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(macs_module, "count_macs", fail)
    code, out, err = call("macs", "any.onnx")
    assert (code, out) == (70, "")
    assert "Traceback" in err
    assert "ZeroDivisionError: ours" in err


def test_control_c_exits_130_and_says_how_to_resume_once_there_is_something(
    call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chain, "run_recipe", interrupted)
    assert call("run", str(recipe), "--out", str(out)) == (130, "", "interrupted; nothing was written yet\n")

    def interrupted_later(*arguments: object, **options: object) -> None:
        out.mkdir()
        (out / "recipe.toml").write_text(RECIPE)
        raise KeyboardInterrupt

    monkeypatch.setattr(chain, "run_recipe", interrupted_later)
    code, _, err = call("run", str(recipe), "--out", str(out))
    assert code == 130
    assert err == "interrupted in inputs; go on with the same command and --resume\n"


def test_a_folder_in_the_way_is_said_before_anything_is_loaded(call, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    code, _, err = call("run", str(recipe), "--out", str(tmp_path / "thesis"))
    assert code == 1
    assert "holds other files" in err
    code, _, err = call("run", str(recipe), "--out", str(recipe))
    assert code == 1
    assert "is a file" in err
    assert recipe.read_text() == RECIPE
