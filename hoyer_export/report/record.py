"""The record of a run: the whole of ``report.json``, and how it is put together from what the stages found."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal

from hoyer_export.report.sections import (
    CUT_TOLERANCE,
    MOST_SAMPLES,
    Budget,
    Count,
    Data,
    DenseFigures,
    Environment,
    GroupWidth,
    Input,
    Latency,
    Seconds,
    Section,
    SlimFigures,
    SparseFigures,
    Tool,
    Verification,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Fields = Mapping[str, Any] | DataclassInstance

FORMAT = "hoyer-export-report/1"


class Report(Section):
    """The whole of report.json; what has a default may be absent from a file."""

    format: Literal["hoyer-export-report/1"]
    created: str | None = None
    tool: Tool | None = None
    network: str | None = None
    data: Data | None = None
    input: Input | None = None
    validation: str | None = None
    recipe: dict[str, Any]
    environment: Environment
    seconds: Seconds
    dense: DenseFigures
    sparse: SparseFigures
    slim: SlimFigures
    align: Count | None = None
    widths: tuple[GroupWidth, ...]
    verify: Verification
    latency: Latency | None
    budget: Budget


def assemble_report(
    *,
    network: str,
    data: "Fields",
    input: "Fields",
    validation: str | None,
    recipe: Mapping[str, Any],
    environment: "Fields",
    seconds: Mapping[str, float | None],
    dense: "Fields",
    sparse: "Fields",
    slim: "Fields",
    align: int | None,
    widths: "Sequence[Fields]",
    cut: "Fields",
    verify: "Fields",
    latency: "Fields | None",
    budget_asked: Mapping[str, float | str],
    tool_version: str,
    created: datetime | None = None,
) -> Report:
    """Put a run's figures together; sections are mappings or dataclasses with the names of the records above.

    What follows from other figures is worked out here (FLOPs = 2 · MACs where they are absent, GMAC/s, the budget
    reached and whether that meets it), long lists of samples are thinned to quantiles, absolute paths lose their
    folders, and numbers that are not finite become null.

    Args:
        network: name of the network.
        data: ``name``, ``classes`` and ``images {train, validation, test}``.
        input: ``shape`` (C, H, W), ``mean`` and ``std`` a channel.
        validation: where the validation images come from if that needs a word, e.g. "may have been seen in training".
        recipe: the recipe as resolved, one mapping a table.
        environment: ``cpu, flags, threads, versions, load`` and more.
        seconds: stage → wall seconds; stages that were not run may be absent.
        dense: ``accuracy, params, macs, onnx_bytes``.
        sparse: ``accuracy, effective_width``; either may be None.
        slim: as ``dense``, and ``onnx_accuracy, onnx_sha256``.
        align: multiple that widths were rounded up to.
        widths: ``group, dense, alive, slim`` of every group, in the network's order.
        cut: ``dtype, max_rel_error``.
        verify: ``passed, checks, onnx``; one step that failed and the whole has not passed.
        latency: ``threads, batch_size, dense_ms, slim_ms, speedup, blocked_convs`` and, where known, ``block, noise``;
            None where nothing was measured.
        budget_asked: the one budget of the recipe, e.g. ``{"macs": 0.5}``.
        tool_version: version of hoyer_export.
        created: when; now if not given.

    Raises:
        pydantic.ValidationError: a figure is missing or out of range: a bug of the caller, not of the user.
    """
    when = (created or datetime.now(UTC)).astimezone(UTC)
    dense, slim = _with_flops(_plain(dense)), _with_flops(_plain(slim))
    measured = None if latency is None else _completed_latency(_plain(latency), dense, slim)
    stages = _plain(seconds)
    report = {
        "format": FORMAT,
        "created": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tool": {"name": "hoyer_export", "version": tool_version},
        "network": network,
        "data": data,
        "input": input,
        "validation": validation,
        "recipe": recipe,
        "environment": environment,
        "seconds": {stage: stages.get(stage) for stage in Seconds.model_fields} | stages,
        "dense": dense,
        "sparse": sparse,
        "slim": slim,
        "align": align,
        "widths": widths,
        "verify": _verification(_plain(verify) | {"cut": {"tolerance": CUT_TOLERANCE} | _plain(cut)}),
        "latency": measured,
        "budget": _budget(_plain(budget_asked), dense, slim, measured),
    }
    # Through JSON, so that what is written can be read: the same validation as read_report's.
    return Report.model_validate_json(json.dumps(_plain(report)))


def sample_quantiles(samples: Sequence[float], most: int = MOST_SAMPLES) -> list[float]:
    """Return the sorted samples, thinned to ``most`` evenly spaced ranks; the smallest and largest are among them."""
    ordered = sorted(samples)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(rank * (len(ordered) - 1) / (most - 1))] for rank in range(most)]


def without_folders(text: str) -> str:
    """Return ``text`` with every absolute path in it shortened to its last name: whose machine it was is private."""
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
        return _last_name(text)
    return _PATH.sub(lambda found: _last_name(found.group()), text)


# An absolute path of two names or more inside a text: its slash or drive does not go on from a word (torch/onnx), a
# path, a URL or a tag.
_PATH = re.compile(r"(?<![\w./\\~<-])(?:file:/+|[A-Za-z]:[\\/]|/(?=[^\s/]+/))[^\s'\"`,;:()<>]+")


def _last_name(path: str) -> str:
    return PureWindowsPath(path).name or "…"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {without_folders(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _verification(ladder: dict[str, Any]) -> dict[str, Any]:
    """Return ``ladder``, not passed if one of its steps did not pass."""
    checked = Verification.model_validate_json(json.dumps(ladder))
    return ladder | {"passed": checked.passed and checked.every_step_passed}


def _with_flops(figures: dict[str, Any]) -> dict[str, Any]:
    return {"flops": 2 * figures["macs"]} | figures


def _completed_latency(latency: dict[str, Any], dense: dict[str, Any], slim: dict[str, Any]) -> dict[str, Any]:
    files = {"dense": (dense, latency["dense_ms"]), "slim": (slim, latency["slim_ms"])}
    # 1e6 = milliseconds a second in 1e9 MACs.
    speeds = {file: figures["macs"] * latency["batch_size"] / ms["p50"] / 1e6 for file, (figures, ms) in files.items()}
    thinned = {
        f"{file}_ms": ms | {"samples": sample_quantiles(ms.get("samples", ()))} for file, (_, ms) in files.items()
    }
    # An interval beside "too noisy to say" would say it all the same.
    interval = {} if latency.get("noise") is None else {"speedup": latency["speedup"] | {"ci95": None}}
    return latency | thinned | interval | {"gmac_per_s": speeds}


def _budget(
    asked: dict[str, Any], dense: dict[str, Any], slim: dict[str, Any], latency: dict[str, Any] | None
) -> dict[str, Any]:
    shares = {key: slim[key] / dense[key] for key in ("macs", "params")}
    if latency is not None:
        shares["latency"] = 1 / latency["speedup"]["median"]
    # A share that was met as slim ≤ asked · dense may differ from it in the last bit.
    met = all(shares.get(key, math.inf) <= share * (1 + 1e-12) for key, share in asked.items() if key != "threshold")
    return {"asked": asked, "met": met, "reached": {key: shares[key] for key in asked if key in shares}}
