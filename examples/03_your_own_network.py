"""A network that nobody here has seen: prove it first, teach the tracer an operation, cut, and train on.

    python examples/03_your_own_network.py

Runs in seconds on a CPU. The network is a small U with attention at its bottom; its weights are random, so that what
is printed says how the cut works and nothing about accuracy.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hoyer_export as hx


class SmallU(nn.Module):
    """Down, attention between pixels, up, and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.down2, self.norm2 = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32)
        self.qkv, self.project, self.heads = nn.Linear(32, 3 * 64), nn.Linear(64, 32), 4
        self.up, self.fuse = nn.ConvTranspose2d(32, 16, 2, stride=2), nn.Conv2d(32, 24, 3, padding=1)
        self.hidden = nn.Linear(24, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.norm1(self.down1(x)))
        x = torch.sinc(self.norm2(self.down2(skip)))  # an activation that the tracer does not know
        pixels = x.flatten(2).mT
        batch, length, _ = pixels.shape
        q, k, v = self.qkv(pixels).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = (pixels + self.project(mixed)).mT.unflatten(2, x.shape[2:])
        x = F.relu(self.fuse(torch.cat([self.up(x), skip], 1))).mean((2, 3))
        hidden = self.hidden(x)
        return self.head(hidden * len(range(self.hidden.out_features)) ** -0.5)  # a width that no tracer can see


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, classes: Tensor) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), classes)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def main() -> None:
    torch.manual_seed(0)
    model, images, classes = SmallU(), torch.randn(8, 3, 16, 16), torch.randint(5, (8,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        step(model, optimizer, images, classes)

    def show(found: hx.SelfTest) -> None:
        for verdict in found.verdicts:
            reason = f": {verdict.reason}" if verdict.reason else ""
            print(f"  {verdict.verdict:<10} {verdict.group:<8} {verdict.channels:>3} channels{reason}")

    print("as it is:")
    show(hx.self_test(model, images))
    print("with a rule for torch.sinc, position by position:")
    found = hx.self_test(model, images, rules={torch.sinc: hx.rules.elementwise})
    show(found)

    chosen = hx.select_channels(found.channels, model, macs=0.5, align=4)
    hx.zero_(model, found.channels, chosen.keep)
    slim = hx.cut(model, found.channels, chosen.keep, images)
    print(f"cut to {chosen.macs / chosen.dense_macs:.0%} of the MACs, error {slim.max_rel_error:.1e} in float64")
    print(f"heads: {model.heads} -> {slim.model.heads}, normalisation groups: 4 -> {slim.model.norm1.num_groups}")

    further = hx.slice_optimizer(optimizer, model, slim)
    zeroed_loss, slim_loss = (step(*pair, images, classes) for pair in ((model, optimizer), (slim.model, further)))
    print(f"the next step: loss {zeroed_loss:.6f} zeroed, {slim_loss:.6f} slim")


if __name__ == "__main__":
    main()
