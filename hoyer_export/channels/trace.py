"""Trace channels: run the model once with labels beside every tensor, and read off what lives or dies together.

A torch mode sees every torch call of the run as the code wrote it and hands it to the call's rule (``rules/``); a call
without a rule makes every channel that enters it unprunable, and so does code that no mode sees. Unknown never means
guessed.
"""

import copy
import gc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from hoyer_export.call import Call, ExampleInputs, ExampleKwargs
from hoyer_export.channels.attributes import Attribute, Sides, follow_unread, watch_attributes
from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.grouping import channel_map
from hoyer_export.channels.labels import Tracer
from hoyer_export.channels.layer_sizes import layer_sizes
from hoyer_export.channels.lending import lend, settle_loans
from hoyer_export.channels.modes import RuleMode, watchdog
from hoyer_export.channels.positions import returned
from hoyer_export.channels.rule import Function, Rule
from hoyer_export.channels.rules import Rules, rule_table
from hoyer_export.channels.sizes import AttributeSize, WeightSize
from hoyer_export.channels.union_find import Vector
from hoyer_export.channels.wrappers import check_wrappers
from hoyer_export.errors import HoyerExportError, NetworkError, one_line
from hoyer_export.modules.equal import stand_in_
from hoyer_export.random_state import kept_random_state
from hoyer_export.tensors import hidden_in, tensors_in


def trace_channels(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    example_kwargs: ExampleKwargs | None = None,
    rules: Rules | None = None,
) -> ChannelMap:
    """Find which slices of which parameters live or die together.

    The model runs once, in eval mode and without gradients, on a copy; a second time in training mode if some of its
    modules took no part. The copy has buffers of its own, but reads the model's own parameters: a forward that writes
    into them does so here as anywhere.

    Args:
        model: any ``nn.Module`` that runs eagerly.
        example_inputs: what ``model`` is called with, batch first: a tensor or anything else that is one argument, a
            tuple of arguments, or a dict of arguments by name. Tensors may lie in nested lists and dicts; numbers and
            flags stay as they are.
        example_kwargs: further arguments by name.
        rules: rules for your own operations: made with ``@hx.rules.rule(my_op)``, one or several, or a mapping
            ``{my_op: rule}``. They come before the built-in ones; see ``docs/adding-a-rule.md``.

    Returns:
        The channel groups, what is unprunable and why, and the MACs at any widths.

    Raises:
        NetworkError: the model cannot be copied, fails on the example inputs, or is wrapped, quantised, lazy or
            masked.
        HoyerExportError: ``rules`` holds something that is no rule, or one that fails.
    """
    check_wrappers(model)
    call = Call.of(model, example_inputs, example_kwargs)
    if not call.tensors or call.tensors[0].numel() == 0:
        raise NetworkError("example_inputs must hold a tensor, the first one with at least one example")
    table = rule_table(rules)
    with _uncollected(), _blamed_on(rules):
        found = _trace(_copied(model), call, table, {})
        if found.better:  # the channels of some axis cannot go as the code cuts it, but perhaps another way
            again = _trace(_copied(model), call, table, found.better)
            found = max(found, again, key=lambda trace: sum(group.width for group in trace.channels.groups))
    return found.channels


@contextmanager
def _blamed_on(rules: Rules | None) -> Iterator[None]:
    """Say that rules of one's own may be why tracing fails, where it fails without a word: with ours, it is our bug."""
    try:
        yield
    except Exception as error:
        if not rules or isinstance(error, HoyerExportError):
            raise
        raise HoyerExportError(
            f"rules: tracing with yours fails ({one_line(error, typed=True)}); look at the labels that they unite, fix"
            " and put on outputs"
        ) from error


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


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode, with buffers of its own; it reads the model's own parameters, which are large."""
    plain = [parameter for parameter in model.parameters() if type(parameter) is nn.Parameter]
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in plain}
    try:
        copied = copy.deepcopy(model, memo).eval()
    except Exception as error:
        raise NetworkError(
            f"the network cannot be copied ({one_line(error)}); detach or drop what it caches, or run it once under"
            " torch.no_grad()"
        ) from error
    stand_in_(copied)
    return copied


class _Trace(NamedTuple):
    """What one run found, and attributes to follow (True) or to leave (False), as what was to shrink instead cannot."""

    channels: ChannelMap
    better: dict[str, bool]


def _of_another_type(network: nn.Module, call: Call) -> str:
    """Return the way out where weights and inputs are floats of different types; nothing else."""
    weights = {it.dtype for it in network.parameters() if it.is_floating_point()}
    inputs = {it.dtype for it in call.tensors if it.is_floating_point()}
    if not weights or inputs <= weights:
        return ""
    ours, given = (", ".join(sorted(str(it).removeprefix("torch.") for it in of)) for of in (weights, inputs))
    return f"; its weights are {ours}, the inputs {given}: give it as model.float(), and float32 inputs"


def _trace(
    traced: nn.Module, call: Call, rules: Mapping[Function | str, Rule | None], followed: Mapping[str, bool]
) -> _Trace:
    """Run a model with labels, once, or twice where some modules run only in training."""
    tracer = Tracer(traced, batch_size=call.batch_size)

    def watched(attribute: Attribute) -> int:
        attribute.is_preferred = followed.get(attribute.shown, False)
        attribute.is_fixed = not followed.get(attribute.shown, True)
        return attribute.dense if attribute.is_fixed else AttributeSize.make(tracer, attribute)

    for module in traced.modules():
        stated = ((name, size) for name, size in layer_sizes(module) if vars(module).get(name) == int(size) > 1)
        vars(module).update((name, WeightSize.of(tracer, size)) for name, size in stated)
    attributes = list(watch_attributes(traced, watched))
    calls = RuleMode(tracer, rules)
    ran: set[nn.Module] = set()
    seen: dict[str, Sides] = {attribute.module: ([], []) for attribute in attributes}
    with ExitStack() as hooks, torch.no_grad(), kept_random_state():
        for name, module in traced.named_modules():
            _follow(hooks, tracer, ran, name, module, seen.get(name))
        try:
            _run(calls, traced, call)
        except Exception as error:
            if calls.rule_failed:
                raise
            why = f"{one_line(error)}{_of_another_type(traced, call)}"
            raise NetworkError(f"the network fails on an input of shape {call.shapes}: {why}") from error
        left = (module for module in traced.modules() if module not in ran)
        if any(not tracer.known_axes(x) for module in left for x in module.parameters(recurse=False)):
            _run_in_training(calls, traced, call)
    settle_loans(tracer)
    for attribute in attributes:
        attribute.declare(tracer.union_find)
    components = tracer.union_find.solve()
    for attribute in attributes:
        follow_unread(attribute, seen, tracer.union_find, components)
    better = {}
    for attribute in attributes:
        passed_over = [] if attribute.is_fixed else attribute.passed_over
        for axes, is_followed in ((attribute.divided, False), (passed_over, True)):
            if axes and all((components.reason_of(labels) >= 0).all() for labels in axes):
                better[attribute.shown] = is_followed
    return _Trace(channel_map(tracer, attributes, components, traced), better)


def _run(calls: RuleMode, traced: nn.Module, call: Call) -> None:
    """Run the model with labels; what it returns must stay as it is."""
    copies = call.map(torch.clone)  # a model may write into its input
    for tensor in copies.tensors:
        calls.tracer.note_example(tensor)
    with watchdog(calls), calls:
        outputs = traced(*copies.args, **copies.kwargs)
    hidden = hidden_in(outputs)
    if hidden is not None or not any(True for _ in tensors_in(outputs)):
        shown = type(outputs if hidden is None else hidden).__name__
        raise ValueError(
            f"it returns no tensor that can be found in its {shown}: return tensors, or"
            " tuples, lists, dicts or dataclasses of them"
        )
    for output in tensors_in(outputs):
        calls.tracer.fix(output, "the model's output", dims=range(output.ndim))


def _run_in_training(calls: RuleMode, traced: nn.Module, call: Call) -> None:
    """Run the model once more in training mode, for modules that run only then (auxiliary heads): they are cut too."""
    contractions = list(calls.tracer.contractions)  # MACs are those of the network that is shipped
    try:
        _run(calls, traced.train(), call)
    except Exception:
        if calls.rule_failed:
            raise
        # E.g. a batch norm that needs more than one value; what was tied before that stays tied.
    calls.tracer.modules.clear()
    calls.tracer.contractions = contractions


def _follow(
    hooks: ExitStack, tracer: Tracer, ran: set[nn.Module], name: str, module: nn.Module, seen: Sides | None
) -> None:
    """Keep the stack of running modules while ``module`` runs, and what it is given and returns where that is asked."""

    def look(value: Any, axes: list[Vector]) -> None:
        seen = (tensor for tensor in tensors_in(value) if not tracer.is_waiting(tensor))  # to look is no use of it
        axes += [side.labels for tensor in seen for side in tracer.known_axes(tensor).values()]

    def enter(module: nn.Module, args: Any) -> Any:
        ran.add(module)
        tracer.modules.append((name, module))
        if seen is not None:
            look(args, seen[0])
        return lend(tracer, name, module, args)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        tracer.modules.pop()
        returned(tracer, name, output)
        if seen is not None:
            look(output, seen[1])

    if not isinstance(module, torch.jit.ScriptModule):
        hooks.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
        hooks.callback(module.register_forward_hook(leave).remove)
