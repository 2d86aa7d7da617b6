import json
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hoyer_export.deploy.explain import blocked_convolutions, explain
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.runtime.blocked_layout import why_plain
from hoyer_export.deploy.runtime.onnx_runtime import block_size
from hoyer_export.environment import environment_record


def blocked(path, *channels):
    """Export a chain of convolutions through these channel counts and look at it."""
    model = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels)))
    export_onnx(model, torch.zeros(1, channels[0], 8, 8), path)
    return blocked_convolutions(path)


def test_convolutions_with_ragged_channels_fall_out_of_the_blocked_layout(tmp_path):
    aligned, ragged = blocked(tmp_path / "1", 3, 64, 64, 64), blocked(tmp_path / "2", 3, 61, 61, 64)
    assert aligned.total == ragged.total == 3
    if aligned.block is None:
        assert aligned.blocked == ragged.blocked == 0
        pytest.skip("this processor has no blocked layout")
    assert aligned.blocked == 3
    assert ragged.blocked == 1  # only the stem: the others read 61 channels


def test_the_block_is_that_of_the_vector_width(tmp_path):
    flags = environment_record().flags
    if "avx512f" not in flags and "avx2" not in flags:
        pytest.skip("the vector width of this processor is not known")
    assert blocked(tmp_path / "f", 3, 16).block == (16 if "avx512f" in flags else 8)


def test_a_file_without_convolutions_has_none_of_none(tmp_path):
    export_onnx(nn.Linear(4, 4), torch.zeros(1, 4), tmp_path / "f")
    found = blocked_convolutions(tmp_path / "f")
    assert (found.blocked, found.total) == (0, 0)


RANDOM = np.random.default_rng(0)


def saved(path, nodes, weights, size=(1, 16, 24, 24)):
    """Write a graph x → y of somebody else's, whose nodes have no names."""
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, size),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    initialisers = [numpy_helper.from_array(value.astype("f"), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initialisers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def conv(source, weight, target, **attributes):
    return helper.make_node("Conv", [source, weight], [target], **attributes)


def weight(*shape):
    return RANDOM.standard_normal(shape)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A file with 61 channels, a depthwise convolution, an activation of its own, subnormals and a padded width."""
    weights = {
        "a": weight(61, 16, 1, 1),
        "b": weight(32, 61, 3, 3),
        "d": weight(32, 1, 3, 3),
        "e": weight(24, 32, 1, 1),
    }
    weights["e"][0, :3] = 1e-40
    nodes = [
        conv("x", "a", "c1"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        conv("r1", "b", "c2", pads=[1] * 4),
        conv("c2", "d", "c3", group=32, pads=[1] * 4),
        helper.make_node("Sigmoid", ["c3"], ["s"]),
        helper.make_node("Elu", ["s"], ["m"]),
        conv("m", "e", "y"),
    ]
    return explain(saved(tmp_path_factory.mktemp("slow") / "f.onnx", nodes, weights), min_seconds=0.1)


def test_every_node_has_its_time_and_the_macs_of_the_file(slow):
    macs = {node.name: node.macs for node in slow.nodes if node.macs}
    places = 24 * 24
    assert macs == {
        "c1": places * 61 * 16,
        "c2": places * 32 * 61 * 9,
        "c3": places * 32 * 9,
        "y": places * 24 * 32,
    }
    assert slow.macs == sum(macs.values())
    assert slow.ms == pytest.approx(sum(node.ms for node in slow.nodes))
    assert all(node.ms >= 0 for node in slow.nodes)
    assert slow.gmacs_per_second == pytest.approx(1e-6 * slow.macs / slow.ms)
    assert slow.runs >= 3


def test_what_holds_a_file_back_is_said_in_words(slow):
    if slow.block is None:
        pytest.skip("this processor has no blocked layout")
    layouts = {node.name: (node.layout, node.why) for node in slow.nodes if node.layout}
    assert {name: layout for name, (layout, _) in layouts.items()} == {
        "c1": "blocked",
        "c2": "plain",
        "c3": "blocked",
        "y": "blocked",
    }
    why = f"61 input channels, neither fewer than {slow.block} nor a multiple of 4; 60 or 64 would be"
    assert layouts["c2"] == ("plain", why)
    words = " | ".join(slow.findings)
    assert f"1 convolution in the plain layout (c2): {why}" in words
    assert "reorders between the plain and the blocked layout" in words
    assert "1 depthwise convolution, bound by memory" in words
    assert "Elu" in words or "Sigmoid" in words
    assert "3 weights are subnormal" in words
    assert "(e)" in words or ": e; set them to zero" in words
    if slow.block == 16:
        assert layouts["c1"][1] == "padded: 16 → 61 channels in whole blocks of 16, 5 % of it padding"
        assert layouts["y"][1] == "padded: 32 → 24 channels in whole blocks of 16, 25 % of it padding"


@pytest.mark.parametrize(
    ("shape", "groups", "why"),
    [
        ((16, 15, 3, 3), 1, None),
        ((16, 17, 3, 3), 1, "17 input channels, neither fewer than 16 nor a multiple of 4; 16 or 20 would be"),
        ((16, 20, 3, 3), 1, None),
        ((61, 64, 3, 3), 1, None),
        ((12, 1, 3, 3), 12, None),
        ((14, 1, 3, 3), 14, "depthwise on 14 channels, no multiple of 4; 12 or 16 would be"),
        ((32, 1, 3, 3), 16, "depthwise with 2 filters a channel; one would be"),
        ((32, 16, 3, 3), 2, None),
        ((48, 24, 3, 3), 2, "24 → 24 channels a group, not whole blocks of 16; 16 or 32 → 16 or 32 would be"),
        ((16, 16, 3), 1, "it is 1-dimensional, and only images are blocked"),
    ],
)
def test_the_rule_of_the_blocked_layout_is_that_of_onnxruntime(tmp_path, shape, groups, why):
    node = conv("x", "w", "y", group=groups)
    size = (1, shape[1] * groups, *[8] * (len(shape) - 2))
    path = saved(tmp_path / "f.onnx", [node], {"w": weight(*shape)}, size)
    if block_size() != 16:
        pytest.skip("the sizes of this test are for blocks of 16")
    assert blocked_convolutions(path).blocked == (why is None)
    if why is not None:
        assert why_plain(node, shape, 16) == why
        assert why_plain(node, shape, None) == "this processor has no blocked layout"


def test_a_file_that_is_fast_says_so_and_one_that_does_not_run_is_refused(tmp_path, call):
    weights = {"w": weight(64, 64, 3, 3)}
    path = saved(tmp_path / "f.onnx", [conv("x", "w", "y", pads=[1] * 4)], weights, (1, 64, 56, 56))
    code, out, _ = call("explain", path, "--min-seconds", "0.1")
    assert code == 0
    assert "115.6 M" in out or "116 M" in out
    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"])]
    bad = saved(tmp_path / "bad.onnx", nodes, {}, (1, 4, 2, 2))
    model = onnx.load(bad)
    model.graph.initializer.append(numpy_helper.from_array(np.array([3, 3]), "to"))
    onnx.save(model, bad)
    code, _, err = call("explain", bad)
    assert (code, err.startswith("error: "), len(err.splitlines())) == (1, True, 1)
    code, out, _ = call("explain", path, "--min-seconds", "0.1", "--json")
    assert json.loads(out)["macs"] == 56 * 56 * 64 * 64 * 9
