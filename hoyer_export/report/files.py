"""A run's report.json, card.md and report.html: written together, and made again from what is in the folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from hoyer_export.errors import FileError
from hoyer_export.record import read_record
from hoyer_export.report.card import render_card
from hoyer_export.report.page import render_page
from hoyer_export.report.report import FORMAT, Report
from hoyer_export.report.version_1 import upgraded
from hoyer_export.run_folder import write_whole
from hoyer_export.sparsify.phase import EpochRecord


def write_report(folder: Path, report: Report, metrics: Sequence[EpochRecord]) -> None:
    """Write report.json, card.md and report.html into ``folder``, each whole or not at all.

    ``write_report(folder, read_report(folder), read_metrics(folder))`` makes all three again, with this version to
    the same bytes.

    Args:
        folder: a run folder; it exists.
        report: from ``dated`` or ``read_report``.
        metrics: the epochs of training; none where they are not known, and the page then has no curves.

    Raises:
        FileError: the folder cannot be written.
    """
    contents = {
        "report.json": report.model_dump_json(indent=1) + "\n",
        "card.md": render_card(report),
        "report.html": render_page(report, metrics),
    }
    for name, content in contents.items():
        write_whole(folder / name, content)


def read_report(folder: Path) -> Report:
    """Return the record in ``folder``'s report.json, also of a version before this one.

    Raises:
        FileError: there is none, it is damaged, or it has another format.
    """
    path = folder / "report.json"
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileError(
            f"{path} is missing; finish the run first: hoyer-export run RECIPE --resume --out DIR"
        ) from None
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}; make it a file that can be read") from error
    except ValueError as error:
        raise FileError(f"{path} is damaged: not JSON ({error}); {_MEND}") from None
    form = found.get("format") if isinstance(found, dict) else None
    if form == "hoyer-export-report/1":
        try:
            found = upgraded(found)
        except (KeyError, TypeError, AttributeError) as error:
            raise FileError(f"{path} is damaged: {error} is missing or of another kind; {_MEND}") from None
    elif form is not None and form != FORMAT:
        raise FileError(
            f"{path} has the format {form!r:.60}, expected {FORMAT!r}; read it with the version of hoyer-export that "
            "wrote it"
        )
    return read_record(Report, json.dumps(found), path, _MEND)


_MEND = "put back the file that the run wrote, or run it again"
