"""The command line: parse, one call, print. Nothing heavy is imported before a verb needs it.

Exit codes: 0 done; 1 the input is wrong (one line); 2 usage; 3 a verification failed, or a budget or limit was missed;
70 a bug of ours (with its traceback); 130 interrupted, 143 told to stop (128 + the signal's number, as in a shell).
"""

import io
import json
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from hoyer_export import arguments
from hoyer_export.errors import WHAT_TO_DO, CannotWrite, HoyerExportError, one_line
from hoyer_export.stopping import Interrupted, interrupted, stopped_by_signals

EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h


class _Verb(TyperCommand):
    """A verb whose help calls no flag a ``<bool>``."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters = super().get_params(ctx)
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class _Verbs(TyperGroup):
    """Sees what typer would print and end with on its own: Control-C (a bare "Aborted!"), and wrong usage."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise interrupted(stop, "; nothing was left half-written") from None
        except Exception as error:
            if hasattr(error, "format_message"):  # of click, which some versions of typer bring along under their name
                _json_error(error.format_message(), 2)
            raise


def _epilog(example: str = "hoyer-export COMMAND --help") -> str:
    missed = "3 a verification failed, or a budget or limit was missed"
    codes = f"0 done; 1 the input is wrong; 2 usage; {missed}; 70 a bug of ours"
    return f"Example: {example}\n\nExit codes: {codes}; 130, 143 (129) stopped."


app = typer.Typer(
    cls=_Verbs,
    name="hoyer-export",
    help="Train it sparse, cut it exactly, ship it fast: channel pruning down to a verified ONNX file.",
    epilog=_epilog(),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


def main() -> None:
    """Run the command line: the one place where errors become lines and exit codes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where its encoding has no ×, a ? stands for it
    try:
        with stopped_by_signals():
            app()
    except HoyerExportError as error:
        _stop(arguments.in_options(str(error)), error.exit_code, "" if isinstance(error, Interrupted) else "error: ")
    except BrokenPipeError:
        # The reader (head, say) has gone; Python must not complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in WHAT_TO_DO:  # a disk that is full, say: no bug of ours
            where = error.filename or "the output"
            _stop(f"cannot write {where}: {error.strerror}; {WHAT_TO_DO[error.errno]}", 1)
        traceback.print_exc()
        bug = "this is a bug in hoyer-export; please report it with the lines above"
        _stop(f"{type(error).__name__}: {one_line(error)}; {bug}", EXIT_BUG)


def _stop(message: str, code: int, prefix: str = "error: ") -> NoReturn:
    print(f"{prefix}{message}", file=sys.stderr)
    _json_error(message, code)
    sys.exit(code)


def _json_error(message: str, code: int) -> None:
    """Tell a machine too, which reads stdout."""
    if "--json" in sys.argv:
        _print_json({"error": {"message": message, "exit_code": code}})


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"hoyer-export {version('hoyer-export')}")
        except PackageNotFoundError:
            print("hoyer-export, from a source tree that is not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(cls=_Verb, epilog=_epilog("hoyer-export run models/resnet20-digits/recipe.toml --out runs/first"))
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
    allow_import: AllowImport = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Do the whole chain: train, cut, fine-tune, export, verify, measure, report."""
    from hoyer_export.recipe.reading import load_recipe
    from hoyer_export.run_folder import check_free

    resolved = load_recipe(recipe, overrides)
    resume = resume or redo_from is not None
    check_free(out, resume=resume)
    _loading("torch")
    from hoyer_export.console import print_report
    from hoyer_export.live import progress
    from hoyer_export.run.chain import run_recipe

    try:
        with progress() as shown:
            report = run_recipe(
                resolved, out, resume=resume, redo_from=redo_from, allow_import=allow_import, progress=shown
            )
    except (KeyboardInterrupt, CannotWrite) as error:
        where, again = _where_it_stands(out), f"the same command{'' if resume else ' and --resume'}"
        if isinstance(error, CannotWrite):
            raise CannotWrite(f"{error}{f'; then go on{where}, with {again}' if where else ''}") from error
        raise interrupted(error, f"{where}; go on with {again}" if where else "; nothing was written yet") from None
    _print_json(report.model_dump(mode="json")) if as_json else print_report(report, out)
    _stop_unless_good(report)


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


@app.command(cls=_Verb, epilog=_epilog("hoyer-export init --network cifar_resnet20 --data photos/ --out recipe.toml"))
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
    _loading("torch")
    from hoyer_export.console import print_proposal
    from hoyer_export.run.proposing import propose_recipe

    found = propose_recipe(asked, out, overwrite=overwrite, allow_import=allow_import)
    _print_json(asdict(found)) if as_json else print_proposal(found)


@app.command(cls=_Verb, epilog=_epilog("hoyer-export inspect --network torchvision:resnet50 --macs 0.5 --prove"))
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
        int | None, typer.Option(metavar="N", help="Widths are rounded up to a multiple of it (16 unless set).")
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
    arguments.check_align(align)
    shape = None if input_shape is None else arguments.shape(input_shape)
    from hoyer_export.recipe.reading import load_recipe, make_recipe

    if recipe is not None:
        options = {"cut.macs": macs, "cut.align": align, "network.rules": rules}
        overrides = [*overrides, *(f"{key}={value}" for key, value in options.items() if value is not None)]
        resolved = load_recipe(recipe, overrides)
    else:
        wanted = {"threshold": "natural"} if macs is None else {"macs": macs}
        resolved = make_recipe(
            _untrained({"name": network, "classes": classes, "input": shape, "rules": rules}, seed)
            | {"cut": wanted | {"align": align}}
        )
    _loading("torch")
    from hoyer_export.console import print_inspection
    from hoyer_export.run.inspecting import inspect_recipe

    found = inspect_recipe(resolved, prove=prove, second_opinion=cross_check, allow_import=allow_import)
    _print_json(asdict(found)) if as_json else print_inspection(found, everything=everything)


@app.command(
    cls=_Verb, epilog=_epilog("hoyer-export cut --network torchvision:resnet50 --weights w.pth --macs 0.5 --out cut")
)
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
    threshold: Annotated[
        str | None, typer.Option(metavar="SCORE", help='Least that stays: a number, or "natural".')
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="group-hs (unless set), magnitude (torch-pruning's scores), function (with --refit) or dead.",
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
        int | None, typer.Option(metavar="N", help="Widths are rounded up to a multiple (16 unless set; 1 for dead).")
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
        typer.Option(metavar="LAYER", help="Let this linear layer read only inputs that its weights use (a Gather)."),
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
    budgets = {"--macs": macs, "--params": params, "--threshold": threshold}
    budgets |= {"--max-drop": max_drop, "--max-change": max_change}
    refit = refit or max_drop is not None or max_change is not None
    method = method or ("function" if refit else "group-hs")
    arguments.check_method(method, budgets, data, dead_first=dead_first, refit=refit)
    arguments.check_share("--macs", macs)
    arguments.check_share("--params", params)
    arguments.check_share("--step", step)
    arguments.check_lost("--max-drop", max_drop, nothing=True)
    arguments.check_lost("--max-change", max_change, nothing=False)
    arguments.check_align(align)
    if data is None:
        arguments.refuse(context, {"skip_unreadable", "calibration"}, "only together with --data")
    table = _data(context, data, data_root, mean, std)
    shape = None if input_shape is None else arguments.shape(input_shape)
    limit = None if threshold is None else arguments.threshold(threshold)
    if weights is None:
        arguments.refuse(context, {"weights_key"}, "only together with --weights")
    from hoyer_export.recipe.reading import make_recipe
    from hoyer_export.run_folder import check_free

    side = shape[1] if shape is not None and data in ("imagefolder", "images") else None
    recipe = make_recipe(
        _untrained({"name": network, "classes": classes, "input": shape, "rules": rules}, seed, weights, weights_key)
        | {
            "data": table and table | {"image_size": side, "skip_unreadable": skip_unreadable},
            "cut": {"macs": macs, "params": params, "threshold": limit, "method": method, "align": align}
            | {"refit": refit, "max_drop": max_drop, "max_change": max_change, "step": step}
            | {"dead_first": dead_first, "dead_blocks": dead_blocks, "gather": gather}
            | {"calibration": calibration},
            "bench": {"min_seconds": min_seconds},
        }
    )
    check_free(out, resume=False)
    _loading("torch")
    from hoyer_export.console import print_report
    from hoyer_export.live import progress
    from hoyer_export.run.chain import cut_network

    with progress() as shown:
        found = cut_network(recipe, out, allow_import=allow_import, progress=shown)
    _print_json(found.model_dump(mode="json")) if as_json else print_report(found, out)
    _stop_unless_good(found)


@app.command(cls=_Verb, epilog=_epilog("hoyer-export ship cut --weights finetuned.pth"))
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
    table = _data(context, data, data_root, mean, std)
    _loading("torch")
    from hoyer_export.console import print_report
    from hoyer_export.live import progress
    from hoyer_export.run.chain import ship_weights

    with progress() as shown:
        found = ship_weights(
            cut_dir, weights, weights_key=weights_key, data=table, allow_import=allow_import, progress=shown
        )
    _print_json(found.model_dump(mode="json")) if as_json else print_report(found, cut_dir)
    _stop_unless_good(found)


@app.command(cls=_Verb, epilog=_epilog("hoyer-export export runs/first"))
def export(run_dir: RunDir, allow_import: AllowImport = [], as_json: Json = False) -> None:  # noqa: B006
    """Write dense.onnx and slim.onnx again from a run's weights."""
    _loading("torch")
    from hoyer_export.console import print_exports
    from hoyer_export.live import progress
    from hoyer_export.run.chain import export_run

    with progress() as shown:
        found = export_run(run_dir, allow_import=allow_import, progress=shown)
    _print_json(found.model_dump(mode="json")) if as_json else print_exports(found, run_dir)


@app.command(cls=_Verb, epilog=_epilog("hoyer-export verify slim.onnx --against slim.safetensors"))
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
    allow_import: AllowImport = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Verify a run's files against their networks and the test set again, or any ONNX file against another or weights.

    Where it fails, the first node that computes something else is named.
    """
    if target.is_dir():
        of_files = {"against", "network", "classes", "weights_key", "shape", "tolerance"}
        arguments.refuse(context, of_files, f"only together with a file; {target} is a folder")
    elif against is None and target.exists():
        raise typer.BadParameter(f"{target} is no folder of a run; give what it should compute", param_hint="--against")
    if network is None or (against is not None and against.suffix == ".onnx"):
        arguments.refuse(context, {"classes", "weights_key", "network"}, "only together with the weights of --network")
    shapes = arguments.shapes(shape)
    _loading("torch")
    from hoyer_export.console import print_verification
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
            allow_import=allow_import,
        )
    _print_json(found.model_dump(mode="json")) if as_json else print_verification(found)
    if not found.passed:
        raise typer.Exit(3)


@app.command(cls=_Verb, epilog=_epilog("hoyer-export report runs/first"))
def report(run_dir: RunDir, as_json: Json = False) -> None:
    """Write report.json, report.html and card.md again from a run's records."""
    from hoyer_export.console import print_report
    from hoyer_export.run.reporting import report_run

    found = report_run(run_dir)
    _print_json(found.model_dump(mode="json")) if as_json else print_report(found, run_dir)
    _stop_unless_good(found)


@app.command(
    cls=_Verb, epilog=_epilog("hoyer-export check slim.onnx --against dense.onnx --max-macs 0.5 --max-latency 0.7")
)
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
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="onnxruntime's threads.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images a run; else what the files fix, or 1.")
    ] = None,
    shape: Shapes = [],  # noqa: B006
    min_seconds: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Of measuring.")] = 5.0,
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
    if data is None:
        arguments.refuse(context, {"data_root", "mean", "std"}, "only together with --data")
    if max_latency is None:
        arguments.refuse(context, {"threads", "batch_size", "min_seconds"}, "only together with --max-latency")
    if (mean is None) != (std is None):
        raise typer.BadParameter("--mean and --std belong together", param_hint="--mean")
    shapes = arguments.shapes(shape)
    from hoyer_export.recipe.tables import Data, Gate

    table = None
    if data is not None:
        name, root = arguments.data(data, data_root)
        means, stds = (text and arguments.numbers(option, text) for option, text in (("--mean", mean), ("--std", std)))
        table = Data.model_construct(name=name, root=root, mean=means or None, std=stds or None)  # checked where loaded
    gate = Gate(**{f"max_{name}": limit for name, limit in shares.items()} | {
        "max_latency": max_latency, "max_accuracy_drop": max_accuracy_drop
    })  # fmt: skip
    _loading("torch")
    from hoyer_export.console import print_gate
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
    )
    if junit is not None:
        write_whole(junit, xml.junit(found, file.name))
    _print_json(found.model_dump(mode="json")) if as_json else print_gate(found)
    if not found.passed:
        raise typer.Exit(3)


@app.command(cls=_Verb, epilog=_epilog("hoyer-export macs slim.onnx"))
def macs(
    file: Annotated[Path, typer.Argument(metavar="F.onnx", help="An ONNX file.", show_default=False)],
    shape: Shapes = [],  # noqa: B006
    everything: Annotated[bool, typer.Option("--all", help="Print every node, not the heaviest 20.")] = False,
    as_json: Json = False,
) -> None:
    """Count MACs, FLOPs, params and bytes of an ONNX file, node by node, the heaviest first."""
    shapes = arguments.shapes(shape)
    from hoyer_export.console import print_macs
    from hoyer_export.deploy.macs import count_macs

    found = count_macs(file, shapes=shapes)
    _print_json(asdict(found)) if as_json else print_macs(found, everything=everything)


@app.command(cls=_Verb, epilog=_epilog("hoyer-export info slim.onnx"))
def info(
    file: Annotated[Path, typer.Argument(metavar="F.onnx", help="An ONNX file.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Print what an ONNX file says of itself: metadata, inputs, outputs, opset, producer, parameters, bytes."""
    from hoyer_export.console import print_info
    from hoyer_export.deploy.info import file_info

    found = file_info(file)
    _print_json(asdict(found)) if as_json else print_info(found)


@app.command(cls=_Verb, epilog=_epilog("hoyer-export explain slim.onnx"))
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
    from hoyer_export.console import print_explanation
    from hoyer_export.deploy.explain import explain

    found = explain(file, shapes=shapes, batch_size=batch_size, threads=threads, min_seconds=min_seconds)
    _print_json(asdict(found)) if as_json else print_explanation(found, everything=everything)


@app.command(cls=_Verb, epilog=_epilog("hoyer-export bench dense.onnx slim.onnx"))
def bench(
    files: Annotated[list[Path], typer.Argument(metavar="A.onnx B.onnx", help="ONNX files.", show_default=False)],
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="onnxruntime's threads.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images a run; else what the files fix, or 1.")
    ] = None,
    shape: Shapes = [],  # noqa: B006
    min_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Of measuring, all files together.")
    ] = 5.0,
    as_json: Json = False,
) -> None:
    """Measure the latency of ONNX files in onnxruntime, interleaved."""
    shapes = arguments.shapes(shape)
    from hoyer_export.console import print_benchmark
    from hoyer_export.deploy.benchmark import benchmark

    found = benchmark(files, threads=threads, batch_size=batch_size, shapes=shapes, min_seconds=min_seconds)
    _print_json(asdict(found)) if as_json else print_benchmark(found)


def _data(
    context: typer.Context, name: str | None, root: Path | None, mean: str | None, std: str | None
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


def _untrained(
    network: dict[str, Any], seed: int, weights: Path | None = None, weights_key: str | None = None
) -> dict[str, Any]:
    """Return the tables of a recipe that trains nothing."""
    from hoyer_export.recipe.tables import RANDOM

    nothing = {"epochs": 0}
    dense = nothing | {"weights": RANDOM if weights is None else str(weights), "weights_key": weights_key}
    return {"seed": seed, "network": network, "dense": dense, "sparse": nothing, "finetune": nothing}


def _loading(what: str) -> None:
    """Say what takes the first seconds, where somebody is waiting for it."""
    if sys.stderr.isatty():
        print(f"loading {what} ...", file=sys.stderr)


def _print_json(found: Mapping[str, Any]) -> None:
    print(json.dumps(found, indent=1, default=str, allow_nan=False))


def _stop_unless_good(report: Any) -> None:
    if not (report.passed and report.budget.met and report.gate.passed):
        raise typer.Exit(3)
