"""Networks in a wrapping that hides their modules or their weights: refused before tracing, with the way out."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune
from torch.nn.utils.weight_norm import WeightNorm

from hoyer_export.errors import NetworkError

# By the names of the classes: importing them takes seconds (torch.compile), or needs torch.distributed.
_WRAPPERS = {
    "OptimizedModule": "compiled: pass what torch.compile was given (model._orig_mod), and compile the slim model",
    "DataParallel": "wrapped in DataParallel: pass its .module, and wrap the slim model",
    "DistributedDataParallel": "wrapped in DistributedDataParallel: pass its .module, and wrap the slim model",
    "FullyShardedDataParallel": "sharded by FSDP: cut the network first, and shard the slim model",
    "FSDPModule": "sharded by FSDP: cut the network first, and shard the slim model",
}
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def check_wrappers(model: nn.Module) -> None:
    """Refuse a network whose modules or weights cannot be seen, copied or compared in float64.

    Refused are modules wrapped by ``torch.compile``, DataParallel, DistributedDataParallel or FSDP, quantised modules,
    lazy parameters that have no shape yet, masks of ``torch.nn.utils.prune``, and the old
    ``torch.nn.utils.weight_norm``. ``model.compile()``, which compiles in place, is allowed: copies are not compiled.

    Args:
        model: the network that is to be traced.

    Raises:
        NetworkError: what it is, where, and what to do.
    """
    for name, module in model.named_modules():
        for found in _reasons(module):
            raise NetworkError(f"{name or 'the network'} {found}")


def _reasons(module: nn.Module) -> Iterator[str]:
    for base in type(module).__mro__:
        if base.__name__ in _WRAPPERS and base.__module__.startswith("torch."):
            yield f"is {_WRAPPERS[base.__name__]}"
    if type(module).__module__.startswith(_QUANTISED):
        yield "is quantised, and a cut is proved in float64: cut the network first, and quantise the slim model"
    tensors: list[tuple[str, Tensor]] = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, tensor in tensors:
        if is_lazy(tensor):
            yield f"has no shape for its {name} yet: call the network once on an example first"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield f"has weight_norm on its {hook.name}: call torch.nn.utils.remove_weight_norm on the module first"
        if isinstance(hook, prune.BasePruningMethod):
            tensor_name = hook._tensor_name
            yield f"has a pruning mask on its {tensor_name}: call prune.remove(module, {tensor_name!r}) first"
