"""What each operation does to the labels: one short function a rule, one file a kind of operation.

A rule is called after its operation, with the tracer, the operation's output and the operation's own arguments; it
reads the labels of the inputs, unites or fixes what the operation ties together, and puts labels on the output.
"""

from collections.abc import Iterable, Mapping
from types import ModuleType

from hoyer_export.channels.rule import Function, Rule
from hoyer_export.channels.rules import (
    contraction,
    indexing,
    joining,
    movement,
    normalisation,
    pointwise,
    pooling,
    products,
    reduction,
    reshaping,
    shapes,
    spectral,
)
from hoyer_export.errors import HoyerExportError

MODULES: tuple[ModuleType, ...] = (
    shapes, movement, indexing, reshaping, joining, pointwise, reduction,
    contraction, products, normalisation, pooling, spectral,
)  # fmt: skip
Rules = Mapping[Function, Rule | Function | None] | Iterable[Rule] | Rule
"""Rules of one's own: for each operation a rule (None makes it unknown), or rules that know their operations."""


def rules_of(module: ModuleType) -> list[Rule]:
    """Return the rules that a module defines."""
    found = (value for value in vars(module).values() if isinstance(value, Rule))
    return [rule for rule in found if rule.function.__module__ == module.__name__]


BUILT_IN: Mapping[Function | str, Rule] = {
    operation: rule for module in MODULES for rule in rules_of(module) for operation in rule.operations
}


def rule_table(rules: Rules | None) -> dict[Function | str, Rule | None]:
    """Return the rule of every operation: the given ones before those that are built in.

    Raises:
        HoyerExportError: what was given is no rule, or is a rule of no operation.
    """
    table: dict[Function | str, Rule | None] = dict(BUILT_IN)
    given = rules if isinstance(rules, Mapping) else _by_operation(rules or ())
    for operation, rule in given.items():
        known = callable(operation) or (isinstance(operation, str) and "::" in operation)
        if not known or not (rule is None or callable(rule)):
            raise HoyerExportError(f"rules: expected {{operation: rule}}, got {{{operation!r}: {rule!r}}}")
        table[operation] = rule if rule is None or isinstance(rule, Rule) else Rule(rule)
    return table


def _by_operation(rules: Iterable[Rule] | Rule) -> dict[Function | str, Rule]:
    listed = [*rules] if isinstance(rules, Iterable) else [rules]
    for rule in listed:
        if not isinstance(rule, Rule):
            raise HoyerExportError(
                "rules: expected {operation: rule}, or rules that are decorated with"
                f" @hoyer_export.rules.rule(operation), got {rule!r}"
            )
        if not rule.operations:
            missing = (
                f"torch has no operation called {' or '.join(rule.absent)}" if rule.absent else "a rule of no operation"
            )
            raise HoyerExportError(f"rules: {missing}")
    return {operation: rule for rule in listed for operation in rule.operations}
