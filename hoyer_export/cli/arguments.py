"""Options: what the text of one means, which go together (whatever does not is a usage error, exit 2), how the shell
completes one, and what an error of the library calls it.
"""

import math
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from hoyer_export.choices import ALIGNMENTS, AUTO, BY_FUNCTION, DATA_SETS, METHODS, NETWORKS, WITHOUT_BUDGET
from hoyer_export.errors import DataError

SEED = 2**63 - 1  # the largest that torch's generators take
CLASSES = 100_000  # more than any data set has, and few enough for a layer to be made


def shape(text: str) -> tuple[int, int, int]:
    """Return (C, H, W) of e.g. ``3x224x224``."""
    sizes = text.lower().replace("×", "x").split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise typer.BadParameter(f"expected CxHxW, e.g. 3x224x224, got {text!r}", param_hint="--input")
    channels, height, width = map(int, sizes)
    return channels, height, width


def shapes(texts: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Return input → sizes of e.g. ``input=1x3x480x640``, one text an input."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = sizes.lower().replace("×", "x").split("x")
        if not name or name in found or not all(part.isdecimal() for part in parts):
            raise typer.BadParameter(
                f"expected NAME=SIZES, once an input, e.g. input=1x3x480x640, got {text!r}", param_hint="--shape"
            )
        found[name] = tuple(map(int, parts))
    return found


def threshold(text: str) -> float | str:
    """Return a threshold, a finite number of at least 0 or ``natural``."""
    if text == "natural":
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise typer.BadParameter(
            f'expected a number of at least 0, or "natural", got {text!r}', param_hint="--threshold"
        )
    return number


def data(text: str, root: Path | None) -> tuple[str, str | None]:
    """Return the name of a data set and the folder of its files; a folder alone is a data set called ``imagefolder``.

    Raises:
        DataError: it is neither a data set nor a folder.
    """
    if text in DATA_SETS:
        return text, None if root is None else str(root)
    if not Path(text).is_dir():
        close = get_close_matches(text, DATA_SETS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(DATA_SETS)}, or a folder's path"
        raise DataError(f"`data` {text} is no data set and no folder; {hint}")
    if root is not None:
        raise typer.BadParameter(
            f"only together with the name of a data set; {text} is a folder", param_hint="--data-root"
        )
    return "imagefolder", text


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Return the numbers in e.g. ``0.5,0.5,0.5``, one a channel."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"expected numbers with commas between, e.g. 0.5,0.5,0.5, got {text!r}", param_hint=option
        ) from None


def check_share(option: str, share: float | None) -> None:
    """Refuse what is no share of the dense network."""
    if share is not None and not 0 < share <= 1:
        raise typer.BadParameter(f"expected a share above 0 and at most 1, got {share:g}", param_hint=option)


def check_lost(option: str, lost: float | None, *, nothing: bool) -> None:
    """Refuse what is no number that may be lost; whether that may be ``nothing``."""
    if lost is not None and not (0 < lost < math.inf or (nothing and lost == 0)):
        raise typer.BadParameter(
            f"expected a number {'of at least' if nothing else 'above'} 0, got {lost:g}", param_hint=option
        )


def alignment(text: str | None) -> int | str | None:
    """Return a multiple that some runtime wants, or ``auto``."""
    known = {str(it): it for it in ALIGNMENTS} | {AUTO: AUTO}
    if text is None or text in known:
        return None if text is None else known[text]
    raise typer.BadParameter(f"expected 1, 4, 8, 16, 32, 64 or auto, got {text}", param_hint="--align")


def check_method(
    method: str, budgets: Mapping[str, Any], data: str | None, *, dead_first: bool = False, refit: bool = False
) -> None:
    """Refuse an unknown method, and what does not go with it; ``budgets``: option → what was given."""
    if method not in METHODS:
        raise typer.BadParameter(f"expected {', '.join(METHODS)}, got {method!r}", param_hint="--method")
    given = [option for option, value in budgets.items() if value is not None]
    if method in WITHOUT_BUDGET and given:
        raise typer.BadParameter(f"{method} removes {WITHOUT_BUDGET[method]}; leave it out", param_hint=given[0])
    if method not in WITHOUT_BUDGET and len(given) != 1:
        got = " and ".join(given) or "none"
        raise typer.BadParameter(f"give exactly one of {', '.join(budgets)}; got {got}", param_hint="--macs")
    if method == "dead" and dead_first:
        raise typer.BadParameter(
            "goes before another method; --method dead does nothing else", param_hint="--dead-first"
        )
    if (method == "dead" or dead_first) and data is None:
        raise typer.BadParameter("dead channels are found on images; name a data set", param_hint="--data")
    if (method in BY_FUNCTION or refit) and data is None:
        what = "what channels do is measured on images, without labels; name a data set, or --data images"
        raise typer.BadParameter(what, param_hint="--data")
    if method not in BY_FUNCTION and any(option.startswith("--max-") for option in given):
        raise typer.BadParameter("goes down in steps, by function; leave --method out", param_hint=given[0])


def refuse(context: typer.Context, names: Collection[str | None], why: str) -> None:
    """Refuse the parameters in ``names`` that were given on the command line."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(why, param_hint=parameter.opts[-1])


_OPTIONS = {"input_shape": "--input", "overrides": "--set", "second_opinion": "--cross-check", "shapes": "--shape"}
"""Parameters whose options have another name than theirs."""


def in_options(message: str) -> str:
    """Return a message of the library with its parameters as options.

    The library writes them in backquotes: `` `out` `` becomes ``--out``, `` `resume=True` `` ``--resume``,
    `` `allow_import=["nets"]` `` ``--allow-import nets`` and `` `input_shape=(3, 8, 8)` `` ``--input 3x8x8``.
    """

    def option(found: re.Match[str]) -> str:
        name, text = found.groups(default="True")
        value = text.strip("{[()]}'\"").replace('": (', "=").replace(", ", "x")
        return _OPTIONS.get(name, "--" + name.replace("_", "-")) + ("" if value == "True" else f" {value}")

    return re.sub(r"`([a-z_]+)(?:=([^`]+))?`", option, message)


def methods(incomplete: str) -> list[str]:
    """Complete the name of a method."""
    return [name for name in METHODS if name.startswith(incomplete)]


def data_sets(incomplete: str) -> list[str]:
    """Complete the name of a data set."""
    return [name for name in DATA_SETS if name.startswith(incomplete)]


def runtimes(incomplete: str) -> list[str]:
    """Complete the name of a runtime; the providers are those of the onnxruntime that is installed."""
    from onnxruntime import get_available_providers

    names = ["onnxruntime", "openvino", *(f"onnxruntime:{name}" for name in get_available_providers())]
    return [name for name in names if name.startswith(incomplete)]


def networks(incomplete: str) -> list[str]:
    """Complete the name of a network; what torchvision and timm have once their prefix is there."""
    names = [*NETWORKS, "torchvision:", "timm:"]
    with suppress(ImportError):  # timm is optional
        if incomplete.startswith("torchvision:"):
            from torchvision import models

            names = [f"torchvision:{name}" for name in models.list_models(module=models)]
        elif incomplete.startswith("timm:"):
            import timm

            names = [f"timm:{name}" for name in timm.list_models()]
    return [name for name in names if name.startswith(incomplete)]
