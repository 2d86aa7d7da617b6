"""The program: its verbs hang on ``app``, and ``main`` turns what they raise into lines and exit codes."""

import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from hoyer_export.cli import arguments
from hoyer_export.cli.devices import rank, wait_for_the_first
from hoyer_export.errors import WHAT_TO_DO, HoyerExportError, one_line
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


def verb(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that makes a function a verb, with an example in its help."""
    return app.command(cls=_Verb, epilog=_epilog(example))


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
    if prefix:  # one that was stopped must not let the first one wait for its part of a step
        wait_for_the_first()
    if prefix or not rank():  # who was stopped is told once
        print(f"{prefix}{message}", file=sys.stderr)
        _json_error(message, code)
    sys.exit(code)


def _json_error(message: str, code: int) -> None:
    """Tell a machine too, which reads stdout."""
    if "--json" in sys.argv:
        print_json({"error": {"message": message, "exit_code": code}})


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


def loading(what: str) -> None:
    """Say what takes the first seconds, where somebody is waiting for it."""
    if sys.stderr.isatty():
        print(f"loading {what} ...", file=sys.stderr)


def print_json(found: Mapping[str, Any]) -> None:
    print(json.dumps(found, indent=1, default=str, allow_nan=False))


def stop_unless_good(report: Any) -> None:
    if not (report.passed and report.budget.met and report.gate.passed):
        raise typer.Exit(3)
