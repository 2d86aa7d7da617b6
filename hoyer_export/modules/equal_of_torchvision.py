"""The stand-ins of torchvision's Swin transformers (``modules/equal.py``): imported only where a network holds one.

Attention within windows, softmax(q kᵀ / √D + bias + mask) v, or with the cosine of q and k on a learnt scale (V2).
torchvision takes the width of a head, D, from that of the input; here it stays what it is.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


class WindowAttention(ShiftedWindowAttention):
    """``ShiftedWindowAttention`` with any number of heads."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, H, W, C] of [N, H, W, C]."""
        return _attend(self, x, self.qkv.bias, None)


class WindowAttentionV2(ShiftedWindowAttentionV2):
    """``ShiftedWindowAttentionV2`` with any number of heads."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, H, W, C] of [N, H, W, C]."""
        bias = self.qkv.bias
        if bias is not None:
            q, k, v = bias.chunk(3)
            bias = torch.cat([q, torch.zeros_like(k), v])
        return _attend(self, x, bias, self.logit_scale)


STAND_INS: dict[type[nn.Module], type[nn.Module]] = {
    ShiftedWindowAttention: WindowAttention,
    ShiftedWindowAttentionV2: WindowAttentionV2,
}


def _attend(module: ShiftedWindowAttention, x: Tensor, qkv_bias: Tensor | None, logit_scale: Tensor | None) -> Tensor:
    _, height, width, channels = x.shape
    window, heads = list(module.window_size), module.num_heads
    x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    batch, rows, columns, _ = x.shape
    shift = [0 if window[0] >= rows else module.shift_size[0], 0 if window[1] >= columns else module.shift_size[1]]
    if sum(shift) > 0:
        x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
    grid = (batch, rows // window[0], columns // window[1])
    x = x.view(*grid[:2], window[0], grid[2], window[1], channels).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(math.prod(grid), window[0] * window[1], channels)
    q, k, v = F.linear(x, module.qkv.weight, qkv_bias).chunk(3, -1)
    q, k, v = (torch.unflatten(y, -1, (heads, module.head_dim)).transpose(1, 2) for y in (q, k, v))  # [N, H, L, D]
    if logit_scale is None:
        scores = (q * module.head_dim**-0.5) @ k.transpose(-2, -1)
    else:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(logit_scale, max=math.log(100.0)).exp()
    scores = scores + module.get_relative_position_bias()
    if sum(shift) > 0:
        mask = _mask(x, (rows, columns), window, shift)
        scores = (torch.unflatten(scores, 0, (batch, len(mask))) + mask.unsqueeze(1)).flatten(0, 1)
    weights = F.dropout(F.softmax(scores, dim=-1), module.attention_dropout, module.training)
    x = F.linear((weights @ v).transpose(1, 2).flatten(2), module.proj.weight, module.proj.bias)
    x = F.dropout(x, module.dropout, module.training)
    x = x.view(*grid, *window, channels).permute(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, channels)
    if sum(shift) > 0:
        x = torch.roll(x, shifts=(shift[0], shift[1]), dims=(1, 2))
    return x[:, :height, :width, :].contiguous()


def _mask(x: Tensor, size: tuple[int, int], window: list[int], shift: list[int]) -> Tensor:
    """Return [windows, L, L]: what keeps positions apart that were no neighbours before the shift."""
    regions = x.new_zeros(size)
    slices = [((0, -w), (-w, -s), (-s, None)) for w, s in zip(window, shift, strict=True)]
    for number, (h, w) in enumerate((h, w) for h in slices[0] for w in slices[1]):
        regions[h[0] : h[1], w[0] : w[1]] = number
    regions = regions.view(size[0] // window[0], window[0], size[1] // window[1], window[1])
    regions = regions.permute(0, 2, 1, 3).reshape(-1, window[0] * window[1])
    apart = regions.unsqueeze(1) - regions.unsqueeze(2)
    return apart.masked_fill(apart != 0, -100.0).masked_fill(apart == 0, 0.0)
