"""What one needs to teach the tracer an operation: ``@hx.rules.rule(my_op)``; see ``docs/adding-a-rule.md``."""

from hoyer_export.channels.labels import AxisLabels, TensorLabels, Tracer
from hoyer_export.channels.rule import Rule, rule
from hoyer_export.channels.rules import BUILT_IN, Rules, rule_table
from hoyer_export.channels.rules.movement import move, moved
from hoyer_export.channels.rules.pointwise import elementwise, elementwise_with_poles, put, unite_operands

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
