"""Attention: a softmax over positions between two products of activations."""

from typing import Any

from torch import Tensor

from hoyer_export.channels.labels import TensorLabels, Tracer
from hoyer_export.channels.rule import rule
from hoyer_export.channels.rules.contraction import fix_unless_silent
from hoyer_export.channels.rules.pointwise import first_of, unite_operands
from hoyer_export.channels.rules.products import count
from hoyer_export.tensors import tensors_in


@rule("scaled_dot_product_attention", counts=True)
def attention(
    tracer: Tracer,
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    """softmax(q kᵀ · scale) v: heads go whole; the width of q and k stays, where the scale is made from it."""
    tensors = [query, key, value]
    masks = [] if attn_mask is None else [attn_mask]
    if enable_gqa:
        for tensor in tensors:
            tracer.fix(tensor, "attention whose heads share keys")
    q, k = tracer.axis(query, -1), tracer.axis(key, -1)
    if query.ndim - 1 in tracer.axes(query) or key.ndim - 1 in tracer.axes(key):
        tracer.unite(q, k)
        if scale is None:
            tracer.fix(q, "the attention's scale is made from the width of its heads")
        fix_unless_silent(tracer, q, k)
        tracer.sums(q)
    for tensor, dims in ((key, [-2]), (value, [-2]), *((mask, [-1, -2]) for mask in masks)):
        tracer.axes(tensor)
        tracer.fix(tensor, "softmax over the channels", dims)
    axes: TensorLabels = {}
    for axis in range(output.ndim - 2):
        if sides := unite_operands(tracer, tensors + masks, output, axis):
            axes[axis] = first_of(sides).resting(0.0 if 2 in sides and sides[2].zero else None)
    if query.ndim - 2 in tracer.axes(query):
        axes[output.ndim - 2] = tracer.axis(query, -2).resting(None)
    scores = output.numel() // output.shape[-1] * key.shape[-2]
    count(tracer, "attention", output, [query, key], [q], axes, positions=scores)
    if value.ndim - 1 in tracer.axes(value):
        axes[output.ndim - 1] = tracer.axis(value, -1).mixed()
    count(tracer, "attention", output, [value], [key.shape[-2]], axes)
    tracer.put(output, axes)


@rule("multi_head_attention_forward", counts=True)
def multi_head_attention(tracer: Tracer, output: Any, query: Tensor, *arguments: Any, **options: Any) -> None:
    """``nn.MultiheadAttention``: its sizes are checked against each other in too many places to cut any of them."""
    for tensor in (query, *tensors_in((arguments, options))):
        tracer.fix(tensor, "nn.MultiheadAttention")
    key, embed = arguments[0], arguments[2]
    out_weight = next(x for x in tensors_in((arguments[5:], options)) if x.shape == (query.shape[-1], embed))
    length, source = query.shape[0], key.shape[0]  # [L, N, E], whatever batch_first says
    for rows in (length, source, source):
        tracer.contraction("attention", rows * embed, query, query.shape[-1])
    tracer.contraction("attention", 2 * length * source, query, embed)
    tracer.contraction("attention", length * embed, out_weight, embed)
