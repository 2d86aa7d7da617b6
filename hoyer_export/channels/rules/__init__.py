"""What each operation does to the labels: one short function a rule, one file a kind of operation.

A rule is called after its operation, with the tracer, the operation's output and the operation's own arguments; it
reads the labels of the inputs, unites or fixes what the operation ties together, and puts labels on the output.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hoyer_export.channels.rules import (
    contraction,
    indexing,
    joining,
    movement,
    normalisation,
    pointwise,
    pooling,
    reduction,
    reshaping,
    shapes,
    spectral,
)
from hoyer_export.channels.tracer import Rule

RULES: Mapping[Callable[..., Any], Rule] = {
    **shapes.RULES,
    **movement.RULES,
    **indexing.RULES,
    **reshaping.RULES,
    **joining.RULES,
    **pointwise.RULES,
    **reduction.RULES,
    **contraction.RULES,
    **normalisation.RULES,
    **pooling.RULES,
    **spectral.RULES,
}
# What is asked of a tensor here is its shape, type or place, not what it holds.
READS_SHAPE = shapes.READS_SHAPE
# These rules read sizes that remember where they came from; to the others a size is a plain number that must stay.
TAKES_SIZES = (
    indexing.TAKES_SIZES | reshaping.TAKES_SIZES | joining.TAKES_SIZES | normalisation.TAKES_SIZES | shapes.TAKES_SIZES
)
