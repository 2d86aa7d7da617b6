"""Trace channels: run the model once with labels beside every tensor, and read off what lives or dies together.

Two torch modes watch the run of a copy. A ``TorchFunctionMode`` sees every torch call as the code wrote it and
hands it to the call's rule (``rules/``); a call without a rule makes every channel that enters it unprunable. A
``TorchDispatchMode`` underneath sees tensor operations that did not come through such a call (a scripted function, a
fused kernel) and makes what they touch unprunable too. Unknown never means guessed.
"""

import copy
import gc
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from hoyer_export.channels.attributes import watch_attributes
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.grouping import channel_map
from hoyer_export.channels.labels import Vector
from hoyer_export.channels.rules import READS_SHAPE, RULES, TAKES_SIZES
from hoyer_export.channels.rules.contraction import COUNTED
from hoyer_export.channels.rules.names import functions_named
from hoyer_export.channels.sizes import AttributeSize, plain, sizes_in
from hoyer_export.channels.tracer import AxisLabels, Rule, TensorLabels, Tracer, opaque_in, tensors_in
from hoyer_export.channels.wrappers import check_wrappers
from hoyer_export.errors import NetworkError, one_line
from hoyer_export.random_state import kept_random_state

ExampleInputs = Tensor | tuple[Tensor, ...]
Function = Callable[..., Any]


def trace_channels(
    model: nn.Module, example_inputs: ExampleInputs, *, rules: Mapping[Function, Rule] | None = None
) -> ChannelMap:
    """Find which slices of which parameters live or die together.

    The model runs once, in eval mode and without gradients, on a copy; a second time in training mode if some of its
    modules did not run. The copy has buffers of its own, but reads the model's own parameters: a forward that writes
    into them does so here as anywhere.

    Args:
        model: any ``nn.Module`` that runs eagerly.
        example_inputs: what ``model`` is called with, a tensor or a tuple of tensors, batch first.
        rules: rules for your own operations, e.g. ``{my_op: rule}``; they come before the built-in ones. A rule is
            called as ``rule(tracer, output, *the operation's arguments)``, see ``docs/adding-a-rule.md``.

    Returns:
        The channel groups, what is unprunable and why, and the MACs at any widths.

    Raises:
        NetworkError: the model cannot be copied, fails on the example inputs, or is wrapped, quantised, lazy or
            masked.
    """
    inputs = tuple(tensors_in(example_inputs))
    if not inputs or any(tensor.numel() == 0 for tensor in inputs):
        raise NetworkError("example_inputs must be a tensor or a tuple of tensors with at least one example")
    check_wrappers(model)
    all_rules = {**RULES, **(rules or {})}
    with _uncollected():
        found = _trace(_copied(model), inputs, all_rules, frozenset())
        if found.better:  # the channels of some axis cannot go as the code cuts it, but perhaps another way
            again = _trace(_copied(model), inputs, all_rules, found.better)
            found = max(found, again, key=lambda trace: sum(group.width for group in trace.channels.groups))
    return found.channels


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python's collector of cycles from walking all of torch's objects meanwhile: a quarter of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


_PLAIN_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU)


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode, with buffers of its own; it reads the model's own parameters, which are large."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    try:
        for module in model.modules():
            # deepcopy takes a dozen steps for each of a layer's empty dictionaries: most of its time.
            if type(module) in _PLAIN_LAYERS:
                twin = memo[id(module)] = copy.copy(module)
                for key, value in vars(module).items():
                    if isinstance(value, dict):
                        vars(twin)[key] = copy.deepcopy(value, memo) if value else type(value)()
        return copy.deepcopy(model, memo).eval()
    except Exception as error:
        raise NetworkError(
            f"the network cannot be copied ({one_line(error)}); detach or drop what it caches"
        ) from error


@dataclass(frozen=True)
class _Trace:
    """One traced run.

    Args:
        channels: what it found.
        better: attributes that should rather be followed, because what was to shrink instead cannot.
    """

    channels: ChannelMap
    better: frozenset[str]


def _trace(
    traced: nn.Module, inputs: tuple[Tensor, ...], rules: Mapping[Function, Rule], preferred: frozenset[str]
) -> _Trace:
    """Run a model with labels, once, or twice where some modules run only in training."""
    parameters, buffers = dict(traced.named_parameters()), dict(traced.named_buffers())
    tracer = Tracer(traced, batch_size=inputs[0].shape[0] if inputs[0].ndim else 1)
    tracer.attributes += watch_attributes(traced, lambda attribute: AttributeSize.make(tracer, attribute), preferred)
    calls = _Calls(tracer, rules)
    ran: set[nn.Module] = set()
    with ExitStack() as hooks, torch.no_grad(), kept_random_state():
        for name, module in traced.named_modules():
            _follow(hooks, tracer, ran, name, module)
        try:
            _run(calls, traced, inputs)
        except Exception as error:
            if calls.rule_failed:
                raise
            shown = ", ".join("x".join(map(str, tensor.shape)) for tensor in inputs)
            raise NetworkError(f"the network fails on an input of shape {shown}: {one_line(error)}") from error
        if any(
            module not in ran and any(True for _ in module.parameters(recurse=False)) for module in traced.modules()
        ):
            _run_in_training(calls, traced, inputs)
    for attribute in tracer.attributes:
        attribute.settle(tracer.labels)
    classes = tracer.labels.solve()
    better = {
        attribute.shown
        for attribute in tracer.attributes
        if attribute.declined
        and not attribute.is_literal
        and all((classes.reason_of(labels) >= 0).all() for labels in attribute.declined)
    }
    return _Trace(channel_map(tracer, classes, parameters, buffers), frozenset(better) - preferred)


def _run(calls: "_Calls", traced: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Run the model with labels; what it returns must stay as it is."""
    copies = [tensor.clone() for tensor in inputs]  # a model may write into its input
    for tensor in copies:
        calls.tracer.note_example(tensor)
    with _Watchdog(calls), calls:
        outputs = traced(*copies)
    hidden = next(opaque_in(outputs), None)
    if hidden is not None or not any(True for _ in tensors_in(outputs)):
        shown = type(outputs if hidden is None else hidden).__name__
        raise ValueError(
            f"it returns no tensor that can be found in its {shown}: return tensors, or"
            " tuples, lists, dicts or dataclasses of them"
        )
    for output in tensors_in(outputs):
        calls.tracer.fix_later(output, range(output.ndim), "the model's output")


def _run_in_training(calls: "_Calls", traced: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Run the model once more in training mode, for modules that run only then (auxiliary heads): they are cut too."""
    contractions = list(calls.tracer.contractions)  # MACs are those of the network that is shipped
    try:
        _run(calls, traced.train(), inputs)
    except Exception:
        if calls.rule_failed:
            raise
        # E.g. a batch norm that needs more than one value; what was tied before that stays tied.
    calls.tracer.modules.clear()
    calls.tracer.contractions = contractions


# What makes a row for every example where its first size is the batch.
_ONE_A_ROW = frozenset(functions_named("zeros ones full randn expand repeat broadcast_to", in_place=False))


class _Calls(TorchFunctionMode):
    """Hands every torch call, with its output, to the call's rule."""

    def __init__(self, tracer: Tracer, rules: Mapping[Function, Rule]) -> None:
        super().__init__()
        self.tracer = tracer
        self.rules = rules
        self.running = False
        self.rule_failed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.running = True
        try:
            output = func(*plain(args), **plain(kwargs))
            sizes = sizes_in((args, kwargs))
            if any(size.tracer is not self.tracer for size in sizes):  # out of a cache: a literal
                for size in sizes:
                    size.lose("a size of another trace beside it")
                args, kwargs, sizes = plain(args), plain(kwargs), []
            tensors = list(tensors_in((args, kwargs)))
            for tensor in tensors:
                if is_functorch_wrapped_tensor(tensor):  # a stand-in that carries no labels
                    self.tracer.fix_tensor(_behind(tensor), "code inside `torch.vmap` or another transform")
            if any(map(self.tracer.is_example, tensors)) or (func in _ONE_A_ROW and self._is_batch(output, tensors)):
                for tensor in tensors_in(args[0] if func is Tensor.__setitem__ else output):
                    self.tracer.note_example(tensor)
            known = [tensor for tensor in tensors if self.tracer.is_known(tensor)]
            # A contraction counts MACs also where no channel can go.
            if known or sizes or func in COUNTED:
                return self._apply_rule(func, output, args, kwargs, known, sizes)
            return output
        finally:
            self.running = False

    def _is_batch(self, output: Any, sources: list[Tensor]) -> bool:
        """Return whether a new tensor has a row for every example: a state that begins as zeros, a query repeated."""
        batch = self.tracer.batch_size
        rows = output.shape[0] if isinstance(output, Tensor) and output.ndim else 0
        return batch > 1 and rows == batch and all(source.shape[:1] != (batch,) for source in sources)

    def _apply_rule(self, func: Any, output: Any, args: Any, kwargs: Any, known: list[Tensor], sizes: Any) -> Any:
        rule = self.rules.get(func)
        if rule is not None and (kwargs.get("out") is not None or not _fits(rule, args, kwargs)):
            rule = None
        if rule is None:
            self.tracer.refuse(known, tensors_in(output), f"unknown op `{_name(func)}`")
        if rule is None or func not in TAKES_SIZES:
            args, kwargs = plain(args), plain(kwargs)
        self.tracer.untied = {id(size): size for size in sizes}
        answer = None
        if rule is not None:
            counted = len(self.tracer.contractions)
            before = [(tensor, self.tracer.known_axes(tensor)) for tensor in known]
            declared = self.tracer.labels.declared()
            self.rule_failed = True
            answer = rule(self.tracer, output, *args, **kwargs)
            self.rule_failed = False
            if func not in READS_SHAPE:
                results = list(tensors_in(args[0] if func is Tensor.__setitem__ else output))
                self._fix_forgotten(before, results, declared, func)
            if not any(self.tracer.is_example(tensor) for tensor in tensors_in(output)):
                del self.tracer.contractions[counted:]  # of weights alone: no example pays for it
        for size in list(self.tracer.untied.values()):
            size.lose(f"the number of channels is an argument of `{_name(func)}`")
        return output if answer is None else answer

    def _fix_forgotten(
        self, before: list[tuple[Tensor, TensorLabels]], results: list[Tensor], declared: int, func: Any
    ) -> None:
        """Refuse the channels along an axis of which a rule said nothing: neither where they go nor that they stay."""
        if not results:
            return
        shown = [side.labels for result in results for side in self.tracer.known_axes(result).values()]
        for tensor, axes in before:
            for side in () if self.tracer.is_parameter(tensor) else axes.values():
                if len(side) == 1 or _holds_first(shown, side):
                    continue
                said = [*shown, *self.tracer.labels.declared_since(declared), *self.tracer.summed]
                if not _holds_first(said, side) and not any(np.isin(side.labels, labels).any() for labels in said):
                    self.tracer.fix(side, f"`{_name(func)}` uses it in a way that its rule does not know")


def _holds_first(vectors: list[Vector], side: AxisLabels) -> bool:
    """Return whether the first label of an axis is in one of the vectors: nearly always, and soon found."""
    return any((labels == side.labels[0]).any() for labels in vectors)


def _behind(tensor: Tensor) -> Tensor:
    """Return the tensor that functorch's stand-ins stand for."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


class _Watchdog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes unprunable what tensor operations outside a handled call touch."""

    def __init__(self, calls: _Calls) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = calls

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a wrapper around every operation, for compiled code, of which there is none here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.calls.running:
            for tensor in tensors_in((args, kwargs or {})):
                self.calls.tracer.fix_tensor(tensor, f"opaque code that calls `{func}`")
        return func(*args, **(kwargs or {}))


def _follow(hooks: ExitStack, tracer: Tracer, ran: set[nn.Module], name: str, module: nn.Module) -> None:
    """Keep the stack of running modules while ``module`` runs."""

    def enter(module: nn.Module, args: Any) -> None:
        ran.add(module)
        tracer.modules.append((name, module))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        tracer.modules.pop()

    if not isinstance(module, torch.jit.ScriptModule):
        hooks.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
        hooks.callback(module.register_forward_hook(leave).remove)


def _fits(rule: Rule, args: Any, kwargs: Any) -> bool:
    """Return whether the rule knows this form of the call: torch has overloads that it may not."""
    return _takes(rule, len(args), tuple(kwargs))


@cache
def _takes(rule: Rule, positional: int, names: tuple[str, ...]) -> bool:
    try:
        inspect.signature(rule).bind(None, None, *[None] * positional, **dict.fromkeys(names))
    except TypeError:
        return False
    return True


def _name(func: Any) -> str:
    return str(resolve_name(func) or getattr(func, "__name__", func)).removeprefix("torch.")
