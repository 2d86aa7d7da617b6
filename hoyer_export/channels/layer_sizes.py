"""The sizes that torch's own layers state of their weights: they are followed while tracing, and mended by the cut."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from hoyer_export.modules.equal import Attention

# Layer → attribute → the tensor whose dimension it is the length of, or the first of them that there is.
_SIZES: tuple[tuple[type[nn.Module], dict[str, tuple[tuple[str, ...], int]]], ...] = (
    (nn.Linear, {"out_features": (("weight",), 0), "in_features": (("weight",), 1)}),
    (
        nn.Bilinear,
        {"out_features": (("weight",), 0), "in1_features": (("weight",), 1), "in2_features": (("weight",), 2)},
    ),
    (nn.Embedding, {"num_embeddings": (("weight",), 0), "embedding_dim": (("weight",), 1)}),
    (nn.modules.batchnorm._NormBase, {"num_features": (("weight", "running_mean"), 0)}),
    (nn.GroupNorm, {"num_channels": (("weight",), 0)}),
    (nn.PReLU, {"num_parameters": (("weight",), 0)}),
    (nn.RNNBase, {"input_size": (("weight_ih_l0",), 1)}),
    (nn.RNNCellBase, {"input_size": (("weight_ih",), 1)}),
    (
        Attention,
        {
            "embed_dim": (("in_proj_weight", "q_proj_weight"), 1),
            "kdim": (("in_proj_weight", "k_proj_weight"), 1),
            "vdim": (("in_proj_weight", "v_proj_weight"), 1),
        },
    ),
)


class LayerSize(NamedTuple):
    """A size: length of dimension ``dim`` of ``tensor``, times ``times``, over ``over``."""

    tensor: Tensor
    dim: int
    times: int = 1
    over: int = 1

    def __int__(self) -> int:
        return self.tensor.shape[self.dim] * self.times // self.over


def layer_sizes(module: nn.Module) -> Iterator[tuple[str, LayerSize]]:
    """Yield the attributes of a layer of torch's (or of a class that is one) that are sizes of what it holds."""
    if isinstance(module, nn.modules.conv._ConvNd) and (weight := held_by(module, "weight")) is not None:
        groups, (first, second) = int.__index__(module.groups), weight.shape[:2]
        own = LayerSize(weight, 0)
        if module.transposed:
            yield "in_channels", own
            yield "out_channels", LayerSize(weight, 0, second) if first == groups else LayerSize(weight, 1, groups)
        else:
            yield "out_channels", own
            is_depthwise = groups > 1 and second == 1
            yield (
                "in_channels",
                LayerSize(weight, 0, 1, first // groups) if is_depthwise else LayerSize(weight, 1, groups),
            )
    for kind, sizes in _SIZES:
        for attribute, (names, dim) in sizes.items() if isinstance(module, kind) else ():
            tensor = next((it for name in names if (it := held_by(module, name)) is not None), None)
            if tensor is not None:
                yield attribute, LayerSize(tensor, dim)


def held_by(module: nn.Module, name: str) -> Tensor | None:
    """Return a module's parameter or buffer, or under a parametrization the largest that it is computed from."""
    lists = module._modules.get("parametrizations")
    if lists is not None and (originals := lists._modules.get(name)) is not None:
        return max(
            originals._parameters.values(), key=lambda tensor: 0 if tensor is None else tensor.numel(), default=None
        )
    for found in (module._parameters, module._buffers):
        for key in (name, f"{name}_orig"):
            if (tensor := found.get(key)) is not None:
                return tensor
    return None
