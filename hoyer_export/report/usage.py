"""How to run the slim file: a few lines of Python that can be copied, with the preprocessing of the test images.

They do what ``examples/02_onnx_client.py`` does, for this one file and pictures of eight bits.
"""

import json
from collections.abc import Iterator

from hoyer_export.preprocessing import Preprocessing
from hoyer_export.report.report import Report

PICTURE = "picture.png"
MOST_NAMES = 20
"""Class names that stand in the lines themselves; more are read from the file."""


def usage(report: Report) -> str | None:
    """Return the lines; None where the file takes no picture whose preparation is known."""
    inputs = report.inputs
    if len(inputs.shape) != 3 or inputs.shape[0] not in (1, 3) or not inputs.mean or not inputs.std:
        return None
    names = inputs.class_names or ()
    short = 0 < len(names) <= MOST_NAMES
    lines = [
        *(["import json", ""] if names and not short else []),
        "import numpy as np",
        "import onnxruntime",
        "from PIL import Image, ImageOps",
        "",
        f'image = ImageOps.exif_transpose(Image.open("{PICTURE}")).convert("RGB")',
        *_resized(inputs),
        *_normalised(inputs),
        f"session = onnxruntime.InferenceSession({json.dumps(report.slim.file.file)})",
        "feed = {session.get_inputs()[0].name: pixels[np.newaxis].astype(np.float32)}",
        "[outputs] = session.run(None, feed)[0]",
    ]
    if report.metric:
        return "\n".join([*lines, "print(outputs)"])
    if short:
        lines.append(f"names = {json.dumps(names, ensure_ascii=False)}")
    elif names:
        lines.append('names = json.loads(session.get_modelmeta().custom_metadata_map["hoyer_export.class_names"])')
    return "\n".join([*lines, f"print({'names[outputs.argmax()]' if names else 'outputs.argmax()'})"])


def _resized(inputs: Preprocessing) -> Iterator[str]:
    height, width = inputs.shape[1:]
    by = f"Image.Resampling.{(inputs.interpolation or 'bilinear').upper()}"
    match inputs.resize:
        case "pad":
            yield f"image = ImageOps.pad(image, ({width}, {height}), {by})"
        case "crop":
            yield f"sides = [int({inputs.short_side} * side / min(image.size)) for side in image.size]"
            yield f"image = image.resize(sides, {by})"
            yield f"left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)"
            yield f"image = image.crop((left, top, left + {width}, top + {height}))"
        case _:
            yield f"image = image.resize(({width}, {height}), {by})"


def _normalised(inputs: Preprocessing) -> Iterator[str]:
    mean, std = (list(it) if len(it) > 1 else it[0] for it in (inputs.mean or (), inputs.std or ()))
    grey = '.convert("L")' if inputs.shape[0] == 1 else ""
    yield f"pixels = (np.asarray(image{grey}) / 255 - {mean}) / {std}"
    yield "pixels = pixels[np.newaxis]" if inputs.shape[0] == 1 else "pixels = pixels.transpose(2, 0, 1)"
