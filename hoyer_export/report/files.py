"""A run's report.json with its card, page and pictures: written together, and made again from what is in the folder."""

from collections.abc import Sequence
from pathlib import Path

from pydantic_core import from_json, to_json

from hoyer_export.errors import FileError
from hoyer_export.record import read_record
from hoyer_export.report import version_1
from hoyer_export.report.card import render_card
from hoyer_export.report.headline import as_png, as_svg, shapes
from hoyer_export.report.page import render_page
from hoyer_export.report.report import FORMAT, Report
from hoyer_export.report.summary import headline
from hoyer_export.report.tiles import tiles
from hoyer_export.run_folder import write_whole
from hoyer_export.sparsify.phase import EpochRecord


def write_report(folder: Path, report: Report, metrics: Sequence[EpochRecord]) -> None:
    """Write report.json, card.md, report.html and the headline's pictures into ``folder``, each whole or not at all.

    ``write_report(folder, read_report(folder), read_metrics(folder))`` makes all of them again, with this version to
    the same bytes.

    Args:
        folder: a run folder; it exists.
        report: from ``dated`` or ``read_report``.
        metrics: the epochs of training; none where they are not known, and the page then has no curves.

    Raises:
        FileError: the folder cannot be written.
    """
    drawn = shapes(report, tiles(report))
    contents: dict[str, str | bytes] = {
        "report.json": report.model_dump_json(indent=1) + "\n",
        "card.md": render_card(report),
        "report.html": render_page(report, metrics),
        "headline.svg": as_svg(drawn, headline(report)),
        "headline.png": as_png(drawn),
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
        content = path.read_bytes()
        found = from_json(content)
    except FileNotFoundError:
        raise FileError(
            f"{path} is missing; finish the run first: hoyer-export run RECIPE --resume --out DIR"
        ) from None
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}; make it a file that can be read") from error
    except ValueError as error:
        raise FileError(f"{path} is damaged: not JSON ({error}); {_MEND}") from None
    form = found.get("format") if isinstance(found, dict) else FORMAT  # what is no object at all is said below
    if form == version_1.FORMAT:
        try:
            content = to_json(version_1.upgraded(found))
        except KeyError as error:
            raise FileError(f"{path} is damaged: {error.args[0]} is missing; {_MEND}") from None
        except (TypeError, AttributeError):
            raise FileError(f"{path} is damaged: a section is of another kind than in {form}; {_MEND}") from None
    elif form != FORMAT:
        raise FileError(
            f"{path} has the format {form!r:.60}, expected {FORMAT!r}; read it with the version of hoyer-export that "
            "wrote it"
        )
    return read_record(Report, content, path, _MEND)


_MEND = "put back the file that the run wrote, or run it again"
