"""Networks in a wrapping that hides their modules or their weights: refused before tracing, with the way out."""

from collections.abc import Iterator

import torch
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
_PREPARED = ("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.ao.quantization.", "torchao.quantization.qat")


def check_wrappers(model: nn.Module) -> None:
    """Refuse a network whose modules or weights cannot be seen, copied or compared in float64.

    Refused are modules wrapped by ``torch.compile``, DataParallel, DistributedDataParallel or FSDP, networks that are
    scripted or exported, modules that are quantised or prepared for it, lazy parameters that have no shape yet, masks
    of ``torch.nn.utils.prune``, and the old
    ``torch.nn.utils.weight_norm``. ``model.compile()``, which compiles in place, is allowed: copies are not compiled.

    Args:
        model: the network that is to be traced.

    Raises:
        NetworkError: what it is, where, and what to do.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise NetworkError("the network is scripted: pass the nn.Module that it was made of, and script the slim model")
    # What ``ExportedProgram.module()`` returns has an ``eval`` of its own, which raises.
    if isinstance(model, torch.export.ExportedProgram) or (
        isinstance(model, torch.fx.GraphModule) and "eval" in vars(model)
    ):
        raise NetworkError("the network went through torch.export: pass what went in, and export the slim model")
    if not isinstance(model, nn.Module):
        raise NetworkError(f"expected a network that is an nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        for found in _reasons(module):
            raise NetworkError(f"{name or 'the network'} {found}")


def _reasons(module: nn.Module) -> Iterator[str]:
    for base in type(module).__mro__:
        if base.__name__ in _WRAPPERS and base.__module__.startswith("torch."):
            yield f"is {_WRAPPERS[base.__name__]}"
    if type(module).__module__.startswith(_QUANTISED):
        yield "is quantised, and a cut is proved in float64: cut the network first, and quantise the slim model"
    if type(module).__module__.startswith(_PREPARED):
        yield "is prepared for quantisation: cut the network first, and prepare the slim model"
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
