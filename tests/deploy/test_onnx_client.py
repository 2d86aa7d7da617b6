"""The client of a shipped file prepares pictures as the test images of the report were: its answers are the same."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hoyer_export.data import ImageOptions, load_data
from hoyer_export.deploy.export import export_onnx

CLIENT = Path(__file__).parents[2] / "examples" / "02_onnx_client.py"


def answers(model: Path, *pictures: Path) -> list[str]:
    """Return the lines that the client prints."""
    run = subprocess.run([sys.executable, CLIENT, model, *pictures], capture_output=True, encoding="utf-8", check=True)
    return run.stdout.splitlines()


def five(logits: Tensor, names: list[str]) -> list[str]:
    """Return the five classes with the largest shares, as the client prints them."""
    shares = logits.softmax(0)
    return [f"{names[i]}: {shares[i]:.1%}" for i in shares.argsort(descending=True)[:5]]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_client_reads_size_and_normalisation_from_the_file(tmp_path, channels):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 8, 7))
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.3, 0.1][:channels]
    facts = {"mean": json.dumps(mean), "std": json.dumps(std)}
    export_onnx(model, torch.zeros(1, channels, 8, 10), tmp_path / "f.onnx", metadata=facts)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 10, channels), np.uint8)
    Image.fromarray(pixels.squeeze()).save(tmp_path / "image.png")

    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    normalised = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected = five(model(normalised[None])[0], [f"class {i}" for i in range(7)])
    assert answers(tmp_path / "f.onnx", tmp_path / "image.png") == expected


def odd_pictures(folder: Path) -> None:
    """Write a picture of every kind: modes, depths, proportions, turned by EXIF."""
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, (mode, suffix, size) in enumerate(
        [
            *(("RGB", "jpg", (40, 23)), ("L", "png", (23, 40)), ("P", "gif", (16, 16)), ("CMYK", "tif", (50, 18))),
            *(
                ("RGBA", "PNG", (17, 33)),
                ("I;16", "png", (31, 20)),
                ("F", "tiff", (20, 31)),
                ("I;12", "tiff", (20, 31)),
            ),
        ]
    ):
        colours = generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        grey = generator.random(size[::-1], dtype=np.float32)
        deep = {"I;16": (grey * 65_535).astype(np.uint16), "I;12": (grey * 4095).astype(np.uint16), "F": grey}
        image = Image.fromarray(deep[mode]) if mode in deep else Image.fromarray(colours).convert(mode)
        options = {"tiffinfo": {281: 4095}} if mode == "I;12" else {"exif": exif} if mode == "RGB" else {}
        image.save(folder / f"{number} grün.{suffix}", **options)


@pytest.mark.parametrize(
    ("resize", "interpolation", "short_side"),
    [
        (None, None, None),
        ("crop", "bicubic", 16),
        ("crop", "bilinear", 21),
        ("squash", "lanczos", None),
        ("squash", "bilinear", None),
        ("pad", "nearest", None),
        ("pad", "bilinear", None),
    ],
)
def test_the_client_gives_pictures_of_all_kinds_what_the_test_set_gave_them(
    resize, interpolation, short_side, tmp_path
) -> None:
    for name in ("train/ä b", "train/c", "val/ä b", "val/c"):
        (tmp_path / name).mkdir(parents=True)
        odd_pictures(tmp_path / name)
    options = ImageOptions(resize=resize, interpolation=interpolation, short_side=short_side)
    data = load_data("imagefolder", root=tmp_path, image_size=16, validation=0.25, options=options)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)).eval()
    metadata, names = data.preprocessing.metadata(), list(data.preprocessing.class_names)
    export_onnx(model, torch.zeros(1, 3, 16, 16), tmp_path / "f.onnx", metadata=metadata)
    images = torch.cat([images for images, _ in data.test.batches(4)])
    with torch.no_grad():
        logits = model(images)
    paths = sorted(path for path in (tmp_path / "val").rglob("*") if path.is_file())
    expected = [line for path, one in zip(paths, logits, strict=True) for line in (str(path), *five(one, names))]
    assert answers(tmp_path / "f.onnx", *paths) == expected
    assert len({line for line in expected if line.startswith("c")}) > 5, "all pictures look alike"
