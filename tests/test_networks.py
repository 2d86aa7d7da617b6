"""Networks by name: sizes from closed formulas, and every wrong name explained in one line."""

import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hoyer_export.errors import NetworkError
from hoyer_export.networks import BasicBlock, build_network, default_input_shape, is_function_name


def cifar_resnet_size(depth: int, in_channels: int, classes: int) -> tuple[int, int]:
    """Parameters, and MACs on 32×32 images, of 16-32-64 channels in stages of n = (depth - 2) / 6 blocks."""
    n = (depth - 2) // 6
    params = 9 * in_channels * 16 + 2 * 16
    macs = 9 * in_channels * 16 * 32 * 32
    for before, channels, side in ((16, 16, 32), (16, 32, 16), (32, 64, 8)):
        weights = 9 * channels * before + 9 * channels * channels * (2 * n - 1)
        shortcut = before * channels if before != channels else 0
        params += weights + shortcut + 2 * channels * (2 * n + (shortcut > 0))
        macs += (weights + shortcut) * side * side
    return params + 64 * classes + classes, macs + 64 * classes


LENETS = {
    "lenet300": (784 * 300 + 300 + 300 * 100 + 100 + 1010, 784 * 300 + 300 * 100 + 1000),
    "lenet5": (
        20 * 25 + 20 + 50 * 20 * 25 + 50 + 800 * 500 + 500 + 5010,
        24 * 24 * 20 * 25 + 8 * 8 * 50 * 20 * 25 + 800 * 500 + 5000,
    ),
}


@pytest.mark.parametrize("name", [*LENETS, *(f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110))])
def test_parameters_and_macs_are_those_of_the_closed_formula(name: str) -> None:
    expected = LENETS.get(name) or cifar_resnet_size(int(name.removeprefix("cifar_resnet")), 3, 10)
    shape = default_input_shape(name)
    assert shape is not None
    model = build_network(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = model(torch.zeros(1, *shape))
    params = sum(parameter.numel() for parameter in model.parameters())
    assert (params, counter.get_total_flops() // 2) == expected
    assert logits.shape == (1, 10)


def test_the_lenet_of_caffe_has_the_macs_that_papers_quote() -> None:
    assert LENETS["lenet5"][1] == 2_293_000


def test_a_cifar_resnet_takes_digits_of_eight_by_eight_with_one_channel() -> None:
    model = build_network("cifar_resnet20", in_channels=1, classes=7)
    assert sum(parameter.numel() for parameter in model.parameters()) == cifar_resnet_size(20, 1, 7)[0]
    assert model(torch.rand(3, 1, 8, 8)).shape == (3, 7)


@pytest.mark.parametrize(("name", "side"), [("lenet300", 28), ("lenet5", 28)])
def test_a_lenet_takes_other_channels_and_classes(name: str, side: int) -> None:
    assert build_network(name, in_channels=3, classes=4)(torch.rand(2, 3, side, side)).shape == (2, 4)


def test_a_shortcut_is_a_projection_only_where_the_shape_changes() -> None:
    blocks = [module for module in build_network("cifar_resnet32").modules() if isinstance(module, BasicBlock)]
    projections = [number for number, block in enumerate(blocks) if len(block.shortcut) > 0]
    assert len(blocks) == 15
    assert projections == [5, 10]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in build_network("cifar_resnet20").parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "mobilenet_v3_small", "googlenet"])
def test_a_network_of_torchvision_gives_one_tensor_of_logits_in_training_too(name: str) -> None:
    model = build_network(f"torchvision:{name}", classes=5)
    shape = default_input_shape(f"torchvision:{name}")
    assert shape == (3, 224, 224)
    assert model.training
    assert model(torch.rand(2, *shape)).shape == (2, 5)


def test_a_network_of_torchvision_keeps_its_thousand_classes_where_none_are_named() -> None:
    assert build_network("torchvision:resnet18", in_channels=3).fc.out_features == 1000  # type: ignore[union-attr]


def test_a_network_of_timm_takes_other_channels_and_classes_and_knows_its_input() -> None:
    pytest.importorskip("timm")
    assert default_input_shape("timm:resnet10t") == (3, 176, 176)
    assert default_input_shape("timm:resnet18.a1_in1k") == (3, 224, 224)
    model = build_network("timm:resnet10t", in_channels=1, classes=7)
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 7)


def test_networks_of_timm_are_built_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    asked: list[dict[str, object]] = []

    def create_model(name: str, **options: object) -> torch.nn.Module:
        asked.append(options)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(timm, "create_model", create_model)
    build_network("timm:resnet18")
    build_network("timm:resnet18", in_channels=4, classes=5)
    assert asked == [{"pretrained": False}, {"pretrained": False, "in_chans": 4, "num_classes": 5}]


def test_without_timm_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for ask in (build_network, default_input_shape):
        with pytest.raises(NetworkError, match=r"'timm:resnet18' needs timm, .*; pip install timm$") as caught:
            ask("timm:resnet18")
        assert "\n" not in str(caught.value)


def test_what_timm_itself_cannot_build_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, **options: object) -> torch.nn.Module:
        raise TypeError("no in_chans\nhere")

    monkeypatch.setattr(pytest.importorskip("timm"), "create_model", create_model)
    with pytest.raises(NetworkError, match=r"timm cannot build 'vgg11' with \(in_chans=1\): .*no in_chans here"):
        build_network("timm:vgg11", in_channels=1)


@pytest.mark.parametrize(
    ("name", "foreign"),
    [("my.nets:small", True), ("timm:resnet18", False), ("torchvision:resnet18", False), ("lenet5", False)],
)
def test_only_a_users_own_function_is_foreign_code(name: str, foreign: bool) -> None:
    assert is_function_name(name) is foreign


def test_only_the_author_of_a_function_knows_its_input_shape() -> None:
    assert default_input_shape("my_nets.small:net") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenet50", "unknown network 'lenet50'; did you mean 'lenet5'"),
        ("cifar_resnet21", "'cifar_resnet20'"),
        ("resnet18", "did you mean 'torchvision:resnet18'?"),
        ("zzz", "known are 'lenet300'"),
        ("torchvision:resnet19", "did you mean 'torchvision:resnet1"),
        ("torchvision:quantized_resnet18", "no classification network 'quantized_resnet18'"),
        ("torchvision:fcn_resnet50", "no classification network 'fcn_resnet50'"),
        ("timm:resnet5000", "timm has no network 'resnet5000'; did you mean 'timm:resnet50'"),
        ("timm:resnet50.nonsense", "leave out what follows the dot"),
        ("timm:", "timm has no network ''"),
        ("timm:hf_hub:timm/resnet18", "nothing is fetched from a hub or a path"),
        ("timm:hf-hub:timm/resnet18", "nothing is fetched from a hub or a path"),
        ("timm:local-dir:/tmp", "nothing is fetched from a hub or a path"),
        ("timm:timm/resnet18", "nothing is fetched from a hub or a path"),
        ("a-b:c", "expected package.module:function"),
        ("package:", "expected package.module:function"),
        ("os:path:join", "expected package.module:function"),
        ("", "unknown network ''"),
    ],
)
def test_a_wrong_name_is_explained_in_one_line(name: str, message: str) -> None:
    with pytest.raises(NetworkError) as caught:
        build_network(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["in_channels", "classes"])
def test_a_number_of_channels_or_classes_below_one_is_refused(argument: str) -> None:
    with pytest.raises(NetworkError, match=f"{argument} is 0; expected at least 1"):
        build_network("lenet5", **{argument: 0})


def test_a_network_of_torchvision_refuses_another_number_of_input_channels() -> None:
    with pytest.raises(NetworkError, match="takes images of 3 channels, got in_channels = 1"):
        build_network("torchvision:resnet18", in_channels=1)


@pytest.fixture
def my_nets(tmp_path, monkeypatch):
    """A user's package ``my_nets`` with functions good and bad; importing it leaves a trace."""
    package = tmp_path / "my_nets"
    package.mkdir()
    (package / "__init__.py").write_text("import pathlib\npathlib.Path(__file__).with_name('imported').touch()\n")
    (package / "small.py").write_text(
        "from torch import nn\n"
        "def net(in_channels=2, classes=3): return nn.Linear(in_channels, classes)\n"
        "def fixed(): return nn.Linear(1, 1)\n"
        "def number(): return 7\n"
        "def broken(): raise RuntimeError('two\\nlines')\n"
        "def leaving(): raise SystemExit(5)\n"
        "constant = 1\n"
    )
    (package / "failing.py").write_text("1 / 0\n")
    (package / "script.py").write_text("import sys\nsys.exit('usage: script.py FILE')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "my_nets"]:
        del sys.modules[name]


@pytest.mark.parametrize("allowed", [["my_nets"], ["other", "my_nets.small"], "my_nets"])
def test_a_function_of_an_allowed_package_is_called_with_what_is_set(my_nets, allowed) -> None:
    model = build_network("my_nets.small:net", classes=5, allow_import=allowed)
    assert model.weight.shape == (5, 2)  # type: ignore[union-attr]
    assert build_network("my_nets.small:fixed", allow_import=allowed).weight.shape == (1, 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("allowed", [[], ["my"], ["my_nets.smal"], ["my_nets.small.net"], "my_nets_of_mine", ["*"]])
def test_a_package_that_is_not_allowed_is_not_imported_and_the_option_is_named(my_nets, allowed) -> None:
    with pytest.raises(NetworkError, match="--allow-import my_nets"):
        build_network("my_nets.small:net", allow_import=allowed)
    assert not (my_nets / "imported").exists()
    assert "my_nets" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_nets.small:nets", "has no function 'nets'; did you mean 'net'"),
        ("my_nets.small:constant", "has no function 'constant'"),
        ("my_nets.small:number", "expected a function that returns a torch.nn.Module, got int"),
        ("my_nets.small:broken", "the function failed: RuntimeError: two lines"),
        ("my_nets.small:leaving", "the function failed: SystemExit: 5"),
        ("my_nets.script:net", "cannot import my_nets.script: SystemExit: usage: script.py FILE"),
        ("my_nets.failing:net", "cannot import my_nets.failing: ZeroDivisionError"),
        ("my_nets.missing:net", "cannot import my_nets.missing: ModuleNotFoundError"),
    ],
)
def test_a_function_that_gives_no_network_is_explained_in_one_line(my_nets, name: str, message: str) -> None:
    with pytest.raises(NetworkError) as caught:
        build_network(name, allow_import=["my_nets"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_without_a_parameter_for_classes_is_told_what_is_passed(my_nets) -> None:
    with pytest.raises(NetworkError, match=r"cannot be called with \(classes\)"):
        build_network("my_nets.small:fixed", classes=3, allow_import=["my_nets"])
