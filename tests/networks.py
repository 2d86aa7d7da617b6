"""One tiny network a wiring case: what each is made of decides which channels must live or die together."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.surgery.perturb import perturb_


class Net(nn.Module):
    """Layers by name, and a forward function that wires them."""

    def __init__(self, wiring: Callable[["Net", Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


def hidden_width(layer: nn.Module) -> int:
    """Return how many outputs a layer has, in a way that tracing cannot see: Python makes a plain int of it."""
    width = next(getattr(layer, name) for name in ("out_channels", "num_features") if hasattr(layer, name))
    return len(range(width))


def conv(i: int, o: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=1, **options)


def chain() -> Net:
    return Net(
        lambda n, x: n.fc(F.relu(n.b(F.relu(n.bn(n.a(x))))).mean((2, 3))),
        a=conv(3, 12), bn=nn.BatchNorm2d(12), b=conv(12, 8), fc=nn.Linear(8, 5),
    )  # fmt: skip


def flattened() -> Net:
    return Net(
        lambda n, x: n.fc(torch.flatten(F.max_pool2d(F.relu(n.a(x)), 4), 1)),
        a=conv(3, 6), fc=nn.Linear(6 * 16, 5),
    )  # fmt: skip


def residual() -> Net:
    return Net(
        lambda n, x: n.fc(F.relu(n.a(x) + n.c(F.relu(n.b(n.a(x))))).mean((2, 3))),
        a=conv(3, 8), b=conv(8, 10), c=conv(10, 8), fc=nn.Linear(8, 5),
    )  # fmt: skip


def depthwise() -> Net:
    return Net(
        lambda n, x: n.fc(n.c(F.relu6(n.b(n.a(x)))).mean((2, 3))),
        a=conv(3, 8), b=conv(8, 16, groups=8), c=conv(16, 6), fc=nn.Linear(6, 5),
    )  # fmt: skip


def grouped() -> Net:
    return Net(
        lambda n, x: n.fc(n.b(F.relu(n.a(x))).mean((2, 3))),
        a=conv(3, 12), b=conv(12, 9, groups=3), fc=nn.Linear(9, 5),
    )  # fmt: skip


def concatenated() -> Net:
    return Net(
        lambda n, x: n.fc(n.c(torch.cat([n.a(x), x, n.b(x)], 1)).mean((2, 3))),
        a=conv(3, 6), b=conv(3, 4), c=conv(13, 8), fc=nn.Linear(8, 5),
    )  # fmt: skip


def halves() -> Net:
    def gate(n: Net, x: Tensor) -> Tensor:
        left, right = n.a(x).chunk(2, dim=1)
        return n.fc((n.b(left) * torch.sigmoid(n.c(right))).mean((2, 3)))

    return Net(gate, a=conv(3, 12), b=conv(6, 7), c=conv(6, 7), fc=nn.Linear(7, 5))


def shuffled() -> Net:
    def shuffle(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        b, c, h, w = y.shape
        y = y.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)
        return n.fc(n.b(y).mean((2, 3)))

    return Net(shuffle, a=conv(3, 12), b=conv(12, 6), fc=nn.Linear(6, 5))


def squeeze_excite() -> Net:
    def gate(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        b, c, _, _ = y.size()
        weights = torch.sigmoid(n.up(F.relu(n.down(F.adaptive_avg_pool2d(y, 1).view(b, c))))).view(b, c, 1, 1)
        return n.fc((y * weights.expand_as(y)).mean((2, 3)))

    return Net(gate, a=conv(3, 12), down=nn.Linear(12, 4), up=nn.Linear(4, 12), fc=nn.Linear(12, 5))


def transposed() -> Net:
    return Net(
        lambda n, x: n.fc(n.c(F.leaky_relu(n.b(n.a(x)))).mean((2, 3))),
        a=conv(3, 8), b=nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), c=nn.ConvTranspose2d(6, 4, 2),
        fc=nn.Linear(4, 5),
    )  # fmt: skip


def scaled() -> Net:
    return Net(
        lambda n, x: n.fc((n.prelu(n.a(x)) * n.gamma).mean((2, 3))),
        a=conv(3, 8), prelu=nn.PReLU(8), gamma=nn.Parameter(torch.rand(8, 1, 1)), fc=nn.Linear(8, 5),
    )  # fmt: skip


def unaffine() -> Net:
    return Net(
        lambda n, x: n.fc(F.relu(n.norm(n.a(x))).mean((2, 3))),
        a=conv(3, 8), norm=nn.BatchNorm2d(8, affine=False), fc=nn.Linear(8, 5),
    )  # fmt: skip


def tied() -> Net:
    net = Net(lambda n, x: n.fc(F.relu(n.c(F.relu(n.b(n.a(x))))).mean((2, 3))),
              a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), fc=nn.Linear(8, 5))  # fmt: skip
    net.c.weight = net.b.weight
    return net


def in_place() -> Net:
    def add(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        y += n.b(x)
        return n.fc(F.relu(y, inplace=True).mean((2, 3)))

    return Net(add, a=conv(3, 8), b=conv(3, 8), fc=nn.Linear(8, 5))


def maxout() -> Net:
    return Net(
        lambda n, x: n.fc(torch.max(*n.a(x).chunk(2, 1)).mean((2, 3))), a=conv(3, 12), fc=nn.Linear(6, 5)
    )  # fmt: skip


def bounded() -> Net:
    return Net(
        lambda n, x: n.fc(torch.clamp(n.a(x), max=n.bound).mean((2, 3))),
        a=conv(3, 8), bound=nn.Parameter(torch.rand(1, 8, 1, 1)), fc=nn.Linear(8, 5),
    )  # fmt: skip


def transposed_weight() -> Net:
    return Net(
        lambda n, x: n.fc((n.a(x).mean((2, 3)) @ n.w.t() * n.gain).relu()),
        a=conv(3, 8), w=nn.Parameter(torch.randn(10, 8)), gain=nn.Parameter(torch.rand(10)), fc=nn.Linear(10, 5),
    )  # fmt: skip


def split_by_width() -> Net:
    def split(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        left, right = torch.split(y, y.shape[1] // 2, dim=1)
        return n.fc((n.b(left) * F.softplus(n.c(right))).mean((2, 3)))

    return Net(split, a=conv(3, 12), b=conv(6, 7), c=conv(6, 7), fc=nn.Linear(7, 5))


class Widths(nn.Module):
    """A network whose sizes are kept in its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.fc = conv(3, 12), conv(7, 9), conv(9, 6), nn.Linear(6, 5)
        self.first = 7
        self.parts = [2, 3, 4]

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x)[:, : self.first])
        one, two, three = torch.split(y, self.parts, dim=1)
        return self.fc(self.c(torch.cat([three, one.relu(), two], 1)).mean((2, 3)))


class Attention(nn.Module):
    """Self-attention between pixels with one fused projection, of whose heads some can go."""

    def __init__(self, fused: bool = True, rest: bool = False) -> None:
        super().__init__()
        self.rest = rest  # the width of a head is whatever is left for it
        self.a, self.qkv, self.project, self.fc = conv(3, 8), nn.Linear(8, 36), nn.Linear(12, 8), nn.Linear(8, 5)
        self.heads, self.width, self.fused = 3, 4, fused

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).flatten(2).mT  # [N, pixels, channels]
        batch, pixels, _ = y.shape
        qkv = self.qkv(y).reshape(batch, pixels, 3, self.heads, -1 if self.rest else self.width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        z = F.scaled_dot_product_attention(q, k, v) if self.fused else (q * self.width**-0.5 @ k.mT).softmax(-1) @ v
        z = self.project(z.transpose(1, 2).reshape(batch, pixels, self.heads * self.width))
        return self.fc((y + z).mean(1))


def explicit_attention() -> Attention:
    return Attention(fused=False)


def attention_of_the_rest() -> Attention:
    return Attention(rest=True)


class Halves(nn.Module):
    """A network that keeps twice the size that it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.fc = conv(3, 12), conv(6, 5), conv(6, 5), nn.Linear(5, 5)
        self.both = 12

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.a(x), self.both // 2, dim=1)
        return self.fc((self.b(left) * self.c(right)).mean((2, 3)))


def labelled_products() -> Net:
    def products(n: Net, x: Tensor) -> Tensor:
        q, k, v = n.q(x).flatten(2), n.k(x).flatten(2), n.v(x).flatten(2)
        scores = torch.einsum("bcp,bcq->bpq", q, k).tanh()
        return n.fc(n.c((v @ scores).unflatten(2, x.shape[2:])).mean((2, 3)))

    return Net(products, q=conv(3, 6), k=conv(3, 6), v=conv(3, 8), c=conv(8, 7), fc=nn.Linear(7, 5))


def normalised_in_groups() -> Net:
    return Net(
        lambda n, x: n.fc(n.b(F.relu(n.norm(n.a(x)))).mean((2, 3))),
        a=conv(3, 12), norm=nn.GroupNorm(4, 12), b=conv(12, 6), fc=nn.Linear(6, 5),
    )  # fmt: skip


def instance_normalised() -> Net:
    return Net(
        lambda n, x: n.fc(n.c(n.plain(n.b(F.relu(n.norm(n.a(x)))))).std((2, 3), True)),
        a=conv(3, 8), norm=nn.InstanceNorm2d(8, affine=True), b=conv(8, 9), plain=nn.GroupNorm(3, 9, affine=False),
        c=conv(9, 6), fc=nn.Linear(6, 5),
    )  # fmt: skip


def normalised_by_hand() -> Net:
    def by_hand(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        mean, variance = y.mean((2, 3), keepdim=True), y.var((2, 3), keepdim=True)
        y = (y - mean) / torch.sqrt(variance + 1e-5)
        return n.fc(F.normalize(n.b(y), dim=1).sum((2, 3)))

    return Net(by_hand, a=conv(3, 8), b=conv(8, 6, bias=False), fc=nn.Linear(6, 5))


def pixels_from_channels() -> Net:
    return Net(
        lambda n, x: n.fc(n.b(F.pixel_unshuffle(F.pixel_shuffle(n.a(x), 2), 2)).mean((2, 3))),
        a=conv(3, 12), b=conv(12, 6), fc=nn.Linear(6, 5),
    )  # fmt: skip


def strided_slices() -> Net:
    def strided(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        return n.fc(n.b(torch.cat([y[:, ::2], y[:, 1::2].flip(1)], 1)).mean((2, 3)))

    return Net(strided, a=conv(3, 12), b=conv(12, 6), fc=nn.Linear(6, 5))


def first_channels() -> Net:
    return Net(
        lambda n, x: n.fc(n.b(torch.cat([n.a(x)[:, :4], n.a(x)[:, 4:].roll(1, 1)], 1)).mean((2, 3))),
        a=conv(3, 12), b=conv(12, 6), fc=nn.Linear(6, 5),
    )  # fmt: skip


def stacked() -> Net:
    return Net(
        lambda n, x: n.fc(n.c(torch.stack([n.a(x), n.b(x)], 2).amax(2)).mean((2, 3))),
        a=conv(3, 8), b=conv(3, 8), c=conv(8, 6), fc=nn.Linear(6, 5),
    )  # fmt: skip


def assigned() -> Net:
    def assign(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        z = y.new_zeros(y.shape)
        z[:, :, ::2] = y[:, :, 1::2]
        z[..., 0] = n.b(x)[..., 0]
        return n.fc(n.c(z).mean((2, 3)))

    return Net(assign, a=conv(3, 8), b=conv(3, 8), c=conv(8, 6), fc=nn.Linear(6, 5))


def several_outputs() -> Net:
    def several(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        return {"class": n.fc(y.mean((2, 3))), "maps": (n.head(F.interpolate(y, scale_factor=2)), y.norm(dim=1))}  # type: ignore[return-value]

    return Net(several, a=conv(3, 8), head=conv(8, 2), fc=nn.Linear(8, 5))


def repeated() -> Net:
    return Net(
        lambda n, x: n.fc(n.b(torch.cat([n.a(x).repeat(1, 2, 1, 1), n.a(x).repeat_interleave(2, 1)], 1)).mean((2, 3))),
        a=conv(3, 5), b=conv(20, 6), fc=nn.Linear(6, 5),
    )  # fmt: skip


def filtered() -> Net:
    def filter(n: Net, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(n.a(x), norm="ortho") * torch.view_as_complex(n.weight)
        return n.fc(n.b(torch.fft.irfft2(spectrum, s=(16, 16), norm="ortho")).mean((2, 3)))

    weight = nn.Parameter(torch.randn(8, 16, 9, 2))
    return Net(filter, a=conv(3, 8), weight=weight, b=conv(8, 6), fc=nn.Linear(6, 5))


class Headed(nn.Module):
    """A second head that runs only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.fc, self.auxiliary = conv(3, 8), nn.BatchNorm2d(8), nn.Linear(8, 5), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.norm(self.a(x))
        return (self.fc(y.mean((2, 3))), self.auxiliary(y)) if self.training else self.fc(y.mean((2, 3)))


def patches() -> Net:
    def fold(n: Net, x: Tensor) -> Tensor:
        columns = F.unfold(n.a(x), 2, stride=2)  # [N, 4 · channels, patches]
        return n.fc(n.b(F.fold(n.mix(columns).sigmoid() * columns, (16, 16), 2, stride=2)).mean((2, 3)))

    return Net(fold, a=conv(3, 6), mix=nn.Conv1d(24, 24, 1), b=conv(6, 6), fc=nn.Linear(6, 5))


WIRINGS = [
    chain, flattened, residual, depthwise, grouped, concatenated, halves, shuffled, squeeze_excite, transposed,
    scaled, unaffine, tied, in_place, maxout, bounded, transposed_weight, split_by_width, Widths, Attention,
    explicit_attention, attention_of_the_rest, Halves, labelled_products, normalised_in_groups,
    instance_normalised, normalised_by_hand, pixels_from_channels, strided_slices, first_channels, stacked,
    assigned, several_outputs, repeated, filtered, Headed, patches,
]  # fmt: skip


def perturbed(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic a value that no removal could hide behind (zeros, ones), in eval mode."""
    perturb_(model, torch.Generator().manual_seed(seed))
    return model.eval()
