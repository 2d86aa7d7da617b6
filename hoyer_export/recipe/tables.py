"""What a recipe may say: one frozen record a table, each key with its type, its default and what it means.

The texts under the keys are the documentation: ``docs/recipe.md`` and the comments that ``init`` writes are made of
them. Values are not converted (``epochs = "3"`` is a string, and wrong), and nothing unknown is ignored.
"""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from hoyer_export.choices import (
    AUTO,
    BY_ELEMENTS,
    BY_FUNCTION,
    ELEMENTS,
    LATENCY,
    WITHOUT_BUDGET,
    Alignment,
    Element,
    Method,
    Norms,
)
from hoyer_export.preprocessing import Interpolation, Resize

BUDGETS = ("macs", "params", "weights", "latency", "latency_ms", "threshold", "max_drop", "max_change")
"""The keys of [cut] of which exactly one is set."""
RANDOM = "random"
"""In the place of a file with weights: nothing is loaded. MACs and sizes are right then, outputs mean nothing."""
GIVEN = "given"
"""In the place of a file with weights, or of a method: what was passed in Python has them, or was cut already."""

PATHS = (("data", "root"), ("dense", "weights"), ("finetune", "weights"))
"""The keys that are a file's or a folder's."""

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
# A TOML array arrives as a list, which a strict tuple refuses.
PerChannel = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]
Deviations = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
Names = Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
BatchSizes = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _file(weights: str | None) -> Path | None:
    return None if weights in (None, RANDOM, GIVEN) else Path(weights)


class Network(_Table):
    """The network that is trained and cut."""

    name: Name
    """``cifar_resnet20``, ``lenet5``, ...; ``torchvision:NAME``, ``timm:NAME``; ``package.module:function`` of your
    own, which needs ``--allow-import`` on the command line."""
    rules: Name | None = None
    """``package.module:RULES``: tracing rules of your own."""
    in_channels: Count | None = None
    """Channels of an image; unset: those of the data, and a function of your own is not told."""
    classes: Count | None = None
    """How many outputs it has, at least one a class; unset: the classes of the data, and a function of your own is not
    told."""
    input: Annotated[tuple[Count, Count, Count], Field(strict=False)] | None = None
    """Channels, height and width of an image; unset: those of the data, without any what the network is meant for."""


class Data(_Table):
    """The images that it learns from, is chosen by, and is judged on."""

    name: Name
    """``digits``, ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar10-16`` (averaged to 16×16), ``imagefolder``
    (train/CLASS/*, val/CLASS/* and test/CLASS/*; what is missing of the last two is held out; or CLASS/* alone), or
    ``images`` (without labels)."""
    root: Name | None = None
    """The folder with the files, relative to the recipe; ``digits`` needs none."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """The share of the training images that is held out; every choice is made on it. Not used where an ``imagefolder``
    has both ``val`` and ``test``."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Decides which images are held out; unset: the recipe's ``seed``."""
    mean: PerChannel | None = None
    """Subtracted from the pixels, which are 0 to 1; one number a channel; unset: the data set's own."""
    std: Deviations | None = None
    """What the rest is divided by; stands beside ``mean``."""
    augment: bool | None = None
    """Whether training images are changed at random: a window shifted by up to an eighth of the side; of image files a
    part of any size; some of them mirrored or not. Unset: for ``cifar10``, ``cifar10-16`` and ``imagefolder``."""
    flip: bool | None = None
    """With ``augment``: whether half of them are mirrored left to right; unset: for ``cifar10``, ``cifar10-16`` and
    image files."""
    crop_scale: Share | None = None
    """With ``augment``, of image files: the least share of the area that is seen; 1: all of it; unset: 0.08."""
    shift: Annotated[int, Field(ge=0)] | None = None
    """With ``augment``, of all but image files: pixels by which the window is shifted at most; unset: an eighth of the
    side."""
    image_size: Count | None = None
    """Height and width that image files (``imagefolder``, ``images``) are brought to; unset: 224."""
    resize: Resize | None = None
    """How. ``crop`` (unless set): the shorter side becomes ``short_side``, and the middle is cut out. ``squash``: both
    sides are resized, whatever the proportions. ``pad``: it is resized to fit, with black around it."""
    short_side: Count | None = None
    """With ``resize = "crop"``, in pixels; unset: 256/224 of ``image_size``."""
    interpolation: Interpolation | None = None
    """Of the resize; unset: bilinear."""
    class_names: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)] | None = None
    """What the network's outputs are called, in their order; unset: the data set's own, of an image folder its folders'
    names, sorted. Those names in another order put the outputs in that order; other names rename them."""
    skip_unreadable: bool = False
    """Whether image files that cannot be read are left out, and named; else they are all named, and nothing is done."""
    fast_decode: bool = False
    """Whether the random crops of image files are made fast: a JPEG is decoded no larger than the crop needs, and bytes
    are resized. Pixels differ by a rounding, of shrunken JPEGs a little more; validation and test are as ever."""
    class_weights: Deviations | None = None
    """One number a class, that its images count in the cross-entropy; unset: all alike."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read the image files of a folder; 0: the main one does."""

    @model_validator(mode="after")
    def _mean_beside_std(self) -> "Data":
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise PydanticCustomError("rule", "mean and std belong together, one number a channel each")
        return self


class Phase(_Table):
    """What the phases of training have in common."""

    epochs: Annotated[int, Field(ge=0)]
    """Passes over the training images."""
    lr: Positive
    """The highest learning rate; it falls to 0 by half a cosine."""
    batch_size: Count = 128
    """Images a step; the last batch of an epoch has what is left, and is left out if that is a single image."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """Weight decay is coupled in ``sgd`` and ``adam``, decoupled in ``adamw``."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of ``sgd``; the others have torch's own betas, 0.9 and 0.999."""
    weight_decay: NotNegative = 5e-4
    """Of all parameters alike, those of batch norms and biases too."""
    warmup: NotNegative = 0.0
    """Epochs in which the learning rate rises in a straight line to ``lr``."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of a label that is spread over all classes."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass in training; ``bfloat16``: autocast, the weights stay float32."""
    compile: bool = False
    """Whether ``torch.compile`` makes the kernels of training: needs a C++ compiler, and minutes a phase before the
    first step. It seldom pays on a CPU; ``scripts/benchmarks/loop.py --compile`` measures it."""
    sync_batch_norm: bool = False
    """Where several GPUs train together: whether batch norms take mean and variance of the images of all."""

    @model_validator(mode="after")
    def _warm_before_the_end(self) -> "Phase":
        if self.warmup >= self.epochs > 0:
            raise PydanticCustomError("rule", "warmup must be shorter than epochs")
        return self


class Dense(Phase):
    """Training of the dense network, before anything is pruned."""

    epochs: Annotated[int, Field(ge=0)] = 30
    lr: Positive = 0.1
    weights: Name | None = None
    """A file with the weights to start from, relative to the recipe; unset or ``random``: drawn by the seed. With
    ``epochs = 0`` one of the two is needed, except where [train] begins from scratch. ``given``: those
    of the network that was passed in Python."""
    weights_key: Name | None = None
    """Where in that file they are, e.g. ``model_ema``; unset: where all names fit, and rather raw than averaged."""
    new_head: bool | None = None
    """Whether a last layer that the file has with another number of outputs, or not at all, starts at random."""

    @model_validator(mode="after")
    def _keys_of_a_file(self) -> "Dense":
        if (self.weights_key is not None or self.new_head) and self.file is None:
            raise PydanticCustomError("rule", "weights_key and new_head are about a file of weights; set weights")
        if self.new_head and not self.epochs:
            raise PydanticCustomError("rule", "new_head starts a layer at random; set epochs, which train it")
        return self

    @property
    def file(self) -> Path | None:
        """Where the weights to start from are; None where no file has them."""
        return _file(self.weights)


_OF_KIND: dict[str, dict[str, Any]] = {
    'norms = "weights"': {"strength": 1e-3, "scale": "relative", "max_rate": None},
    'norms = "function"': {"ramp": 0.2, "macs_power": 1.0},
    'grouping = "layer"': {"alpha_n": 2e-3, "alpha_c": 2e-3},
    **{
        f'regulariser = "{name}"': {"ramp": 0.0, **({} if strength is None else {"strength": strength})}
        for name, strength in ELEMENTS.items()
    },
}
"""What decides which keys of [sparse] there are → those keys, with their defaults; ``SPARSE_KEYS`` are all of them."""
SPARSE_KEYS = frozenset(key for keys in _OF_KIND.values() for key in keys)
_DECIDING = {"norms": "weights", "grouping": "coupled"}
"""The keys that decide beside ``regulariser``, with what they are for a regulariser of single weights."""


def sparse_keys(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that belong to this kind of [sparse] alone, with their defaults; none where it is no kind."""
    return _OF_KIND.get(_sparse_kind(table), {})


def foreign_keys(table: Mapping[str, Any]) -> list[str]:
    """Return those keys of [sparse] that are set and belong to another kind of it."""
    kind = _sparse_kind(table)
    if kind not in _OF_KIND:
        return []
    known = SPARSE_KEYS - _OF_KIND[kind].keys()
    decided = [key for key, usual in _DECIDING.items() if not kind.startswith(key) and table.get(key, usual) != usual]
    return [*decided, *(key for key in table if key in known and table[key] is not None)]


def _sparse_kind(table: Mapping[str, Any]) -> str:
    if str(table.get("regulariser")) in ELEMENTS:
        return f'regulariser = "{table["regulariser"]}"'
    key = "grouping" if table.get("grouping") == "layer" else "norms"
    return f'{key} = "{table.get(key, _DECIDING[key])}"'


class Sparse(Phase):
    """Training with a regulariser that makes channels zero."""

    epochs: Annotated[int, Field(ge=0)] = 30
    lr: Positive = 0.05
    regulariser: Literal["group-hs", Element] = "group-hs"
    """``group-hs``: the Hoyer-square measure of a group's channels. Of the single weights of each convolution and
    linear layer: ``hs``, Hoyer-square; ``hoyer``, ℓ1 over ℓ2; ``l1-elements``; ``transformed-l1``;
    ``magnitude-elements``, no penalty. They go with ``cut.method = "elements"``."""
    grouping: Literal["coupled", "layer"] = "coupled"
    """Which weights are a channel's, for ``group-hs``. ``coupled``: all that have to go with it. ``layer``: as in the
    paper, each layer's filters, and each layer's input channels, for themselves."""
    norms: Norms = "weights"
    """What a channel's norm is made of. ``weights``: a penalty on all channels. ``function``: what it brings to its
    readers; only channels that the budget in [cut] dooms fade, until they are exactly zero."""
    strength: NotNegative | None = None
    """Of the penalty, with ``norms = "weights"``; 1e-3 unless set, and 2 to 4 times the weight decay is strong. Of a
    penalty on single weights; unless set, for SGD, 2e-6 for ``hs``, 1e-3 for ``hoyer``, 8e-5 for
    ``l1-elements``, 4e-5 for ``transformed-l1``."""
    alpha_n: NotNegative | None = None
    """With ``grouping = "layer"``: the strength on filters; 2e-3 unless set."""
    alpha_c: NotNegative | None = None
    """With ``grouping = "layer"``: the strength on input channels; 2e-3 unless set."""
    scale: Literal["relative", "paper"] | None = None
    """With ``norms = "weights"``. ``relative`` (unless set): ``strength`` has the unit of weight decay. ``paper``: as
    DeepHoyer's code has it."""
    max_rate: Positive | None = None
    """With ``norms = "weights"``: bound on a channel's relative rate, in the unit of weight decay; unset: none."""
    ramp: Annotated[float, Field(ge=0, lt=1)] | None = None
    """With ``norms = "function"``: how long a channel fades, as a share of the steps before the cut; 0.2 unless set.
    With a regulariser of single weights: in which last share of these steps the smallest go, down to ``cut.weights``;
    unless set 0, all of them at the cut."""
    macs_power: NotNegative | None = None
    """With ``norms = "function"``: the line is drawn on what a channel brings over its MACs to this power; 1 unless
    set."""

    @model_validator(mode="before")
    @classmethod
    def _keys_of_its_kind(cls, table: Any) -> Any:
        """Give the keys of the chosen kind their defaults, and refuse those of the others."""
        if not isinstance(table, dict):
            return table
        if foreign := foreign_keys(table):
            kind = {"key": foreign[0], "kind": _sparse_kind(table)}
            raise PydanticCustomError("rule", "{key} does not belong to {kind}; leave it out", kind)
        return sparse_keys(table) | {key: value for key, value in table.items() if value is not None}

    @property
    def of_elements(self) -> bool:
        """Whether it acts on single weights."""
        return self.regulariser in ELEMENTS

    @property
    def to_budget(self) -> bool:
        """Whether this phase decides what goes: afterwards it is exactly zero."""
        return self.norms == "function" and self.epochs > 0

    @property
    def ramps(self) -> bool:
        """Whether single weights go while this phase trains."""
        return self.of_elements and self.epochs > 0 and bool(self.ramp)

    def options(self) -> dict[str, str | float]:
        """Return what is set of the regulariser's own keys."""
        return {key: value for key in sparse_keys(self.model_dump()) if (value := getattr(self, key)) is not None}


class Cut(_Table):
    """What goes: exactly one of ``macs``, ``params``, ``weights``, ``latency``, ``latency_ms``, ``threshold``,
    ``max_drop`` and ``max_change``, or a method that needs no budget."""

    macs: Share | None = None
    """The share of the dense network's MACs that may stay, after alignment, counted on the exported graph."""
    params: Share | None = None
    """The share of its parameters that may stay."""
    weights: Share | None = None
    """With ``method = "elements"``: the share of the weights of convolution and linear layers, all layers together,
    that may stay other than zero."""
    latency: Share | None = None
    """The share of its time for a run that may stay, on this machine, with the threads and batch of [bench]: the
    channels of least importance go for most time, by a measured table. Judged by CPU time in the benchmark afterwards,
    within 5 %."""
    latency_ms: Positive | None = None
    """Likewise in milliseconds."""
    threshold: Literal["natural"] | NotNegative | None = None
    """Channels whose score lies below it go; ``natural``: 1, the threshold of Group-HS, for that method alone. With
    ``method = "elements"``: weights up to so many standard deviations of their layer's."""
    align: Literal[Alignment, "auto"] | None = None
    """Widths are rounded up to a multiple of it that the runtime is fast at (16 also allows 8), never above the dense
    width; unset: 16, and 1 for a method without budget. ``auto``, which is what unset means in a budget of time: they
    are chosen, up or down, by what is fast on this machine, by a measured table; without a budget as with 16."""
    method: Literal[Method, "elements", "given"] = "group-hs"
    """How channels are scored. ``group-hs``: by the norms of their weights. ``magnitude``: as torch-pruning scores
    them. ``function``: by what they bring to their readers, over their MACs. ``sensitivity``: that, in the measure of
    what the outputs lose where a group is narrower, tried four times a group. ``dead``: what never fires goes, and
    nothing else. ``zero``: what is zero already, or read by nobody. ``given``: as a slim network that was passed in
    Python lacks them. ``elements``: no channel goes, but the smallest single weights become zero, and stay so; files
    and time stay as they are in any dense runtime."""
    max_drop: NotNegative | None = None
    """Points of validation accuracy that may be lost; needs ``refit = true`` and a method that goes down in steps,
    ``function`` or ``sensitivity``."""
    max_change: Positive | None = None
    """The mean relative change of the outputs that is allowed; needs the same, and no labels."""
    refit: bool = False
    """Whether what reads the channels that went gets new weights, by least squares on unlabelled images."""
    step: Share = 0.05
    """With ``refit``, such a method and a budget of MACs or of what may be lost: the share of the MACs after which
    channels are chosen again."""
    dead_first: bool = False
    """Whether what never fires goes before any other method chooses."""
    dead_blocks: bool = False
    """Whether residual blocks whose branch is exactly zero become their shortcuts."""
    fold: bool = True
    """Whether what a zeroed channel leaves behind as a constant moves into the layers that read it."""
    gather: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Linear layers that read the network's input, of which they are to use a part: features are chosen like channels,
    within the budget, and picked by a ``Gather``."""
    calibration: Count | None = None
    """How many training images are looked at without their labels, at most; unset: 5000, and 1024 for a refit."""

    @model_validator(mode="after")
    def _exactly_one_budget(self) -> "Cut":
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if self.of_elements:
            self._takes_keys_of_elements()
            return self
        if self.weights is not None:
            raise PydanticCustomError("rule", 'weights needs method = "elements"', {})
        if self.method in WITHOUT_BUDGET and given:
            raise PydanticCustomError(
                "rule",
                'method = "{method}" takes no {key}: it removes {what}, nothing else',
                {"method": self.method, "key": given[0], "what": WITHOUT_BUDGET[self.method]},
            )
        if self.method not in WITHOUT_BUDGET and len(given) != 1:
            raise PydanticCustomError(
                "rule",
                "needs exactly one of {keys} and {last}, got {given}",
                {"keys": ", ".join(BUDGETS[:-1]), "last": BUDGETS[-1], "given": " and ".join(given) or "none"},
            )
        if not self.in_steps and (self.max_drop is not None or self.max_change is not None):
            raise PydanticCustomError(
                "rule",
                '{key} needs refit = true, and method = "function" or "sensitivity"',
                {"key": given[0]},
            )
        return self

    def _takes_keys_of_elements(self) -> None:
        own = ("method", "weights", "threshold")
        fields = type(self).model_fields.items()
        other = [key for key, field in fields if key not in own and getattr(self, key) != field.default]
        if other:
            text = 'method = "elements" removes no channel and takes no {key}; leave it out'
            raise PydanticCustomError("rule", text, {"key": other[0]})
        if (self.weights is None) == (self.threshold is None) or isinstance(self.threshold, str):
            text = 'method = "elements" needs either weights, a share, or threshold, a number of standard deviations'
            raise PydanticCustomError("rule", text, {})

    @property
    def of_elements(self) -> bool:
        """Whether single weights go, and no channel."""
        return self.method == BY_ELEMENTS

    @property
    def in_steps(self) -> bool:
        """Whether channels go in steps, each refitted, and are chosen again after each."""
        other = (self.params, self.threshold, self.latency, self.latency_ms)
        return self.refit and self.method in BY_FUNCTION and all(it is None for it in other)

    @property
    def images(self) -> int:
        """How many calibration images are looked at."""
        return self.calibration or (1024 if self.refit else 5000)

    @property
    def alignment(self) -> int:
        """The multiple in force, or that widths chosen by time are at least of."""
        return 16 if self.align == AUTO else self.align or (1 if self.method in WITHOUT_BUDGET else 16)

    @property
    def of_time(self) -> bool:
        """Whether the budget is one of time."""
        return any(key in LATENCY for key in self.asked())

    @property
    def by_time(self) -> bool:
        """Whether widths are chosen by measured time."""
        budget = self.method not in WITHOUT_BUDGET and self.threshold is None
        return budget and (self.align == AUTO or (self.align is None and self.of_time))

    @property
    def looks_at_images(self) -> bool:
        """Whether the choice hangs on calibration images."""
        return self.method in ("dead", *BY_FUNCTION) or self.dead_first or self.refit

    def asked(self) -> dict[str, float | str]:
        """Return the one budget that is set, e.g. ``{"macs": 0.5}``."""
        return {key: getattr(self, key) for key in BUDGETS if getattr(self, key) is not None}


class Finetune(Phase):
    """Training of the slim network."""

    epochs: Annotated[int, Field(ge=0)] = 15
    lr: Positive = 0.05
    weights: Name | None = None
    """A file with weights that the slim network got in a training loop of your own, relative to the recipe: they take
    the place of these epochs; ``hoyer-export ship`` sets it. ``given``: the slim network was passed in Python."""
    weights_key: Name | None = None
    """Where in that file they are, as in [dense]."""

    @property
    def file(self) -> Path | None:
        """Where these weights are; None where no file has them."""
        return _file(self.weights)


class Train(Phase):
    """Sparse phase and fine-tuning in one schedule: one warm-up, one cosine, and momenta that go on through the cut.

    It decides what [sparse] and [finetune] have in common. With it, and no ``dense.epochs``, a network can be trained
    from scratch.
    """

    epochs: Count
    lr: Positive = 0.05
    cut_at: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """The share of the epochs before the cut, rounded up; 0: the cut comes first. With ``norms = "function"`` what goes
    is zero at ``cut_at`` itself, and cut when that epoch is over."""

    @model_validator(mode="after")
    def _trains_after_the_cut(self) -> "Train":
        if self.phases()["finetune"]["epochs"] == 0:
            raise PydanticCustomError("rule", "cut_at leaves no epoch after the cut; lower it, or raise epochs", {})
        return self

    def phases(self) -> dict[str, dict[str, Any]]:
        """Return what it decides of either phase."""
        sparse = ceil(self.cut_at * self.epochs - 1e-9)
        shared = {key: getattr(self, key) for key in Phase.model_fields} | {"warmup": 0.0}
        return {"sparse": shared | {"epochs": sparse}, "finetune": shared | {"epochs": self.epochs - sparse}}


class Distill(_Table):
    """The sparse phase and fine-tuning also learn from the dense network's outputs.

    loss = (1 − weight) · cross-entropy + weight · temperature² · KL(dense ‖ student), both softened by the temperature.
    """

    weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The dense network's share of the loss; 0: they do not learn from it."""
    temperature: Positive = 4.0
    """What both outputs are divided by."""


class Export(_Table):
    """The files that are shipped: slim.onnx, and further ones made of it."""

    opset: Annotated[int, Field(ge=17, le=25)] = 20
    """The version of ONNX's operators."""
    input_names: Names | None = None
    """What the file calls what goes in, one name a tensor; unset: as the network's arguments, a lone one ``input``."""
    output_names: Names | None = None
    """What it calls what comes out, one name a tensor; unset: by keys and positions, a lone one ``logits``."""
    dynamic_size: bool = False
    """Whether height and width of images are left open; they are counted and measured at the data's size."""
    fp16: bool = False
    """Also slim-fp16.onnx: weights and arithmetic in float16, for runtimes that have it; half the bytes."""
    int8: bool = False
    """Also slim-int8.onnx: weights and activations in int8 (QDQ), calibrated on 512 training images; a quarter of the
    bytes. It is not shipped, but left as slim-int8.onnx.rejected, where it is slower than slim.onnx, or loses more test
    accuracy than ``gate.max_accuracy_drop`` allows (without that: more than one point of slim.onnx's)."""
    preprocess: bool = False
    """Also slim-preprocess.onnx, which takes pictures, uint8 [batch, height, width, channels], and resizes and
    normalises them itself. It resizes with bilinear and bicubic interpolation; with another, and for data of one size,
    pictures have to come in that size. Its latency is for pictures of twice the sides of the network's input."""
    pt2: bool = False
    """Also slim.pt2, of torch.export: ``torch.export.load("slim.pt2").module()`` runs it with torch alone. It is
    verified, and not measured: latencies are onnxruntime's. Height and width stay fixed in it."""


class Verify(_Table):
    """Comparing the ONNX file with the network."""

    batches: BatchSizes = (1, 2, 3, 8)
    """The batch sizes that the runtime and torch are compared at."""


class Bench(_Table):
    """Measuring latency, the dense file beside the slim one."""

    runtime: Name = "onnxruntime"
    """What the files are verified and measured in: ``onnxruntime``, ``openvino``, or another execution provider of the
    onnxruntime that is installed, e.g. ``onnxruntime:CUDAExecutionProvider``."""
    threads: Count = 1
    """Threads of one run."""
    batch_size: Count = 1
    """Images a run."""
    min_seconds: NotNegative = 5.0
    """How long it is measured, in seconds; 0: not at all."""


class Gate(_Table):
    """What must hold at the end, or ``run`` ends with exit code 3: the same limits as those of ``check``.

    They are judged on the files: MACs as counted on the graph, latency as measured, accuracy on the test images through
    onnxruntime. Nothing hangs on them but the report.
    """

    max_macs: Share | None = None
    """The share of the dense file's MACs that the slim one may have at most."""
    max_params: Share | None = None
    """Likewise of its parameters."""
    max_bytes: Share | None = None
    """Likewise of its bytes."""
    max_latency: Positive | None = None
    """Likewise of its time for a run, by the median of paired ratios; needs ``bench.min_seconds`` above 0."""
    max_accuracy_drop: NotNegative | None = None
    """Points of test accuracy that may be lost at most; needs images with labels."""

    def asked(self) -> dict[str, float]:
        """Return the limits that are set."""
        return {key: value for key, value in self.model_dump().items() if value is not None}


class Recipe(_Table):
    """A whole recipe: what the file leaves out has its default; ``resolved`` fills in those of machine and data."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the first weights, dropout, the images' order and augmentation, and of which are held out or calibrate."""
    threads: Count | None = None
    """Of torch on a CPU; unset: its own choice, one a core. With 1, a run can be repeated to the last bit on the same
    machine with the same versions, and a small network trains faster on a shared machine."""
    device: Literal["cpu", "cuda"] | None = None
    """Where training runs; unset: on a GPU if torch sees one."""
    track: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Field(strict=False)] = ()
    """Where the numbers of every epoch go beside metrics.jsonl: ``tensorboard`` (into the run's folder), ``wandb``;
    each an extra, ``pip install 'hoyer-export[tensorboard]'``."""
    network: Network
    data: Data | None = None
    dense: Dense = Dense()
    train: Train | None = None
    sparse: Sparse = Sparse()
    cut: Cut
    finetune: Finetune = Finetune()
    distill: Distill = Distill()
    export: Export = Export()
    verify: Verify = Verify()
    bench: Bench = Bench()
    gate: Gate = Gate()

    @property
    def trains(self) -> bool:
        """Whether any phase has an epoch."""
        return any(phase.epochs for phase in (self.dense, self.sparse, self.finetune))

    @model_validator(mode="before")
    @classmethod
    def _in_one_schedule(cls, tables: Any) -> Any:
        """Give [sparse] and [finetune] what [train] decides."""
        if not isinstance(tables, dict) or tables.get("train") is None:
            return tables
        try:
            train = Train.model_validate(tables["train"])
        except ValidationError:  # said once more, with its place, when the table itself is validated
            return tables
        tables = dict(tables)
        for name, decided in train.phases().items():
            given = tables.get(name, {})
            if isinstance(given, dict):
                for key in given.keys() & decided:
                    if (type(given[key]), given[key]) != (type(decided[key]), decided[key]):
                        raise PydanticCustomError(
                            "rule", "{key} is decided by [train]; leave one of the two out", {"key": f"{name}.{key}"}
                        )
                tables[name] = given | decided
        return tables

    @model_validator(mode="after")
    def _starts_somewhere(self) -> "Recipe":
        scratch = self.train is not None and self.distill.weight == 0  # there is nothing dense to learn from
        if self.dense.epochs == 0 and self.dense.weights is None and not scratch:
            raise PydanticCustomError("rule", 'dense: epochs = 0 needs weights = "FILE.safetensors" to start from', {})
        return self

    @model_validator(mode="after")
    def _zeroes_to_a_budget(self) -> "Recipe":
        if self.sparse.to_budget and (self.cut.method != "group-hs" or not (self.cut.macs or self.cut.params)):
            raise PydanticCustomError(
                "rule",
                'norms = "function" decides in [sparse] what goes: [cut] needs macs or params, and no method',
                {},
            )
        if self.sparse.to_budget and self.cut.align == AUTO:
            raise PydanticCustomError(
                "rule", 'cut.align = "auto" does not go with norms = "function", which fades to a fixed multiple', {}
            )
        return self

    @model_validator(mode="after")
    def _ramps_to_a_share(self) -> "Recipe":
        if self.sparse.ramps and self.cut.weights is None:
            raise PydanticCustomError(
                "rule", 'sparse.ramp leads down to cut.weights: [cut] needs method = "elements" and weights', {}
            )
        return self

    @model_validator(mode="after")
    def _single_weights_alone(self) -> "Recipe":
        of_channels = not self.sparse.of_elements and self.sparse.grouping != "layer"
        if self.cut.of_elements and self.sparse.epochs and of_channels:
            text = 'method = "elements" removes no channel: set sparse.regulariser to one of {names}'
            raise PydanticCustomError("rule", text, {"names": ", ".join(ELEMENTS)})
        return self

    @model_validator(mode="after")
    def _has_data_where_it_needs_them(self) -> "Recipe":
        if self.data is None and (self.trains or self.cut.looks_at_images):
            what = "training" if self.trains else "what channels do"
            raise PydanticCustomError("rule", "the table [data] is needed: {what} needs images", {"what": what})
        return self

    @model_validator(mode="after")
    def _has_images_to_ship(self) -> "Recipe":
        if self.export.int8 and self.data is None:
            raise PydanticCustomError("rule", "export.int8 needs [data]: it is calibrated on training images", {})
        if self.export.preprocess and self.data is None:
            raise PydanticCustomError("rule", "export.preprocess needs [data], which says how images are prepared", {})
        if self.export.preprocess and self.export.opset < 18:
            raise PydanticCustomError("rule", "export.preprocess needs export.opset from 18 on: to resize", {})
        if self.export.preprocess and self.export.dynamic_size:
            raise PydanticCustomError(
                "rule", "export.preprocess resizes to one size; leave export.dynamic_size out", {}
            )
        names = {*(self.export.input_names or ()), *(self.export.output_names or ())}
        if self.export.preprocess and (taken := names & {"images", "prepared"}):  # as deploy/pictures.py has them
            message = "export.preprocess has its own {name} in slim-preprocess.onnx; give another name"
            raise PydanticCustomError("rule", message, {"name": min(taken)})
        return self

    @model_validator(mode="after")
    def _measures_what_the_gate_asks_for(self) -> "Recipe":
        if self.gate.max_latency is not None and not self.bench.min_seconds:
            raise PydanticCustomError("rule", "gate.max_latency needs bench.min_seconds above 0: it is measured", {})
        if self.cut.of_time and not self.bench.min_seconds:
            raise PydanticCustomError("rule", "cut.latency needs bench.min_seconds above 0: it is measured", {})
        if self.gate.max_accuracy_drop is not None and self.data is None:
            raise PydanticCustomError("rule", "gate.max_accuracy_drop needs [data]: it is read on test images", {})
        return self
