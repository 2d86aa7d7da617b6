"""The conversion against a zero-padded ResNet written here, independently, in float64."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.errors import NetworkError
from hoyer_export.networks import BasicBlock

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_cifar_resnet.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_cifar_resnet", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def zero_padded(weights: dict[str, Tensor], x: Tensor, *, training: bool) -> Tensor:
    """ResNet-20 of He et al. 2015, option A, written out over its state dict.

    Training mode leaves the statistics of this batch in ``weights``, as a momentum of 1 does.
    """

    def norm(x: Tensor, name: str) -> Tensor:
        running = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.batch_norm(x, *running, weights[f"{name}.weight"], weights[f"{name}.bias"], training, momentum=1.0)

    def convolution(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], stride=stride, padding=1)

    x = F.relu(norm(convolution(x, "conv1"), "bn1"))
    for stage in (1, 2, 3):
        for block in range(3):
            name = f"layer{stage}.{block}"
            shrinks = stage > 1 and block == 0
            y = F.relu(norm(convolution(x, f"{name}.conv1", 2 if shrinks else 1), f"{name}.bn1"))
            y = norm(convolution(y, f"{name}.conv2"), f"{name}.bn2")
            if shrinks:
                half = x.new_zeros(x.shape[0], x.shape[1] // 2, y.shape[2], y.shape[3])
                x = torch.cat((half, x[:, :, ::2, ::2], half), dim=1)
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


def random_weights(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def layer(convolution: str, norm: str, channels: int, inputs: int) -> None:
        weights[f"{convolution}.weight"] = draw(channels, inputs, 3, 3) / (3 * inputs**0.5)
        weights[f"{norm}.weight"] = draw(channels).abs() + 0.3
        weights[f"{norm}.bias"] = draw(channels) / 3
        weights[f"{norm}.running_mean"] = draw(channels) / 3
        weights[f"{norm}.running_var"] = draw(channels).abs() + 0.3

    layer("conv1", "bn1", 16, 3)
    inputs = 16
    for stage, channels in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            name = f"layer{stage}.{block}"
            layer(f"{name}.conv1", f"{name}.bn1", channels, inputs)
            layer(f"{name}.conv2", f"{name}.bn2", channels, channels)
            inputs = channels
    weights["linear.weight"], weights["linear.bias"] = draw(10, 64) / 8, draw(10)
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def shortcuts(model: nn.Module) -> list[nn.Sequential]:
    return [m.shortcut for m in model.modules() if isinstance(m, BasicBlock) and len(m.shortcut) > 0]


@torch.no_grad()
def test_evaluation_is_equal_to_machine_precision_and_a_changed_entry_is_seen(script: ModuleType) -> None:
    weights = random_weights()
    model = script.convert(weights, [images(16, 1), images(8, 2)], source="test")
    x = images(8, 3)
    theirs = zero_padded(weights, x, training=False)
    assert relative_error(model(x), theirs) < 1e-12
    shortcuts(model)[1][1].weight[30] *= 1.001  # type: ignore[index, operator]
    assert relative_error(model(x), theirs) > 1e-9


@torch.no_grad()
def test_the_statistics_are_those_of_the_shortcuts_over_all_images(script: ModuleType) -> None:
    weights = random_weights()
    model = script.convert(weights, [images(16, 1), images(8, 2)], source="test")
    x = torch.cat((images(16, 1), images(8, 2)))
    for shortcut, layer in zip(shortcuts(model), (model.layer1, model.layer2), strict=True):
        outputs: list[Tensor] = []
        hook = layer.register_forward_hook(lambda _module, _inputs, output, kept=outputs: kept.append(output))
        model(x)
        hook.remove()
        selected = outputs[0][:, :, ::2, ::2].transpose(0, 1).flatten(1)
        norm, quarter = shortcut[1], selected.shape[0] // 2
        middle = slice(quarter, 3 * quarter)
        assert torch.allclose(norm.running_mean[middle], selected.mean(1), atol=1e-12)
        assert torch.allclose(norm.running_var[middle], selected.var(1, correction=0), atol=1e-12)


@torch.no_grad()
def test_training_mode_is_close_and_far_closer_than_with_a_plain_identity(script: ModuleType) -> None:
    weights, x = random_weights(), images(64, 1)
    theirs = zero_padded(weights, x, training=True)  # the running statistics are now true ones
    model = script.convert(weights, [x], source="test").train()
    assert relative_error(model(x), theirs) < 1e-3
    for shortcut in shortcuts(model):
        shortcut[1].reset_parameters()
    assert relative_error(model(x), theirs) > 0.1


@torch.no_grad()
def test_padded_channels_are_exactly_zero_in_both_modes_and_their_gain_is_one(script: ModuleType) -> None:
    model = script.convert(random_weights(), [images(16, 1)], source="test")
    outputs: list[Tensor] = []
    for shortcut in shortcuts(model):
        shortcut.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    for training in (False, True):
        model.train(training)(images(16, 2))
    assert len(outputs) == 4
    for output in outputs:
        quarter = output.shape[1] // 4
        padded = torch.cat((output[:, :quarter], output[:, -quarter:]), dim=1)
        assert (padded == 0).all()
        assert (output[:, quarter:-quarter] != 0).any()
    fresh = script.convert(random_weights(), [images(16, 1)], source="test")
    for _, norm in shortcuts(fresh):
        assert torch.allclose(norm.weight / (norm.running_var + norm.eps).sqrt(), torch.ones_like(norm.weight))


def test_the_result_has_the_dtype_of_the_weights(script: ModuleType) -> None:
    model = script.convert(random_weights(torch.float32), [images(16, 1).float()], source="test")
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert not model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"layer2.0.shortcut.0.weight": torch.zeros(1)}), "has projection shortcuts already"),
        (lambda w: w.pop("layer3.2.bn2.bias"), "'layer3.2.bn2.bias' is missing"),
        (lambda w: w.update({"conv1.weight": torch.zeros(16, 1, 3, 3)}), "'conv1.weight' should be 16×3×3×3"),
        (lambda w: w.update({"layer1.3.conv1.weight": torch.zeros(1)}), "unknown network 'cifar_resnet26'"),
        (lambda w: w.pop("conv1.weight"), "'conv1.weight' is missing"),
        (lambda w: w.clear(), "unknown network 'cifar_resnet2'"),
    ],
)
def test_weights_of_another_network_are_refused(script: ModuleType, change, message: str) -> None:
    weights = random_weights()
    change(weights)
    with pytest.raises(NetworkError, match=message):
        script.convert(weights, [], source="file.th")


@pytest.mark.parametrize(
    ("checkpoint", "out", "culprit"), [("no.th", "out.safetensors", "no.th"), ("no.th", "a/out.safetensors", "folder")]
)
def test_a_missing_file_or_folder_is_one_line_and_nothing_is_written(
    script: ModuleType, tmp_path: Path, capsys, checkpoint: str, out: str, culprit: str
) -> None:
    arguments = [str(tmp_path / checkpoint), "--data", str(tmp_path), "--out", str(tmp_path / out)]
    assert script.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert culprit in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("file", "accuracy"), [("resnet20-12fca82f.th", "91.73"), ("resnet56-4bfd9763.th", "93.39")])
def test_the_public_weights_keep_their_test_accuracy(
    script: ModuleType, tmp_path: Path, capsys, file: str, accuracy: str
) -> None:
    data, weights = os.environ.get("HOYER_EXPORT_DATA"), os.environ.get("HOYER_EXPORT_WEIGHTS")
    if data is None or weights is None:
        pytest.skip("set HOYER_EXPORT_DATA to a folder with CIFAR-10, HOYER_EXPORT_WEIGHTS to one with the .th files")
    out = tmp_path / "dense.safetensors"
    assert script.main([str(Path(weights) / file), "--data", data, "--out", str(out)]) == 0
    assert f"test accuracy {accuracy} %" in capsys.readouterr().out
