"""Turn a public CIFAR-10 ResNet with zero-padded shortcuts into a ``cifar_resnet`` with projection shortcuts.

    python scripts/convert_cifar_resnet.py resnet20-12fca82f.th --data DIR --out dense.safetensors

CHECKPOINT comes from https://github.com/akamaster/pytorch_resnet_cifar10 (Yerlan Idelbayev, BSD-2-Clause; trained on
images normalised with ImageNet's mean and deviation); DIR holds CIFAR-10 in either official layout.

Its shortcut (option A of He et al. 2015) takes every second pixel, and pads C/4 channels of zeros before and after.
That equals a 1×1 convolution of stride 2 whose filter C/4 + i selects channel i and whose other filters are zero,
followed by a batch norm that does nothing. A batch norm with running mean μ and variance σ² does nothing in
evaluation for *any* μ and σ², if γ = √(σ² + eps) and β = μ:

    (x − μ) / √(σ² + eps) · γ + β = x

With the μ and σ² of the shortcut over training images it does almost nothing in training mode either, where it
normalises with the mean and variance of the batch, which are close to them: the ResNet-20's loss on training batches,
cropped and flipped at random, is 0.020 with both kinds of shortcut. With μ = 0, σ² = 1 every channel would there be
rescaled (loss 0.11), and fine-tuning would start from a damaged network.

A padded channel is 0 on every image, so μ = σ² = 0, γ = √eps, β = 0: the same formula. Its output is 0 · 1 + 0 = 0
exactly in both modes, and γ/√(0 + eps) = 1, so that gradients reach its filter unscaled. (γ = 1 would multiply them by
1/√eps = 316: measured, one SGD step of 0.05 then took the loss from 0.026 to 0.92, and to 0.043 with γ = √eps. γ = 0
would keep the padded filters at zero for ever.)
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.data import Split, load_data
from hoyer_export.errors import FileError, HoyerExportError, NetworkError
from hoyer_export.networks import BasicBlock, build_network
from hoyer_export.run_folder import whole_file
from hoyer_export.weights import assign_weights, find_weights

# What the checkpoints were trained with (trainer.py of that repository).
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# 10,112 images: μ of a shortcut channel (64 pixels an image or more) is then known to about σ / 800.
STATISTICS_BATCHES = 79
REPORT_BATCHES = 20
BATCH_SIZE = 128


def network_name(weights: Mapping[str, Tensor]) -> str:
    """Return the name of our network with as many blocks a stage."""
    blocks = len({name.split(".")[1] for name in weights if name.startswith("layer1.")})
    return f"cifar_resnet{6 * blocks + 2}"


def convert(weights: Mapping[str, Tensor], batches: Iterable[Tensor], *, source: str) -> nn.Module:
    """Build the network with projection shortcuts that computes what the zero-padded network computes.

    Args:
        weights: state dict of the zero-padded network, of any floating dtype.
        batches: normalised training images [N, 3, H, W] of the same dtype, for the statistics of the shortcuts.
        source: where the weights come from, for the error.

    Returns:
        The network in evaluation mode, in the dtype of the weights.

    Raises:
        NetworkError: the weights are those of another network.
    """
    if any(".shortcut." in name for name in weights):
        raise NetworkError(f"{source} has projection shortcuts already; use it as it is")
    model = build_network(network_name(weights)).eval()
    dtype = next((tensor.dtype for tensor in weights.values() if tensor.is_floating_point()), torch.float32)
    model.to(dtype)  # before the weights are copied, or they are rounded
    own = {name: tensor for name, tensor in model.state_dict().items() if ".shortcut." in name}
    assign_weights(model, {**weights, **own}, source=source)

    shortcuts = [m.shortcut for m in model.modules() if isinstance(m, BasicBlock) and len(m.shortcut) > 0]
    convolutions = [m for shortcut in shortcuts for m in shortcut if isinstance(m, nn.Conv2d)]
    norms = [m for shortcut in shortcuts for m in shortcut if isinstance(m, nn.BatchNorm2d)]
    for convolution, norm in zip(convolutions, norms, strict=True):
        select_padded_(convolution)
        pass_through_(norm, mean=torch.zeros(norm.num_features), variance=torch.ones(norm.num_features))
    for norm, (mean, variance) in zip(norms, channel_statistics(model, convolutions, batches), strict=True):
        pass_through_(norm, mean=mean, variance=variance)
    return model


@torch.no_grad()
def select_padded_(convolution: nn.Conv2d) -> None:
    """Make a 1×1 convolution copy its input channels into the middle of its output channels; the rest is 0."""
    padding = (convolution.out_channels - convolution.in_channels) // 2
    convolution.weight.zero_()
    for channel in range(convolution.in_channels):
        convolution.weight[padding + channel, channel] = 1


@torch.no_grad()
def pass_through_(norm: nn.BatchNorm2d, *, mean: Tensor, variance: Tensor) -> None:
    """Give a batch norm these running statistics [C], and the γ and β that make it the identity in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(norm.running_mean)


@torch.no_grad()
def channel_statistics(
    model: nn.Module, modules: Sequence[nn.Module], batches: Iterable[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Return mean and variance (float64 [C]) of each module's output channels over all images and pixels."""
    moments: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}

    def remember(module: nn.Module, _inputs: object, output: Tensor) -> None:
        values = output.double()  # [N, C, H, W]
        moments[module].append(torch.stack((values.mean((2, 3)), values.square().mean((2, 3)))))  # [2, N, C]

    hooks = [module.register_forward_hook(remember) for module in modules]
    for images in batches:
        model(images)
    for hook in hooks:
        hook.remove()
    means = [torch.cat(moments[module], dim=1).mean(1) for module in modules]  # [2, C] each
    return [(mean, (square - mean**2).clamp(min=0)) for mean, square in means]


@torch.no_grad()
def loss_and_accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return mean cross-entropy and top-1 accuracy in % in the model's present mode."""
    loss = correct = count = 0.0
    for images, targets in batches:
        logits = model(images)
        loss += float(F.cross_entropy(logits, targets, reduction="sum"))
        correct += float((logits.argmax(1) == targets).sum())
        count += len(targets)
    return loss / count, 100 * correct / count


def report(model: nn.Module, train: Split, test: Split) -> None:
    """Print test accuracy, and the training loss in both modes; leaves ``model`` as it was."""
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    _, accuracy = loss_and_accuracy(model, test.batches(BATCH_SIZE))
    print(f"test accuracy {accuracy:.2f} %")
    for mode in ("evaluation", "training"):
        model.train(mode == "training")
        batches = islice(train.batches(BATCH_SIZE, shuffle=True, augment=True, epoch=1), REPORT_BATCHES)
        loss, accuracy = loss_and_accuracy(model, batches)
        print(f"{REPORT_BATCHES} augmented training batches in {mode} mode: loss {loss:.4f}, accuracy {accuracy:.2f} %")
    model.eval()
    model.load_state_dict(statistics, strict=False)  # training mode moved the running statistics


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, write, report; 1 where the input is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a .th file of akamaster/pytorch_resnet_cifar10")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder that holds CIFAR-10")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        if not options.out.parent.is_dir():
            raise FileError(f"cannot write {options.out}: there is no folder {options.out.parent}; make it first")
        # Deeper ones have its names too, and more.
        shallow = build_network("cifar_resnet20").state_dict()
        named = {name: tensor for name, tensor in shallow.items() if ".shortcut." not in name}
        weights = find_weights(options.checkpoint, named).tensors
        data = load_data("cifar10", root=options.data, mean=MEAN, std=STD)
        batches = islice(data.train.batches(BATCH_SIZE, shuffle=True, augment=True), STATISTICS_BATCHES)
        model = convert(weights, (images for images, _ in batches), source=str(options.checkpoint))
        with whole_file(options.out) as part:
            safetensors.torch.save_file(model.state_dict(), part, metadata={"network": network_name(weights)})
    except HoyerExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.out} ({network_name(weights)}, mean {MEAN}, deviation {STD})")
    report(model, data.train, data.test)
    return 0


if __name__ == "__main__":
    sys.exit(main())
