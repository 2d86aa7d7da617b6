"""Every rule, and every tie and refusal in the rules, is needed: without it some tiny network is cut wrongly.

*Call sites* are the places in the code that tie channels together or refuse them. They are found in the source; each
in turn is made to do nothing, and the networks that pass through it are traced and cut again, a share drawn for each
group. Some cut must fail: refused because the outputs differ, or broken.
"""

import ast
import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import networks
import pytest
import rule_networks
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import hoyer_export.channels
from hoyer_export.channels import modes
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.rules import MODULES, rules_of
from hoyer_export.channels.sizes import AttributeSize, AxisSize
from hoyer_export.channels.trace import trace_channels
from hoyer_export.channels.union_find import UnionFind
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.zero import zero_

FOLDER = Path(hoyer_export.channels.__file__).parent
FILES = [
    *sorted((FOLDER / "rules").glob("*.py")),
    *(FOLDER / f"{name}.py" for name in ("sizes", "attributes", "trace", "modes", "positions", "lending")),
]
CONSTRAINTS = {"unite", "unite_blocks", "unite_runs", "tie", "keep_divisible", "fix", "_fixed", "_fix_unknown"}
# Where every constraint ends up.
PRIMITIVES: dict[type, tuple[str, ...]] = {
    UnionFind: ("unite", "fix", "tie", "keep_divisible"),
    AxisSize: ("tie", "fix"),
    AttributeSize: ("tie", "fix"),
}
SEEDS = range(3)
# Not needed for a right cut, as something else refuses the same channels: these say why in better words.
SAYS_WHY = {
    # An axis of length one holds the only channel of its group.
    'tracer.fix(tracer.axis(x, axis), "one channel that is spread over many")',
    'tracer.fix(tracer.axis(operand, mine), "one channel that is spread over many")',
    # What the watchdog calls comes by once more, as an unknown op.
    'calls.tracer.fix(tensor, f"opaque code that calls `{func}`")',
    # What an unknown op returns has one label along an axis: whatever meets it is the only channel of its group.
    "self.tracer.fix(tensor, reason, dims=axes)",
    "shapes.length",
    "products.multi_head_attention",
    "contraction.recurrent",
}
# No operation that has a rule gets here; they wait for one that does.
UNREACHED = {
    'tracer.fix(side, "moved so that channels do not stay apart")',
    # What an earlier cut has left, and a module that takes inputs of several widths in layers of one.
    'tracer.fix(lent.side, "a module gets a narrower input, and now reads it")',
    'tracer.fix(lent.side, "the width of one of several inputs of a module")',
    # Both have a test of their own in test_trace.py.
    'size.fix("a size of another trace beside it")',
    'self.tracer.fix(side, f"`{_name(func)}` uses it in a way that its rule does not know")',
}

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{wiring.__name__: wiring for wiring in networks.WIRINGS},
    **rule_networks.NETWORKS,
}


@dataclass(frozen=True)
class Site:
    """A call that constrains channels."""

    path: str
    line: int
    last_line: int
    code: str

    def __str__(self) -> str:
        return f"{Path(self.path).name}:{self.line} {self.code}"


def call_sites() -> list[Site]:
    sites = {}
    for file in FILES:
        source = file.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CONSTRAINTS:
                code = source.splitlines()[node.lineno - 1].strip()
                if code.startswith("super()"):
                    continue
                assert node.end_lineno is not None
                sites[file, node.lineno] = Site(str(file), node.lineno, node.end_lineno, code)
    return list(sites.values())


SITES = call_sites()
_SITE_AT = {(site.path, line): site for site in SITES for line in range(site.line, site.last_line + 1)}


@dataclass(eq=False)
class Saboteur:
    """Sees every constraint on its way to the union-find, and loses those that pass through one call site."""

    disabled: Site | None = None
    seen: set[Site] = field(default_factory=set)

    def loses(self) -> bool:
        sites = set(_passed(sys._getframe(2)))
        self.seen |= sites
        return self.disabled in sites


def _passed(frame: FrameType | None) -> Iterator[Site]:
    for _ in range(15):
        if frame is None:
            return
        if site := _SITE_AT.get((frame.f_code.co_filename, frame.f_lineno)):
            yield site
        frame = frame.f_back


@pytest.fixture(scope="module")
def saboteur() -> Iterator[Saboteur]:
    found = Saboteur()
    with pytest.MonkeyPatch.context() as patch:
        for owner, names in PRIMITIVES.items():
            for name in names:
                patch.setattr(owner, name, _sabotaged(found, getattr(owner, name)))
        # What catches axes that a rule forgets would catch most of what is taken away here.
        patch.setattr(modes.RuleMode, "_fix_forgotten", lambda *arguments: None)
        yield found


def _sabotaged(saboteur: Saboteur, method: Callable[..., None]) -> Callable[..., None]:
    def wrapper(*arguments: Any, **options: Any) -> None:
        if not saboteur.loses():
            method(*arguments, **options)

    return wrapper


@cache
def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    return networks.perturbed(model), torch.randn(getattr(model, "example_shape", (2, 3, 16, 16)))


def cut_at_random(model: nn.Module, image: Tensor, channels: ChannelMap, seed: int) -> None:
    """Zero and cut a share drawn for each group; raise unless the outputs agree."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in channels.groups:
        order = torch.randperm(group.width, generator=generator)
        left = int(torch.randint(1, group.width, (), generator=generator))
        keep[group.name] = order[:left].sort().values
    zeroed = copy.deepcopy(model)
    zero_(zeroed, channels, keep)
    cut(zeroed, channels, keep, image)


@dataclass(frozen=True)
class Trace:
    """A network's channels, the call sites that tracing it passed, and the operations that it calls."""

    channels: ChannelMap
    sites: set[Site]
    operations: set[Any]


@pytest.fixture(scope="module")
def traces(saboteur: Saboteur) -> dict[str, Trace]:
    """The networks that are cut exactly with all constraints; that all are is a test of its own."""
    found = {}
    for name in NETWORKS:
        saboteur.disabled, saboteur.seen = None, set()
        with suppress(Exception):
            model, image = built(name)
            channels = trace_channels(model, image)
            found[name] = Trace(channels, saboteur.seen, operations_of(model, image))
            for seed in SEEDS:
                cut_at_random(model, image, channels, seed)
    return found


def operations_of(model: nn.Module, image: Tensor) -> set[Any]:
    called = set()

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(getattr(func, "_qualified_op_name", func))
            return func(*args, **(kwargs or {}))

    with Recorder():
        model(image.clone())
    return called


@pytest.mark.parametrize("name", rule_networks.NETWORKS)
def test_every_network_is_cut_exactly(name: str) -> None:
    model, image = built(name)
    cut_at_random(model, image, trace_channels(model, image), seed=0)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_without_a_constraint_some_network_is_cut_wrongly(
    site: Site, saboteur: Saboteur, traces: dict[str, Trace]
) -> None:
    saboteur.disabled = site
    look = says_else if site.code in SAYS_WHY else is_wrong
    seen = any(look(name, traced.channels) for name, traced in traces.items() if site in traced.sites)
    assert seen != (site.code in UNREACHED)


def is_wrong(name: str, before: ChannelMap) -> bool:
    """Return whether a network now is cut wrongly, offers less, or cannot be traced."""
    model, image = built(name)
    try:
        channels = trace_channels(model, image)
        if what_is_cut(channels) != what_is_cut(before):
            for seed in SEEDS:
                cut_at_random(model, image, channels, seed)
    except Exception:
        return True
    return width(channels) < width(before)


def what_is_cut(channels: ChannelMap) -> tuple[Any, ...]:
    return channels.groups, channels.attributes, channels.shuffles, channels.lendings


def says_else(name: str, before: ChannelMap) -> bool:
    """Return whether other reasons are given now."""
    return reasons(trace_channels(*built(name))) != reasons(before)


OPERATIONS = {
    f"{module.__name__.rpartition('.')[2]}.{rule.function.__name__}": rule.operations
    for module in MODULES
    for rule in rules_of(module)
}


@pytest.mark.parametrize("rule", OPERATIONS)
def test_without_a_rule_some_network_offers_less(rule: str, saboteur: Saboteur, traces: dict[str, Trace]) -> None:
    saboteur.disabled = None
    unknown: Any = dict.fromkeys(OPERATIONS[rule])
    for name, traced in traces.items():
        if traced.operations.isdisjoint(unknown):
            continue
        without = trace_channels(*built(name), rules=unknown)
        if width(without) < width(traced.channels) or (rule in SAYS_WHY and says_else(name, without)):
            return
    pytest.fail("no network needs it")


def width(channels: ChannelMap) -> int:
    return sum(group.width for group in channels.groups)


def reasons(channels: ChannelMap) -> set[str]:
    return {found.reason for found in channels.unprunable}
