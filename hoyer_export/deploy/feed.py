"""What an ONNX file is fed where nobody gives it images: arrays of the sizes and types that its inputs have."""

from typing import Literal, get_args

import numpy as np
import onnx

from hoyer_export.deploy.input_sizes import InputSizes
from hoyer_export.deploy.onnx_file import fed_inputs
from hoyer_export.deploy.runtime.protocol import Arrays

Kind = Literal["noise", "zeros", "ones"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def feed_of(graph: onnx.GraphProto, sizes: InputSizes, kind: Kind = "noise") -> Arrays:
    """Return an array for every input.

    Args:
        graph: of the file.
        sizes: of its inputs.
        kind: ``noise`` is normal, of variance 1; bytes of any value; and 0, which fits every index, for all else.
    """
    generator = np.random.default_rng(0)
    feed = {}
    for value in fed_inputs(graph):
        shape, of = sizes.shapes[value.name], onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if kind != "noise":
            feed[value.name] = np.full(shape, kind == "ones").astype(of)
        elif of in (np.uint8, np.int8):
            feed[value.name] = generator.integers(256, size=shape).astype(of)
        elif "float" in of.name:  # bfloat16 too, which numpy does not count among them
            feed[value.name] = generator.standard_normal(shape).astype(of)
        else:
            feed[value.name] = np.zeros(shape, of)
    return feed
