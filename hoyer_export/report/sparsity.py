"""Single weights that are not zero, in words: of a network from which no channel went."""

from collections.abc import Sequence

from hoyer_export.report.number_format import exact, percent
from hoyer_export.report.stage_records import LayerWeights

NO_FASTER = (
    "the zeros are stored and multiplied like all other numbers: a dense runtime is not faster by them, and the file is"
    " not smaller"
)


def nonzero_share(layers: Sequence[LayerWeights]) -> float:
    """Return which share of all these weights is not zero."""
    return sum(it.nonzero for it in layers) / max(1, sum(it.weights for it in layers))


def weights_words(layers: Sequence[LayerWeights]) -> str:
    """Return how many are left, e.g. ``4,259 of 266,200 weights (1.60 %) are not zero``."""
    left, whole = sum(it.nonzero for it in layers), sum(it.weights for it in layers)
    return f"{exact(left)} of {exact(whole)} weights ({percent(100 * nonzero_share(layers))}) are not zero"
