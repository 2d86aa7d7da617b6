"""Networks of many kinds, each through ``run`` and through ``cut`` to verified files: exit 0."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hoyer_export.networks import build_network

NETWORKS = """
import torch
import torch.nn.functional as F
from torch import nn

class Tokens(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.stem, self.wide, self.mixed = nn.Conv2d(1, 16, 2, 2), nn.Conv2d(16, 16, 1), attention
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.wide(F.relu(self.stem(x))).flatten(2).transpose(1, 2)
        return self.head(self.mixed(x).mean(1))

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, 2, 8).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 16))

def encoder_layer():
    return Tokens(nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True))

def fused_attention():
    return Tokens(Heads())

class BufferWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.head = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(16), nn.Linear(16, 10)
        self.register_buffer("weight", torch.randn(16, 12, 3, 3) / 10)

    def forward(self, x):
        return self.head(F.relu(self.norm(F.conv2d(F.relu(self.a(x)), self.weight))).mean((2, 3)))

def buffer_weight():
    return BufferWeight()

def plain(in_channels=1, classes=10, norm=nn.BatchNorm2d, groups=1):
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, 2, 1, bias=False), norm(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, 1, 1, groups=groups, bias=False), norm(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes),
    )

def grouped():
    return plain(groups=4)

def instance_norm():
    return plain(norm=nn.InstanceNorm2d)

class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.rows, self.head = kind(12, 10, batch_first=True), nn.Linear(10, 10)

    def forward(self, x):
        rows = F.relu(self.b(F.relu(self.a(x)))).mean(3).transpose(1, 2)
        return self.head(self.rows(rows)[0][:, -1])

def gru():
    return Recurrent(nn.GRU)

def two_colours():
    return plain(3, 2)
"""
RECIPE = """
[network]
name = "end_to_end_nets:{name}"
[data]
name = "{data}"
validation = 0.2
{folder}
[dense]
epochs = 1
{precision}
[sparse]
epochs = 1
strength = 2e-3
{precision}
[cut]
macs = {macs}
align = 4
[finetune]
epochs = 1
{precision}
[bench]
min_seconds = 0.1
"""
# The recurrent layers' own MACs stay, and so does most of the encoder layer's.
KINDS = {
    "encoder_layer": 0.95,
    "fused_attention": 0.8,
    "buffer_weight": 0.5,
    "grouped": 0.5,
    "gru": 0.6,
    "instance_norm": 0.5,
    "bfloat16": 0.5,
    "image_folder": 0.5,
}
ALLOWED = ("--allow-import", "end_to_end_nets")
CLIENT = Path(__file__).parents[1] / "examples" / "02_onnx_client.py"
NAMES = {"bfloat16": "plain", "image_folder": "two_colours"}


pytestmark = pytest.mark.usefixtures("exported_once")


@pytest.fixture(autouse=True)
def home(own_module: Callable[[str, str], Path]) -> Path:
    """The working directory, with networks and a folder of pictures in it."""
    folder = own_module("end_to_end_nets", NETWORKS)
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for channel, colour in enumerate(("red", "green")):
            (folder / "pictures" / part / colour).mkdir(parents=True)
            for number in range(24):
                pixels = generator.integers(0, 120, (20, 24, 3), dtype=np.uint8)
                pixels[:, :, channel] += 120
                Image.fromarray(pixels).save(folder / "pictures" / part / colour / f"{number}.png")
    return folder


def good_within(share: float, report: dict) -> None:
    """Assert that a report says verified and met, and that the figures of its files say so too."""
    assert report["verify"]["passed"] is report["export"]["budget"]["met"] is True
    dense, slim = (it["macs"] for it in report["export"]["artifacts"])
    assert slim <= share * dense


def the_client_agrees(home: Path, report: dict) -> None:
    """Assert that the example client gives every test picture the class that the report counts."""
    pictures = sorted(Path("pictures/val").rglob("*.png"))
    client = [sys.executable, CLIENT, "out/slim.onnx", *map(str, pictures)]
    said = subprocess.run(client, cwd=home, capture_output=True, text=True, check=True).stdout.splitlines()
    first = {path: answer.split(":")[0] for path, answer in pairwise(said) if path in map(str, pictures)}
    right = Counter(Path(path).parent.name for path, name in first.items() if Path(path).parent.name == name)
    assert report["inputs"]["class_names"] == ["green", "red"]
    counted = report["verify"]["artifacts"][1]["by_class"]
    assert counted == [{"images": 24, "correct": right[name]} for name in ("green", "red")]


@pytest.mark.parametrize("kind", KINDS)
def test_run_ends_with_a_verified_file_within_the_budget(kind: str, call, home: Path) -> None:
    folder = 'root = "pictures"\nimage_size = 16' if kind == "image_folder" else ""
    (home / "recipe.toml").write_text(
        RECIPE.format(
            name=NAMES.get(kind, kind),
            data="imagefolder" if folder else "digits",
            folder=folder,
            macs=KINDS[kind],
            precision='precision = "bfloat16"' if kind == "bfloat16" else "",
        )
    )
    code, out, err = call("run", "recipe.toml", "--out", "out", *ALLOWED)
    assert code == 0, out + err
    report = json.loads((home / "out" / "report.json").read_text())
    good_within(KINDS[kind], report)
    if folder:
        the_client_agrees(home, report)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_ends_with_verified_files_within_the_budget(kind: str, call, home: Path) -> None:
    name = f"end_to_end_nets:{NAMES.get(kind, kind)}"
    torch.manual_seed(0)
    model = build_network(name, allow_import=ALLOWED[1:])
    torch.save((model.bfloat16() if kind == "bfloat16" else model).state_dict(), home / "w.pth")
    data = ("--data", "imagefolder", "--data-root", "pictures") if kind == "image_folder" else ("--data", "digits")
    code, out, err = call(
        *("cut", "--network", name, "--weights", "w.pth", "--macs", str(KINDS[kind]), "--align", "4", *data),
        *("--out", "out", "--min-seconds", "0", "--json", *ALLOWED),
    )
    assert code == 0, err
    good_within(KINDS[kind], json.loads(out))
