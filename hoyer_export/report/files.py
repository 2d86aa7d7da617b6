"""A run's report.json, card.md and report.html: written together, and made again from what is in the folder."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from hoyer_export.errors import FileError
from hoyer_export.record import first_complaint
from hoyer_export.report.card import render_card
from hoyer_export.report.metrics import Epoch
from hoyer_export.report.page import render_page
from hoyer_export.report.record import FORMAT, Report
from hoyer_export.run_folder import write_whole


def write_report(folder: Path, report: Report, metrics: Sequence[Epoch]) -> None:
    """Write report.json, card.md and report.html into ``folder``, each whole or not at all.

    ``write_report(folder, read_report(folder), read_metrics(folder))`` makes all three again, with this version to
    the same bytes.

    Args:
        folder: a run folder; it exists.
        report: from ``assemble_report`` or ``read_report``.
        metrics: the epochs of training; none where they are not known, and the page then has no curves.

    Raises:
        FileError: the folder cannot be written.
    """
    contents = {
        "report.json": report.model_dump_json(indent=1, exclude_unset=True) + "\n",
        "card.md": render_card(report),
        "report.html": render_page(report, metrics),
    }
    for name, content in contents.items():
        write_whole(folder / name, content)


def read_report(folder: Path) -> Report:
    """Return the record in ``folder``'s report.json.

    Raises:
        FileError: there is none, it is damaged, or it has another format.
    """
    path = folder / "report.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileError(
            f"{path} is missing; finish the run first: hoyer-export run RECIPE --resume --out DIR"
        ) from None
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}; make it a file that can be read") from error
    try:
        return Report.model_validate_json(content)
    except ValidationError as error:
        wrong_format = [detail for detail in error.errors(include_url=False) if detail["loc"] == ("format",)]
        if wrong_format and wrong_format[0]["type"] == "literal_error":
            raise FileError(
                f"{path} has the format {wrong_format[0]['input']!r:.60}, expected {FORMAT!r}; "
                "read it with the version of hoyer-export that wrote it"
            ) from None
        raise FileError(
            f"{path} is damaged: {first_complaint(error)}; put back the file that the run wrote, or run it again"
        ) from None
