"""Modules whose code insists on their dense widths, and the equal ones that take their place in a network that is cut.

``nn.MultiheadAttention`` checks that its heads make up the width of its input, torchvision's Swin takes it for granted.
A stand-in has the same tensors and attributes under the same names and computes the same, but its code follows them: it
is what is traced, and what a module becomes of which something is cut. Only these very classes have one: what is
derived from them may do anything.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with any number of heads, between any widths: softmax(q kᵀ / √D) v of every head."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what ``nn.MultiheadAttention`` does; a mean of the weights is over the heads that there are."""
        if query.is_nested:
            return self._of_nested(query), None
        along = query.ndim - 2 if self.batch_first else 0  # the axis of positions
        q, k, v = (self._heads(x.movedim(along, -2)) for x in self._projected(query, key, value))
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([x, self._heads(one).expand(len(x), -1, -1, -1)], 2)
                for x, one in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        is_causal = is_causal and key_padding_mask is None and not need_weights  # then torch reads no mask either
        mask = None if is_causal else self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            x = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            x = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        x = F.linear(x.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if query.ndim == 2:
            return x.squeeze(0), None if weights is None else weights.squeeze(0)
        return x.movedim(-2, along), weights

    def _of_nested(self, rows: Tensor) -> Tensor:
        """Return the self-attention of rows of different lengths, as ``nn.TransformerEncoder`` makes of padded ones."""
        x, lengths = rows.to_padded_tensor(0.0), [len(row) for row in rows.unbind()]
        padding = torch.arange(x.shape[1], device=x.device) >= torch.tensor(lengths, device=x.device)[:, None]
        attended, _ = self(x, x, x, padding, need_weights=False)
        return torch.nested.as_nested_tensor([row[:length] for row, length in zip(attended, lengths, strict=True)])

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return q, k and v, all heads side by side."""
        if self.in_proj_weight is not None and query is key is value:
            return list(F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1))
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip((query, key, value), self.matrices(), biases, strict=True)]

    def matrices(self) -> tuple[Tensor, ...]:
        """Return the weights that make q, k and v, [H · D, width of query, key or value]."""
        if self.in_proj_weight is not None:
            return self.in_proj_weight.chunk(3)
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def _heads(self, x: Tensor) -> Tensor:
        """Return [N, H, L, D] of [N, L, H · D] or [L, H · D]."""
        batched = x if x.ndim == 3 else x[None]
        return torch.unflatten(batched, -1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(self, mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Return what is added to the scores [N, H, L, S]."""
        if mask is not None and mask.ndim == 3:
            mask = torch.unflatten(mask, 0, (-1, self.num_heads))
        if padding is not None:
            padding = padding.reshape(-1, 1, 1, padding.shape[-1])
        more = (self.bias_k is not None) + self.add_zero_attn
        added = [
            F.pad(
                torch.zeros_like(x, dtype=q.dtype).masked_fill(x, -torch.inf) if x.dtype == torch.bool else x, (0, more)
            )
            for x in (mask, padding)
            if x is not None
        ]
        return sum(added[1:], added[0]) if added else None


def _stand_in_for(module: nn.Module) -> type[nn.Module] | None:
    kind = type(module)
    if kind.__module__ == "torchvision.models.swin_transformer":
        from hoyer_export.modules import equal_of_torchvision  # torchvision takes a second to import

        return equal_of_torchvision.STAND_INS.get(kind)
    return Attention if kind is nn.MultiheadAttention else None


def stand_in_(model: nn.Module, is_needed: Callable[[str, nn.Module], bool] = lambda name, module: True) -> None:
    """Let modules of ``model`` become their stand-ins, in place.

    Args:
        model: the network.
        is_needed: whether that of a module, by name, has to.
    """
    for name, module in model.named_modules():
        if (kind := _stand_in_for(module)) and is_needed(name, module):
            module.__class__ = kind
            if isinstance(module, Attention):
                vars(module)["_qkv_same_embed_dim"] = False  # keeps torch's fused layers, which know one width, away
            else:
                vars(module)["head_dim"] = module.qkv.out_features // 3 // module.num_heads  # dense as yet
