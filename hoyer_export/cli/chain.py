"""The verbs that make a run, or go on with one."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hoyer_export.cli import arguments
from hoyer_export.cli.devices import processes, rank
from hoyer_export.cli.options import (
    AllowImport,
    Classes,
    DataName,
    DataRoot,
    Deviation,
    InputShape,
    Json,
    Mean,
    Network,
    Overrides,
    OwnRules,
    RunDir,
    Runtime,
    Shapes,
    SkipUnreadable,
    WeightsKey,
    data_table,
    untrained,
)
from hoyer_export.cli.program import loading, print_json, stop_unless_good, verb
from hoyer_export.errors import CannotWrite, HoyerExportError
from hoyer_export.stopping import interrupted

if TYPE_CHECKING:
    from hoyer_export.recipe.tables import Recipe


@verb("hoyer-export run models/resnet20-digits/recipe.toml --out runs/first")
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Absent or empty, else --resume is needed.")],
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last whole epoch; redo what hangs on a changed key.")
    ] = False,
    redo_from: Annotated[
        str | None,
        typer.Option(
            "--redo-from", metavar="STAGE", help="Do this stage of a run and all after it again, training too."
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Train in N processes, each with its GPU; on a CPU, with its cores."),
    ] = None,
    allow_import: AllowImport = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Do the whole chain: train, cut, fine-tune, export, verify, measure, report."""
    from hoyer_export.recipe.reading import load_recipe

    resolved = load_recipe(recipe, overrides)
    resume = resume or redo_from is not None
    with processes(devices):
        _run(resolved, out, resume, redo_from, allow_import, as_json)


def _run(
    recipe: "Recipe", out: Path, resume: bool, redo_from: str | None, allow_import: list[str], as_json: bool
) -> None:
    from hoyer_export.run_folder import check_free

    if not rank():
        check_free(out, resume=resume)
    loading("torch")
    from hoyer_export.console.runs import print_report
    from hoyer_export.live import progress
    from hoyer_export.run.chain import run_recipe

    try:
        with progress() as shown:
            report = run_recipe(
                recipe, out, resume=resume, redo_from=redo_from, allow_import=allow_import, progress=shown
            )
            if rank():
                return
    except (KeyboardInterrupt, CannotWrite) as error:
        where, again = _where_it_stands(out), f"the same command{'' if resume else ' and --resume'}"
        if isinstance(error, CannotWrite):
            raise CannotWrite(f"{error}{f'; then go on{where}, with {again}' if where else ''}") from error
        raise interrupted(error, f"{where}; go on with {again}" if where else "; nothing was written yet") from None
    print_json(report.model_dump(mode="json")) if as_json else print_report(report, out)
    stop_unless_good(report)


def _where_it_stands(out: Path) -> str:
    """Return e.g. `` in sparse, epoch 13 of 30``; nothing where no run has begun."""
    if not (out / "recipe.toml").is_file():
        return ""
    from hoyer_export.run.chain import standing
    from hoyer_export.run_folder import RunFolder

    try:
        return f" in {standing(RunFolder(out))}"
    except HoyerExportError:  # a damaged file is said when somebody goes on
        return f" in {out}"


@verb("hoyer-export init --network cifar_resnet20 --data photos/ --out recipe.toml")
def init(
    context: typer.Context,
    network: Network,
    data: Annotated[
        str,
        typer.Option(
            metavar="NAME|DIR",
            help="A data set, or a folder with CLASS/*.jpg, or with train and val of these.",
            autocompletion=arguments.data_sets,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The recipe; a file that is there stays.")],
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help=".safetensors, or .pth; else trained from scratch.")
    ] = None,
    weights_key: WeightsKey = None,
    macs: Annotated[float, typer.Option(metavar="SHARE", help="Of the dense MACs, that may stay.")] = 0.5,
    data_root: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the files of a NAME are.")] = None,
    skip_unreadable: SkipUnreadable = False,
    classes: Classes = None,
    rules: OwnRules = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
    allow_import: AllowImport = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Look at a network and a data set, and write a commented recipe for them."""
    arguments.check_share("--macs", macs)
    name, root = arguments.data(data, data_root)
    if weights is None:
        arguments.refuse(context, {"weights_key"}, "only together with --weights")
    from hoyer_export.recipe.reading import make_recipe

    start = {"epochs": 0, "weights": str(weights), "weights_key": weights_key} if weights is not None else None
    asked = make_recipe(
        {"network": {"name": network, "classes": classes, "rules": rules}}
        | {"data": {"name": name, "root": root, "skip_unreadable": skip_unreadable or None}}
        | {"dense": start, "cut": {"macs": macs}}
    )
    loading("torch")
    from hoyer_export.console.runs import print_proposal
    from hoyer_export.run.proposing import propose_recipe

    found = propose_recipe(asked, out, overwrite=overwrite, allow_import=allow_import)
    print_json(asdict(found)) if as_json else print_proposal(found)


@verb("hoyer-export inspect --network torchvision:resnet50 --macs 0.5 --prove")
def inspect(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A TOML file.", show_default=False)] = None,
    network: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A network instead of a recipe.", autocompletion=arguments.networks),
    ] = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    macs: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Whether this share of the dense MACs can be reached.")
    ] = None,
    align: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Widths are rounded up to a multiple of it (16 unless set).")
    ] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Zero and cut random channels of every group, and compare in float64.")
    ] = False,
    cross_check: Annotated[
        bool, typer.Option("--cross-check", help="Also ask torch-pruning which channels are coupled.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=arguments.SEED, help="Of random weights.")] = 0,
    everything: Annotated[bool, typer.Option("--all", help="Print every group, not the heaviest 20.")] = False,
    rules: OwnRules = None,
    overrides: Overrides = [],  # noqa: B006
    allow_import: AllowImport = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Show a network's channel groups, the MACs each carries, what is unprunable and why, and what can be reached."""
    if (recipe is None) == (network is None):
        raise typer.BadParameter("give either a RECIPE or --network NAME", param_hint="RECIPE")
    if network is None and (input_shape or classes):
        raise typer.BadParameter("only together with --network; in a recipe they follow from the data")
    if network is None:
        arguments.refuse(context, {"seed"}, "only together with --network; a recipe has its own: --set seed=N")
    if network is not None and overrides:
        raise typer.BadParameter("only together with a RECIPE", param_hint="--set")
    arguments.check_share("--macs", macs)
    multiple = arguments.alignment(align)
    shape = None if input_shape is None else arguments.shape(input_shape)
    from hoyer_export.recipe.reading import load_recipe, make_recipe

    if recipe is not None:
        options = {"cut.macs": macs, "cut.align": multiple, "network.rules": rules}
        overrides = [*overrides, *(f"{key}={value}" for key, value in options.items() if value is not None)]
        resolved = load_recipe(recipe, overrides)
    else:
        wanted = {"threshold": "natural"} if macs is None else {"macs": macs}
        resolved = make_recipe(
            untrained({"name": network, "classes": classes, "input": shape, "rules": rules}, seed)
            | {"cut": wanted | {"align": multiple}}
        )
    loading("torch")
    from hoyer_export.console.runs import print_inspection
    from hoyer_export.run.inspecting import inspect_recipe

    found = inspect_recipe(resolved, prove=prove, second_opinion=cross_check, allow_import=allow_import)
    print_json(asdict(found)) if as_json else print_inspection(found, everything=everything)


@verb("hoyer-export cut --network torchvision:resnet50 --weights w.pth --macs 0.5 --out cut")
def cut(
    context: typer.Context,
    network: Network,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Absent or empty.")],
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help=".safetensors, or .pth; else random.")] = None,
    weights_key: WeightsKey = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    macs: Annotated[float | None, typer.Option(metavar="SHARE", help="Of the dense MACs, that may stay.")] = None,
    params: Annotated[float | None, typer.Option(metavar="SHARE", help="Likewise of the dense parameters.")] = None,
    latency: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Of the dense network's time for a run, on this machine.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", metavar="MS", help="Likewise in milliseconds.")
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(metavar="SCORE", help='Least that stays: a number, or "natural".')
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="group-hs (unless set), magnitude (torch-pruning's scores), function (with --refit), sensitivity or"
            " dead.",
            autocompletion=arguments.methods,
            show_default=False,
        ),
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Give what is left new weights, by least squares on images without labels.")
    ] = False,
    max_drop: Annotated[
        float | None, typer.Option(metavar="POINTS", help="The most accuracy to lose; goes as far as it can.")
    ] = None,
    max_change: Annotated[
        float | None, typer.Option(metavar="SHARE", help="The most that outputs may change, without labels.")
    ] = None,
    step: Annotated[float, typer.Option(metavar="SHARE", help="Of the MACs that goes between two refits.")] = 0.05,
    align: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Widths are rounded up to a multiple (16 unless set; 1 for dead); auto: what is fast on this machine.",
        ),
    ] = None,
    dead_first: Annotated[
        bool, typer.Option("--dead-first", help="Let channels that never fire go before any other.")
    ] = False,
    dead_blocks: Annotated[
        bool,
        typer.Option("--dead-blocks", help="First turn residual blocks whose branch is zero into their shortcuts."),
    ] = False,
    gather: Annotated[
        list[str],
        typer.Option(
            metavar="LAYER", help="Let this linear layer read a part of the network's input, chosen like channels."
        ),
    ] = [],  # noqa: B006
    data: DataName = None,
    data_root: DataRoot = None,
    skip_unreadable: SkipUnreadable = False,
    mean: Mean = None,
    std: Deviation = None,
    calibration: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Training images that are looked at (5000 unless set; 1024 for --refit)."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="onnxruntime's, where it is timed.")] = 1,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images a timed run.")] = 1,
    min_seconds: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Of measuring latency; 0: none.")] = 5.0,
    seed: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=arguments.SEED, help="Of random weights, and of which images calibrate."),
    ] = 0,
    rules: OwnRules = None,
    allow_import: AllowImport = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Cut a network of your own, untrained by us, to a verified ONNX file."""
    budgets: dict[str, float | str | None] = {
        "--macs": macs,
        "--params": params,
        "--latency": latency,
        "--latency-ms": latency_ms,
    }
    budgets |= {"--threshold": threshold, "--max-drop": max_drop, "--max-change": max_change}
    refit = refit or max_drop is not None or max_change is not None
    method = method or ("function" if refit else "group-hs")
    arguments.check_method(method, budgets, data, dead_first=dead_first, refit=refit)
    arguments.check_share("--macs", macs)
    arguments.check_share("--params", params)
    arguments.check_share("--latency", latency)
    arguments.check_lost("--latency-ms", latency_ms, nothing=False)
    if (latency is not None or latency_ms is not None) and not min_seconds:
        raise typer.BadParameter("a budget of time is judged by measuring; give --min-seconds", param_hint="--latency")
    arguments.check_share("--step", step)
    arguments.check_lost("--max-drop", max_drop, nothing=True)
    arguments.check_lost("--max-change", max_change, nothing=False)
    multiple = arguments.alignment(align)
    if data is None:
        arguments.refuse(context, {"skip_unreadable", "calibration"}, "only together with --data")
    table = data_table(context, data, data_root, mean, std)
    shape = None if input_shape is None else arguments.shape(input_shape)
    limit = None if threshold is None else arguments.threshold(threshold)
    if weights is None:
        arguments.refuse(context, {"weights_key"}, "only together with --weights")
    from hoyer_export.recipe.reading import make_recipe
    from hoyer_export.run_folder import check_free

    side = shape[1] if shape is not None and data in ("imagefolder", "images") else None
    recipe = make_recipe(
        untrained({"name": network, "classes": classes, "input": shape, "rules": rules}, seed, weights, weights_key)
        | {
            "data": table and table | {"image_size": side, "skip_unreadable": skip_unreadable},
            "cut": {"latency": latency, "latency_ms": latency_ms}
            | {"macs": macs, "params": params, "threshold": limit, "method": method, "align": multiple}
            | {"refit": refit, "max_drop": max_drop, "max_change": max_change, "step": step}
            | {"dead_first": dead_first, "dead_blocks": dead_blocks, "gather": gather}
            | {"calibration": calibration},
            "bench": {"threads": threads, "batch_size": batch_size, "min_seconds": min_seconds},
        }
    )
    check_free(out, resume=False)
    loading("torch")
    from hoyer_export.console.runs import print_report
    from hoyer_export.live import progress
    from hoyer_export.run.chain import cut_network

    with progress() as shown:
        found = cut_network(recipe, out, allow_import=allow_import, progress=shown)
    print_json(found.model_dump(mode="json")) if as_json else print_report(found, out)
    stop_unless_good(found)


@verb("hoyer-export ship cut --weights finetuned.pth")
def ship(
    context: typer.Context,
    cut_dir: Annotated[Path, typer.Argument(metavar="CUTDIR", help="What cut, or run, left.", show_default=False)],
    weights: Annotated[
        Path, typer.Option(metavar="FILE", help="Of the slim network, trained by you: .safetensors, .pth.")
    ],
    weights_key: WeightsKey = None,
    data: DataName = None,
    data_root: DataRoot = None,
    mean: Mean = None,
    std: Deviation = None,
    allow_import: AllowImport = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Export, verify, measure and report a slim network that your own loop has fine-tuned."""
    table = data_table(context, data, data_root, mean, std)
    loading("torch")
    from hoyer_export.console.runs import print_report
    from hoyer_export.live import progress
    from hoyer_export.run.chain import ship_weights

    with progress() as shown:
        found = ship_weights(
            cut_dir, weights, weights_key=weights_key, data=table, allow_import=allow_import, progress=shown
        )
    print_json(found.model_dump(mode="json")) if as_json else print_report(found, cut_dir)
    stop_unless_good(found)


@verb("hoyer-export export runs/first")
def export(run_dir: RunDir, allow_import: AllowImport = [], as_json: Json = False) -> None:  # noqa: B006
    """Write dense.onnx and slim.onnx again from a run's weights."""
    loading("torch")
    from hoyer_export.console.runs import print_exports
    from hoyer_export.live import progress
    from hoyer_export.run.chain import export_run

    with progress() as shown:
        found = export_run(run_dir, allow_import=allow_import, progress=shown)
    print_json(found.model_dump(mode="json")) if as_json else print_exports(found, run_dir)


@verb("hoyer-export verify slim.onnx --against slim.safetensors")
def verify(
    context: typer.Context,
    target: Annotated[
        Path, typer.Argument(metavar="DIR|A.onnx", help="The folder of a run, or a file.", show_default=False)
    ],
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What A.onnx should compute: B.onnx, slim.safetensors, or weights."),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Whose weights they are; else as they say.", autocompletion=arguments.networks
        ),
    ] = None,
    classes: Classes = None,
    weights_key: WeightsKey = None,
    shape: Shapes = [],  # noqa: B006
    tolerance: Annotated[
        float, typer.Option(metavar="SHARE", min=0, help="Of the largest output, that outputs may be off.")
    ] = 1e-5,
    runtime: Runtime = "onnxruntime",
    allow_import: AllowImport = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Verify a run's files against their networks and the test set again, or any ONNX file against another or weights.

    Where it fails, the first node that computes something else is named.
    """
    if target.is_dir():
        of_files = {"against", "network", "classes", "weights_key", "shape", "tolerance", "runtime"}
        arguments.refuse(context, of_files, f"only together with a file; {target} is a folder")
    elif against is None and target.exists():
        raise typer.BadParameter(f"{target} is no folder of a run; give what it should compute", param_hint="--against")
    if network is None or (against is not None and against.suffix == ".onnx"):
        arguments.refuse(context, {"classes", "weights_key", "network"}, "only together with the weights of --network")
    shapes = arguments.shapes(shape)
    loading("torch")
    from hoyer_export.console.runs import print_verification
    from hoyer_export.live import progress
    from hoyer_export.run.chain import verify_run
    from hoyer_export.run.verifying import verify_file

    if against is None:
        with progress() as shown:
            found = verify_run(target, allow_import=allow_import, progress=shown)
    else:
        found = verify_file(
            target,
            against,
            network=network,
            classes=classes,
            weights_key=weights_key,
            shapes=shapes,
            tolerance=tolerance,
            runtime=runtime,
            allow_import=allow_import,
        )
    print_json(found.model_dump(mode="json")) if as_json else print_verification(found)
    if not found.passed:
        raise typer.Exit(3)


@verb("hoyer-export report runs/first")
def report(
    run_dir: RunDir,
    hub: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also copy what is shipped there, laid out as the Hugging Face hub expects it."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write report.json, report.html, card.md and the headline's pictures again from a run's records."""
    from hoyer_export.console.runs import print_report
    from hoyer_export.report.hub import write_hub_folder
    from hoyer_export.run.reporting import report_run

    found = report_run(run_dir)
    if hub is not None:
        write_hub_folder(run_dir, found, hub)
    print_json(found.model_dump(mode="json")) if as_json else print_report(found, run_dir)
    stop_unless_good(found)
