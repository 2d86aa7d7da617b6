"""torch-pruning on the networks of docs/zoo.md: its own random pruner, judged as our cut is.

Every parameter of a copy is filled with the numbers of its entries, and the copy is pruned. What the pruned copy holds
is then exactly which entries survived: the others are zeroed in the dense network, the survivors' values are put into
the pruned one, and both must agree in float64.
"""

import copy
import random

import torch
import torch_pruning
from torch import Tensor, nn


def prune_at_random(model: nn.Module, images: Tensor, outputs: set[str], seed: int) -> float:
    """Return the largest relative difference between the zeroed and the pruned network, in float64.

    Args:
        model: the dense network, in eval mode.
        images: what it is called with.
        outputs: modules whose outputs are the model's; they keep their width, as its README advises.
        seed: of the share that is drawn for each layer, and of the channels.
    """
    dense = copy.deepcopy(model).double().eval()
    pruned, images = copy.deepcopy(dense), images.double()
    random.seed(seed)
    torch.manual_seed(seed)
    layers = [m for m in pruned.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
    pruner = torch_pruning.pruner.BasePruner(
        pruned,
        images,
        importance=torch_pruning.importance.RandomImportance(),
        pruning_ratio_dict={layer: random.random() * 0.9 for layer in layers},
        ignored_layers=[pruned.get_submodule(name) for name in outputs],
    )
    values, numbered = _tensors(dense), _tensors(pruned)
    with torch.no_grad():
        for tensor in numbered.values():
            tensor.copy_(torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape))
    pruner.step()
    with torch.no_grad():
        for name, survivors in _tensors(pruned).items():
            value, kept = values[name], survivors.flatten().long()
            survivors.copy_(value.flatten()[kept].view(survivors.shape))
            gone = torch.ones(value.numel(), dtype=torch.bool)
            gone[kept] = False
            if not name.endswith("running_var"):
                value.masked_fill_(gone.view(value.shape), 0)
        expected, found = dense(images), pruned(images)
    if sum(p.numel() for p in pruned.parameters()) == sum(p.numel() for p in dense.parameters()):
        raise ValueError("nothing was pruned")
    return float((expected - found).abs().max() / expected.abs().max())


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if tensor.is_floating_point()}
