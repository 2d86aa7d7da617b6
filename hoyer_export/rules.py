"""What one needs to teach the tracer an operation: ``@hx.rules.rule(my_op)``; see ``docs/adding-a-rule.md``."""

from collections.abc import Sequence
from typing import cast

from hoyer_export.channels.labels import AxisLabels, TensorLabels, Tracer
from hoyer_export.channels.rule import Rule, rule
from hoyer_export.channels.rules import BUILT_IN, Rules, rule_table
from hoyer_export.channels.rules.movement import move, moved
from hoyer_export.channels.rules.pointwise import elementwise, elementwise_with_poles, put, unite_operands
from hoyer_export.errors import RecipeError
from hoyer_export.foreign import imported


def load_rules(text: str, allow_import: Sequence[str]) -> Rules:
    """Return the rules that ``package.module:RULES`` names, after ``rule_table`` has looked at them.

    Args:
        text: the name of {operation: rule}, of rules, or of one rule.
        allow_import: packages that may be imported; each stands for its subpackages too.

    Raises:
        HoyerExportError: it is no such name, not allowed, cannot be imported, or names no rules.
    """
    rules = cast(Rules, imported(text, allow_import, "rules", RecipeError))
    rule_table(rules)
    return rules


__all__ = [
    "BUILT_IN",
    "AxisLabels",
    "Rule",
    "Rules",
    "TensorLabels",
    "Tracer",
    "elementwise",
    "elementwise_with_poles",
    "move",
    "moved",
    "put",
    "rule",
    "rule_table",
    "unite_operands",
]
