"""card.md: the model card that travels with slim.onnx; every name in it stands in a code span, so it stays text."""

import json
import re
from collections.abc import Iterator

from jinja2 import Environment, PackageLoader, StrictUndefined

from hoyer_export.report.number_format import WRITTEN
from hoyer_export.report.report import Report
from hoyer_export.report.summary import facts, full_name


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
    environment.filters |= WRITTEN | {"code": code, "text": text, "full_name": full_name, "tojson": json.dumps}
    return environment.get_template("card.md").render(facts(report), evaluation=evaluation(report))


def evaluation(report: Report) -> Iterator[tuple[str, str, float]]:
    """Yield the hub's evaluation results of the slim file: name, type and value of each; its accuracy is a share."""
    if report.slim.accuracy is not None:
        read = report.slim.accuracy if report.metric else round(report.slim.accuracy / 100, 6)
        yield report.metric or "Top-1 accuracy", report.metric or "accuracy", read
    yield "MACs of one image", "macs", report.slim.file.macs
    yield "Parameters", "parameters", report.slim.file.params
    if report.speed is not None:
        yield f"Latency, median, ms, on {report.environment.cpu}", "latency", round(report.speed.p50, 6)


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
