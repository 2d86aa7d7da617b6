"""What can be chosen by a word or a number, in a recipe, on the command line and in Python alike; loads no torch."""

from typing import Literal, get_args

Method = Literal["group-hs", "magnitude", "function", "dead"]
METHODS: tuple[Method, ...] = get_args(Method)
"""How channels are scored; ``select/scores.py`` says what each means."""

Alignment = Literal[1, 4, 8, 16, 32, 64]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
"""Multiples of channels that some runtime wants. In Python any whole number of at least 1 can be asked for."""

DATA_SETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar10-16", "imagefolder", "images")
CIFAR_DEPTHS = (20, 32, 44, 56, 110)
NETWORKS = ("lenet300", "lenet5", *(f"cifar_resnet{depth}" for depth in CIFAR_DEPTHS))
"""Those that are built here; torchvision, timm and a user's own packages have more."""
