"""What the page and the card both say: figures side by side, and every step of the verification in one list."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hoyer_export.report.number_format import percent, points, share, small, times
from hoyer_export.report.record import Report

MOST_SHOWN = 3
"""Failed steps named at the top; all of them stand further down."""


@dataclass(frozen=True)
class Step:
    """One step of the verification.

    Args:
        stage: "cut", "file" or, for a comparison with torch, onnxruntime at which optimisation.
        name: what was compared.
        value: what came out, as text.
        tolerance: the most that passes, as text.
        ratio: value / tolerance; None where that is no number.
        passed: whether it passed.
    """

    stage: str
    name: str
    value: str
    tolerance: str
    ratio: float | None
    passed: bool


@dataclass(frozen=True)
class Caution:
    """Something that makes the result worth less: ``severe`` where it must not be used as it is."""

    severe: bool
    title: str
    text: str


def verification_steps(report: Report) -> tuple[Step, ...]:
    """Return every step of the ladder, in its order."""
    return tuple(_steps(report))


def _steps(report: Report) -> Iterator[Step]:
    cut = report.verify.cut
    yield _step("cut", f"zeroed = slim network, {cut.dtype}, relative", cut.max_rel_error, cut.tolerance, cut.passed)
    for check in report.verify.checks:
        yield _step("file", check.name, check.value, check.tolerance, check.passed)
    for row in report.verify.onnx:
        stage = f"onnxruntime, optimisations {row.optimization}"
        yield _step(stage, f"batch {row.batch}, {row.inputs}", row.max_abs_error, row.tolerance, row.passed)


def _step(stage: str, name: str, value: float | bool | str | None, tolerance: float | None, passed: bool) -> Step:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    ratio = float(value) / tolerance if is_number and value is not None and tolerance else None
    return Step(stage, name, _value_words(value), "" if tolerance is None else small(tolerance), ratio, passed)


def _value_words(value: float | bool | str | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else small(value)


def title(report: Report) -> tuple[str, str]:
    """Return the names of network and data."""
    network = report.network or _named(report.recipe, "network") or "a network"
    data = report.data.name if report.data else _named(report.recipe, "data") or "unnamed data"
    return network, data


def _full_name(step: Step) -> str:
    return step.name if step.stage in ("cut", "file") else f"{step.stage}, {step.name}"


def _named(recipe: Mapping[str, Any], table: str) -> str | None:
    section = recipe.get(table)
    name = section.get("name") if isinstance(section, dict) else None
    return name if isinstance(name, str) else None


def was_sparse_trained(report: Report) -> bool:
    """Whether the network trained with Group-HS before the cut; a recipe may skip that phase."""
    sparse = report.recipe.get("sparse")
    return not (isinstance(sparse, dict) and sparse.get("epochs") == 0)


def accuracy_change(report: Report) -> float:
    """Return slim minus dense accuracy in points."""
    return report.slim.accuracy - report.dense.accuracy


def accuracy_interval(accuracy: float, images: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy read on a sample of images, both in per cent.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
    """
    z, p = 1.96, accuracy / 100
    middle = p + z * z / (2 * images)
    half = z * math.sqrt(p * (1 - p) / images + z * z / (4 * images * images))
    scale = 1 + z * z / images
    return 100 * max(0.0, middle - half) / scale, 100 * min(scale, middle + half) / scale


def speedup_words(report: Report) -> str:
    """Return the speed-up with its interval in words, e.g. ``2.31× as fast (95 % interval 2.28–2.35)``."""
    if report.latency is None:
        return "latency not measured"
    speedup = report.latency.speedup
    low, high = speedup.ci95
    interval = f"(95 % interval {times(low)[:-1]}–{times(high)[:-1]})"
    if speed_is_unclear(report):
        return f"no measurable difference in speed: {times(speedup.median)} {interval}"
    return f"{times(speedup.median)} as fast {interval}"


def speed_is_unclear(report: Report) -> bool:
    """Whether the interval of the speed-up holds 1, so that nobody can say which file is faster."""
    return report.latency is not None and report.latency.speedup.ci95[0] <= 1 <= report.latency.speedup.ci95[1]


def speed_efficiency(report: Report) -> float | None:
    """Return speed-up / MACs reduction: 1 where every MAC saved is time saved."""
    if report.latency is None:
        return None
    return report.latency.speedup.median * report.slim.macs / report.dense.macs


def budget_words(report: Report) -> str:
    """Return what was asked and reached, e.g. ``at most 50.0 % of the dense MACs asked, 49.7 % reached``."""
    names = {"macs": "dense MACs", "params": "dense parameters", "latency": "dense latency"}
    words = []
    for key, asked in report.budget.asked.items():
        if isinstance(asked, str) or key not in names:
            words.append(f"no share asked, {key} {asked}")
            continue
        reached = report.budget.reached.get(key)
        came = "not measured" if reached is None else f"{share(reached)} reached"
        words.append(f"at most {share(asked)} of the {names[key]} asked, {came}")
    return "; ".join(words) or "no budget asked"


def cautions(report: Report) -> tuple[Caution, ...]:
    """Return what a reader must know before believing the figures; nothing where all is well."""
    found = []
    steps = verification_steps(report)
    failed = [step for step in steps if not step.passed]
    if failed or not report.verify.passed:
        shown = [
            f"; {_full_name(step)} ({step.value}, tolerance {step.tolerance or 'none'})" for step in failed[:MOST_SHOWN]
        ]
        more = f"; and {len(failed) - MOST_SHOWN} more" if len(failed) > MOST_SHOWN else ""
        text = f"{len(failed)} of {len(steps)} steps did not pass, do not ship this file{''.join(shown)}{more}"
        found.append(Caution(True, "Verification failed", text))
    if not report.budget.met:
        found.append(Caution(True, "Budget missed", budget_words(report)))
    if report.latency is not None and report.latency.speedup.ci95[1] < 1:
        found.append(Caution(True, "Slower than dense", f"on this machine the slim file is {speedup_words(report)}"))
    if report.latency is not None and report.latency.noise:
        found.append(Caution(False, "Noisy machine", report.latency.noise.rstrip(".")))
    return tuple(found)


def headline(report: Report) -> str:
    """Return the result in one sentence."""
    return (
        f"{share(report.slim.macs / report.dense.macs)} of the MACs, {speedup_words(report)}, "
        f"{percent(report.slim.accuracy)} accuracy ({points(accuracy_change(report))})."
    )


def recipe_tables(recipe: Mapping[str, Any]) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Return the recipe as (table, ((key, value), ...)), values as in TOML; keys outside a table come first."""
    loose = {key: value for key, value in recipe.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in recipe.items() if isinstance(value, dict)}
    named = ([("", loose)] if loose else []) + list(tables.items())
    # JSON and TOML write strings, numbers, booleans and lists alike.
    return tuple(
        (name, tuple((key, json.dumps(value, ensure_ascii=False)) for key, value in table.items() if value is not None))
        for name, table in named
    )
