"""What each operation does to the labels: one short function a rule, one file a kind of operation.

A rule is called after its operation, with the tracer, the operation's output and the operation's own arguments; it
reads the labels of the inputs, unites or fixes what the operation ties together, and puts labels on the output.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hoyer_export.channels.rules import contraction, movement, normalisation, pointwise, pooling, shapes
from hoyer_export.channels.tracer import Rule

RULES: Mapping[Callable[..., Any], Rule] = {
    **shapes.RULES,
    **movement.RULES,
    **pointwise.RULES,
    **contraction.RULES,
    **normalisation.RULES,
    **pooling.RULES,
}
