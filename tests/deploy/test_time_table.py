"""The times of layers: what is measured, what lies between, and what is kept."""

import json
import time
from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn

from hoyer_export.deploy import layer_times as module
from hoyer_export.deploy.layer_times import cache_folder, time_table
from hoyer_export.deploy.layers import DEPTHWISE, Layer, layers_of, model_of
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.runtime.onnx_runtime import OnnxRuntime
from hoyer_export.deploy.runtime.protocol import RunFailed
from hoyer_export.deploy.time_table import HELD_OUT, TimeTable, grid, grid_points, interpolation_error
from hoyer_export.errors import CannotWrite, FileError

CONV = Layer(64, 128, (1, 14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
DEEP = Layer(96, 96, (1, 14, 14), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), DEPTHWISE)
GROUPED = Layer(64, 64, (1, 14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 4)
LINEAR = Layer(512, 100, (1,))
LAYERS = (CONV, DEEP, GROUPED, LINEAR)


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Layer]:
    """Every layer takes a microsecond for a thousand MACs; the list holds what was measured."""
    found: list[Layer] = []

    def fake(layer: Layer, *_: object) -> float:
        found.append(layer)
        return layer.macs * 1e-6

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_measured", fake)
    return found


def kept() -> list[Path]:
    return sorted(cache_folder().iterdir())


def test_the_layers_of_a_network_are_those_that_it_calls() -> None:
    shared = nn.Conv2d(8, 8, (3, 5), padding="same", dilation=2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.twice, self.idle = shared, nn.Linear(2, 2)
            self.deep, self.grouped = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1, groups=2)
            self.head = nn.Linear(16, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = self.grouped(self.deep(self.twice(self.twice(self.stem(images)))))
            return self.head(found.flatten(2).transpose(1, 2))

    net = Net().train()
    found = layers_of(net, torch.randn(2, 3, 16, 16), batch_size=3)
    same = Layer(8, 8, (3, 8, 8), (3, 5), (1, 1), (2, 4, 2, 4), (2, 2))
    assert found == {
        "stem": (Layer(3, 8, (3, 16, 16), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),),
        "twice": (same, same),
        "deep": (Layer(8, 8, (3, 8, 8), (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), DEPTHWISE),),
        "grouped": (Layer(8, 16, (3, 6, 6), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2),),
        "head": (Layer(16, 5, (108,)),),
    }
    assert net.training
    assert str(same) == "8 → 8, 3×8×8, 3×5 kernel, dilation 2×2, pads 2×4×2×4"


@pytest.mark.parametrize("layer", [*LAYERS, CONV.at(3, 7)], ids=str)
@pytest.mark.parametrize("copies", [1, 3])
def test_the_model_of_a_layer_has_its_macs_and_runs(layer: Layer, copies: int, tmp_path: Path) -> None:
    path = tmp_path / "layer.onnx"
    path.write_bytes(model_of(layer, copies))
    glance = 16 * layer.outputs if layer.kernel else 0  # at a single position
    assert count_macs(path).macs == copies * (layer.macs + glance)
    outputs = OnnxRuntime().load(path, 1, True).run({"images": module.noise(layer.input_shape)})
    assert [prod(output.shape) for output in outputs] == copies * [16 if layer.kernel else layer.outputs]


@pytest.mark.parametrize("layer", [*LAYERS, Layer(2048, 1000, (1,)), CONV.at(3, 24), CONV.at(16, 16)], ids=str)
@pytest.mark.parametrize("block", [8, 16])
def test_a_grid_has_five_points_a_side_at_most_and_the_dense_widths(layer: Layer, block: int) -> None:
    for points, width in zip(grid_points(layer, block), (layer.inputs, layer.outputs), strict=True):
        assert 1 <= len(points) <= 5
        assert points[-1] == width
        assert all(it % 8 == 0 and it % max(layer.groups, 1) == 0 for it in points[:-1])
    assert layer in set(grid(layer, block))


def test_what_grows_with_both_widths_is_interpolated_exactly_at_whole_blocks() -> None:
    table = time_table(LAYERS)
    for layer in (CONV, LINEAR):
        for inputs, outputs in ((48, 80), (16, 16), (layer.inputs, layer.outputs)):
            assert float(table.ms(layer, inputs, outputs)) == pytest.approx(layer.at(inputs, outputs).macs * 1e-6)
    for width in (16, 48, 80, 96):
        assert float(table.ms(DEEP, width, width)) == pytest.approx(DEEP.at(width, width).macs * 1e-6)
    assert table.ms(CONV, [17, 31, 32], [100, 112, 97]).tolist() == pytest.approx(3 * [CONV.at(32, 112).macs * 1e-6])
    assert float(table.ms(CONV, 3, 128)) == float(table.ms(CONV, 8, 128)) < float(table.ms(CONV, 9, 128))
    found = interpolation_error(LAYERS, table)
    assert found is not None
    assert found.pairs == HELD_OUT
    assert found.largest == pytest.approx(0, abs=1e-9)


def test_a_step_between_the_points_shows_in_the_error() -> None:
    table = time_table(LAYERS)
    for layer in table.entries:
        if layer not in {it for dense in LAYERS for it in grid(dense, table.block)}:
            table.entries[layer] *= 2
    found = interpolation_error(LAYERS, table)
    assert found is not None
    assert found.median == pytest.approx(0.5)
    assert interpolation_error([CONV.at(3, 16)], time_table([CONV.at(3, 16)])) is None


def test_a_narrower_layer_is_never_slower_whatever_the_noise() -> None:
    draw = torch.Generator().manual_seed(0)
    noisy = {it: 1 + float(torch.rand(1, generator=draw)) for it in grid(CONV, 16)}
    table = TimeTable("fake", "", 1, 16, noisy)
    grown = torch.tensor([[float(table.ms(CONV, i, o)) for o in range(1, 129)] for i in range(1, 65)])
    assert bool((grown.diff(dim=0) >= 0).all() and (grown.diff(dim=1) >= 0).all())


def test_what_is_known_is_not_measured_again(measured: list[Layer]) -> None:
    told: list[int] = []
    first = time_table(LAYERS, told=told.append)
    assert told == [len(measured)] == [len(first.entries)] == [len(set(measured))]
    again = time_table(LAYERS, told=told.append)
    assert again == first
    assert len(told) == 1
    assert len(kept()) == 1
    time_table([CONV], threads=2)
    assert len(kept()) == 2  # another table


def test_what_was_measured_when_interrupted_is_kept(monkeypatch: pytest.MonkeyPatch, measured: list[Layer]) -> None:
    def stops(layer: Layer, *_: object) -> float:
        if len(measured) == 7:
            raise KeyboardInterrupt
        measured.append(layer)
        return 1.0

    with monkeypatch.context() as patched:
        patched.setattr(module, "_measured", stops)
        with pytest.raises(KeyboardInterrupt):
            time_table([CONV])
    table = time_table([CONV])
    assert len(measured) == len(set(measured)) == len(table.entries)
    assert sum(ms == 1.0 for ms in table.entries.values()) == 7


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"block": 16, "layers": [{"ms": 1}]}', "negative"])
def test_a_damaged_table_is_measured_anew(damage: str, measured: list[Layer]) -> None:
    table = time_table([CONV])
    held = json.loads(kept()[0].read_text(encoding="utf-8"))
    held["layers"][0]["ms"] = -1
    kept()[0].write_text(json.dumps(held) if damage == "negative" else damage, encoding="utf-8")
    assert time_table([CONV]).entries == table.entries
    assert len(measured) == 2 * len(table.entries)


def test_a_table_is_of_one_processor_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    time_table([LINEAR])
    monkeypatch.setattr(module, "version", lambda _: "0.0")
    time_table([LINEAR])
    monkeypatch.setattr("hoyer_export.environment._cpu_name", lambda _: "another")
    time_table([LINEAR])
    assert len(kept()) == 3


def test_a_cache_folder_that_cannot_be_made_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measured: list[Layer]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CannotWrite, match="set XDG_CACHE_HOME"):
        time_table([CONV])
    assert measured == []


def test_a_layer_of_a_hundred_times_the_macs_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    around: dict[Layer, float] = {}
    small, large = (module._measured(CONV.at(width, width), OnnxRuntime(), 1, around) for width in (16, 160))
    assert 0 < 10 * small < large < 100


def test_time_without_a_processor_does_not_count_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sleeps(OnnxRuntime):
        def load(self, path: Path, threads: int, optimise: bool) -> "Sleeps":
            return self

        def run(self, inputs: object) -> list[object]:
            time.sleep(0.005)
            return []

    assert module._fastest(CONV, 1, Sleeps(), 1) < 4.9 < module._fastest(CONV, 1, Sleeps(), 2)


def test_what_another_process_measured_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(layer: Layer, *_: object) -> float:
        monkeypatch.setattr(module, "_measured", lambda layer, *_: layer.macs * 1e-6)
        time_table([LINEAR])
        return layer.macs * 1e-6

    monkeypatch.setattr(module, "_measured", meanwhile)
    time_table([CONV])
    assert {*grid(CONV, 16), *grid(LINEAR, 16)} <= time_table([CONV]).entries.keys()
    assert [path.suffix for path in kept()] == [".json"]


def test_a_layer_that_the_runtime_does_not_run_is_one_line() -> None:
    class Fails(OnnxRuntime):
        def load(self, path: Path, threads: int, optimise: bool) -> "Fails":
            return self

        def run(self, inputs: object) -> list[object]:
            raise RunFailed("no memory")

    with pytest.raises(FileError, match=r"onnxruntime does not run a layer \(64 → 128, 1×14×14, 3×3 kernel\): no mem"):
        module._fastest(CONV, 1, Fails(), 1)
