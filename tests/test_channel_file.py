"""What channels.json holds of a channel map is all of it, and a file of an earlier release is read."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

import hoyer_export as hx
from hoyer_export.run.channel_file import read_channels, write_channels


class Mixed(nn.Module):
    """A shuffle, and attention that takes the width of its heads from its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shuffle, self.norm = nn.Conv2d(3, 12, 3), nn.ChannelShuffle(2), nn.LayerNorm(12)
        self.next, self.attention, self.head = nn.Conv2d(12, 12, 3), Heads(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.next(self.shuffle(self.stem(x))).flatten(2).transpose(1, 2)
        return self.head(self.attention(self.norm(x)).mean(1))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 3, nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


def test_a_channel_map_comes_back_whole(tmp_path: Path) -> None:
    channels = hx.trace_channels(Mixed(), torch.randn(2, 3, 8, 8))
    assert channels.shuffles
    assert channels.lendings
    assert channels.attributes
    file = tmp_path / "channels.json"
    write_channels(file, channels)
    assert read_channels(file) == channels
    older = json.loads(file.read_text())
    del older["shuffles"], older["lendings"]
    file.write_text(json.dumps(older))
    assert read_channels(file).groups == channels.groups
