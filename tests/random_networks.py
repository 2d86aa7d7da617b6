"""Random networks as short Python programs, drawn step by step by hypothesis, printed as the code that they are.

A value is a batch of images [N, C, H, W], lines [N, C, L], volumes [N, C, D, H, W], tokens [N, L, C] or vectors
[N, C]. A step takes a value, may pick others, and appends lines of code. Every step runs once, on real tensors, while
the program is drawn: that is how shapes are known, and what does not run on these shapes is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from rule_networks import HalfUnit, Heads
from torch import Tensor, nn

Draw = Callable[[st.SearchStrategy[Any]], Any]
IMAGE, LINE, VOLUME, TOKENS, VECTOR = "image", "line", "volume", "tokens", "vector"
AXIS = {IMAGE: 1, LINE: 1, VOLUME: 1, TOKENS: -1, VECTOR: 1}
NAMES: dict[str, Any] = {"nn": nn, "F": F, "torch": torch, "HalfUnit": HalfUnit, "Heads": Heads}
LAYOUT_OF_NDIM = {4: IMAGE, 5: VOLUME, 2: VECTOR}


@dataclass(frozen=True)
class Program:
    """A network as source code, and the shapes of its inputs."""

    layers: tuple[str, ...]
    lines: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    returns: str
    channels_last: bool = False

    def __repr__(self) -> str:
        arguments = "".join(f", v{i}" for i in range(len(self.inputs)))
        code = ["class Network(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        code += [f"        {line}" for line in self.layers] + ["", f"    def forward(self{arguments}):"]
        code += [f"        {line}" for line in (*self.lines, f"return {self.returns}")]
        last = ", channels_last" if self.channels_last else ""
        return "\n".join([f"# inputs of shape {self.inputs}{last}", *code])

    def build(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """Return the network and example inputs."""
        names = dict(NAMES)
        exec(repr(self), names)
        return names["Network"](), tuple(_example(shape, self.channels_last) for shape in self.inputs)


def _example(shape: tuple[int, ...], channels_last: bool) -> Tensor:
    example = torch.randn(shape)
    return example.contiguous(memory_format=torch.channels_last) if channels_last and len(shape) == 4 else example


class Draft:
    """A program that is being drawn."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.channels_last = bool(draw(st.booleans()))
        self.layers: list[str] = []
        self.lines: list[str] = []
        self.layouts: dict[str, str] = {}
        self.scope: dict[str, Any] = {**NAMES, "self": nn.Module()}
        self.inputs: list[tuple[int, ...]] = []
        self.count = 0

    def __getitem__(self, name: str) -> Tensor:
        value = self.scope[name]
        assert isinstance(value, Tensor)
        return value

    def integer(self, low: int, high: int) -> int:
        assert low <= high
        return int(self.draw(st.integers(low, high)))

    def one_of(self, *choices: Any) -> Any:
        assert choices
        return self.draw(st.sampled_from(choices))

    def width(self, value: str) -> int:
        """Return the number of a value's channels."""
        return self[value].shape[AXIS[self.layouts[value]]]

    def divisor(self, number: int) -> int:
        return int(self.one_of(*(d for d in range(1, number + 1) if number % d == 0 and d <= 6)))

    def input(self, layout: str, *shape: int) -> str:
        name = f"v{len(self.inputs)}"
        self.inputs.append(shape)
        self.count = len(self.inputs)
        self.scope[name], self.layouts[name] = _example(shape, self.channels_last), layout
        return name

    def layer(self, kind: str, source: str) -> str:
        """Add a layer (or a parameter, or an attribute) and return how the forward calls it."""
        name = f"self.{kind}{len(self.layers)}"
        self.run(f"{name} = {source}", self.layers)
        return name

    def run(self, line: str, lines: list[str] | None = None) -> None:
        with torch.no_grad():
            exec(line, self.scope)
        (self.lines if lines is None else lines).append(line)

    def value(self, expression: str, layout: str | None = None) -> str:
        """Add a line that computes a value; without a layout it only names an intermediate result."""
        name = f"v{self.count}"
        self.count += 1
        self.run(f"{name} = {expression}")
        if layout is not None:
            assert self[name].ndim == {IMAGE: 4, LINE: 3, VOLUME: 5, TOKENS: 3, VECTOR: 2}[layout]
            assert self[name].numel() <= 20_000
            self.layouts[name] = layout
        return name

    def pick(self, layout: str, like: str | None = None, axes: tuple[int, ...] = (0, 1, 2, 3)) -> str:
        """Return a value, the newest first, that has the same sizes as ``like`` along some axes."""
        names = [name for name in reversed(self.layouts) if self.layouts[name] == layout]
        if like is not None:
            shape = self[like].shape
            names = [n for n in names if all(a >= len(shape) or self[n].shape[a] == shape[a] for a in axes)]
        assert names
        return str(self.draw(st.sampled_from(names)))

    def step(self, op: Callable[["Draft", str], object], value: str) -> None:
        """Add what a step does, or nothing if it does not run on these shapes."""
        layers, lines, layouts = len(self.layers), len(self.lines), dict(self.layouts)
        try:
            op(self, value)
        except (RuntimeError, ValueError, AssertionError, IndexError):
            del self.layers[layers:], self.lines[lines:]
            self.layouts = layouts


# -- layers ---------------------------------------------------------------------------------------------------------


def convolution(d: Draft, x: str) -> None:
    """Plain, grouped or depthwise with a multiplier, 1×1 or 3×3, along one to three axes."""
    layout, width = d.layouts[x], d.width(x)
    dims = {LINE: 1, IMAGE: 2, VOLUME: 3}[layout]
    groups = d.one_of(1, d.divisor(width), width)
    out = groups * d.integer(1, max(1, 12 // groups))
    kernel = d.one_of(1, 3)
    options = (
        f"padding={d.one_of(kernel // 2, 0)}, stride={d.one_of(1, 1, 2)}, groups={groups}, bias={d.one_of(True, False)}"
    )
    mode = d.one_of("zeros", "zeros", "circular")
    layer = d.layer("conv", f"nn.Conv{dims}d({width}, {out}, {kernel}, {options}, padding_mode={mode!r})")
    d.value(f"{layer}({x})", layout)


def transposed_convolution(d: Draft, x: str) -> None:
    layout, width = d.layouts[x], d.width(x)
    dims = {LINE: 1, IMAGE: 2, VOLUME: 3}[layout]
    groups = d.one_of(1, d.divisor(width), width)
    out = groups * d.integer(1, max(1, 12 // groups))
    layer = d.layer(
        "up",
        f"nn.ConvTranspose{dims}d({width}, {out}, {d.one_of(1, 2)}, stride={d.one_of(1, 2)}, groups={groups},"
        f" bias={d.one_of(True, False)})",
    )
    d.value(f"{layer}({x})", layout)


def linear(d: Draft, x: str) -> None:
    layer = d.layer("fc", f"nn.Linear({d.width(x)}, {d.integer(2, 12)}, bias={d.one_of(True, False)})")
    d.value(f"{layer}({x})", d.layouts[x])


def pointwise_linear(d: Draft, x: str) -> None:
    """A linear layer on images with the channels last, as ConvNeXt's."""
    layer = d.layer("fc", f"nn.Linear({d.width(x)}, {d.integer(2, 12)})")
    d.value(f"{layer}({x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", IMAGE)


def batch_norm(d: Draft, x: str) -> None:
    dims = {LINE: 1, IMAGE: 2, VOLUME: 3, VECTOR: 1}[d.layouts[x]]
    options = f"affine={d.one_of(True, False)}"
    d.value(f"{d.layer('bn', f'nn.BatchNorm{dims}d({d.width(x)}, {options})')}({x})", d.layouts[x])


def instance_norm(d: Draft, x: str) -> None:
    dims = {LINE: 1, IMAGE: 2, VOLUME: 3}[d.layouts[x]]
    options = f"affine={d.one_of(True, False)}, track_running_stats={d.one_of(False, True)}"
    d.value(f"{d.layer('norm', f'nn.InstanceNorm{dims}d({d.width(x)}, {options})')}({x})", d.layouts[x])


def group_norm(d: Draft, x: str) -> None:
    groups, affine = d.divisor(d.width(x)), d.one_of(True, False)
    d.value(f"{d.layer('norm', f'nn.GroupNorm({groups}, {d.width(x)}, affine={affine})')}({x})", d.layouts[x])


def layer_norm(d: Draft, x: str) -> None:
    d.value(f"{d.layer('norm', f'nn.LayerNorm({d.width(x)})')}({x})", d.layouts[x])


def prelu(d: Draft, x: str) -> None:
    d.value(f"{d.layer('prelu', f'nn.PReLU({d.one_of(d.width(x), 1)})')}({x})", d.layouts[x])


def scale(d: Draft, x: str) -> None:
    """A parameter times, plus or bounding the channels."""
    shape = [1] * (d[x].ndim - 1)
    shape[AXIS[d.layouts[x]] if d.layouts[x] == TOKENS else 0] = d.width(x)
    gain = d.layer("gain", f"nn.Parameter(torch.rand({', '.join(map(str, shape))}))")
    d.value(
        d.one_of("{x} * {g}", "{x} + {g}", "torch.minimum({x}, {g})", "{x} / (1 + {g}.abs())").format(x=x, g=gain),
        d.layouts[x],
    )


def squeeze_excite(d: Draft, x: str) -> None:
    width, middle = d.width(x), d.integer(2, 5)
    down, up = d.layer("down", f"nn.Linear({width}, {middle})"), d.layer("up", f"nn.Linear({middle}, {width})")
    squeezed = d.one_of(
        f"F.adaptive_avg_pool2d({x}, 1).flatten(1)",
        f"{x}.mean((2, 3))",
        f"F.adaptive_avg_pool2d({x}, 1).view({x}.shape[0], {x}.shape[1])",
    )
    gate = d.value(f"torch.sigmoid({up}(F.relu({down}({squeezed}))))")
    d.value(
        d.one_of(
            f"{x} * {gate}[:, :, None, None]",
            f"{x} * {gate}.view({x}.size(0), {x}.size(1), 1, 1).expand_as({x})",
            f"{x} * {gate}.unsqueeze(-1).unsqueeze(-1)",
        ),
        IMAGE,
    )


def again(d: Draft, x: str) -> None:
    """A layer that ran already runs once more."""
    used = [line.partition(" = ")[0] for line in d.layers if "nn.Conv" in line or "nn.Linear" in line]
    layout = d.layouts[x]
    name = d.value(f"{d.one_of(*used)}({x})")
    assert d[name].ndim == d[x].ndim
    d.layouts[name] = layout


def tied(d: Draft, x: str) -> None:
    """Two layers share one weight."""
    width = d.width(x)
    first = d.layer("conv", f"nn.Conv2d({width}, {width}, 3, padding=1)")
    second = d.layer("conv", f"nn.Conv2d({width}, {width}, 3, padding=1)")
    d.run(f"{second}.weight = {first}.weight", d.layers)
    d.value(f"{second}(F.relu({first}({x})))", IMAGE)


def unused(d: Draft, x: str) -> None:
    d.layer("unused", f"nn.Conv2d({d.width(x)}, 4, 3)")


# -- position by position -------------------------------------------------------------------------------------------


def activation(d: Draft, x: str) -> None:
    name = d.one_of(
        "F.relu({})", "F.gelu({})", "torch.sigmoid({})", "F.silu({})", "torch.tanh({})", "F.softplus({})",
        "F.hardswish({})", "{}.clamp(-1, 2)", "{}.clamp(min=0.5)", "{} * 2", "1 - {}", "{}.abs()", "{} ** 2",
        "F.relu({}, inplace=True)", "{}.mul_(0.5)", "{}.clone()", "F.dropout({}, 0.5, self.training)",
    )  # fmt: skip
    d.value(name.format(x), d.layouts[x])


def combine(d: Draft, x: str) -> None:
    """Two values of one shape: residual sums, gates, maxima, in place too."""
    y = d.pick(d.layouts[x], like=x, axes=(0, 1, 2, 3, 4))
    form = d.one_of(
        "{x} + {y}", "{x} - {y}", "{x} * {y}", "{x} * torch.sigmoid({y})", "torch.max({x}, {y})",
        "torch.minimum({x}, {y})", "{x}.add_({y})", "torch.stack([{x}, {y}]).sum(0)",
        "torch.stack([{x}, {y}], 1).mean(1)",
        "torch.where({x} > 0, {x}, {y})", "torch.lerp({x}, {y}, 0.3)", "sum([{x}, {y}])",
    )  # fmt: skip
    d.value(form.format(x=x, y=y), d.layouts[x])


def unknown(d: Draft, x: str) -> None:
    """Operations that mix channels or that nobody knows: nothing of what enters can be removed."""
    axis = AXIS[d.layouts[x]]
    assert d.width(x) > 1
    name = d.one_of(
        f"{x}.softmax({axis})", f"{x} - {x}.mean({axis}, keepdim=True)", f"torch.cumsum({x}, {axis})",
        f"{x} / (1 + {x}.std({axis}, keepdim=True))", f"{x}.sort({axis}).values", f"F.normalize({x}, dim={axis})",
        f"{x} * {x}.amax({axis}, keepdim=True)",
    )  # fmt: skip
    d.value(name, d.layouts[x])


def channel_sum(d: Draft, x: str) -> None:
    d.value(f"{x} * torch.sigmoid({x}.sum({AXIS[d.layouts[x]]}, keepdim=True))", d.layouts[x])


def numbers(d: Draft, x: str) -> None:
    """The number of channels in the code's own arithmetic, and numbers in attributes."""
    layout, axis, width = d.layouts[x], AXIS[d.layouts[x]], d.width(x)
    part = d.integer(1, width)
    kept = d.one_of(str(part), d.layer("part", str(part)), f"{x}.shape[{axis}] // {d.divisor(width)}")
    y = d.pick(layout)
    at = f"..., :{kept}" if layout == TOKENS else f":, :{kept}"
    d.value(
        d.one_of(
            f"{x}[{at}]",
            f"{x}.narrow({axis}, 0, {kept})",
            f"{x}.split([{kept}, {x}.shape[{axis}] - {kept}], {axis})[0]",
            f"{x} * {kept}",
            f"{x} * {x}.shape[{axis}]",
            f"{x} / {x}.shape[{axis}] ** 0.5",
            f"{x} * 2 if {x}.shape[{axis}] == {kept} else {x}",
            f"{x} * 2 if {x}.shape[{axis}] == {y}.shape[{axis}] else {x}",
            f"{x} * 2 if {x}.shape[{axis}] % {d.divisor(width)} == 0 else {x}",
            f"{x}.repeat_interleave({kept}, {axis})",
            f"{x} + torch.zeros({x}.shape, dtype={x}.dtype)",
            f"F.glu({x}, {axis})",
        ),
        layout,
    )


# -- movement along the channels --------------------------------------------------------------------------------------


def concatenate(d: Draft, x: str) -> None:
    layout = d.layouts[x]
    y = d.pick(layout, like=x, axes=(0, 1) if layout == TOKENS else (0, 2, 3, 4))
    d.value(f"torch.cat({d.one_of(f'[{x}, {y}]', f'({y}, {x}, {x})')}, {AXIS[layout]})", layout)


def stack(d: Draft, x: str) -> None:
    """Two values interleaved, or one after the other, by a new axis that is flattened away."""
    y = d.pick(IMAGE, like=x)
    d.value(f"torch.stack([{x}, {y}], {d.one_of(1, 2)}).flatten(1, 2)", IMAGE)


def parts(d: Draft, x: str) -> None:
    """Equal parts, by their number or by their share of the width, combined again."""
    layout, axis, number = d.layouts[x], AXIS[d.layouts[x]], d.one_of(2, 3)
    assert d.width(x) % number == 0
    names = ", ".join(f"p{i}" for i in range(number))
    cut = d.one_of(
        f"{x}.chunk({number}, {axis})",
        f"torch.split({x}, {x}.shape[{axis}] // {number}, {axis})",
        f"{x}.split({d.width(x) // number}, {axis})",
        f"torch.tensor_split({x}, {number}, {axis})",
    )
    d.run(f"{names} = {cut}")
    d.value(
        d.one_of("p0 * torch.sigmoid(p1)", "p1", f"torch.cat([p1, p0], {axis})", f"torch.cat([p0, p1 * p0], {axis})",
                 "p0.add_(p1)"), layout,
    )  # fmt: skip


def uneven_parts(d: Draft, x: str) -> None:
    """Two parts of literal sizes."""
    layout, axis = d.layouts[x], AXIS[d.layouts[x]]
    first = d.integer(1, d.width(x) - 1)
    d.run(f"p0, p1 = {x}.split([{first}, {d.width(x) - first}], {axis})")
    d.value(d.one_of("p0", "p1", f"torch.cat([p1, F.relu(p0)], {axis})"), layout)


def shuffle(d: Draft, x: str) -> None:
    groups = d.divisor(d.width(x))
    d.value(
        d.one_of(
            f"{x}.view({x}.shape[0], {groups}, {x}.shape[1] // {groups}, *{x}.shape[2:]).transpose(1, 2)"
            f".reshape({x}.shape)",
            f"{x}.view({x}.shape[0], {groups}, -1, {x}.shape[2], {x}.shape[3]).transpose(1, 2).flatten(1, 2)",
            f"{x}.view({x}.shape[0], -1, {groups}, {x}.shape[2], {x}.shape[3]).transpose(1, 2).flatten(1, 2)",
            f"{d.layer('shuffle', f'nn.ChannelShuffle({groups})')}({x})",
            f"{x}.unflatten(1, ({groups}, -1)).flip(1).flatten(1, 2)",
        ),
        IMAGE,
    )


def half_unit(d: Draft, x: str) -> None:
    """A unit of ShuffleNet, perhaps twice."""
    assert d.width(x) > 1
    unit = f"HalfUnit({d.width(x)})"
    first = d.value(f"{d.layer('unit', unit)}({x})", IMAGE)
    if d.one_of(False, True):
        d.value(f"{d.layer('unit', unit)}({first})", IMAGE)


def module_attention(d: Draft, x: str) -> None:
    """Torch's own attention, or one that takes the width of its heads from its input."""
    width, heads = d.width(x), d.divisor(d.width(x))
    own = d.layer("attention", f"Heads(width={width}, heads={heads})")
    torchs = d.layer("attention", f"nn.MultiheadAttention({width}, {heads}, batch_first=True)")
    d.value(d.one_of(f"{own}({x})", f"{torchs}({x}, {x}, {x})[0]", f"torch.cat({torchs}({x}, {x}, {x}), 2)"), TOKENS)


def pixel_shuffle(d: Draft, x: str) -> None:
    up = d.width(x) % 4 == 0 and d.one_of(True, False)
    d.value(f"F.pixel_shuffle({x}, 2)" if up else f"F.pixel_unshuffle({x}, 2)", IMAGE)


def slices(d: Draft, x: str) -> None:
    layout, width = d.layouts[x], d.width(x)
    k = d.integer(1, width)
    form = d.one_of("::2", "1::2", f":{k}", f"{k - 1}:", f"-{k}:", f":-{k}", f"{k // 2}:{k}", f":{width + 2}", "::3")
    name = d.value(f"{x}[..., {form}]" if layout == TOKENS else f"{x}[:, {form}]", layout)
    assert d.width(name) > 0


def reorder(d: Draft, x: str) -> None:
    layout, axis, width = d.layouts[x], AXIS[d.layouts[x]], d.width(x)
    d.value(
        d.one_of(
            f"{x}.flip({axis})",
            f"{x}.select({axis}, {d.integer(-width, width - 1)}).unsqueeze({axis})",
            f"torch.roll({x}, {d.integer(1, 3)}, {axis})",
            f"{x}[:, [{', '.join(str(d.integer(0, width - 1)) for _ in range(2))}]]",
            f"{x}.index_select({axis}, torch.arange({width}).flip(0))",
            f"{x}.repeat({'1, 1, 2' if layout == TOKENS else ', '.join(['1', '2', *['1'] * (d[x].ndim - 2)])})",
            f"{x}.repeat_interleave(2, {axis})",
        ),
        layout,
    )


def pad(d: Draft, x: str) -> None:
    layout = d.layouts[x]
    before, after, value = d.integer(0, 2), d.integer(0, 2), d.one_of(0, 0, 0.5)
    beside = [0, 0] * {IMAGE: 2, LINE: 1, VOLUME: 3, TOKENS: 0, VECTOR: 0}[layout]
    form = d.one_of(
        f"F.pad({x}, [1, 1], value={value})",
        f"F.pad({x}, {[*beside, before, after]}, value={value})",
        f"F.pad({x}, [1, 1], mode='circular')",
    )
    d.value(form, layout)


def assign(d: Draft, x: str) -> None:
    """Writing into part of a tensor."""
    layout, width = d.layouts[x], d.width(x)
    k = d.integer(1, width)
    at = d.one_of(f":{k}", f"{k - 1}:", "::2", ":")
    at = f"..., {at}" if layout == TOKENS else f":, {at}"
    y = d.pick(layout, like=x, axes=(0, 1, 2, 3, 4))
    name = d.value(
        d.one_of(
            f"{x}.clone()",
            f"torch.zeros_like({x})",
            f"torch.zeros({x}.shape, dtype={x}.dtype)",
            f"torch.ones_like({x})",
        )
    )
    d.run(
        d.one_of(
            f"{name}[{at}] = {y}[{at}]",
            f"{name}[{at}] = 0",
            f"{name}[{at}] += {y}[{at}]",
            f"{name}[{at}] = 1.5",
            f"{name}[{at}].mul_(2)",
            f"{name}[{at}].copy_({y}[{at}])",
            f"{name}[{at}].relu_()",
        )
    )
    d.layouts[name] = layout


# -- movement beside the channels --------------------------------------------------------------------------------------


def pool(d: Draft, x: str) -> None:
    dims = {LINE: 1, IMAGE: 2, VOLUME: 3}[d.layouts[x]]
    name = d.one_of(
        f"F.max_pool{dims}d({x}, 2)", f"F.avg_pool{dims}d({x}, 2)", f"F.adaptive_avg_pool{dims}d({x}, 2)",
        f"F.adaptive_max_pool{dims}d({x}, 1)", f"F.max_pool{dims}d({x}, 3, 1, 1)",
        f"F.avg_pool{dims}d({x}, 3, 1, 1)",
    )  # fmt: skip
    d.value(name, d.layouts[x])


def resize(d: Draft, x: str) -> None:
    y = d.pick(IMAGE)
    d.value(
        d.one_of(
            f"F.interpolate({x}, scale_factor=2)",
            f"F.interpolate({x}, size=(3, 3), mode='bilinear')",
            f"F.interpolate({x}, size={y}.shape[2:])",
            f"F.interpolate({x}, size={y}.shape[-2:], mode='bilinear', align_corners=True)",
        ),
        IMAGE,
    )


def beside(d: Draft, x: str) -> None:
    """Images moved along height and width."""
    d.value(
        d.one_of(
            f"{x}.transpose(2, 3)", f"{x}.flip(3)", f"torch.roll({x}, (1, 1), (2, 3))", f"{x}[:, :, ::2, ::2]",
            f"{x}[..., 1:]", f"{x}.contiguous(memory_format=torch.channels_last)", f"{x}.permute(0, 1, 3, 2)",
            f"torch.cat([{x}, {x}], 2)", f"{x}.squeeze().reshape({x}.shape)", f"{x}.mT",
        ),
        IMAGE,
    )  # fmt: skip


def to_tokens(d: Draft, x: str) -> None:
    d.value(
        d.one_of(
            f"{x}.flatten(2).transpose(1, 2)",
            f"{x}.permute(0, 2, 3, 1).flatten(1, 2)",
            f"{x}.reshape({x}.shape[0], {x}.shape[1], -1).permute(0, 2, 1)",
            f"{x}.view({x}.shape[0], {d.width(x)}, -1).mT",
        ),
        TOKENS,
    )


def to_image(d: Draft, x: str) -> None:
    length = d[x].shape[1]
    height = d.divisor(length)
    d.value(
        d.one_of(
            f"{x}.transpose(1, 2).reshape({x}.shape[0], {x}.shape[2], {height}, {length // height})",
            f"{x}.transpose(1, 2).unflatten(2, ({height}, -1))",
            f"{x}.mT.reshape({x}.shape[0], -1, {height}, {length // height})",
        ),
        IMAGE,
    )


def to_line(d: Draft, x: str) -> None:
    d.value(d.one_of(f"{x}.flatten(2)", f"{x}.mean(3)", f"{x}.view(*{x}.shape[:2], -1)"), LINE)


def line_to_image(d: Draft, x: str) -> None:
    d.value(d.one_of(f"{x}.unsqueeze(2)", f"{x}[:, :, None]", f"{x}.unflatten(2, (-1, 2))"), IMAGE)


def to_volume(d: Draft, x: str) -> None:
    y = d.pick(IMAGE, like=x)
    d.value(d.one_of(f"torch.stack([{x}, {y}], 2)", f"{x}.unflatten(2, (2, -1))"), VOLUME)


def volume_to_image(d: Draft, x: str) -> None:
    d.value(
        d.one_of(f"{x}.flatten(2, 3)", f"{x}.mean(2)", f"{x}[:, :, 0]", f"{x}.flatten(1, 2)", f"{x}.unbind(2)[0]"),
        IMAGE,
    )


def to_vector(d: Draft, x: str) -> None:
    d.value(
        d.one_of(
            f"{x}.mean((2, 3))", f"torch.flatten({x}, 1)", f"{x}.permute(0, 2, 3, 1).flatten(1)",
            f"{x}.reshape({x}.shape[0], -1)", f"{x}.amax((-2, -1))", f"F.adaptive_avg_pool2d({x}, 1)[:, :, 0, 0]",
            f"{x}.view({x}.size(0), {x}[0].numel())",
        ),
        VECTOR,
    )  # fmt: skip


def tokens_to_vector(d: Draft, x: str) -> None:
    d.value(d.one_of(f"{x}.mean(1)", f"{x}[:, 0]", f"{x}.flatten(1)", f"{x}.max(1).values"), VECTOR)


def vector_to_image(d: Draft, x: str) -> None:
    side = 2 if d.width(x) % 4 == 0 else 1
    d.value(
        d.one_of(
            f"{x}[:, :, None, None]",
            f"{x}.view(*{x}.shape, 1, 1).expand(-1, -1, 2, 2)",
            f"{x}.view(-1, {d.width(x) // side**2}, {side}, {side})",
            f"{x}.view({x}.shape[0], -1, {side}, {side})",
        ),
        IMAGE,
    )


# -- products of activations ------------------------------------------------------------------------------------------


def attention(d: Draft, x: str) -> None:
    """Queries, keys and values of their own or fused, one head or several, whose number is literal or an attribute."""
    width, heads = d.width(x), d.one_of(1, 2, 3)
    size = heads * d.integer(1, 4)
    number = d.one_of(str(heads), d.layer("heads", str(heads)))
    bias = d.one_of(True, False)
    if d.one_of(False, True):
        qkv = d.layer("qkv", f"nn.Linear({width}, {3 * size}, bias={bias})")
        split = d.one_of(
            f"reshape({x}.shape[0], {x}.shape[1], 3, {number}, -1).permute(2, 0, 3, 1, 4)",
            f"reshape({x}.shape[0], {x}.shape[1], 3, {number}, {size // heads}).permute(2, 0, 3, 1, 4).unbind(0)",
        )
        d.run(f"q, k, v = {qkv}({x}).{split}")
    else:
        for name in "qkv":
            layer = d.layer(name, f"nn.Linear({width}, {size}, bias={bias})")
            split = d.one_of(
                f"reshape({x}.shape[0], {x}.shape[1], {number}, -1)",
                f"view({x}.shape[0], -1, {number}, {size // heads})",
                f"unflatten(2, (-1, {size // heads}))",
            )
            d.run(f"{name} = {layer}({x}).{split}.transpose(1, 2)")
    attended = d.one_of(
        "(q @ k.transpose(-2, -1)).softmax(-1) @ v",
        "torch.matmul((torch.einsum('bhnc,bhmc->bhnm', q, k) * 0.5).softmax(-1), v)",
        "(q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v",
        "F.scaled_dot_product_attention(q, k, v)",
        "F.scaled_dot_product_attention(q, k, v, scale=0.5)",
        "torch.einsum('bhnm,bhmc->bhnc', torch.einsum('bhnc,bhmc->bhnm', q, k).softmax(-1), v)",
        "q @ (k.transpose(-2, -1).softmax(-1) @ v)",
    )
    joined = d.one_of(
        f"transpose(1, 2).reshape({x}.shape[0], {x}.shape[1], -1)",
        "transpose(1, 2).flatten(2)",
        f"transpose(1, 2).reshape({x}.shape[0], {x}.shape[1], {size})",
    )
    d.value(f"({attended}).{joined}", TOKENS)


def products(d: Draft, x: str) -> None:
    """Matrix products and einsums with a parameter, or of tokens with themselves."""
    width, out = d.width(x), d.integer(2, 8)
    weight = d.layer("weight", f"nn.Parameter(torch.randn({out}, {width}))")
    d.value(
        d.one_of(
            f"{x} @ {weight}.t()", f"torch.einsum('bnc,oc->bno', {x}, {weight})", f"F.linear({x}, {weight})",
            f"torch.einsum('bnc,bmc->bnm', {x}, {x})", f"{x} @ {x}.transpose(1, 2) @ {x}", f"{x} @ ({x}.mT @ {x})",
            f"torch.matmul({x}, {weight}.T)", f"F.linear({x}, {weight} * 2)",
        ),
        TOKENS,
    )  # fmt: skip


def image_products(d: Draft, x: str) -> None:
    out = d.integer(2, 8)
    weight = d.layer("weight", f"nn.Parameter(torch.randn({out}, {d.width(x)}))")
    d.value(
        d.one_of(
            f"torch.einsum('bchw,oc->bohw', {x}, {weight})",
            f"F.conv2d({x}, {weight}[:, :, None, None])",
            f"torch.einsum('nchw,ncvw->nchv', {x}, {x})",
            f"torch.einsum('nchw,nc->nchw', {x}, {x}.mean((2, 3)))",
            f"{x} @ {x}.transpose(2, 3)",
        ),
        IMAGE,
    )


MAPS = [convolution, transposed_convolution, batch_norm, instance_norm, group_norm, pool]
ANY = [
    numbers,
    activation,
    combine,
    scale,
    concatenate,
    parts,
    slices,
    pad,
    assign,
    reorder,
    uneven_parts,
    again,
    unknown,
    channel_sum,
]
STEPS: dict[str, list[Callable[[Draft, str], None]]] = {
    IMAGE: [
        *MAPS, *ANY, convolution, convolution, prelu, squeeze_excite, tied, unused, pointwise_linear, stack, shuffle,
        pixel_shuffle, resize, beside, to_tokens, to_vector, to_line, to_volume, image_products, half_unit,
    ],
    LINE: [*MAPS, *ANY, prelu, line_to_image],
    VOLUME: [*MAPS, *ANY, prelu, volume_to_image],
    TOKENS: [
        linear, linear, *ANY, layer_norm, attention, attention, module_attention, products, to_image, tokens_to_vector,
    ],
    VECTOR: [linear, linear, *ANY, batch_norm, prelu, vector_to_image],
}  # fmt: skip


@st.composite
def programs(draw: Draw) -> Program:
    """Draw a program: a convolution (or linear layer) on each input, steps, and one to three outputs."""
    d = Draft(draw)
    inputs = draw(st.sampled_from([(IMAGE,), (IMAGE, IMAGE), (TOKENS,), (IMAGE, TOKENS)]))
    for name in [d.input(layout, *((2, 3, 4, 4) if layout == IMAGE else (2, 4, 3))) for layout in inputs]:
        width = d.one_of(8, 6, 12, 4)
        source = f"nn.Conv2d(3, {width}, 3, padding=1)" if d.layouts[name] == IMAGE else f"nn.Linear(3, {width})"
        d.value(f"{d.layer('stem', source)}({name})", d.layouts[name])
    for _ in range(draw(st.integers(1, 10))):
        newest, *older = reversed(d.layouts)
        value = d.one_of(*[newest] * (len(older) + 1), *older)  # half of the steps go on from the last one
        d.step(draw(st.sampled_from(STEPS[d.layouts[value]])), value)
    outputs = [_head(d, name) for name in list(reversed(d.layouts))[: draw(st.integers(1, 3))]]
    returns = outputs[0] if len(outputs) == 1 else d.one_of(f"({', '.join(outputs)})", _as_dict(outputs))
    return Program(tuple(d.layers), tuple(d.lines), tuple(d.inputs), returns, d.channels_last)


def _head(d: Draft, name: str) -> str:
    """A linear layer behind a value, so that its channels are not the model's output; now and then the value itself."""
    if d.one_of(False, False, False, False, True):
        return name
    layout = d.layouts[name]
    flat = (
        f"{name}.flatten(1)"
        if d.one_of(False, True)
        else f"{name}.mean({1 if layout == TOKENS else tuple(range(2, d[name].ndim))})"
    )
    flat = name if layout == VECTOR else flat
    with torch.no_grad():
        width = eval(flat, d.scope).shape[1]
    return f"{d.layer('head', f'nn.Linear({width}, 3)')}({flat})"


def _as_dict(outputs: list[str]) -> str:
    return "{" + ", ".join(f"'y{i}': {output}" for i, output in enumerate(outputs)) + "}"
