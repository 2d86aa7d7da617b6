"""One tiny network a wiring case: what each is made of decides which channels must live or die together."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    """Layers by name, and a forward function that wires them."""

    def __init__(self, wiring: Callable[["Net", Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


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


WIRINGS = [
    chain, flattened, residual, depthwise, grouped, concatenated, halves, shuffled, squeeze_excite, transposed, scaled,
    unaffine, tied, in_place, maxout, bounded, transposed_weight,
]  # fmt: skip


def unsettled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic a value that no removal could hide behind (zeros, ones), in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or not bool(parameter.any()):
                parameter.add_(0.2 + 0.5 * torch.rand(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.5 * torch.rand(buffer.shape, generator=generator))
    return model.eval()
