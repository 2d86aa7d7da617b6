"""What the page and the card both say: figures side by side, and every step of the verification in one list."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hoyer_export.report.further import file_states, further_details, further_words
from hoyer_export.report.making import changed_little, how_it_was_made, little_effect_words, making, stage_seconds
from hoyer_export.report.number_format import (
    ABSENT,
    exact,
    milliseconds,
    percent,
    score,
    score_change,
    share,
    small,
    times,
)
from hoyer_export.report.report import Artifact, Report
from hoyer_export.report.sparsity import NO_FASTER, weights_words
from hoyer_export.report.stage_records import GateRecord, Images
from hoyer_export.report.usage import usage

MOST_LOST = 1.0
"""Points of accuracy below dense, or per cent of a metric, beyond which a slim network is warned of."""
FAR_TOO_MUCH = 10.0
"""Likewise beyond which it is no use."""
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
class ClassRow:
    """Test images of one class, and the accuracy of every network on them in percent, the dense one first."""

    name: str
    images: int
    accuracies: tuple[float, ...]

    @property
    def dense(self) -> float:
        """Of the dense network."""
        return self.accuracies[0]

    @property
    def slim(self) -> float:
        """Of the slim network."""
        return self.accuracies[1]

    @property
    def change(self) -> float:
        """Slim minus dense, in points."""
        return self.slim - self.dense


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
    cut = report.cut
    yield _step("cut", f"zeroed = slim network, {cut.dtype}, relative", cut.max_rel_error, cut.tolerance, cut.passed)
    for artifact in report.artifacts:
        file = artifact.file.file
        for check in artifact.verified.checks:
            yield _step(file, check.name, check.value, check.tolerance, check.passed)
        for row in artifact.verified.onnx:
            stage = f"{file}, optimisations {row.optimization}"
            yield _step(
                stage, f"{row.output}, batch {row.batch}, {row.inputs}", row.max_abs_error, row.tolerance, row.passed
            )


def _step(stage: str, name: str, value: float | bool | str | None, tolerance: float | None, passed: bool) -> Step:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    ratio = float(value) / tolerance if is_number and value is not None and tolerance else None
    return Step(stage, name, value_words(value), "" if tolerance is None else small(tolerance), ratio, passed)


def value_words(value: float | bool | str | None) -> str:
    """Return what a step found, as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else small(value)


def title(report: Report) -> tuple[str, str | None]:
    """Return the names of network and data; None where there is no data."""
    return _named(report.recipe, "network") or "a network", report.inputs.data or _named(report.recipe, "data")


def full_name(step: Step) -> str:
    """Return the name of a step with that of its file."""
    return step.name if step.stage == "cut" else f"{step.stage}, {step.name}"


def _named(recipe: Mapping[str, Any], table: str) -> str | None:
    section = recipe.get(table)
    name = section.get("name") if isinstance(section, dict) else None
    return name if isinstance(name, str) else None


def accuracy_change(report: Report) -> float | None:
    """Return slim minus dense accuracy in points, or metric; None without test images."""
    slim, dense = report.slim.accuracy, report.dense.accuracy
    return None if slim is None or dense is None else slim - dense


def class_rows(report: Report) -> tuple[ClassRow, ...]:
    """Return the accuracy of every class that has test images, those that lost most first."""
    names = report.inputs.class_names or ()
    rows = []
    for i, tallies in enumerate(zip(*(it.verified.by_class for it in with_classes(report)), strict=False)):
        found = tuple(it.accuracy for it in tallies if it.accuracy is not None)
        if len(found) == len(tallies) > 1:
            rows.append(ClassRow(names[i] if i < len(names) else f"class {i}", tallies[0].images, found))
    return tuple(sorted(rows, key=lambda row: row.change))


def with_classes(report: Report) -> tuple[Artifact, ...]:
    """Return the files whose accuracy is known class by class; none where it is not of dense and slim."""
    known = tuple(it for it in report.artifacts if it.verified.by_class)
    return known if report.dense in known and report.slim in known else ()


def accuracy_interval(accuracy: float | None, images: int) -> tuple[float, float] | None:
    """Return Wilson's 95 % interval of an accuracy read on a sample of images, in per cent; None without images."""
    if accuracy is None or not images:
        return None
    from scipy.stats import binomtest  # takes a second to import, which only this needs

    found = binomtest(round(accuracy / 100 * images), images).proportion_ci(0.95, method="wilson")
    return 100 * float(found.low), 100 * float(found.high)


def speedup_words(report: Report) -> str:
    """Return the speed-up with its interval in words, e.g. ``2.31× as fast (95 % interval 2.28–2.35)``."""
    if report.speed is None or report.speed.speedup is None:
        return "latency not measured"
    factor = times(report.speed.speedup.median)
    interval = speed_interval(report)
    if interval is None:
        return f"{factor} as fast (the machine was too noisy for an interval)"
    within = f"(95 % interval {_interval_words(interval)})"
    if speed_is_unclear(report):
        return f"no measurable difference in speed: {factor} {within}"
    return f"{factor} as fast {within}"


def speed_interval(report: Report) -> tuple[float, float] | None:
    """Return the 95 % interval of the speed-up; None where it was not measured, or the machine was too noisy."""
    speedup = None if report.speed is None else report.speed.speedup
    if speedup is None or report.bench.noise or speedup.ci95 is None:
        return None
    low, high = speedup.ci95
    return low, high


def speed_is_unclear(report: Report) -> bool:
    """Whether nobody can say which file is faster: the speed-up has no interval, or one that holds 1."""
    interval = speed_interval(report)
    return report.speed is not None and (interval is None or interval[0] <= 1 <= interval[1])


def speedup_cells(report: Report) -> tuple[str, ...]:
    """Return the speed-up of every file with its interval, e.g. ``2.21× (2.19–2.24)``; none of dense or unmeasured."""
    cells = []
    for speedup in (None if it.latency is None else it.latency.speedup for it in report.artifacts):
        if speedup is None:
            cells.append("")
        elif report.bench.noise or speedup.ci95 is None:
            cells.append(f"{times(speedup.median)} (too noisy)")
        else:
            cells.append(f"{times(speedup.median)} ({_interval_words(speedup.ci95)})")
    return tuple(cells)


def _interval_words(interval: Sequence[float]) -> str:
    return "–".join(times(end)[:-1] for end in interval)


def speed_efficiency(report: Report) -> float | None:
    """Return speed-up / MACs reduction: 1 where every MAC saved is time saved; None without an interval of it."""
    left = of_dense(report, "macs")
    if report.speed is None or report.speed.speedup is None or speed_interval(report) is None or left is None:
        return None
    return report.speed.speedup.median * left


def of_dense(report: Report, figure: str) -> float | None:
    """Return the slim file's ``macs``, ``params`` or ``size_bytes`` as a share of dense; None where that has none."""
    dense, slim = (float(getattr(it.file, figure)) for it in (report.dense, report.slim))
    return slim / dense if dense else None


LOST = {
    "max_drop": "points of accuracy on validation images",
    "max_change": "mean relative change of the outputs on held-out images without labels",
}
"""What may be lost in a budget that is no share of a cost, and on which images that was judged."""


def budget_words(report: Report) -> str:
    """Return what was asked and reached, e.g. ``at most 50.0 % of the dense MACs asked, 49.7 % reached``."""
    names = {"macs": "dense MACs", "params": "dense parameters", "latency": "dense latency"}
    words = []
    for key, asked in report.budget.asked.items():
        if key == "threshold" and report.export.weights:
            limit = f"{asked} standard deviations of their layer"
            words.append(f"none asked; weights up to {limit} were to go, {weights_words(report.export.weights)}")
        elif key == "weights" and not isinstance(asked, str):
            reached = percent(100 * report.budget.reached.get(key, 0.0))
            words.append(f"at most {100 * asked:g} % of the weights asked, {reached} reached")
        elif isinstance(asked, str) or key == "threshold":
            limit = "the natural threshold" if asked in ("natural", 1) else f"{asked} of the natural threshold"
            left = of_dense(report, "macs")
            came = "" if left is None else f", {share(left)} of the dense MACs left"
            words.append(f"none asked; channels below {limit} were to go{came}")
        elif key == "latency_ms":
            took = milliseconds(report.budget.reached.get(key))
            words.append(f"at most {milliseconds(asked)} a run asked, {took} reached")
        elif key in LOST:
            gone, stay = report.budget.reached.get(key, 0.0), share(of_dense(report, "macs"))
            words.append(f"at most {asked:g} {LOST[key]} asked, {max(gone, 0.0):.3g} lost at {stay} of the dense MACs")
        else:
            reached = share(report.budget.reached.get(key))
            words.append(f"at most {share(asked)} of the {names.get(key, key)} asked, {reached} reached")
    return "; ".join(words) or "no budget asked"


def gate_words(gate: GateRecord) -> tuple[str, ...]:
    """Return every limit with what was reached, e.g. ``MACs 49.7 % of dense, at most 50.0 %: passed``."""
    names = {"max_macs": "MACs", "max_params": "parameters", "max_bytes": "bytes", "max_latency": "latency"}
    words = []
    for it in gate.limits:
        if it.name in names:
            what, limit = f"{names[it.name]} {share(it.reached)} of dense", share(it.limit)
        else:
            came = ABSENT if it.reached is None else f"{it.reached:.2f}"
            what, limit = f"accuracy drop {came} points", f"{it.limit:.2f}"
        note = f" ({it.note})" if it.note else ""
        words.append(f"{what}, at most {limit}: {'passed' if it.passed else 'FAILED'}{note}")
    return tuple(words)


def cautions(report: Report) -> tuple[Caution, ...]:
    """Return what a reader must know before believing the figures; nothing where all is well."""
    found = []
    steps = verification_steps(report)
    failed = [step for step in steps if not step.passed]
    if failed or not report.passed:
        shown = [
            f"; {full_name(step)} ({step.value}, tolerance {step.tolerance or 'none'})" for step in failed[:MOST_SHOWN]
        ]
        more = f"; and {len(failed) - MOST_SHOWN} more" if len(failed) > MOST_SHOWN else ""
        what = f"{len(failed)} of {len(steps)} steps did not pass" if failed else "the run says so, and not which step"
        departures = [
            f"; {it.file.file}: the first node that departs is {it.verified.departure}"
            for it in report.artifacts
            if it.verified.departure is not None
        ]
        left = [f"; it is left as {it.file.file}.rejected" for it in report.artifacts if not it.verified.passed]
        text = f"{what}, do not ship this file{''.join((*shown, more, *departures, *left))}"
        found.append(Caution(True, "Verification failed", text))
    if not report.budget.met:
        found.append(Caution(True, "Budget missed", budget_words(report)))
    if not report.gate.passed:
        found.append(Caution(True, "Gate failed", "; ".join(gate_words(report.gate))))
    interval = speed_interval(report)
    if interval is not None and interval[1] < 1 and not report.export.weights:
        found.append(Caution(True, "Slower than dense", f"on this machine the slim file is {speedup_words(report)}"))
    if report.bench.noise:
        found.append(Caution(False, "Noisy machine", report.bench.noise.rstrip(".")))
    made, width = making(report), report.effective_macs
    if report.export.weights:
        found.append(Caution(False, "Zeros", NO_FASTER))
    elif not made.cut:
        found.append(
            Caution(False, "Nothing was cut", "every channel stays; ask for a smaller share, or a larger threshold")
        )
    if width is not None and changed_little(report):
        found.append(Caution(False, "Group-HS changed little", little_effect_words(width)))
    found += _of_accuracy(report)
    uncounted = report.dense.file.uncounted | report.slim.file.uncounted
    if uncounted:
        nodes = ", ".join(f"{count} × {name}" for name, count in uncounted.items())
        found.append(Caution(False, "Not counted", f"{nodes} may multiply and accumulate beside these MACs"))
    if made.random:
        text = "the weights are random: MACs, sizes and times are right, outputs mean nothing"
        found.append(Caution(False, "Random weights", text))
    if made.cut and report.cut.align is not None and report.cut.align < 8 and not report.bench.artifacts:
        text = (
            "odd widths can be slower in onnxruntime than the dense ones (61 channels than 64): measure, or align = 16"
        )
        found.append(Caution(False, "Widths", text))
    if report.cut.warning:
        found.append(Caution(False, "Selection", report.cut.warning))
    if report.inputs.classes == 1:
        found.append(Caution(False, "One class", "every answer is right, so that accuracy says nothing"))
    return tuple(found)


def _of_accuracy(report: Report) -> Iterator[Caution]:
    """Yield that much was lost, or that there was little to lose."""
    change, made, accuracy = accuracy_change(report), making(report), report.slim.accuracy
    if change is None or accuracy is None or made.random:
        return
    gone = lost(report, change)
    if (made.cut or made.of_elements) and gone > MOST_LOST:
        whence = f"{report.metric_name} is {score_change(change, report.metric)} from dense"
        more = "train longer, or ask for a larger share"
        why = more if made.trained_after else "fine-tune the slim network (finetune.epochs in a recipe)"
        title = f"{report.metric_name} lost".capitalize() if made.trained_after else "Not trained after the cut"
        yield Caution(gone > FAR_TOO_MUCH, title, f"{whence}; {why}")
    elif report.metric is None and accuracy < HALF:
        text = f"{score(accuracy)} of the answers on test images are right, and {score(report.dense.accuracy)} in dense"
        yield Caution(False, "More answers wrong than right", text)


HALF = 50.0


def accuracy_state(report: Report) -> tuple[str, str] | None:
    """Return how good the slim network is in a few words, and of what kind they are: good, warn or bad."""
    change, accuracy = accuracy_change(report), report.slim.accuracy
    if change is None or accuracy is None or making(report).random:
        return None
    words, gone = f"{report.metric_name} {score_change(change, report.metric)}", lost(report, change)
    if gone > FAR_TOO_MUCH:
        return "bad", f"✗ {words}"
    if report.metric is None and accuracy < HALF:
        return "warn", f"! {score(accuracy)} accuracy"
    return ("warn", f"! {words}") if gone > MOST_LOST else ("good", f"✓ {words}")


def lost(report: Report, change: float) -> float:
    """Return what the slim network lost, in points of accuracy or per cent of the dense one's metric."""
    if report.metric is None:
        return -change
    worse = -change if report.inputs.higher_is_better else change
    return 100 * worse / max(abs(report.dense.accuracy or 0.0), 1e-12)


def asks_a_share(report: Report) -> bool:
    """Whether a budget was asked for that can be met or missed; a threshold is none."""
    return any(key != "threshold" for key in report.budget.asked)


def headline(report: Report) -> str:
    """Return the result in one sentence."""
    change = accuracy_change(report)
    left = of_dense(report, "macs")
    parts = [] if left is None else [f"{share(left)} of the MACs"]
    parts.append(speedup_words(report))
    if report.export.weights:  # what the benchmark finds between files of one shape is chance
        parts = [weights_words(report.export.weights), "the dense shape and speed"]
    if change is not None:
        reached, changed = score(report.slim.accuracy, report.metric), score_change(change, report.metric)
        lower = "" if report.inputs.higher_is_better else ", lower is better"
        parts.append(
            f"{reached} accuracy ({changed})"
            if report.metric is None
            else f"{report.metric} {reached} ({changed}{lower})"
        )
    return f"{', '.join(parts)}."


def facts(report: Report) -> dict[str, object]:
    """Return what the templates of page and card both show, by the names that they use."""
    network, data = title(report)
    steps = verification_steps(report)
    images = report.inputs.images.test if report.inputs.images else 0
    return {
        "report": report,
        "made": making(report),
        "sentences": how_it_was_made(report),
        "seconds": stage_seconds(report),
        "network": network,
        "data": data,
        "images": images,
        "splits": _splits(report.inputs.images),
        "cautions": cautions(report),
        "headline": headline(report),
        "of_dense": {key: of_dense(report, key) for key in ("macs", "params", "size_bytes")},
        "accuracy_change": accuracy_change(report),
        "class_rows": class_rows(report),
        "accuracy_state": accuracy_state(report),
        "usage": usage(report),
        "intervals": {
            it.file.name: None if report.metric else accuracy_interval(it.accuracy, images) for it in report.artifacts
        },
        "budget": budget_words(report),
        "further": further_words(report),
        "details": further_details(report),
        "states": file_states(report),
        "gate": "; ".join(gate_words(report.gate)),
        "speedup": speedup_words(report),
        "speedups": speedup_cells(report),
        "efficiency": speed_efficiency(report),
        "steps": steps,
        "failed": [step for step in steps if not step.passed],
        "recipe": recipe_tables(report.recipe),
    }


def _splits(images: Images | None) -> str:
    """Return how many images each split has; where none trained, those that it was judged on."""
    if images is None:
        return ""
    counts = {"training": images.train, "validation": images.validation} if images.train else {}
    return ", ".join(f"{exact(count)} {name}" for name, count in (counts | {"test": images.test}).items())


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
