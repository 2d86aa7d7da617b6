"""Two torch modes that watch a model run: one hands every call to its rule, the other sees what came by no call."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode, resolve_name

from hoyer_export.channels.labels import AxisLabels, TensorLabels, Tracer
from hoyer_export.channels.rule import Function, Rule
from hoyer_export.channels.rules import BUILT_IN
from hoyer_export.channels.sizes import Size, plain
from hoyer_export.channels.union_find import Vector
from hoyer_export.errors import HoyerExportError, one_line
from hoyer_export.operations import Watched
from hoyer_export.tensors import tensors_in

_NO_RULE = Rule(lambda *_: None)


class RuleMode(TorchFunctionMode):
    """Hands every torch call, with its output, to the call's rule."""

    def __init__(self, tracer: Tracer, rules: Mapping[Function | str, Rule | None]) -> None:
        super().__init__()
        self.tracer = tracer
        self.rules = rules
        self.running = False
        self.rule_failed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sizes: list[Size] = []
        given, plainly = (args, kwargs or {}), (plain(args, sizes), plain(kwargs or {}, sizes))
        self.running = True
        try:
            output = func(*plainly[0], **plainly[1])
            if any(size.tracer is not self.tracer for size in sizes):  # out of a cache: a literal
                for size in sizes:
                    size.fix("a size of another trace beside it")
                given, sizes = plainly, []
            tensors = list(tensors_in(plainly))
            for tensor in tensors:
                if is_functorch_wrapped_tensor(tensor):  # a stand-in that carries no labels
                    self.tracer.fix(_behind(tensor), "code inside `torch.vmap` or another transform")
            rule = _found(self.rules, func) or _NO_RULE
            results = list(tensors_in(plainly[0][0] if func is Tensor.__setitem__ else output))
            if any(map(self.tracer.is_example, tensors)) or (rule.makes_rows and self._is_batch(output, tensors)):
                for tensor in results:
                    self.tracer.note_example(tensor)
            for tensor in tensors:
                if not (
                    (rule.keeps_spread and tensor in self.tracer.spreads) or (rule.asks and tensor in self.tracer.lent)
                ):
                    self.tracer.use(tensor)
            known = [tensor for tensor in tensors if self.tracer.is_known(tensor)]
            answer = None
            if known or sizes or rule.counts:
                self.tracer.untied = {id(size): size for size in sizes}
                if rule is _NO_RULE or plainly[1].get("out") is not None or not rule.fits(len(args), tuple(plainly[1])):
                    self._fix_unknown(known, results, f"unknown op `{_name(func)}`")
                else:
                    answer = self._apply(rule, func, output, given if rule.takes_sizes else plainly, known, results)
                for size in list(self.tracer.untied.values()):
                    size.fix(f"the number of channels is an argument of `{_name(func)}`")
            return output if answer is None else answer
        finally:
            self.running = False

    def _is_batch(self, output: Any, sources: list[Tensor]) -> bool:
        """Return whether a new tensor has a row for every example: a state that begins as zeros, a query repeated."""
        batch = self.tracer.batch_size
        rows = output.shape[0] if isinstance(output, Tensor) and output.ndim else 0
        return batch > 1 and rows == batch and all(source.shape[:1] != (batch,) for source in sources)

    def _fix_unknown(self, inputs: list[Tensor], results: list[Tensor], reason: str) -> None:
        """Fix every channel that enters an operation without a rule, and those that meet what it returns."""
        lengths: set[int] = set()
        for tensor in inputs:
            self.tracer.fix(tensor, reason)
            lengths.update(len(axis) for axis in self.tracer.axes(tensor).values())
        for tensor in results:
            if not self.tracer.is_known(tensor):
                new = self.tracer.union_find.new_for_none
                axes = {a: AxisLabels(new(size), None) for a, size in enumerate(tensor.shape) if size in lengths}
                self.tracer.put(tensor, axes)
                self.tracer.fix(tensor, reason, dims=axes)

    def _apply(
        self, rule: Rule, func: Any, output: Any, arguments: tuple[Any, Any], known: list[Tensor], results: list[Tensor]
    ) -> Any:
        """Call the rule; fix what it says nothing of, and count no MACs that no example pays for."""
        counted = len(self.tracer.contractions)
        spreads = self.tracer.spreads
        before = [(tensor, self.tracer.known_axes(tensor)) for tensor in known if tensor not in spreads]
        declared = len(self.tracer.union_find.declared)
        self.tracer.operation = func
        self.rule_failed = True
        try:
            answer = rule.function(self.tracer, output, *arguments[0], **arguments[1])
            if _found(BUILT_IN, func) is not rule:
                self._check_axes(results)
        except Exception as error:
            if _found(BUILT_IN, func) is rule:  # a bug of ours
                raise
            raise HoyerExportError(
                f"rules: your rule of `{_name(func)}` fails, called as rule(tracer, output, *arguments):"
                f" {one_line(error, typed=True)}"
            ) from error
        self.rule_failed = False
        if results and not rule.reads_shape and not any(map(self.tracer.is_waiting, results)):
            self._fix_forgotten(before, results, declared, func)
        if not any(map(self.tracer.is_example, results)):
            del self.tracer.contractions[counted:]
        return answer

    def _check_axes(self, results: list[Tensor]) -> None:
        """Raise ValueError unless labels that somebody's rule put on tensors are as long as the axes."""
        for tensor in results:
            for axis, side in self.tracer.known_axes(tensor).items():
                if not isinstance(side, AxisLabels) or [len(side)] != [*tensor.shape[axis : axis + 1]]:
                    said = f"{len(side)} labels" if isinstance(side, AxisLabels) else f"a {type(side).__name__}"
                    raise ValueError(f"it puts {said} on axis {axis} of an output of shape {list(tensor.shape)}")

    def _fix_forgotten(
        self, before: list[tuple[Tensor, TensorLabels]], results: list[Tensor], declared: int, func: Any
    ) -> None:
        """Fix the channels along an axis of which a rule said nothing: neither where they go nor that they stay."""
        shown = [side.labels for result in results for side in self.tracer.known_axes(result).values()]
        for tensor, axes in before:
            for side in () if self.tracer.is_parameter(tensor) else axes.values():
                if len(side) == 1 or _holds_first(shown, side):
                    continue
                said = [*shown, *self.tracer.union_find.declared[declared:], *self.tracer.summed]
                if not _holds_first(said, side) and not any(np.isin(side.labels, labels).any() for labels in said):
                    self.tracer.fix(side, f"`{_name(func)}` uses it in a way that its rule does not know")


def watchdog(calls: RuleMode) -> Watched:
    """Fix what tensor operations outside a handled call touch: those of a scripted function, or a fused kernel."""

    def see(func: Any, args: Any, kwargs: Any) -> Any:
        if not calls.running:
            for tensor in tensors_in((args, kwargs)):
                calls.tracer.fix(tensor, f"opaque code that calls `{func}`")
        return func(*args, **kwargs)

    return Watched(see)


def _holds_first(vectors: list[Vector], side: AxisLabels) -> bool:
    """Return whether the first label of an axis is in one of the vectors: nearly always, and soon found."""
    return any((labels == side.labels[0]).any() for labels in vectors)


def _found(table: Mapping[Function | str, Any], func: Any) -> Any:
    """Return the rule of an operation; those of other libraries go by their names."""
    return table.get(func, table.get(getattr(func, "_qualified_op_name", "")))


def _behind(tensor: Tensor) -> Tensor:
    """Return the tensor that functorch's stand-ins stand for."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def _name(func: Any) -> str:
    return str(resolve_name(func) or getattr(func, "__name__", func)).removeprefix("torch.")
