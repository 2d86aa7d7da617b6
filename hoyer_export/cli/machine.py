"""The verb for this machine: how long a network's layers take on it."""

from dataclasses import asdict
from typing import Annotated

import typer

from hoyer_export.cli import arguments
from hoyer_export.cli.options import AllowImport, Classes, InputShape, Json, Network, untrained
from hoyer_export.cli.program import loading, print_json, verb


@verb("hoyer-export time-table --network torchvision:resnet50")
def time_table(
    network: Network,
    input_shape: InputShape = None,
    classes: Classes = None,
    threads: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="The runtime's threads.")] = 1,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images a run.")] = 1,
    runtime: Annotated[str, typer.Option(metavar="NAME", help="That runs them.")] = "onnxruntime",
    everything: Annotated[bool, typer.Option("--all", help="Print every layer, not the slowest 20.")] = False,
    allow_import: AllowImport = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Measure how long a network's layers take here at any width, for --latency and --align auto, and print it."""
    shape = None if input_shape is None else arguments.shape(input_shape)
    from hoyer_export.recipe.reading import make_recipe

    recipe = make_recipe(
        untrained({"name": network, "classes": classes, "input": shape}, 0)
        | {"cut": {"threshold": "natural"}, "bench": {"runtime": runtime, "threads": threads, "batch_size": batch_size}}
    )
    loading("torch")
    from hoyer_export.console.files import print_times
    from hoyer_export.live import progress
    from hoyer_export.run.timing import recipe_times

    with progress() as shown:
        found = recipe_times(recipe, allow_import=allow_import, progress=shown)
    print_json(asdict(found)) if as_json else print_times(found, everything=everything)
