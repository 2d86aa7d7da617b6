"""Why onnxruntime leaves a convolution in the plain layout, and with which widths it would not.

Source: onnxruntime, core/optimizer/nchwc_transformer.cc, ``TransformConv``; what each version does of it is tested.
"""

from collections.abc import Sequence

import onnx

_QUAD = 4
"""Channels that the reordering moves at once: whole ones alone are blocked, but for an image's own few."""


def why_plain(node: onnx.NodeProto, weight: Sequence[int] | None, block: int | None) -> str:
    """Return why a convolution is not blocked, and what would be; a line without its full stop.

    Args:
        node: a ``Conv``.
        weight: sizes of its weight [O, I / groups, *kernel]; None where that is no constant of the file.
        block: channels a block on this machine; None where it has no such layout.
    """
    if block is None:
        return "this processor has no blocked layout"
    if weight is None:
        return "its weight is computed, and only constants are laid out ahead"
    if len(weight) != 4:
        return f"it is {len(weight) - 2}-dimensional, and only images are blocked"
    groups = next((it.i for it in node.attribute if it.name == "group"), 1)
    filters, depth = weight[0], weight[1]
    if groups == 1:
        if depth >= block and depth % _QUAD:
            return (
                f"{depth} input channels, neither fewer than {block} nor a multiple of {_QUAD}; {_near(depth)} would be"
            )
    elif depth == 1 and filters == groups:
        if filters % _QUAD:
            return f"depthwise on {filters} channels, no multiple of {_QUAD}; {_near(filters)} would be"
    elif depth == 1:
        return f"depthwise with {filters // groups} filters a channel; one would be"
    elif depth % block or (filters // groups) % block:
        sizes = f"{depth} → {filters // groups} channels a group"
        return (
            f"{sizes}, not whole blocks of {block}; {_near(depth, block)} → {_near(filters // groups, block)} would be"
        )
    return "its widths would be blocked: a type other than float32, or what stands around it, is not"


def padding(node: onnx.NodeProto, weight: Sequence[int], block: int) -> float:
    """Return what share of what a blocked convolution multiplies is not asked for: its channels fill whole blocks.

    Args:
        node: a ``Conv``.
        weight: sizes of its weight [O, I / groups, *kernel].
        block: channels a block.
    """
    filters, depth = weight[0], weight[1]
    if depth < block:  # an image's own channels are read as they are, and so are those of a depthwise one
        depth = block
    return 1 - (filters / _whole(filters, block)) * (depth / _whole(depth, block))


def _whole(channels: int, block: int) -> int:
    return -(-channels // block) * block


def _near(channels: int, step: int = _QUAD) -> str:
    below = channels // step * step
    return f"{below} or {below + step}" if below and channels % step else str(below or step)
