"""Networks by name: name → untrained ``nn.Module`` with ``logits [N, classes]`` as its output.

====================================  ==========================================================================
``lenet300``, ``lenet5``              the two MNIST networks of the pruning papers
``cifar_resnet20|32|44|56|110``       He et al. 2015, section 4.2, with projection shortcuts
``torchvision:NAME``                  every classification network of torchvision
``timm:NAME``                         every network of timm, where that is installed; nothing is downloaded
``package.module:function``           the user's own function, imported only if the package was allowed by name
====================================  ==========================================================================

Weights are drawn from torch's global generator: call ``torch.manual_seed`` first for a network that can be repeated.
"""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.errors import NetworkError, one_line

_TORCHVISION = "torchvision:"
_TIMM = "timm:"
# Both add auxiliary classifiers by default: a tuple in training, parameters that evaluation never reads.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


class LeNet300(nn.Module):
    """784-300-100-10 with ReLU (LeCun et al. 1998, section III.C.4), on images of 28×28.

    Args:
        in_channels: channels of the image; the first layer has 784 inputs for each.
        classes: number of outputs.
    """

    def __init__(self, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels * 28 * 28, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, in_channels, 28, 28]."""
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


class LeNet5(nn.Module):
    """Caffe's LeNet, 20-50-500-10, 2,293K MACs, on images of 28×28.

    Each convolution is followed by a ReLU, as in DeepHoyer's code; Caffe's own file has one after the first linear
    layer only.

    Args:
        in_channels: channels of the image.
        classes: number of outputs.

    Source: https://github.com/BVLC/caffe/blob/master/examples/mnist/lenet.prototxt,
        https://github.com/yanghr/DeepHoyer (mnist/CNN/net/models.py).
    """

    def __init__(self, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, in_channels, 28, 28]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # [N, 20, 12, 12]
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # [N, 50, 4, 4]
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """relu(bn(conv3×3(relu(bn(conv3×3(x))))) + shortcut(x)); the shortcut is bn(conv1×1(x)) where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, channels, H / stride, W / stride] of [N, in_channels, H, W]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for small images: three stages of n blocks, 16-32-64 channels.

    The shortcut is a projection (option B) wherever the shape changes, as in DeepHoyer's code; the paper's own CIFAR
    networks pad with zeros (option A). Pooling adapts, so that images of 8×8 work as well as 32×32.

    Args:
        blocks: n, blocks a stage.
        in_channels: channels of the image.
        classes: number of outputs.

    Source: He, Zhang, Ren, Sun 2015, arXiv 1512.03385, section 4.2; weights drawn as in He et al. 2015,
        arXiv 1502.01852 (fan-out). Module names are those of https://github.com/akamaster/pytorch_resnet_cifar10.
    """

    def __init__(self, blocks: int, in_channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, stride=1)
        self.layer2 = _stage(blocks, 16, 32, stride=2)
        self.layer3 = _stage(blocks, 32, 64, stride=2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, in_channels, H, W]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))  # [N, 64, H / 4, W / 4]
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # [N, 64]
        return self.linear(x)  # type: ignore[no-any-return]


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


# Depth 6n + 2 with n blocks a stage (He et al. 2015, section 4.2).
_CIFAR_RESNETS = {f"cifar_resnet{depth}": partial(CifarResNet, (depth - 2) // 6) for depth in (20, 32, 44, 56, 110)}
_OWN: dict[str, Callable[..., nn.Module]] = {"lenet300": LeNet300, "lenet5": LeNet5, **_CIFAR_RESNETS}


def build_network(
    name: str, *, in_channels: int | None = None, classes: int | None = None, allow_import: Sequence[str] = ()
) -> nn.Module:
    """Build the network called ``name``, untrained, on the CPU, in training mode.

    Args:
        name: ``lenet300``, ``lenet5``, ``cifar_resnet20`` (32, 44, 56, 110), ``torchvision:NAME``, ``timm:NAME`` or
            ``package.module:function``. The function is called with ``in_channels`` and ``classes`` where they are
            given, and returns a module.
        in_channels: channels of the image; the network's own number where None.
        classes: number of outputs; the network's own number where None.
        allow_import: packages that may be imported for ``package.module:function``; each stands for its
            subpackages too. A name from a stranger's recipe is data: nothing else is imported for it.

    Raises:
        NetworkError: the name is unknown, its package is not allowed or not installed, or nothing can be built from it.
    """
    for what, number in (("in_channels", in_channels), ("classes", classes)):
        if number is not None and number < 1:
            raise NetworkError(f"network {name!r}: {what} is {number}; expected at least 1")
    given = {k: v for k, v in (("in_channels", in_channels), ("classes", classes)) if v is not None}
    if name in _OWN:
        return _OWN[name](**given)
    if name.startswith(_TORCHVISION):
        return _from_torchvision(name.removeprefix(_TORCHVISION), in_channels, classes)
    if name.startswith(_TIMM):
        return _from_timm(name.removeprefix(_TIMM), in_channels, classes)
    if is_function_name(name):
        return _from_function(name, given, allow_import)
    if name in _torchvision_names():
        raise NetworkError(f"unknown network {name!r}; did you mean '{_TORCHVISION}{name}'?")
    raise NetworkError(
        f"unknown network {name!r}; {_closest(name, _OWN)}"
        f" (there are also {_TORCHVISION}NAME, {_TIMM}NAME and package.module:function)"
    )


def is_function_name(name: str) -> bool:
    """Return whether ``name`` stands for a user's own ``package.module:function``, whose code building it would run."""
    return ":" in name and not name.startswith((_TORCHVISION, _TIMM))


def default_input_shape(name: str) -> tuple[int, ...] | None:
    """Return the (C, H, W) that the network called ``name`` is meant for; None where only its author knows.

    Raises:
        NetworkError: it is a network of timm, which is not installed or knows no such name.
    """
    if name in _OWN:
        return (3, 32, 32) if name in _CIFAR_RESNETS else (1, 28, 28)
    if name.startswith(_TORCHVISION):
        side = 299 if name == f"{_TORCHVISION}inception_v3" else 224
        return (3, side, side)
    if name.startswith(_TIMM):
        settings = _timm_known(name.removeprefix(_TIMM)).get_pretrained_cfg(name.removeprefix(_TIMM))
        return None if settings is None else tuple(settings.input_size)
    return None


def _from_torchvision(name: str, in_channels: int | None, classes: int | None) -> nn.Module:
    from torchvision import models  # a second to import, and only these networks need it

    known = _torchvision_names()
    if name not in known:
        raise NetworkError(f"torchvision has no classification network {name!r}; {_closest(name, known, _TORCHVISION)}")
    if in_channels not in (None, 3):
        raise NetworkError(
            f"network '{_TORCHVISION}{name}' takes images of 3 channels, got in_channels = {in_channels}; "
            "repeat the channel in the data, or wrap the network in a function of your own (package.module:function)"
        )
    options: dict[str, int | bool] = {} if classes is None else {"num_classes": classes}
    if name in _WITH_AUXILIARY_HEADS:
        options |= {"aux_logits": False, "init_weights": True}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def _torchvision_names() -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def _from_timm(name: str, in_channels: int | None, classes: int | None) -> nn.Module:
    options = {"in_chans": in_channels, "num_classes": classes}
    given = {key: value for key, value in options.items() if value is not None}
    timm = _timm_known(name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **given)
    except Exception as error:  # a network that takes no other channels or classes, say
        told = ", ".join(f"{key}={value}" for key, value in given.items())
        raise NetworkError(f"timm cannot build {name!r} with ({told}): {one_line(error, typed=True)}") from error
    return model


def _timm_known(name: str) -> Any:
    """Return timm, if it is installed and knows a network called ``name``."""
    try:
        import timm  # optional, and seconds to import
    except ImportError as error:
        reason = one_line(error, typed=True)
        raise NetworkError(
            f"network '{_TIMM}{name}' needs timm, which cannot be imported ({reason}); pip install timm"
        ) from error
    # timm would take "hf_hub:owner/name" and "local-dir:path" for places to fetch a network from.
    if not re.fullmatch(r"[\w.\-]+", name) or not timm.is_model(name):
        close = _closest(name, timm.list_models(), _TIMM)
        raise NetworkError(f"timm has no network {name!r}; {close} (nothing is fetched from a hub or a path)")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise NetworkError(
            f"timm has no network {name!r}: {str(error).rstrip('.')}; leave out what follows the dot"
        ) from error
    return timm


def _from_function(name: str, arguments: Mapping[str, int], allow_import: Sequence[str]) -> nn.Module:
    """Import ``package.module``, if it is allowed, and return what ``function`` builds."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", name):
        raise NetworkError(f"network {name!r}: expected package.module:function, e.g. my_package.nets:small_resnet")
    module_name, function_name = name.split(":")
    # A lone string is a sequence of letters, and would allow every package that it contains.
    allowed = {allow_import} if isinstance(allow_import, str) else set(allow_import)
    parts = module_name.split(".")
    if not any(".".join(parts[:n]) in allowed for n in range(1, len(parts) + 1)):
        raise NetworkError(
            f"network {name!r} would import and run the package {parts[0]!r}; "
            f"if you trust it, allow it with --allow-import {parts[0]}"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs foreign code, which may raise anything
        raise NetworkError(f"network {name!r}: cannot import {module_name}: {one_line(error, typed=True)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise NetworkError(
            f"network {name!r}: {module_name} has no function {function_name!r}; {_closest(function_name, public)}"
        )
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise NetworkError(
            f"network {name!r} cannot be called with ({', '.join(arguments)}): {error}; "
            "in_channels and classes are passed where they are set, and nothing else"
        ) from error
    try:
        model = function(**arguments)
    except (Exception, SystemExit) as error:  # the same: foreign code
        raise NetworkError(f"network {name!r}: the function failed: {one_line(error, typed=True)}") from error
    if not isinstance(model, nn.Module):
        raise NetworkError(
            f"network {name!r}: expected a function that returns a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def _closest(name: str, known: Collection[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=3)
    listed = ", ".join(repr(prefix + candidate) for candidate in close or [*known][:8])
    return f"did you mean {listed}?" if close else f"known are {listed or 'none'}" + (", ..." if len(known) > 8 else "")
