"""The files beside dense and slim: what each one is and does, and which are not shipped."""

from hoyer_export.deploy.checks import RELATIVE_CHANGE
from hoyer_export.report.number_format import percent, score, score_change, share, size, times
from hoyer_export.report.report import Artifact, Report

INT8 = "onnx, int8 weights and activations (QDQ), float32 in and out"
MOST_LOST = 1.0
"""Points of slim's accuracy, or per cent of its metric, that int8 may lose where no gate says otherwise."""
MOST_CHANGED = 0.1
"""Relative change of the outputs where there are no labels to read an accuracy on."""
_MOST_SHOWN = 3


def withheld(report: Report) -> dict[str, str]:
    """Return name of a verified int8 file that is not shipped → why: it is slower than slim, or loses too much."""
    found = {}
    for it in report.artifacts:
        if it.file.kind == INT8 and it.verified.passed:
            reasons = [reason for reason in (_slower(it, report), _loses(it, report)) if reason]
            if reasons:
                found[it.file.name] = " and ".join(reasons)
    return found


def _slower(it: Artifact, report: Report) -> str:
    """Return that a file is slower than slim: by intervals that do not meet or, where there are none, by medians."""
    speedups = [None if one.latency is None else one.latency.speedup for one in (it, report.slim)]
    own, slim = speedups
    if own is None or slim is None:
        return ""
    apart = own.ci95 is None or slim.ci95 is None or own.ci95[1] < slim.ci95[0]
    if own.median >= slim.median or not apart:
        return ""
    return (
        f"it is slower than slim.onnx on this machine ({times(own.median)} the dense speed, slim {times(slim.median)})"
    )


def _loses(it: Artifact, report: Report) -> str:
    asked = report.recipe.get("gate")
    limit = asked.get("max_accuracy_drop") if isinstance(asked, dict) else None
    of, what = (report.slim, "slim.onnx") if limit is None else (report.dense, "dense.onnx")
    before, after = of.verified.onnx_accuracy, it.verified.onnx_accuracy
    if before is None or after is None:
        change = next((check.value for check in it.verified.checks if check.name == RELATIVE_CHANGE), None)
        if not isinstance(change, float) or change <= MOST_CHANGED:
            return ""
        return f"its outputs change by {share(change)}, without labels at most {share(MOST_CHANGED)}"
    lost, most = before - after, MOST_LOST if not isinstance(limit, int | float) else float(limit)
    if report.metric is not None:
        lost = (lost if report.inputs.higher_is_better else -lost) / max(abs(before), 1e-12) * 100
    unit = "points" if report.metric is None else "%"
    return f"it loses {lost:.2f} {unit} of {what}, at most {most:.2f}" if lost > most + 1e-9 else ""


def file_states(report: Report) -> dict[str, tuple[str, str]]:
    """Return name of a file → good or bad, and what its verification says of it."""
    kept_back, found = withheld(report), {}
    for it in report.artifacts:
        if not it.verified.passed:
            found[it.file.name] = "bad", "✗ departs from its network"
        elif it.file.name in kept_back:
            found[it.file.name] = "bad", "✗ not shipped"
        elif any(check.name == RELATIVE_CHANGE for check in it.verified.checks):
            found[it.file.name] = "good", "✓ close to its network"
        else:
            found[it.file.name] = "good", "✓ equals its network"
    return found


def further_words(report: Report) -> tuple[str, ...]:
    """Return a line about every file beside dense and slim."""
    details = further_details(report)
    lines = []
    for it in report.artifacts[2:]:
        known = [size(it.file.size_bytes), details[it.file.name]]
        lines.append(f"{it.file.file} ({it.file.kind}): {', '.join(part for part in known if part)}")
    return tuple(lines)


def further_details(report: Report) -> dict[str, str]:
    """Return name of a file beside dense and slim → how it compares with slim, and why it is not shipped."""
    return {it.file.name: _compared(it, report) for it in report.artifacts[2:]}


def _compared(it: Artifact, report: Report) -> str:
    parts = []
    before, after = report.slim.verified.onnx_accuracy, it.verified.onnx_accuracy
    if before is not None and after is not None:
        change = score_change(after - before, report.metric)
        parts.append(f"{score(after, report.metric)} test {report.metric_name} ({change} against slim)")
    if lost := _lost_most(it, report):
        parts.append(f"classes that lost most against slim: {lost}")
    speedups = [None if one.latency is None else one.latency.speedup for one in (it, report.slim)]
    if speedups[0] is not None and speedups[1] is not None:
        parts.append(f"{times(speedups[0].median / speedups[1].median)} as fast as slim")
    if why := withheld(report).get(it.file.name):
        parts.append(f"not shipped, for {why}: it is left as {it.file.file}.rejected")
    return ", ".join(parts)


def _lost_most(it: Artifact, report: Report) -> str:
    """Return the classes that lost most, e.g. ``cat 91.0 → 88.00 %``."""
    names = report.inputs.class_names or ()
    rows = [
        (after.accuracy - before.accuracy, f"{names[at] if at < len(names) else f'class {at}'}", before, after)
        for at, (before, after) in enumerate(zip(report.slim.verified.by_class, it.verified.by_class, strict=False))
        if before.accuracy is not None and after.accuracy is not None and after.correct < before.correct
    ]
    worst = sorted(rows, key=lambda row: row[0])[:_MOST_SHOWN]
    return ", ".join(f"{name} {before.accuracy:.1f} → {percent(after.accuracy)}" for _, name, before, after in worst)
