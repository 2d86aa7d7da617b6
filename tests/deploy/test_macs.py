import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model

from hoyer_export.call import Call
from hoyer_export.channels.cost import dense_macs
from hoyer_export.channels.trace import trace_channels
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.macs import count_macs
from hoyer_export.deploy.weight_sizes import TorchMacs, torch_macs
from hoyer_export.errors import FileError


def write(path, nodes, inputs, output, weights=(), functions=(), opset=18):
    """Write a graph with one output; sizes are ints or names of dynamic dimensions."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    graph = helper.make_graph(
        nodes,
        "graph",
        values,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in dict(weights).items()],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid("own", 1)] if functions else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))
    model = onnx.shape_inference.infer_shapes(model)  # the checker wants a shape for the output
    if not model.graph.output[0].type.tensor_type.HasField("shape"):
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, None]))
    onnx.save(model, path)
    return path


def zeros(*shape):
    return np.zeros(shape, np.float32)


# name, node, input shapes, weight shape (or None), MACs by hand, weight the count must name
CASES = [
    ("conv", ("Conv", {"pads": [1, 1, 1, 1]}), [["batch", 3, 9, 7]], (8, 3, 3, 3), 8 * 9 * 7 * 3 * 9),
    ("strided", ("Conv", {"strides": [2, 3]}), [["batch", 3, 9, 7]], (8, 3, 3, 3), 8 * (4 * 2) * 3 * 9),
    ("dilated", ("Conv", {"dilations": [2, 2]}), [["batch", 3, 9, 7]], (8, 3, 3, 3), 8 * (5 * 3) * 3 * 9),
    ("grouped", ("Conv", {"group": 2}), [["batch", 6, 9, 7]], (8, 3, 3, 3), 8 * (7 * 5) * 3 * 9),
    ("depthwise", ("Conv", {"group": 6}), [["batch", 6, 9, 7]], (6, 1, 3, 3), 6 * (7 * 5) * 9),
    ("one dimension", ("Conv", {}), [["batch", 3, 9]], (8, 3, 2), 8 * 8 * 3 * 2),
    ("transposed", ("ConvTranspose", {"strides": [2, 2]}), [["batch", 3, 5, 4]], (3, 8, 2, 2), 3 * (5 * 4) * 8 * 4),
    ("transposed, grouped", ("ConvTranspose", {"group": 3}), [["batch", 3, 5, 4]], (3, 2, 2, 2), 3 * (5 * 4) * 2 * 4),
    ("gemm", ("Gemm", {}), [["batch", 7]], (7, 5), 7 * 5),
    ("gemm, transB", ("Gemm", {"transB": 1}), [["batch", 7]], (5, 7), 7 * 5),
    ("gemm, transA", ("Gemm", {"transA": 1}), [["batch", 7]], (1, 5), 7 * 5),
    ("matmul", ("MatMul", {}), [["batch", 4, 6, 7]], (7, 5), 4 * 6 * 7 * 5),
    ("matmul of a vector", ("MatMul", {}), [["batch", 4, 6, 7]], (7,), 4 * 6 * 7),
    ("batched matmul", ("MatMul", {}), [["batch", 4, 6, 7], ["batch", 4, 7, 5]], None, 4 * 6 * 7 * 5),
    ("einsum", ("Einsum", {"equation": "b i j, b k j -> b i k"}), [["batch", 6, 7], ["batch", 5, 7]], None, 6 * 7 * 5),
    ("einsum without a sum", ("Einsum", {"equation": "bi,bi->bi"}), [["batch", 6], ["batch", 6]], None, 0),
    ("elementwise", ("Mul", {}), [["batch", 6], ["batch", 6]], None, 0),
]


@pytest.mark.parametrize(("op", "inputs", "weight", "macs"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_one_node_has_the_macs_of_its_formula(tmp_path, op, inputs, weight, macs):
    names = ["a", "b"][: len(inputs)]
    weights = {"w": zeros(*weight)} if weight else {}
    node = helper.make_node(op[0], [*names, *weights], ["y"], **op[1])
    record = count_macs(write(tmp_path / "f.onnx", [node], dict(zip(names, inputs, strict=True)), "y", weights))
    assert (record.macs, record.flops, record.uncounted) == (macs, 2 * macs, {})
    assert record.params == (np.prod(weight) if weight else 0)
    assert [n.weight_shape for n in record.nodes] == ([weight or ()] if macs else [])


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("directions", [1, 2])
def test_a_recurrent_node_counts_its_gates_at_every_step_and_in_both_directions(tmp_path, op, directions):
    steps, inputs, hidden, gates = 5, 3, 7, GATES[op]
    weights = {"w": zeros(directions, gates * hidden, inputs), "r": zeros(directions, gates * hidden, hidden)}
    direction = "bidirectional" if directions == 2 else "forward"
    last = helper.make_node(op, ["s", "w", "r"], ["", "y"], hidden_size=hidden, direction=direction)
    nodes = [helper.make_node("Transpose", ["x"], ["s"], perm=[1, 0, 2]), last]
    record = count_macs(write(tmp_path / "f.onnx", nodes, {"x": ["batch", steps, inputs]}, "y", weights))
    assert (record.macs, record.uncounted) == (steps * directions * gates * hidden * (inputs + hidden), {})
    assert [(n.weight_shape, n.state_shape) for n in record.nodes] == [(weights["w"].shape, weights["r"].shape)]


class Recurrent(nn.Module):
    """A layer, or a cell that is called step by step; its state is its own, or begins as zeros here."""

    def __init__(self, rnn, starts=False):
        super().__init__()
        self.rnn, self.starts = rnn, starts

    def forward(self, x):  # [N, T, I]
        if isinstance(self.rnn, nn.RNNBase):
            return self.rnn(x)[0]
        state = torch.zeros(x.shape[0], self.rnn.hidden_size) if self.starts else None
        state = (state, state) if self.starts and isinstance(self.rnn, nn.LSTMCell) else state
        for step in range(x.shape[1]):
            state = self.rnn(x[:, step], state)
        return state[0] if isinstance(state, tuple) else state


# T · D · G · H · (I + H), and for a second layer, which reads D · H, the same with that
RECURRENT = [
    ("lstm", lambda: nn.LSTM(6, 7, batch_first=True), 3 * 4 * 7 * (6 + 7)),
    ("gru", lambda: nn.GRU(6, 7, batch_first=True), 3 * 3 * 7 * (6 + 7)),
    ("rnn", lambda: nn.RNN(6, 7, batch_first=True), 3 * 7 * (6 + 7)),
    ("deep", lambda: nn.GRU(6, 7, 2, batch_first=True, bidirectional=True), 3 * 2 * 3 * 7 * (6 + 7 + 14 + 7)),
    ("deep lstm", lambda: nn.LSTM(6, 7, 2, batch_first=True, bidirectional=True), 3 * 2 * 4 * 7 * (6 + 7 + 14 + 7)),
    ("lstm cell", lambda: nn.LSTMCell(6, 7), 3 * 4 * 7 * (6 + 7)),
    ("gru cell", lambda: nn.GRUCell(6, 7), 3 * 3 * 7 * (6 + 7)),
    ("rnn cell", lambda: nn.RNNCell(6, 7, nonlinearity="relu"), 3 * 7 * (6 + 7)),
]
PROJECTED = ("projected", lambda: nn.LSTM(6, 7, batch_first=True, proj_size=4), 3 * (4 * 7 * (6 + 4) + 7 * 4))


@pytest.mark.parametrize(("rnn", "macs"), [c[1:] for c in [*RECURRENT, PROJECTED]])
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_recurrent_layers_and_cells_count_alike_in_the_map_and_in_torch(rnn, macs):
    for starts in (False, True):
        network, images = Recurrent(rnn(), starts).eval().requires_grad_(False), torch.randn(2, 3, 6)
        assert dense_macs(trace_channels(network, images)) == macs
        assert torch_macs(network, Call((images,))) == TorchMacs(macs, macs, {})


# The exporter takes seconds for each.
QUICK = ("rnn",)


@pytest.mark.parametrize(
    ("rnn", "macs"), [pytest.param(*c[1:], marks=() if c[0] in QUICK else pytest.mark.slow) for c in RECURRENT]
)
def test_recurrent_layers_and_cells_count_in_the_file_too(tmp_path, rnn, macs):
    export_onnx(Recurrent(rnn(), starts=True), torch.randn(2, 3, 6), tmp_path / "f.onnx")
    record = count_macs(tmp_path / "f.onnx")
    assert (record.macs, record.uncounted) == (macs, {})


class Everything(nn.Module):
    """Grouped, depthwise, dilated, transposed and one-dimensional convolutions, linear layers and attention."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.Conv2d(8, 12, 3, groups=4, dilation=2),
            nn.BatchNorm2d(12),
            nn.Conv2d(12, 24, 3, groups=12),
            nn.ConvTranspose2d(24, 6, 3, stride=2, groups=2),
        )
        self.row = nn.Conv1d(6, 4, 3)
        self.linear = nn.Linear(4, 5, bias=False)

    def forward(self, x):
        x = self.row(self.convs(x).flatten(2))  # [N, 4, T]
        x = x.transpose(1, 2)  # [N, T, 4]
        scores = (x @ x.transpose(1, 2)).softmax(-1)  # [N, T, T]
        return self.linear(scores @ x).mean(1)


SLOW = ["resnet50", "mobilenet_v2", "shufflenet_v2_x0_5", "convnext_tiny", "swin_t"]


@pytest.mark.parametrize("name", ["everything", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_graph_has_half_the_flops_that_torch_counts(tmp_path, name):
    model = Everything() if name == "everything" else get_model(name)
    inputs = torch.randn(1, 3, 64, 64)
    export_onnx(model, inputs, tmp_path / "f.onnx")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(inputs)
    assert count_macs(tmp_path / "f.onnx").flops == counter.get_total_flops()


def test_resnet18_at_224_has_the_macs_of_the_closed_formula(tmp_path):
    # stem, then 4 stages of 4 3×3 convolutions (the first of a later stage reads half the channels), 3 shortcuts
    stem = 64 * 3 * 49 * 112**2
    blocks = sum(c * c * 9 * s**2 * (4 if c == 64 else 3.5) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7)))
    shortcuts = sum(c * c // 2 * s**2 for c, s in ((128, 28), (256, 14), (512, 7)))
    expected = stem + blocks + shortcuts + 512 * 1000
    assert expected == 1_814_073_344
    export_onnx(get_model("resnet18"), torch.zeros(1, 3, 224, 224), tmp_path / "f.onnx")
    record = count_macs(tmp_path / "f.onnx")
    assert record.macs == sum(node.macs for node in record.nodes) == expected
    assert record.size_bytes == (tmp_path / "f.onnx").stat().st_size
    convolutions = 64 * 3 * 49 + 64**2 * 9 * 4 + sum(c * c * (9 * 3.5 + 0.5) for c in (128, 256, 512))
    weights = [node.params for node in record.nodes]
    assert sum(np.prod(node.weight_shape) for node in record.nodes) == convolutions + 512 * 1000
    assert sum(weights) == record.params  # no weight is read twice


def test_params_are_weights_biases_and_norms_but_no_scalars_or_integers(tmp_path):
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(zeros(6, 4))),
        helper.make_node("Gemm", ["flat", "w", "bias"], ["y"]),
        helper.make_node("Mul", ["y", "scalar"], ["z"]),
        helper.make_node("Add", ["z", "bias"], ["out"]),
    ]
    weights = {"shape": np.array([-1, 6]), "bias": zeros(4), "scalar": np.array(2, np.float32)}
    record = count_macs(write(tmp_path / "f.onnx", nodes, {"x": ["batch", 2, 3]}, "out", weights))
    assert record.params == 6 * 4 + 4
    assert [(n.op, n.macs, n.params) for n in record.nodes] == [("Gemm", 24, 28)]  # the bias counts once


def test_shapes_that_the_graph_computes_from_the_batch_are_followed(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    weights = {"rest": np.array([6]), "w": zeros(6, 4)}
    assert count_macs(write(tmp_path / "f.onnx", nodes, {"x": ["batch", 2, 3]}, "y", weights)).macs == 24


def test_a_fixed_batch_is_counted_as_it_is_and_said(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    record = count_macs(write(tmp_path / "f.onnx", [node], {"x": [5, 6]}, "y", {"w": zeros(6, 4)}))
    assert (record.macs, record.batch) == (5 * 24, 5)


def test_functions_of_the_file_are_looked_into(tmp_path):
    function = helper.make_function(
        "own", "Twice", ["a", "w"], ["b"],
        [helper.make_node("MatMul", ["a", "w"], ["t"]), helper.make_node("MatMul", ["t", "w"], ["b"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    node = helper.make_node("Twice", ["x", "w"], ["y"], domain="own")
    path = write(tmp_path / "f.onnx", [node], {"x": ["batch", 6]}, "y", {"w": zeros(6, 6)}, [function])
    assert count_macs(path).macs == 2 * 36


def test_what_cannot_be_counted_is_returned(tmp_path):
    nodes = [
        helper.make_node("Einsum", ["x", "x"], ["e"], equation="...i,...i->..."),
        helper.make_node("DeformConv", ["i", "w", "i"], ["y"]),
    ]
    path = write(
        tmp_path / "f.onnx",
        nodes,
        {"x": ["batch", 3]},
        "e",
        {"i": zeros(1, 2, 3, 3), "w": zeros(4, 2, 1, 1)},
        opset=19,
    )
    record = count_macs(path)
    assert (record.macs, record.uncounted) == (0, {"Einsum": 1, "DeformConv": 1})


def test_weights_beside_the_file_count_with_their_bytes(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = write(tmp_path / "f.onnx", [node], {"x": ["batch", 600]}, "y", {"w": zeros(600, 400)})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="side")
    record = count_macs(path)
    assert (record.macs, record.params) == (240_000, 240_000)
    assert record.size_bytes == path.stat().st_size + 4 * 240_000


def test_a_dynamic_image_size_is_refused_by_name(tmp_path):
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    path = write(tmp_path / "f.onnx", [node], {"x": ["batch", 3, "height", 8]}, "y", {"w": zeros(4, 3, 3, 3)})
    with pytest.raises(FileError, match=r"f.onnx: axis 2 \(height\) of the input 'x' is dynamic; give sizes"):
        count_macs(path)


def test_sizes_that_are_given_hold_for_every_axis_of_that_name(tmp_path):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["mask", "v"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    inputs = {"image": ["batch", 3, "height", "width"], "mask": ["batch", 1, "height", "width"]}
    path = write(tmp_path / "f.onnx", nodes, inputs, "y", {"w": zeros(4, 3, 3, 3), "v": zeros(4, 1, 3, 3)})
    for batch in (1, 2):
        record = count_macs(path, shapes={"mask": (batch, 1, 6, 5)})
        assert (record.macs, record.batch) == (batch * 30 * 4 * 9 * (3 + 1), batch)


SLOPPY = [
    (["d", 3, "d", "d"], "axes 2 (d) and 3 (d) of the input 'x' are dynamic"),
    ([None, 3, None, 8], "axis 2 (?) of the input 'x' is dynamic"),
    (["steps", "batch", 8], "axis 0 (steps) of the input 'x' is dynamic"),
]


@pytest.mark.parametrize(("shape", "line"), SLOPPY)
def test_a_size_is_guessed_only_where_it_is_the_batch(tmp_path, shape, line):
    path = write(
        tmp_path / "f.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": shape}, "y", {"w": zeros(8, 2)}
    )
    with pytest.raises(FileError, match=re.escape(line)):
        count_macs(path)
    given = [5 if not isinstance(size, int) else size for size in shape[:-1]] + [8]
    assert count_macs(path, shapes={"x": given}).macs == np.prod(given) * 2


def test_a_size_that_cannot_be_inferred_costs_its_node_and_is_named(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("NonZero", ["z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "f"], ["y"]),
    ]
    record = count_macs(write(tmp_path / "f.onnx", nodes, {"x": ["batch", 3]}, "y", {"w": zeros(3, 4)}))
    assert (record.macs, record.uncounted) == (12, {"MatMul of unknown size": 1})


def test_what_onnxruntime_has_optimised_or_quantised_counts_as_before(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["m", "v"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "u"], ["g"]),
        helper.make_node("Relu", ["g"], ["y"]),
    ]
    weights = {"w": (32, 3, 3, 3), "v": (64, 32, 3, 3), "u": (64, 10)}
    weights = {name: np.random.default_rng(0).normal(size=size).astype(np.float32) for name, size in weights.items()}
    path = write(tmp_path / "f.onnx", nodes, {"x": ["batch", 3, 8, 8]}, "y", weights)
    macs = 64 * 32 * 27 + 4 * 64 * 32 * 9 + 640
    levels = onnxruntime.GraphOptimizationLevel
    written = {}
    for level in (levels.ORT_ENABLE_EXTENDED, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(tmp_path / f"{level.name}.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        written[level.name] = tmp_path / f"{level.name}.onnx"
    assert "com.microsoft" in {node.domain for node in onnx.load(written["ORT_ENABLE_EXTENDED"]).graph.node}
    quantize_dynamic(path, tmp_path / "int8.onnx")
    for file in (path, *written.values(), tmp_path / "int8.onnx"):
        record = count_macs(file)
        assert (record.macs, record.uncounted, record.params) == (macs, {}, 64 * 10 + 64 * 32 * 9 + 32 * 27), file


def test_shapes_that_contradict_each_other_are_refused(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    with pytest.raises(FileError, match=r"shapes in .* contradict each other"):
        count_macs(write(tmp_path / "f.onnx", [node], {"x": ["batch", 5]}, "y", {"w": zeros(6, 4)}))
