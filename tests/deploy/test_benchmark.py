import time

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from test_macs import write, zeros
from torch import nn

from hoyer_export.console import terminal
from hoyer_export.console.files import print_benchmark, print_macs
from hoyer_export.deploy import benchmark as module
from hoyer_export.deploy.benchmark import BenchmarkRecord, LatencyRecord, Speedup, benchmark, noise, paired_speedup
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.macs import MacsRecord, NodeMacs, count_macs
from hoyer_export.errors import FileError, HoyerExportError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    for name, channels in (("dense", 128), ("slim", 32)):
        model = nn.Sequential(nn.Conv2d(16, channels, 3), nn.ReLU(), nn.Conv2d(channels, channels, 3))
        export_onnx(model, torch.zeros(1, 16, 28, 28), folder / f"{name}.onnx")
    return folder / "dense.onnx", folder / "slim.onnx"


def test_less_work_is_faster_and_the_record_is_consistent(files):
    record = benchmark([str(path) for path in files], batch_size=2, min_seconds=0.5)
    dense, slim = record.files
    assert (dense.file, slim.file, record.threads, record.batch_size) == ("dense.onnx", "slim.onnx", 1, 2)
    assert dense.n == slim.n == len(dense.samples_ms) == len(slim.samples_ms) >= module.MIN_ROUNDS
    for found in record.files:
        assert found.min_ms <= found.p50_ms <= found.p90_ms <= found.p99_ms
        assert found.p50_ms == np.median(found.samples_ms)
        assert found.cpu_ms > 0
    assert dense.gmacs_per_second == pytest.approx(2 * count_macs(files[0]).macs / (dense.p50_ms * 1e6))
    [speedup] = record.speedups
    # 17 times the MACs: even a very busy machine sees twice the time
    assert speedup.median > 2
    assert (speedup.ci95 is None) == (record.noisy is not None)
    assert speedup.median == pytest.approx(np.median(np.divide(dense.samples_ms, slim.samples_ms)))


def test_an_interruption_counts_in_no_median_of_wall_or_cpu_time(files, monkeypatch):
    wall_ms = np.full((101, 2), [3.0, 2.0])
    cpu_ms = wall_ms - 0.1
    for times in (wall_ms, cpu_ms):
        times[7] += [400.0, 0.0]  # of the dense file's rounds one; its mean is 2.3 times as long
    monkeypatch.setattr(module, "_rounds", lambda *_: (wall_ms, cpu_ms))
    record = benchmark(files, min_seconds=1)
    assert [(file.p50_ms, round(file.cpu_ms, 9)) for file in record.files] == [(3.0, 2.9), (2.0, 1.9)]


def test_a_noisy_machine_withholds_the_interval_and_keeps_the_reason(files, monkeypatch):
    quiet, noisy = np.full((100, 2), [3.0, 2.0]), np.full((100, 2), [3.0, 2.0])
    noisy[::2] *= 1.5  # a spread of 0.74 · 33 %, and yet every pair has the ratio 1.5
    found = []
    for times in (quiet, noisy):
        monkeypatch.setattr(module, "_rounds", lambda *_, times=times: (times, times))
        found.append(benchmark(files, min_seconds=1))
    assert (found[0].noisy, found[0].speedups) == (None, (Speedup(1.5, (1.5, 1.5)),))
    assert "times spread by" in found[1].noisy
    assert found[1].speedups == (Speedup(1.5, None),)


def test_one_file_has_no_speedup_and_at_least_ten_rounds(files):
    record = benchmark(files[:1], min_seconds=1e-6)
    assert (len(record.files), record.speedups) == (1, ())
    assert record.files[0].n == module.MIN_ROUNDS


class Recorder:
    """A session that notes its turn and takes its time."""

    def __init__(self, name, turns, seconds=0.0):
        self.name, self.turns, self.seconds = name, turns, seconds

    def run(self, inputs):
        self.turns.append(self.name)
        time.sleep(self.seconds)


def test_files_run_in_turn_and_waiting_is_wall_time_but_no_cpu_time():
    turns = []
    wall_ms, cpu_ms = module._rounds([Recorder("a", turns), Recorder("b", turns, 0.01)], [{}, {}], 1e-9, 5)
    assert "".join(turns) == "aabb" * 5  # an untimed run of the same file first
    assert wall_ms.shape == cpu_ms.shape == (5, 2)
    assert wall_ms[:, 1].min() >= 10
    assert cpu_ms[:, 1].mean() < 5


def test_a_constant_ratio_has_an_interval_of_no_width():
    times = np.linspace(1, 2, 200)  # a machine that slows down: the paired ratio does not see it
    assert paired_speedup(2 * times, times) == Speedup(2.0, (2.0, 2.0))


def test_the_interval_agrees_with_order_statistics_for_independent_rounds():
    # a median's distribution-free 95 % interval: ranks n/2 ± 0.98 √n (W. Conover, Practical Nonparametric Statistics)
    ratios = np.random.default_rng(3).lognormal(sigma=0.2, size=1000)
    low, high = paired_speedup(ratios, np.ones(1000)).ci95
    ranked = np.sort(ratios)
    assert low == pytest.approx(ranked[500 - 31], abs=0.006)
    assert high == pytest.approx(ranked[500 + 31], abs=0.006)


def test_disturbances_that_last_widen_the_interval():
    generator = np.random.default_rng(5)
    bursts = np.repeat(generator.lognormal(sigma=0.2, size=50), 20)  # 1,000 rounds, 50 independent ones
    lasting, shuffled = (
        paired_speedup(bursts, np.ones(1000)),
        paired_speedup(generator.permutation(bursts), np.ones(1000)),
    )
    width = np.ptp(lasting.ci95) / np.ptp(shuffled.ci95)
    assert width > 2  # √20 for means


def test_few_rounds_make_a_wide_interval_and_the_same_times_the_same_interval():
    generator = np.random.default_rng(4)
    times = generator.lognormal(sigma=0.2, size=(2, 1000))
    few, many = paired_speedup(times[0, :10], times[1, :10]), paired_speedup(*times)
    assert np.ptp(few.ci95) > 3 * np.ptp(many.ci95)
    assert paired_speedup(*times) == many


QUIET = np.full((100, 2), 1.0)
SPREAD = QUIET * np.where(np.arange(100) % 2, 1.2, 0.8)[:, None]
OUTLIER = QUIET.copy()
OUTLIER[0] = 100

NOISE = [
    ("quiet", QUIET, (1.99, 2.01), 0.0, None),
    ("one outlier", OUTLIER, (1.99, 2.01), 0.0, None),
    ("spread", SPREAD, (1.99, 2.01), 0.0, "times spread by 30% of their median"),
    ("interval", QUIET, (1.8, 2.2), 0.0, "95 % interval is 20% wide"),
    ("waiting", QUIET, (1.99, 2.01), 0.25, "waited for a processor 25% of the time"),
]


@pytest.mark.parametrize(("wall_ms", "ci95", "waiting", "reason"), [c[1:] for c in NOISE], ids=[c[0] for c in NOISE])
def test_a_noisy_machine_is_said_with_its_reason(wall_ms, ci95, waiting, reason):
    found = noise(wall_ms, [Speedup(2.0, ci95)], waiting)
    assert found is None if reason is None else reason in found


def test_a_batch_or_a_size_that_the_file_does_not_take_is_said_in_one_line(tmp_path, files):
    node, weights = helper.make_node("Conv", ["x", "w"], ["y"]), {"w": zeros(4, 3, 3, 3)}
    four, free = (
        write(tmp_path / f"{name}.onnx", [node], {"x": shape}, "y", weights)
        for name, shape in (("four", [4, 3, 8, 8]), ("free", ["n", 3, "h", 8]))
    )
    with pytest.raises(FileError, match=r"four.onnx takes a batch of 4, not of 1; give the batch size that it has"):
        benchmark([files[0], four], batch_size=1)
    with pytest.raises(
        FileError, match=r'free.onnx: axis 2 \(h\) of the input \'x\' is dynamic; .*{"x": \(1, 3, H, 8\)}'
    ):
        benchmark([files[0], free])
    for given in ((1, 3, 8), (1, 4, 8, 8)):
        with pytest.raises(FileError, match=r"input 'x' is \[n, 3, h, 8\], got sizes \[1"):
            benchmark([free], shapes={"x": given})
    with pytest.raises(FileError, match=r"free.onnx does not run on x \[1, 3, 2, 8\] .*other sizes: `shapes`"):
        benchmark([free], shapes={"x": (1, 3, 2, 8)})
    with pytest.raises(FileError, match=r"no input 'image' in .*free.onnx; there is 'x'"):
        benchmark([free], shapes={"image": (1, 3, 8, 8)})


def test_the_batch_is_what_the_files_fix_and_gmacs_are_those_of_the_sizes_that_ran(tmp_path, files):
    node, weights = helper.make_node("Conv", ["x", "w"], ["y"]), {"w": zeros(4, 3, 3, 3)}
    four = write(tmp_path / "four.onnx", [node], {"x": [4, 3, 8, 8]}, "y", weights)
    free = write(tmp_path / "free.onnx", [node], {"x": ["n", 3, "h", "w"]}, "y", weights)
    record = benchmark([free, four], shapes={"x": (4, 3, 8, 8)}, min_seconds=0.01)
    assert record.batch_size == 4
    for file in record.files:
        assert file.gmacs_per_second == pytest.approx(4 * 4 * 36 * 27 / (file.p50_ms * 1e6))


def typed(path, inputs, nodes, output, weights=()):
    """Write a file whose inputs have types of their own, and whose output has no shape."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    kept = [onnx.numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    graph = helper.make_graph(nodes, "graph", values, [out], kept)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


KINDS = ("FLOAT", "FLOAT16", "DOUBLE", "UINT8", "INT8", "INT32", "INT64", "UINT16", "BOOL", "BFLOAT16", "STRING")


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_of_any_type_is_fed_and_an_output_needs_no_shape(tmp_path, kind):
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    inputs = {"x": (getattr(TensorProto, kind), ["n", 5])}
    path = typed(tmp_path / "f.onnx", inputs, nodes, "y", {"w": zeros(5, 7)})
    record = benchmark([path], batch_size=3, min_seconds=0.01)
    assert record.warnings == ()
    assert record.files[0].gmacs_per_second == pytest.approx(3 * 35 / (record.files[0].p50_ms * 1e6))


def test_indices_fit_any_table_and_inputs_without_a_batch_run(tmp_path):
    nodes = [helper.make_node("Gather", ["table", "i"], ["g"]), helper.make_node("Mul", ["g", "scale"], ["y"])]
    inputs = {"i": (TensorProto.INT64, ["n"]), "scale": (TensorProto.FLOAT, [])}
    path = typed(tmp_path / "f.onnx", inputs, nodes, "y", {"table": zeros(1, 4)})
    assert benchmark([path], batch_size=2, min_seconds=0.01).batch_size == 2
    nothing = typed(
        tmp_path / "nothing.onnx", {}, [helper.make_node("Identity", ["table"], ["y"])], "y", {"table": zeros(4)}
    )
    assert benchmark([nothing], min_seconds=0.01).batch_size == 1


def test_macs_that_cannot_be_counted_cost_the_rate_and_not_the_benchmark(tmp_path, files):
    nodes = [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("MatMul", ["t", "f"], ["y"]))
    path = write(
        tmp_path / "f.onnx", [*nodes[:2], helper.make_node("Transpose", ["f"], ["t"]), nodes[2]], {"x": ["n", 3]}, "y"
    )
    record = benchmark([files[0], path], min_seconds=0.1)
    assert [file.gmacs_per_second is None for file in record.files] == [False, True]
    assert record.warnings == ("no GMAC/s for f.onnx: not counted: 1 × MatMul of unknown size",)
    print_benchmark(record)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/slim.onnx", "b/slim.onnx", "a/dense.onnx"], ["a/slim.onnx", "b/slim.onnx", "dense.onnx"]),
        (["a/out/slim.onnx", "b/out/slim.onnx"], ["a/out/slim.onnx", "b/out/slim.onnx"]),
        (["slim.onnx", "slim.onnx"], ["slim.onnx", "slim.onnx"]),
        (["slim.onnx", "a/slim.onnx", "./slim.onnx"], ["here/slim.onnx", "a/slim.onnx", "here/slim.onnx"]),
    ],
)
def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path, monkeypatch, paths, names):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert module.distinct_names(paths) == names


def test_more_threads_than_processors_are_measured_with_a_warning(files, monkeypatch):
    monkeypatch.setattr(module, "usable_threads", lambda: 1)
    record = benchmark(files[:1], threads=2, min_seconds=0.01)
    assert record.warnings == ("2 threads share 1 processor and wait for each other; measure with at most 1",)
    assert benchmark(files[:1], min_seconds=0.01).warnings == ()


@pytest.mark.parametrize("columns", [80, 140])
def test_tables_fit_their_terminal(monkeypatch, capsys, columns):
    monkeypatch.setattr(terminal, "PLAIN_WIDTH", columns)
    one = LatencyRecord("runs/2026/first/slim.onnx", 1234.5, 1234.5, 1234.5, 1234.5, 12345, 1234.5, 123.4, ())
    print_benchmark(
        BenchmarkRecord((one, one), (Speedup(12.34, (12.3, 12.4)),), 4, 8, "too noisy to say: " + "so " * 50)
    )
    node = NodeMacs(
        "/layer4/layer4.0/downsample/conv/Conv", "ConvTranspose", (1, 1024, 112, 112), 10**9, 10**8, (512, 256, 3, 3)
    )
    print_macs(MacsRecord(10**9, 2 * 10**9, 10**8, 4 * 10**8, (node,) * 30, 1, {"QLinearConv": 2}))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= columns
    assert "12.3× (12.3–12.4)" in said
    assert "not counted: 2 × QLinearConv" in said
    assert ("p99" in said) == ("weight" in said) == (columns == 140)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"threads": 9999}, {"batch_size": 0}, {"min_seconds": 0}])
def test_numbers_that_make_no_sense_are_refused(files, wrong):
    with pytest.raises(HoyerExportError, match="at least one file"):
        benchmark(files, **wrong)
    with pytest.raises(HoyerExportError, match="got 0 files"):
        benchmark([])
