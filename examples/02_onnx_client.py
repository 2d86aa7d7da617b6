"""Classify pictures with a file that hoyer-export wrote; needs onnxruntime, numpy and Pillow, nothing else.

python examples/02_onnx_client.py slim.onnx image.png ...

What was done to the test images stands in the file's metadata, and is done here: so the accuracy is the report's.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path):
    """Return RGB of eight bits, or grey of more as numbers of 0..1, the right way up."""
    image = Image.open(path)
    tags = dict(getattr(image, "tag_v2", {}))  # of a TIFF file: 281 and 258 say how many bits, 262 whether 0 is white
    image = ImageOps.exif_transpose(image)
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    stated = [*tags.get(281, ()), 2 ** tags.get(258, (16,))[0] - 1]
    largest = next((value for value in stated if value in [2**bits - 1 for bits in range(9, 17)]), 65_535)
    values = (np.asarray(image) / np.float32(1 if image.mode == "F" else largest)).astype(np.float32)
    return Image.fromarray(1 - values if tags.get(262) == 0 else values)


def resized(image, width, height):
    """Bring an image to its size: "crop", "squash" or "pad"; data sets of one size say nothing of it."""
    by = Image.Resampling[facts.get("hoyer_export.interpolation", "bilinear").upper()]
    how = facts.get("hoyer_export.resize", "squash")
    if how == "pad":
        return ImageOps.pad(image, (width, height), by)
    if how == "squash":
        return image.resize((width, height), by)
    short, (least, most) = int(facts["hoyer_export.short_side"]), sorted(image.size)
    image = image.resize([short if side == least else int(short * most / least) for side in image.size], by)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def prepared(image, channels, height, width):
    """Return what slim.onnx takes: float32 [C, H, W], normalised."""
    mean, std = (
        np.array(json.loads(facts[f"hoyer_export.{key}"]), np.float32).reshape(-1, 1, 1) for key in ("mean", "std")
    )
    image = resized(image, width, height)
    if channels == 1:
        image = image if image.mode == "F" else image.convert("L")
    pixels = np.asarray(image, np.float32).reshape(height, width, -1).transpose(2, 0, 1)
    pixels = pixels if image.mode == "F" else pixels / 255
    return (pixels - mean) / std


def as_bytes(image, height, width, channels):
    """Return what slim-preprocess.onnx takes: bytes [height, width, C] in the size that they have, if it resizes."""
    if image.mode == "F":
        image = Image.fromarray((np.asarray(image) * 255).round().astype(np.uint8))
    if not isinstance(height, str):
        image = resized(image, width, height)
    return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(*image.size[::-1], channels)


model, *pictures = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
facts = session.get_modelmeta().custom_metadata_map
[(name, sizes)] = json.loads(facts["hoyer_export.inputs"]).items()
names = json.loads(facts.get("hoyer_export.class_names", "[]"))

for picture in pictures:
    made = as_bytes(read(picture), *sizes) if "hoyer_export.inside" in facts else prepared(read(picture), *sizes)
    [logits] = session.run(None, {name: made[np.newaxis]})[0]
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    if len(pictures) > 1:
        print(picture)
    for index in np.argsort(-shares)[:5]:
        print(f"{names[index] if index < len(names) else f'class {index}'}: {shares[index]:.1%}")
