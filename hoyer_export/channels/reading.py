"""What convolutions and linear layers read while a network runs, by the names of their weights, whoever calls them."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hoyer_export.tensors import named_tensors

Key = tuple[str, int]
"""The name of a weight, and which call of it in a run this is."""
Called = Callable[[Any, Any, Mapping[str, Any], Any], None]
"""Is told a torch function, its arguments by place and by name, and what it returned."""

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_SIGNATURES: dict[Callable[..., Any], tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _CONVOLUTION),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _TRANSPOSED),
}


@dataclass(frozen=True)
class LayerCall:
    """A convolution or linear layer at work."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    output_padding: Any = 0
    transposed: bool = False

    @staticmethod
    def of(func: Any, args: Any, kwargs: Mapping[str, Any]) -> "LayerCall | None":
        """Return the call that a torch function is, or None."""
        if func not in _SIGNATURES:
            return None
        call = LayerCall(**dict(zip(_SIGNATURES[func], args, strict=False)), **kwargs)
        return replace(call, transposed=_SIGNATURES[func] is _TRANSPOSED) if call.weight.ndim > 1 else None

    @property
    def reading_dim(self) -> int:
        """The dimension of the weight that reads the input's channels."""
        return 0 if self.transposed else 1

    def spread(self, x: Tensor) -> Tensor:
        """Return an input or output of the call as [N, C, *S], as if it were a convolution's."""
        if self.weight.ndim == 2:
            return (x[None, None] if x.ndim == 1 else x.unsqueeze(1).flatten(1, -2)).movedim(-1, 1)
        return x if x.ndim == self.weight.ndim else x[None]


class Watch(TorchFunctionMode):
    """Hands on every call of a layer whose weight has a name, before and after it runs, and every other call after it.

    Args:
        network: the model that will run; enter once a run, for calls are counted from there.
        before: (key, call).
        after: (key, call, its output).
        other: (function, args, kwargs, its output).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        before: Callable[[Key, LayerCall], None] | None = None,
        after: Callable[[Key, LayerCall, Tensor], None] | None = None,
        other: Called | None = None,
    ) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in named_tensors(network).items()}
        self._before, self._after, self._other = before, after, other
        self._count: Counter[str] = Counter()

    def __enter__(self) -> Any:
        """Begin a run."""
        self._count.clear()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = LayerCall.of(func, args, kwargs)
        name = None if call is None else self.names.get(id(call.weight))
        if call is None or name is None:
            output = func(*args, **kwargs)
            if self._other is not None:
                self._other(func, args, kwargs, output)
            return output
        key = (name, self._count[name])
        self._count[name] += 1
        if self._before is not None:
            self._before(key, call)
        output = func(*args, **kwargs)
        if self._after is not None:
            self._after(key, call, output)
        return output
