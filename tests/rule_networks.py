"""Tiny networks, one or more for each rule and for each tie or refusal in it: without it one of them is cut wrongly.

``tests/channels/test_rules_matter.py`` takes away one at a time and expects these and ``networks.WIRINGS`` to notice.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from networks import Net, conv
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

IMAGE = (2, 3, 8, 8)
TOKENS = (2, 6, 3)
Operation = Callable[[Net, Tensor], Tensor]


@cache
def cached_half(width: int) -> int:
    return width // 2


def behind(operation: Operation, width: int = 12, **layers: nn.Module | nn.Parameter | int) -> Callable[[], Net]:
    """Return what makes a network: a convolution, the operation, and a linear layer on everything that comes out."""
    return _between(operation, conv(3, width), IMAGE, layers)


def behind_line(operation: Operation, width: int = 12, **layers: Any) -> Callable[[], Net]:
    """The same with the image as one line [N, C, L]."""
    return behind(lambda n, y: operation(n, y.flatten(2)), width, **layers)


def behind_linear(operation: Operation, width: int = 12, **layers: Any) -> Callable[[], Net]:
    """The same with a linear layer on tokens [N, L, C]."""
    return _between(operation, nn.Linear(3, width), TOKENS, layers)


def _between(
    operation: Operation, first: nn.Module, shape: tuple[int, ...], layers: dict[str, Any]
) -> Callable[[], Net]:
    def make() -> Net:
        net = Net(lambda n, x: n.fc(operation(n, n.a(x)).flatten(1)), a=first, **layers)
        with torch.no_grad():
            net.fc = nn.Linear(operation(net, net.a(torch.randn(shape))).flatten(1).shape[1], 5)
        net.example_shape = shape
        return net

    return make


class OwnAttention(nn.MultiheadAttention):
    """A derived class may do anything."""


class Shuffled(nn.Module):
    """Channels are split by hand, swapped and joined before something is done; the width may be another tensor's."""

    def __init__(self, split: Callable[[int], tuple[int, int]], then: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.split, self.then = split, then

    def forward(self, y: Tensor, other: Tensor | None = None) -> Tensor:
        b, c, h, w = (y if other is None else other).shape
        return self.then(y.view(b, *self.split(c), h, w).transpose(1, 2).reshape(b, -1, h, w))


class Heads(nn.Module):
    """Attention that takes the width of all its heads from its input, which it may also read."""

    def __init__(self, reads: bool = False, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.reads = heads, reads
        self.qkv, self.out, self.other = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, does: str = "attend") -> Tensor:
        b, n, c = x.shape
        if does != "attend":
            return self.other(x.tanh() if does == "read" else x)
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.out(y * x if self.reads else y)


def joined_channels(*parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


class HalfUnit(nn.Module):
    """One half of the channels passes by, the other goes through a convolution, and both are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.b, self.s = conv(width // 2, width // 2), nn.ChannelShuffle(2)

    def forward(self, y: Tensor) -> Tensor:
        left, right = y.chunk(2, 1)
        return self.s(torch.cat([left, self.b(right)], 1))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(shape))


def outer(n: Net, y: Tensor) -> Tensor:
    return y.mean((2, 3))[:, :, None] * n.b(y).mean((2, 3))[:, None, :]


def assigned(y: Tensor, z: Tensor) -> Tensor:
    y[:, :, 2:] = z[:, :, 2:]
    return y


def joined(*parts: Tensor) -> Tensor:
    return torch.cat([part.flatten(1) for part in parts], 1)


def added_through_a_view(n: Net, y: Tensor) -> Tensor:
    y[:, :, 1:].add_(0.5)
    return y.sum(1)


def unpooled(n: Net, y: Tensor) -> Tensor:
    values, places = F.max_pool2d(y, 2, return_indices=True)
    return F.max_unpool2d(values, places, 2)


def unpooled_elsewhere(n: Net, y: Tensor) -> Tensor:
    return F.max_unpool2d(F.max_pool2d(y, 2), F.max_pool2d(n.b(y), 2, return_indices=True)[1], 2)


def unpooled_at_fixed_places(n: Net, y: Tensor) -> Tensor:
    return F.max_unpool2d(
        F.max_pool2d(y, 2), F.max_pool2d(torch.ones_like(y[:, :1]).expand(-1, 12, -1, -1), 2, return_indices=True)[1], 2
    )


def unpooled_along_channels(n: Net, y: Tensor) -> Tensor:
    places = F.max_pool2d(torch.ones(len(y), 8, 24, 16), 2, return_indices=True)[1]
    return F.max_unpool2d(y.transpose(1, 2), places, 2)


def jitted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # deprecated, but in use
        module: nn.Module = torch.jit.trace(nn.Hardswish(), torch.zeros(2, 12, 8, 8))
    return module


# Layers that several networks share.
QKV = {"q": nn.Linear(12, 8), "k": nn.Linear(12, 8), "v": nn.Linear(12, 6)}

NETWORKS: dict[str, Callable[[], Net]] = {
    # Contractions
    "conv 1d": behind_line(lambda n, y: n.b(y), b=nn.Conv1d(12, 8, 3)),
    "conv with a computed kernel": behind(lambda n, y: F.conv2d(y, n.w * 2, padding=1), w=parameter(8, 12, 3, 3)),
    "conv with a bias of its own": behind(
        lambda n, y: F.conv2d(y, n.w, n.bias), w=parameter(8, 12, 1, 1), bias=parameter(8)
    ),
    "conv along the channels": behind(lambda n, y: n.b(y.transpose(1, 2)), b=conv(8, 6)),
    "conv over channels as a batch": behind(lambda n, y: n.b(y.flatten(0, 1)[:, None]).mean((2, 3)), b=conv(1, 6)),
    "depthwise conv of no module": behind(lambda n, y: F.conv2d(y, n.w, groups=12), w=parameter(12, 1, 3, 3)),
    "conv transposed depthwise": behind(lambda n, y: n.b(y), b=nn.ConvTranspose2d(12, 24, 2, groups=12)),
    "linear with a vector": behind(lambda n, y: F.linear(y.mean((2, 3)), n.w)[:, None], w=parameter(12)),
    "linear with a vector that scales": behind(
        lambda n, y: (y * n.w[:, None, None]).mean((2, 3)) + F.linear(n.ones, n.w),
        w=parameter(12), ones=nn.Parameter(torch.ones(12)),
    ),
    "matmul": behind_linear(lambda n, y: y @ n.w, w=parameter(12, 7)),
    "matmul of tokens": behind_linear(lambda n, y: n.q(y) @ n.k(y).mT, q=nn.Linear(12, 8), k=nn.Linear(12, 8)),
    "matmul of sigmoids": behind_linear(
        lambda n, y: torch.sigmoid(n.q(y)) @ torch.sigmoid(n.k(y)).mT, q=nn.Linear(12, 8), k=nn.Linear(12, 8)
    ),
    "addmm": behind(lambda n, y: torch.addmm(n.bias, y.mean((2, 3)), n.w), w=parameter(12, 8), bias=parameter(8)),
    "einsum": behind_linear(lambda n, y: torch.einsum("blc,oc->blo", y, n.w), w=parameter(7, 12)),
    "einsum diagonal": behind(lambda n, y: torch.einsum("ncc->nc", outer(n, y)), b=conv(12, 12)),
    "einsum over a constant": behind(lambda n, y: torch.einsum("nchw->nhw", torch.sigmoid(y))),
    "attention": behind_linear(lambda n, y: F.scaled_dot_product_attention(n.q(y), n.k(y), n.v(y), scale=1.0), **QKV),
    "attention scaled by its width": behind_linear(
        lambda n, y: F.scaled_dot_product_attention(n.q(y), n.k(y), n.v(y)), **QKV
    ),
    "attention between channels": behind_line(
        lambda n, y: F.scaled_dot_product_attention(n.p.expand(len(y), -1, -1), y, n.v(y), scale=1.0),
        p=parameter(1, 5, 64), v=nn.Linear(64, 6),
    ),
    "attention of shared heads": behind(
        lambda n, y: F.scaled_dot_product_attention(n.q(y), n.k(y), n.k(y), enable_gqa=True, scale=1.0),
        q=conv(12, 8), k=conv(12, 4),
    ),
    "multi-head attention": behind_linear(
        lambda n, y: n.mha(y, y, y)[0], mha=nn.MultiheadAttention(12, 3, batch_first=True)
    ),
    "multi-head attention and the mean of its weights": behind_linear(
        lambda n, y: torch.cat(n.mha(y, y, y), 2), mha=nn.MultiheadAttention(12, 3, batch_first=True)
    ),
    "multi-head attention in a class of one's own": behind_linear(
        lambda n, y: n.mha(y, y, y, need_weights=False)[0], mha=OwnAttention(12, 3, batch_first=True)
    ),
    "heads as wide as the input": behind_linear(lambda n, y: n.h(F.layer_norm(y, (12,))), h=Heads()),
    "heads as wide as an input that is also read": behind_linear(lambda n, y: n.h(y), h=Heads(reads=True)),
    "heads of which one call reads the input": behind_linear(
        lambda n, y: n.h(F.layer_norm(y, (12,))) + n.h(F.layer_norm(y, (12,)), "read"), h=Heads()
    ),
    "heads of which one call does without": behind_linear(
        lambda n, y: n.h(F.layer_norm(y, (12,)), "pass") + n.h(F.layer_norm(y, (12,))), h=Heads()
    ),
    "parts that are weighed against each other": behind(
        lambda n, y: y.reshape(len(y), n.k, y.shape[1] // n.k, *y.shape[2:]).softmax(1).square().sum(1), k=3
    ),
    "a width divided by an attribute": behind(lambda n, y: y[:, : y.shape[1] // n.k], k=5),
    "heads between two widths": behind_linear(
        lambda n, y: joined(n.h(y), n.h(n.b(y), "pass")), h=Heads(), b=nn.Linear(12, 12)
    ),
    "attention to widths of their own": behind_linear(
        lambda n, y: n.mha(n.q(y), y, n.v(y))[0],
        q=nn.Linear(12, 8), v=nn.Linear(12, 6), mha=nn.MultiheadAttention(8, 2, kdim=12, vdim=6, batch_first=True),
    ),
    "attention to channels": behind(
        lambda n, y: n.mha(n.w.expand(len(y), -1, -1), y.flatten(2), y.flatten(2))[0],
        w=parameter(1, 5, 8), mha=nn.MultiheadAttention(8, 2, kdim=64, vdim=64, batch_first=True),
    ),
    "lstm both ways": behind_linear(
        lambda n, y: n.rnn(y)[0], rnn=nn.LSTM(12, 5, 2, batch_first=True, bidirectional=True)
    ),
    "lstm along the channels": behind(lambda n, y: n.rnn(y.flatten(2))[0], rnn=nn.LSTM(64, 5, batch_first=True)),
    "gru cell with a computed state": behind(
        lambda n, y: n.rnn(y.mean((2, 3)), n.b(y).mean((2, 3))), rnn=nn.GRUCell(12, 5), b=conv(12, 5)
    ),
    "rnn": behind_linear(lambda n, y: n.rnn(y)[0], rnn=nn.RNN(12, 5, batch_first=True)),
    "bilinear": behind(
        lambda n, y: n.m(y.mean((2, 3)), n.b(y).mean((2, 3))), b=conv(12, 6), m=nn.Bilinear(12, 6, 7)
    ),
    "bilinear over channels as a batch": behind(
        lambda n, y: n.m(y.mean(2), n.b(y).mean(2)), b=conv(12, 12), m=nn.Bilinear(8, 8, 3)
    ),
    "tensordot": behind(lambda n, y: torch.tensordot(y, n.w, dims=([1], [0])).mean((1, 2)), w=parameter(12, 8)),
    "cosine": behind(lambda n, y: F.cosine_similarity(y, n.b(y)), b=conv(12, 12)),
    "cosine of sigmoids": behind(lambda n, y: F.cosine_similarity(y.sigmoid(), n.b(y).sigmoid()), b=conv(12, 12)),
    "distances": behind(lambda n, y: torch.cdist(y.mean((2, 3)), n.w), w=parameter(6, 12)),
    "distances of channels": behind(lambda n, y: torch.cdist(y.flatten(2), n.w), w=parameter(6, 64)),
    "distance with an eps": behind(
        lambda n, y: 1e6 * F.pairwise_distance(1e-6 * y.mean((2, 3)), 1e-6 * n.b(y).mean((2, 3)))[:, None],
        b=conv(12, 12),
    ),
    "weight norm": behind(lambda n, y: n.b(y), b=weight_norm(conv(12, 8))),
    "deformable conv": behind(
        lambda n, y: n.b(y, n.places(y), n.mask(y).sigmoid()),
        b=torchvision.ops.DeformConv2d(12, 8, 3, padding=1), places=conv(12, 36), mask=conv(12, 18),
    ),
    "regions": behind(
        lambda n, y: torch.ops.torchvision.roi_align(y, n.b(y).mean((2, 3)).sigmoid(), 8.0, 2, 2, -1, False),
        b=conv(12, 5),
    ),
    "groups of the width": behind(
        lambda n, y: F.conv2d(F.conv2d(y, n.w, groups=y.shape[1]), n.v.expand(y.shape[1], 1, 3, 3), groups=y.size(1)),
        w=parameter(12, 1, 3, 3), v=parameter(1, 1, 3, 3),
    ),
    "groups in an attribute": behind(
        lambda n, y: F.conv2d(y, n.w.expand(n.groups, 1, 3, 3), groups=n.groups), w=parameter(1, 1, 3, 3), groups=12
    ),
    "groups of the width, transposed": behind(
        lambda n, y: F.conv_transpose2d(y, n.w, groups=y.shape[1]), w=parameter(12, 1, 3, 3)
    ),
    "a layer's width": behind(
        lambda n, y: n.c(n.b(y.mean((2, 3))).view(-1, n.c.in_channels, 4, 4)),
        b=nn.Linear(12, 128), c=nn.ConvTranspose2d(8, 6, 2),
    ),
    "a layer's width in groups": behind(
        lambda n, y: n.c(n.b(y).view(len(y), n.b.out_channels, -1).mean(2).view(len(y), n.c.in_channels, 1, 1)),
        b=conv(12, 24, groups=12), c=conv(24, 8, groups=2),
    ),
    "the ratio of two widths": behind(
        lambda n, y: joined(y, n.b(y)) * (y.shape[1] // n.b(y).shape[1]), b=conv(12, 6)
    ),
    "lstm": behind_linear(lambda n, y: n.rnn(y)[0], rnn=nn.LSTM(12, 5, batch_first=True)),
    "lstm cell": behind(lambda n, y: n.rnn(y.mean((2, 3)))[0], rnn=nn.LSTMCell(12, 5)),
    "embedding": behind(lambda n, y: y.mean((2, 3)) + n.e(torch.tensor(2)), e=nn.Embedding(4, 12)),
    "embedding that is a weight": behind_linear(
        lambda n, y: y @ n.w.t() + F.embedding(torch.tensor(9), n.w).sum(), w=parameter(10, 12)
    ),
    # Picking positions
    "one channel": behind(lambda n, y: y[:, 2]),
    "last channel": behind(lambda n, y: y[:, -1]),
    "select": behind(lambda n, y: y.select(2, 1) + y.select(1, 3)[:, :1]),
    "select beside": behind(lambda n, y: y.select(2, 1)),
    "step": behind(lambda n, y: y[:, :: y.shape[1] // 6]),
    "every third": behind(lambda n, y: y[:, ::3], width=11),
    "first half": behind(lambda n, y: y[:, : y.shape[1] // 2]),
    "first three": behind(lambda n, y: y[:, :3]),
    "from the third": behind(lambda n, y: y[:, 3:]),
    "last three": behind(lambda n, y: y[:, -3:]),
    "without the last three": behind(lambda n, y: y[:, :-3]),
    "narrow": behind(lambda n, y: y.narrow(1, 2, 5)),
    "narrow by width": behind(lambda n, y: y.narrow(1, 0, y.shape[1] // 2)),
    "narrow beside": behind(lambda n, y: y.narrow(2, 2, 5)),
    "index select": behind(lambda n, y: y.index_select(1, torch.tensor([3, 1]))),
    "index": behind(lambda n, y: y[:, [3, 1]]),
    "unbind": behind(lambda n, y: y.unbind(1)[3]),
    "roll of all": behind(lambda n, y: torch.roll(y, 5)),
    "roll": behind(lambda n, y: torch.roll(y, 2, 1)),
    "set": behind(lambda n, y: assigned(y, n.b(y)), b=conv(12, 12)),
    # Joining and splitting
    "glu": behind(lambda n, y: F.glu(y, 1)),
    "chunks of two sizes": behind(lambda n, y: y.chunk(5, 1)[0]),
    "parts as wide as another": behind(lambda n, y: y.split(n.b(y).shape[1], 1)[0], b=conv(12, 5)),
    "halves by width": behind(lambda n, y: y.split([y.shape[1] // 2, y.shape[1] // 2], 1)[1]),
    "first part as wide as another": behind(
        lambda n, y: y.split([n.b(y).shape[1], y.shape[1] - n.b(y).shape[1]], 1)[0], b=conv(12, 5)
    ),
    "parts of literal sizes": behind(lambda n, y: y.split([5, 7], 1)[1]),
    "side by side": behind(lambda n, y: torch.cat([y, n.b(y)], 2), b=conv(12, 12)),
    "stacked": behind(lambda n, y: torch.stack([y, n.b(y)], 2), b=conv(12, 12)),
    "padded beside": behind(lambda n, y: F.pad(y, [1, 1])),
    "padded": behind(lambda n, y: F.pad(y, [0, 0, 0, 0, 1, 2])),
    "cropped": behind(lambda n, y: F.pad(y, [0, 0, 0, 0, -2, 0])),
    "reflected": behind_linear(lambda n, y: F.pad(y, [1, 1], mode="reflect")),
    # Moving and reshaping
    "outer product": behind(lambda n, y: outer(n, y).flatten(1), b=conv(12, 7)),
    "one position left": behind_linear(lambda n, y: n.b(y[..., 1::2]), width=3, b=nn.Linear(1, 5)),
    "same type": behind(lambda n, y: y.view(y.dtype)),
    "literal reshape": behind(lambda n, y: y.reshape(-1, 12, 64)),
    "two literal lengths": behind(lambda n, y: y.reshape(-1, 3, 4, 64).flip(1)),
    "two free lengths": behind(lambda n, y: y.reshape(y.shape[0], 3, y.shape[1] // 3, 8, 8).flip(1)),
    "reshaped to another's width": behind(lambda n, y: y.reshape(y.shape[0], n.b(y).shape[1], -1), b=conv(12, 12)),
    "reshape as": behind(lambda n, y: y.reshape_as(n.b(y)), b=conv(12, 12)),
    "numel": behind(lambda n, y: y.reshape(y.shape[0], y[0].numel())),
    "expanded": behind(lambda n, y: y[:, :, :1].expand(-1, -1, 8, -1)),
    "expanded to a literal": behind(lambda n, y: y.expand(y.shape[0], 12, 8, 8)),
    "expanded to another's width": behind(lambda n, y: y.expand(-1, n.b(y).shape[1], -1, -1), b=conv(12, 12)),
    "expanded as a fixed tensor": behind(lambda n, y: y.expand_as(torch.ones(len(y), 12, 8, 8))),
    "as many copies as channels": behind(
        lambda n, y: n.b(n.p.expand(y.shape[0], y.shape[1], 8, 8)) + y, p=parameter(1, 1, 8, 8), b=conv(12, 12)
    ),
    "repeated as often as channels": behind(lambda n, y: y.repeat(1, n.b(y).shape[1], 1, 1), b=conv(12, 3)),
    "repeated in one row": behind(lambda n, y: y.repeat_interleave(2).view(y.shape[0], -1)),
    "new zeros": behind(lambda n, y: torch.zeros(y.shape, dtype=y.dtype) + y),
    # Normalising
    "instance norm": behind(lambda n, y: n.norm(y), norm=nn.InstanceNorm2d(12, affine=True)),
    "batch norm across channels": behind_linear(lambda n, y: n.norm(y), norm=nn.BatchNorm1d(6)),
    "layer norm": behind_linear(lambda n, y: n.norm(y), norm=nn.LayerNorm(12)),
    "layer norm beside": behind(lambda n, y: F.layer_norm(y, (8, 8))),
    "layer norm's scale elsewhere": behind_linear(
        lambda n, y: joined(F.layer_norm(y, (12,), n.w), n.b(y) * n.w), w=parameter(12), b=nn.Linear(12, 12)
    ),
    "group norm over all": behind(lambda n, y: n.norm(y), norm=nn.GroupNorm(1, 12)),
    "group norm of no module": behind(lambda n, y: F.group_norm(y, 3)),
    "group norm without scales": behind(lambda n, y: n.norm(y), norm=nn.GroupNorm(3, 12, affine=False)),
    "group norm across channels": behind(lambda n, y: n.norm(y.transpose(1, 2)), norm=nn.GroupNorm(2, 8)),
    "normalised": behind(lambda n, y: F.normalize(y, dim=1)),
    "normalised sigmoid": behind(lambda n, y: F.normalize(torch.sigmoid(y), dim=1)),
    "local response norm": behind(lambda n, y: F.local_response_norm(y, 3)),
    "local response norm across tokens": behind_linear(lambda n, y: F.local_response_norm(y, 3)),
    # Position by position
    "einsum with one channel": behind(lambda n, y: torch.einsum("nchw,nchw->nchw", y, n.b(y)), b=conv(12, 1)),
    "gate of one channel": behind(lambda n, y: y * n.b(y), b=conv(12, 1)),
    "added through a view": behind(added_through_a_view),
    "reciprocal": behind(lambda n, y: 1 / y),
    "log": behind(lambda n, y: y.abs().log()),
    "distance": behind(lambda n, y: n.b(torch.log1p(0.5 + (y - 0.5).pow(2))), b=conv(12, 6)),
    "contiguous": behind(lambda n, y: y.contiguous()),
    "copied": behind(lambda n, y: torch.empty_like(y).copy_(y)),
    "dropout": behind(lambda n, y: F.dropout(y, 0.5, n.training)),
    "alpha dropout": behind(lambda n, y: F.feature_alpha_dropout(n.alpha(F.selu(y)), 0.5), alpha=nn.AlphaDropout()),
    # Pooling and pixels
    "grid sample": behind(
        lambda n, y: F.grid_sample(y, n.b(y).permute(0, 2, 3, 1), align_corners=False), b=conv(12, 2)
    ),
    "pooled along channels": behind(lambda n, y: F.max_pool2d(y.permute(0, 2, 3, 1), 2)),
    "unpooled": behind(unpooled),
    "unpooled elsewhere": behind(unpooled_elsewhere, b=conv(12, 12)),
    "unpooled at fixed places": behind(unpooled_at_fixed_places),
    "unpooled along channels": behind(unpooled_along_channels),
    "channel shuffle": behind(lambda n, y: F.channel_shuffle(y, 3)),
    "channel shuffle of a module": behind(lambda n, y: n.s(y), s=nn.ChannelShuffle(3)),
    "channel shuffle of runs": behind(lambda n, y: n.s(y), s=Shuffled(lambda c: (c // 3, 3))),
    "channel shuffle of any width": behind(lambda n, y: n.s(y), s=Shuffled(lambda c: (3, -1))),
    "channel shuffle as wide as another": behind(
        lambda n, y: n.s(joined_channels(y, y), n.b(y)), s=Shuffled(lambda c: (2, c)), b=conv(12, 12)
    ),
    "channel shuffle that another operation reads": behind(
        lambda n, y: n.s(joined_channels(y, y.flip(1))), s=Shuffled(lambda c: (2, c // 2), then=F.relu)
    ),
    "channel shuffle of runs that another operation reads": behind(
        lambda n, y: n.s(joined_channels(y, y)), s=Shuffled(lambda c: (c // 2, 2), then=F.relu)
    ),
    "channels split and taken apart": behind(lambda n, y: torch.cat(y.view(len(y), 3, -1, 8, 8).unbind(1)[:2], 1)),
    "channel shuffle beside other channels": behind(
        lambda n, y: F.channel_shuffle(outer(n, y)[..., None], 3), b=conv(12, 6)
    ),
    "channel shuffles of one module": behind(
        lambda n, y: joined(n.s(y), n.s(n.b(y))), s=nn.ChannelShuffle(3), b=conv(12, 12)
    ),
    "shuffles between halves": behind(lambda n, y: n.v(n.u(y)), u=HalfUnit(12), v=HalfUnit(12)),
    "shuffles of two widths in one module": behind(
        lambda n, y: joined(n.s(y), n.s(n.b(y))), s=nn.ChannelShuffle(2), b=conv(12, 8)
    ),
    "pixels across channels": behind(lambda n, y: F.pixel_unshuffle(y.transpose(1, 2), 2)),
    "windows": behind(lambda n, y: y.unfold(1, 2, 1)),
    "windows beside": behind(lambda n, y: y.unfold(2, 3, 1)),
    "spectrum over channels": behind(lambda n, y: torch.fft.fft(y, dim=1).real),
    "spectrum's real part": behind(lambda n, y: torch.fft.fft2(y).real),
    "spectrum's parts": behind(lambda n, y: torch.view_as_real(torch.fft.fftn(y, dim=(2, 3)))),
    "complex channels": behind(
        lambda n, y: torch.view_as_real(torch.view_as_complex(y.permute(0, 2, 3, 1).contiguous())), width=2
    ),
    # Reducing
    "softmax": behind(lambda n, y: y.softmax(1)),
    "running product": behind(lambda n, y: y.cumprod(1)),
    "running sum beside": behind(lambda n, y: y.cumsum(2)),
    "mean": behind(lambda n, y: y.mean(1)),
    "vector norm": behind(lambda n, y: torch.linalg.vector_norm(y, dim=(2, 3))),
    "std": behind_linear(lambda n, y: y.std(1, True)),
    "std along channels": behind(lambda n, y: y.std(1, True)),
    # Numbers of channels
    "len": behind(lambda n, y: y * len(y.transpose(0, 1))),
    "divided": behind(lambda n, y: y * (y.shape[1] / 2)),
    "plus": behind(lambda n, y: y * (y.shape[1] + 1)),
    "quotient": behind(lambda n, y: y * (y.shape[1] // 5)),
    "times a half": behind(lambda n, y: y * (y.shape[1] * 0.5)),
    "half doubled": behind(lambda n, y: y * (y.shape[1] // 2 * 2)),
    "product of widths": behind(lambda n, y: y * (y.shape[1] * n.b(y).shape[1]), b=conv(12, 7)),
    "argument": behind(lambda n, y: y * y.shape[1]),
    "equal to a literal": behind(lambda n, y: y * 2 if y.shape[1] == 12 else y),
    "as wide as another": behind(lambda n, y: y * 2 if y.shape[1] == n.b(y).shape[1] else y, b=conv(12, 12)),
    "not as wide as another": behind(lambda n, y: y * 2 if y.shape[1] == n.b(y).shape[1] else y, 2, b=conv(2, 3)),
    "half as wide as another": behind(
        lambda n, y: y * 2 if y.shape[1] // 2 == n.b(y).shape[1] // 2 else y, b=conv(12, 12)
    ),
    "an even number of channels": behind(lambda n, y: y[:, : y.shape[1] // 2 * 2]),
    "half, as cached": behind(lambda n, y: y[:, : cached_half(y.shape[1])]),
    "squeezed": behind(lambda n, y: n.b(y.amax((2, 3), keepdim=True).squeeze()), 4, b=nn.Linear(4, 7)),
    "sum of exponentials": behind(
        lambda n, y: y.flatten(2) * n.b(y).flatten(2).logsumexp(2, keepdim=True), b=conv(12, 12)
    ),
    "largest": behind(lambda n, y: y.flatten(2).topk(5, dim=2)[0]),
    "sorted": behind(lambda n, y: y.flatten(2).sort(2, descending=True)[0]),
    "sorted channels": behind(lambda n, y: y.sort(1)[0]),
    "gathered": behind(lambda n, y: y.flatten(2).gather(2, n.b(y).flatten(2).argsort(2)[..., :5]), b=conv(12, 12)),
    "gathered channels": behind(lambda n, y: y.gather(1, y.new_zeros(len(y), 3, 8, 8).long() + 5)),
    "gathered from the first": behind(lambda n, y: y.gather(2, y.new_zeros(len(y), 7, 1, 8).long())),
    "taken from one row": behind(lambda n, y: torch.take_along_dim(y, y.new_zeros(len(y)).long() + 700)[:, None]),
    "scattered": behind(
        lambda n, y: torch.zeros_like(y).scatter(2, n.b(y).argmax(2, keepdim=True), y), b=conv(12, 12)
    ),
    "scattered channels": behind(
        lambda n, y: y.scatter(1, y.new_zeros(len(y), 3, 8, 8).long() + 5, n.b(y)), b=conv(12, 12)
    ),
    "scattered to the first": behind(lambda n, y: y.scatter(2, y.new_zeros(len(y), 7, 1, 8).long(), 1.0)),
    "nothing picked": behind(
        lambda n, y: joined(y, n.b(y[y.sum((1, 2, 3)) > 1e9]).sum(0, keepdim=True).expand(len(y), -1, -1, -1)),
        b=conv(12, 5),
    ),
    "noise": behind(lambda n, y: y * torch.randn(y.shape).sigmoid().clamp(1, 1)),
    "divisible": behind(lambda n, y: y * 2 if y.shape[1] % 4 == 0 else y),
    "divisible heads": behind(
        lambda n, y: y.reshape(len(y), y.shape[1] // 4, 4, 64).flip(2) if y.shape[1] % 4 == 0 else y
    ),
    "remainder": behind(lambda n, y: y * (y.shape[1] % 5)),
    "heads": behind(lambda n, y: y.reshape(y.shape[0], n.heads, 4, 64).flip(2), heads=3),
    "heads of two widths": behind(
        lambda n, y: joined(y.reshape(y.shape[0], n.heads, 4, 64), n.b(y).reshape(y.shape[0], n.heads, 2, 64)),
        heads=3, b=conv(12, 6),
    ),
    "heads that are counted": behind(lambda n, y: y.reshape(y.shape[0], n.heads, 4, 64) * (n.heads + 1), heads=3),
    "width over heads": behind(
        lambda n, y: joined(y.reshape(y.shape[0], n.heads, 4, 64), n.b(y) * (n.b(y).shape[1] // n.heads)),
        heads=3, b=conv(12, 6),
    ),
    "width modulo heads": behind(
        lambda n, y: joined(y.reshape(y.shape[0], n.heads, 4, 64), n.b(y) * (n.b(y).shape[1] % n.heads + 1)),
        heads=3, b=conv(12, 6),
    ),
    # Opaque code
    "unknown": behind(lambda n, y: torch.special.erfcx(y)),
    "vectorised": behind(lambda n, y: torch.vmap(lambda z: z * 2)(y)),
    "traced by jit": lambda: behind(lambda n, y: n.script(y), script=jitted())(),
}  # fmt: skip
