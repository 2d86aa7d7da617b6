"""Why a file is fast or slow: how many of its convolutions onnxruntime runs in its blocked layout.

On x86 onnxruntime turns convolutions to the layout NCHWc, blocks of 16 channels (AVX-512) or 8 (AVX2), if their channel
counts allow it: the input's below one block or a multiple of 4 (``nchwc_transformer.cc``). The others keep the plain
layout and lose up to half of the speed, besides the reordering between the two. ARM has no such layout: 0 of n.
"""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from hoyer_export.deploy.onnx_file import open_session, read_onnx

_NCHWC = "com.microsoft.nchwc"


@dataclass(frozen=True)
class BlockedConvolutions:
    """How many of the file's convolutions (``Conv`` nodes; transposed ones are never blocked) run blocked here.

    Args:
        blocked: convolutions in the blocked layout.
        total: convolutions.
        block: channels a block on this machine; None where there is no such layout.
    """

    blocked: int
    total: int
    block: int | None


def blocked_convolutions(path: str | Path) -> BlockedConvolutions:
    """Let onnxruntime optimise the file ``path`` for this machine, and look at what became of its convolutions.

    Raises:
        FileError: the file is missing, damaged, or beyond this onnxruntime.
    """
    total = sum(node.op_type == "Conv" for node in read_onnx(path).graph.node)
    blocked = sum(_is_blocked(node) for node in _optimized(path).graph.node)
    return BlockedConvolutions(blocked, total, _block())


def _is_blocked(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and node.domain == _NCHWC


def _optimized(path: str | Path) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        open_session(path, optimized_path=written)
        return onnx.load(written)


@cache
def _block() -> int | None:
    """Return the block size, from a convolution with one filter: onnxruntime pads its filters to a whole block."""
    weight = onnx.numpy_helper.from_array(np.ones((1, 64, 3, 3), np.float32), "weight")
    image, output = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, 8, 8])
        for name, channels in (("image", 64), ("output", 1))
    )
    node = helper.make_node("Conv", ["image", "weight"], ["output"], pads=[1, 1, 1, 1])
    probe = helper.make_model(
        helper.make_graph([node], "probe", [image], [output], [weight]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(probe, path)
        graph = _optimized(path).graph
    sizes = {tensor.name: tensor.dims[0] for tensor in graph.initializer}
    return next((sizes[node.input[1]] for node in graph.node if _is_blocked(node)), None)
