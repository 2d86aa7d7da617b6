"""Classify an image with a file that hoyer-export wrote; needs onnxruntime, numpy and Pillow, nothing else.

python examples/02_onnx_client.py slim.onnx image.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

model, picture = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
facts = session.get_modelmeta().custom_metadata_map
[(name, (channels, height, width))] = json.loads(facts["hoyer_export.inputs"]).items()
mean, std = (
    np.array(json.loads(facts[f"hoyer_export.{key}"]), np.float32).reshape(-1, 1, 1) for key in ("mean", "std")
)

image = Image.open(picture).convert("L" if channels == 1 else "RGB").resize((width, height))
pixels = np.asarray(image, np.float32).reshape(height, width, channels).transpose(2, 0, 1) / 255
[logits] = session.run(["logits"], {name: ((pixels - mean) / std)[np.newaxis]})[0]
shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
for index in np.argsort(-shares)[:5]:
    print(f"class {index}: {shares[index]:.1%}")
