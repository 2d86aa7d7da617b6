"""card.md: the model card that travels with slim.onnx; every name in it stands in a code span, so it stays text."""

import re

from jinja2 import Environment, PackageLoader, StrictUndefined

from hoyer_export.report import number_format
from hoyer_export.report.making import how_it_was_made, making, stage_seconds
from hoyer_export.report.report import Report
from hoyer_export.report.summary import (
    accuracy_change,
    accuracy_interval,
    budget_words,
    cautions,
    headline,
    macs_share,
    recipe_tables,
    speed_efficiency,
    speed_is_unclear,
    speedup_words,
    title,
    verification_steps,
)


def render_card(report: Report) -> str:
    """Return card.md (GitHub-flavoured Markdown, with the front matter that the Hugging Face Hub reads)."""
    environment = Environment(
        loader=PackageLoader("hoyer_export.report"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        name: getattr(number_format, name)
        for name in ("exact", "percent", "share", "points", "milliseconds", "times", "small", "duration")
    }
    environment.filters |= {"code": code, "text": text}
    network, data = title(report)
    steps = verification_steps(report)
    images = report.inputs.images.test if report.inputs.images else 0
    return environment.get_template("card.md").render(
        report=report,
        made=making(report),
        sentences=how_it_was_made(report),
        seconds=stage_seconds(report),
        network=network,
        data=data,
        cautions=cautions(report),
        headline=headline(report),
        accuracy_change=accuracy_change(report),
        interval=accuracy_interval(report.slim.accuracy, images),
        images=images,
        budget=budget_words(report),
        speedup=speedup_words(report),
        efficiency=speed_efficiency(report),
        unclear=speed_is_unclear(report),
        steps=steps,
        checks=[step for step in steps if step.stage != "cut" and "," not in step.stage],
        comparisons=sum(len(it.verified.onnx) for it in report.artifacts),
        macs_share=macs_share(report),
        failed=[step for step in steps if not step.passed],
        closest=max((step.ratio for step in steps if step.ratio is not None), default=None),
        recipe=recipe_tables(report.recipe),
    )


def code(value: object) -> str:
    """Return ``value`` as a code span that nothing in it can end, also inside a table.

    Source: GitHub Flavored Markdown, 6.3 (code spans) and 4.10 (a pipe in a table is escaped even there).
    """
    words = _one_line(value).replace("|", "\\|") or " "
    longest = max((len(run) for run in re.findall("`+", words)), default=0)
    fence = "`" * (longest + 1)
    room = " " if words.startswith("`") or words.endswith("`") else ""
    return f"{fence}{room}{words}{room}{fence}"


def text(value: object) -> str:
    """Return ``value`` as one line of text in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|~&$])", r"\\\1", _one_line(value))


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
