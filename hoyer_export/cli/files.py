"""The verbs for ONNX files, whoever made them."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hoyer_export.cli import arguments
from hoyer_export.cli.options import Json, Runtime, Runtimes, Shapes, data_table
from hoyer_export.cli.program import loading, print_json, verb


@verb("hoyer-export check slim.onnx --against dense.onnx --max-macs 0.5 --max-latency 0.7")
def check(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="SLIM.onnx", help="The file to be judged.", show_default=False)],
    against: Annotated[Path, typer.Option(metavar="DENSE.onnx", help="What it is compared with.")],
    max_macs: Annotated[float | None, typer.Option(metavar="SHARE", help="Of the dense file's MACs.")] = None,
    max_params: Annotated[float | None, typer.Option(metavar="SHARE", help="Of its parameters.")] = None,
    max_bytes: Annotated[float | None, typer.Option(metavar="SHARE", help="Of its bytes.")] = None,
    max_latency: Annotated[float | None, typer.Option(metavar="SHARE", help="Of its time for a run, measured.")] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(metavar="POINTS", help="Of accuracy on the test images of --data.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Data set, or folder with test/CLASS/*.jpg.",
            autocompletion=arguments.data_sets,
        ),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the files of a NAME are.")] = None,
    mean: Annotated[str | None, typer.Option(metavar="M,M,M", help="Of each channel; else as the file says.")] = None,
    std: Annotated[str | None, typer.Option(metavar="S,S,S", help="Of each channel, together with --mean.")] = None,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Of one run.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images a run; else what the files fix, or 1.")
    ] = None,
    shape: Shapes = [],  # noqa: B006
    min_seconds: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Of measuring.")] = 5.0,
    runtime: Runtime = "onnxruntime",
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write JUnit XML, a test a limit.")] = None,
    as_json: Json = False,
) -> None:
    """Hold an ONNX file against limits: exit code 3 and the figures where one is missed."""
    shares = {"macs": max_macs, "params": max_params, "bytes": max_bytes}
    for name, limit in shares.items():
        arguments.check_share(f"--max-{name}", limit)
    arguments.check_lost("--max-latency", max_latency, nothing=False)
    arguments.check_lost("--max-accuracy-drop", max_accuracy_drop, nothing=True)
    if all(limit is None for limit in (*shares.values(), max_latency, max_accuracy_drop)):
        raise typer.BadParameter("give at least one limit, e.g. --max-macs 0.5", param_hint="--max-...")
    if (data is None) != (max_accuracy_drop is None):
        raise typer.BadParameter("--data and --max-accuracy-drop belong together", param_hint="--data")
    named: tuple[str | None, str | None] = (None, None) if data is None else arguments.data(data, data_root)
    images = data_table(context, *named, mean, std)
    if max_latency is None:
        arguments.refuse(context, {"threads", "batch_size", "min_seconds"}, "only together with --max-latency")
        if max_accuracy_drop is None:
            arguments.refuse(context, {"runtime"}, "only together with --max-latency or --max-accuracy-drop")
    shapes = arguments.shapes(shape)
    from hoyer_export.recipe.tables import Data, Gate

    table = None if images is None else Data.model_construct(**images)  # checked where loaded
    gate = Gate(**{f"max_{name}": limit for name, limit in shares.items()} | {
        "max_latency": max_latency, "max_accuracy_drop": max_accuracy_drop
    })  # fmt: skip
    loading("torch")
    from hoyer_export.console.runs import print_gate
    from hoyer_export.report import junit as xml
    from hoyer_export.run.gate import check_file
    from hoyer_export.run_folder import write_whole

    found = check_file(
        file,
        against,
        gate,
        shapes=shapes,
        data=table,
        threads=threads,
        batch_size=batch_size,
        min_seconds=min_seconds,
        runtime=runtime,
    )
    if junit is not None:
        write_whole(junit, xml.junit(found, file.name))
    print_json(found.model_dump(mode="json")) if as_json else print_gate(found)
    if not found.passed:
        raise typer.Exit(3)


@verb("hoyer-export macs slim.onnx")
def macs(
    file: Annotated[Path, typer.Argument(metavar="F.onnx", help="An ONNX file.", show_default=False)],
    shape: Shapes = [],  # noqa: B006
    everything: Annotated[bool, typer.Option("--all", help="Print every node, not the heaviest 20.")] = False,
    as_json: Json = False,
) -> None:
    """Count MACs, FLOPs, params and bytes of an ONNX file, node by node, the heaviest first."""
    shapes = arguments.shapes(shape)
    from hoyer_export.console.files import print_macs
    from hoyer_export.deploy.macs import count_macs

    found = count_macs(file, shapes=shapes)
    print_json(asdict(found)) if as_json else print_macs(found, everything=everything)


@verb("hoyer-export info slim.onnx")
def info(
    file: Annotated[Path, typer.Argument(metavar="F.onnx", help="An ONNX file.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Print what an ONNX file says of itself: metadata, inputs, outputs, opset, producer, parameters, bytes."""
    from hoyer_export.console.files import print_info
    from hoyer_export.deploy.info import file_info

    found = file_info(file)
    print_json(asdict(found)) if as_json else print_info(found)


@verb("hoyer-export explain slim.onnx")
def explain(
    file: Annotated[Path, typer.Argument(metavar="F.onnx", help="An ONNX file.", show_default=False)],
    threads: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="onnxruntime's threads.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images a run; else what the file fixes, or 1.")
    ] = None,
    shape: Shapes = [],  # noqa: B006
    min_seconds: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Of measuring.")] = 2.0,
    everything: Annotated[bool, typer.Option("--all", help="Print every node, not the slowest 20.")] = False,
    as_json: Json = False,
) -> None:
    """Say in plain words why an ONNX file is not as fast as its MACs promise, and where its time goes."""
    shapes = arguments.shapes(shape)
    from hoyer_export.console.files import print_explanation
    from hoyer_export.deploy.explain import explain

    found = explain(file, shapes=shapes, batch_size=batch_size, threads=threads, min_seconds=min_seconds)
    print_json(asdict(found)) if as_json else print_explanation(found, everything=everything)


@verb("hoyer-export bench dense.onnx slim.onnx")
def bench(
    files: Annotated[list[Path], typer.Argument(metavar="A.onnx B.onnx", help="ONNX files.", show_default=False)],
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Of one run.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images a run; else what the files fix, or 1.")
    ] = None,
    shape: Shapes = [],  # noqa: B006
    min_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Of measuring, all files together.")
    ] = 5.0,
    runtime: Runtimes = ["onnxruntime"],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Measure the latency of ONNX files, interleaved: every file in every --runtime."""
    shapes = arguments.shapes(shape)
    from hoyer_export.console.files import print_benchmark
    from hoyer_export.deploy.benchmark import benchmark

    found = benchmark(
        [file for file in files for _ in runtime],
        threads=threads,
        batch_size=batch_size,
        shapes=shapes,
        min_seconds=min_seconds,
        runtime=runtime * len(files),
    )
    print_json(asdict(found)) if as_json else print_benchmark(found)
