"""What can be chosen by a word or a number, in a recipe, on the command line and in Python alike; loads no torch."""

from typing import Literal, get_args

Method = Literal["group-hs", "magnitude", "function", "sensitivity", "dead", "zero"]
METHODS: tuple[Method, ...] = get_args(Method)
"""How channels are scored; ``select/scores.py`` says what each means."""
BY_FUNCTION = ("function", "sensitivity")
"""Methods that look at what channels do, and may choose again on the way down."""
WITHOUT_BUDGET: dict[str, str] = {
    "dead": "what never fires",
    "zero": "what is zero already",
    "given": "what the given slim network lacks",
}
"""Methods that know themselves what goes, and take no budget → what they remove."""

Norms = Literal["weights", "function"]
"""What the norm of a channel is made of: its weights, or what it brings to its readers."""

Element = Literal["hs", "hoyer", "l1-elements", "transformed-l1", "magnitude-elements"]
ELEMENTS: dict[str, float | None] = {
    "hs": 2e-6,
    "hoyer": 1e-3,
    "l1-elements": 8e-5,
    "transformed-l1": 4e-5,
    "magnitude-elements": None,
}
"""Regularisers of single weights → strength unless one is given; None: it adds no penalty.

For SGD: all pull alike, with about 1e-4, on a small weight of a LeNet-300-100 that is trained and not sparse yet. What
papers have, 1e-4 and 2e-4 for ``hs``, 0.01 for ``hoyer``, is for Adam, which undoes a gradient's size.
"""
BY_ELEMENTS: Literal["elements"] = "elements"
"""The method that zeroes single weights and removes no channel; it scores none, so it is not in ``METHODS``."""

Alignment = Literal[1, 4, 8, 16, 32, 64]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
"""Multiples of channels that some runtime wants. In Python any whole number of at least 1 can be asked for."""
AUTO: Literal["auto"] = "auto"
"""In the place of a multiple: widths are chosen by measured time."""
LATENCY: tuple[str, ...] = ("latency", "latency_ms")
"""Budgets of time: a share of the dense network's, and milliseconds."""

DATA_SETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar10-16", "imagefolder", "images")
CIFAR_DEPTHS = (20, 32, 44, 56, 110)
NETWORKS = ("lenet300", "lenet5", *(f"cifar_resnet{depth}" for depth in CIFAR_DEPTHS))
"""Those that are built here; torchvision, timm and a user's own packages have more."""
