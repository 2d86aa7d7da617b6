import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hoyer_export.deploy.export import export_onnx

CLIENT = Path(__file__).parents[2] / "examples" / "02_onnx_client.py"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_client_reads_size_and_normalisation_from_the_file(tmp_path, channels):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 8, 7))
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.3, 0.1][:channels]
    facts = {"mean": json.dumps(mean), "std": json.dumps(std)}
    export_onnx(model, torch.zeros(1, channels, 8, 10), tmp_path / "f.onnx", metadata=facts)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 10, channels), np.uint8)
    Image.fromarray(pixels.squeeze()).save(tmp_path / "image.png")
    run = subprocess.run(
        [sys.executable, CLIENT, tmp_path / "f.onnx", tmp_path / "image.png"],
        capture_output=True,
        text=True,
        check=True,
    )

    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    normalised = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    shares = model(normalised[None]).softmax(1)[0]
    expected = [f"class {i}: {shares[i]:.1%}" for i in shares.argsort(descending=True)[:5]]
    assert run.stdout.splitlines() == expected
