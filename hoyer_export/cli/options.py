"""Options that several verbs have, and the tables of a recipe that they are."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hoyer_export.cli import arguments


def _find_packages_here(packages: list[str]) -> list[str]:
    """Let Python find a package in the working directory, as ``python -m`` does; whatever is installed comes first."""
    if packages and "" not in sys.path:
        sys.path.append("")
    return packages


Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")]
AllowImport = Annotated[
    list[str],
    typer.Option(
        "--allow-import",
        metavar="PACKAGE",
        help="Package that may be imported for a network package.module:function.",
        callback=_find_packages_here,
    ),
]
OwnRules = Annotated[
    str | None,
    typer.Option("--rules", metavar="MODULE:RULES", help="Rules of your own for tracing; needs --allow-import."),
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set one key of the recipe; may be repeated.")
]
Network = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="torchvision:resnet18, package.module:function, ...", autocompletion=arguments.networks
    ),
]
WeightsKey = Annotated[
    str | None, typer.Option(metavar="KEY", help="Where in it they are, e.g. model_ema; else where all names fit.")
]
InputShape = Annotated[str | None, typer.Option("--input", metavar="CxHxW", help="Shape of one image: 3x224x224.")]
Classes = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=arguments.CLASSES, help="Outputs of the network; else its own.")
]
Shapes = Annotated[
    list[str],
    typer.Option(
        "--shape", metavar="NAME=SIZES", help="Sizes of a dynamic input: images=1x3x480x640; may be repeated."
    ),
]
_RUNTIME = typer.Option(
    "--runtime",
    metavar="NAME",
    help="onnxruntime, openvino, or onnxruntime:PROVIDER.",
    autocompletion=arguments.runtimes,
)
Runtime = Annotated[str, _RUNTIME]
Runtimes = Annotated[list[str], _RUNTIME]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out, and name, the image files that cannot be read.")
]
DataName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Data set, for accuracy and calibration.", autocompletion=arguments.data_sets),
]
DataRoot = Annotated[Path | None, typer.Option(metavar="DIR", help="Where its files are.")]
Mean = Annotated[str | None, typer.Option(metavar="M,M,M", help="Of each channel; else the data's own.")]
Deviation = Annotated[str | None, typer.Option(metavar="S,S,S", help="Of each channel, together with --mean.")]
RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.", show_default=False)]


def data_table(
    context: typer.Context, name: str | None, root: Path | str | None, mean: str | None, std: str | None
) -> dict[str, Any] | None:
    """Return the table [data] that the options ask for."""
    if name is None:
        arguments.refuse(context, {"data_root", "mean", "std"}, "only together with --data")
        return None
    if (mean is None) != (std is None):
        raise typer.BadParameter("--mean and --std belong together", param_hint="--mean")
    means = None if mean is None else arguments.numbers("--mean", mean)
    stds = None if std is None else arguments.numbers("--std", std)
    return {"name": name, "root": None if root is None else str(root), "mean": means, "std": stds}


def untrained(
    network: dict[str, Any], seed: int, weights: Path | None = None, weights_key: str | None = None
) -> dict[str, Any]:
    """Return the tables of a recipe that trains nothing."""
    from hoyer_export.recipe.tables import RANDOM

    nothing = {"epochs": 0}
    dense = nothing | {"weights": RANDOM if weights is None else str(weights), "weights_key": weights_key}
    return {"seed": seed, "network": network, "dense": dense, "sparse": nothing, "finetune": nothing}
