"""Preprocessing inside the graph: the file takes pictures as bytes, uint8 [batch, height, width, channels].

    input = (resized(images) / 255 − mean) / std          as float32 [batch, channels, H, W]

Pictures may have any size, one for all of a batch, where the interpolation is bilinear or bicubic: ONNX' Resize,
antialiased. onnxruntime 1.32 follows Pillow, which rounds to bytes between rows and columns, but always begins with the
rows; Pillow 13 begins with what is cheaper. Measured over 800 pairs of sizes: bilinear at most 2 of 255 off, in 0.06 %
of the numbers (median; up to 26 % where the order differs). Bicubic likewise on smooth pictures; on noise, where it
overshoots and is clipped in between, up to 23 of 255. ``nearest`` takes another pixel now and then, and Lanczos ONNX
does not have: then, as for data whose images all have one size, pictures have to come in that size.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import onnx

from hoyer_export.deploy.interface import METADATA_PREFIX
from hoyer_export.deploy.onnx_file import fed_inputs, read_onnx
from hoyer_export.errors import DataError
from hoyer_export.preprocessing import Preprocessing
from hoyer_export.run_folder import write_whole

IMAGES = "images"
PREPARED = "prepared"
_MODES = {
    "bilinear": 'mode = "linear", antialias = 1, exclude_outside = 1',
    "bicubic": 'mode = "cubic", antialias = 1, exclude_outside = 1, cubic_coeff_a = -0.5',
}
# Values are named like modules of nobody: the two graphs become one. All sizes are [height, width], int64.
_HEAD = """
    p_planes = Transpose <perm = [0, 3, 1, 2]> (images)
    p_shape = Shape (images)
    p_count = Slice (p_shape, p_0, p_1)
    p_sides = Slice (p_shape, p_1, p_3)
"""
_RESIZE = """
    p_sizes = Concat <axis = 0> (p_count, p_channels, p_target)
    p_resized = Resize <{mode}> (p_planes, , , p_sizes)
"""
_HALF = """
    p_double = Cast <to = 11> ({left})
    p_half = Div (p_double, p_two)
    p_even = Round (p_half)
    {start} = Cast <to = 7> (p_even)
"""
_TO_SHORT_SIDE = """
    p_least = ReduceMin <keepdims = 1> (p_sides)
    p_longer = Mul (p_sides, p_short)
    p_target = Div (p_longer, p_least)
"""
_MIDDLE = """
    p_left = Sub (p_target, p_size)
    {half}
    p_end = Add (p_start, p_size)
    p_sized = Slice (p_resized, p_start, p_end, p_axes)
"""
_TO_FIT = """
    p_float = Cast <to = 11> (p_sides)
    p_other = Slice (p_float, p_last, p_before, p_0, p_last)
    p_ratio = Div (p_float, p_other)
    p_fitting = Mul (p_ratio, p_across)
    p_rounded = Round (p_fitting)
    p_whole = Cast <to = 7> (p_rounded)
    p_target = Min (p_whole, p_size)
"""
_AROUND = """
    p_left = Sub (p_size, p_target)
    {half}
    p_after = Sub (p_left, p_start)
    p_pads = Concat <axis = 0> (p_none, p_start, p_none, p_after)
    p_sized = Pad (p_resized, p_pads)
"""
_NORMALISE = """
    p_numbers = Cast <to = 1> ({sized})
    p_shares = Div (p_numbers, p_255)
    p_centred = Sub (p_shares, p_mean)
    prepared = Div (p_centred, p_std)
"""


def resizes(how: Preprocessing) -> bool:
    """Return whether the file resizes, or its pictures have to come in their size."""
    return how.resize is not None and (how.interpolation or "bilinear") in _MODES


def check_pictures(how: Preprocessing, data: str) -> None:
    """Refuse what nobody knows how to prepare; DataError."""
    if not how.mean or not how.std:
        raise DataError(
            f"export.preprocess: how the images of {data} are prepared is their own code's business; leave it out"
        )


def write_pictures(path: Path, pictures: Path, how: Preprocessing) -> None:
    """Put what ``how`` says in front of the ONNX file ``path``, and write that to ``pictures``.

    Raises:
        FileError: ``path`` is missing or damaged, ``pictures`` cannot be written.
    """
    model = read_onnx(path)
    (fed,) = fed_inputs(model.graph)
    opset = next(it.version for it in model.opset_import if it.domain == "")
    front = onnx.parser.parse_model(_front(how, model.ir_version, opset))
    merged = onnx.compose.merge_models(front, model, io_map=[(PREPARED, fed.name)])
    merged.producer_name, merged.producer_version = model.producer_name, model.producer_version
    merged.graph.name, merged.doc_string = model.graph.name, ""
    told = {prop.key.removeprefix(METADATA_PREFIX): prop.value for prop in model.metadata_props}
    inside = ["mean", "std", *(["resize", "short_side", "interpolation"] if resizes(how) else [])]
    told = {key: value for key, value in told.items() if key not in inside}
    sizes = [value.dim_param or value.dim_value for value in merged.graph.input[0].type.tensor_type.shape.dim]
    told |= {"inputs": json.dumps({IMAGES: sizes[1:]}), "inside": ", ".join(key for key in inside if _has(how, key))}
    onnx.helper.set_model_props(merged, {METADATA_PREFIX + key: told[key] for key in sorted(told)})
    onnx.checker.check_model(merged, full_check=True)
    write_whole(pictures, merged.SerializeToString(deterministic=True))


def _has(how: Preprocessing, key: str) -> bool:
    return getattr(how, key) is not None


def _front(how: Preprocessing, ir_version: int, opset: int) -> str:
    """Return the graph that prepares pictures, as text."""
    channels, height, width = how.shape
    body, sized = _HEAD, "p_planes"
    if resizes(how):
        resize, sized = _RESIZE.format(mode=_MODES[how.interpolation or "bilinear"]), "p_sized"
        half = _HALF.format(left="p_left", start="p_start")
        if how.resize == "crop":
            body += _TO_SHORT_SIDE + resize + _MIDDLE.format(half=half)
        elif how.resize == "pad":
            body += _TO_FIT + resize + _AROUND.format(half=half)
        else:
            body, sized = body + "    p_target = Identity (p_size)\n" + resize, "p_resized"
        sides = "height, width"
    else:
        body, sides = "    p_planes = Transpose <perm = [0, 3, 1, 2]> (images)\n", f"{height}, {width}"
    numbers: dict[str, Sequence[float]] = {
        "int64[1] p_0": [0], "int64[1] p_1": [1], "int64[1] p_3": [3], "int64[1] p_last": [-1],
        "int64[1] p_before": [-3], "int64[2] p_none": [0, 0], "int64[2] p_axes": [2, 3],
        "int64[1] p_channels": [channels], "int64[2] p_size": [height, width],
        "int64[1] p_short": [how.short_side or min(height, width)],
        "double p_two": [2.0], "double[2] p_across": [float(width), float(height)],
        "float p_255": [255.0], f"float[1, {channels}, 1, 1] p_mean": how.mean or (),
        f"float[1, {channels}, 1, 1] p_std": how.std or (),
    }  # fmt: skip
    body += _NORMALISE.format(sized=sized)
    used = [
        f"{name} = {{{', '.join(map(repr, values))}}}"
        for name, values in numbers.items()
        if re.search(rf"\b{name.split()[-1]}\b", body)
    ]
    return (
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]>\n'
        f"pictures (uint8[batch, {sides}, {channels}] {IMAGES}) =>"
        f" (float[batch, {channels}, {height}, {width}] {PREPARED})\n<{', '.join(used)}> {{{body}}}"
    )
