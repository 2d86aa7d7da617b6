"""The last stage: the records of a run become report.json, card.md and report.html. Needs no torch."""

from pathlib import Path

from hoyer_export.lock import only_writer
from hoyer_export.recipe.reading import load_recipe
from hoyer_export.recipe.tables import Recipe
from hoyer_export.report import stage_records as records
from hoyer_export.report.files import read_report, write_report
from hoyer_export.report.metrics import read_metrics
from hoyer_export.report.report import Report, dated
from hoyer_export.run.gate import gate_of
from hoyer_export.run.log import read_found
from hoyer_export.run_folder import RunFolder, opened
from hoyer_export.sparsify.phase import PHASES


def report_run(path: Path) -> Report:
    """Write the report of the run in ``path`` again, from its records or, where those are gone, from report.json.

    Raises:
        FileError: there is no run, or its stages are not all done.
    """
    if (path / "report.json").is_file() and not RunFolder(path).stages.exists():
        with only_writer(path):
            report = read_report(path)
            write_report(path, report, read_metrics(path))
            return report
    with opened(path) as folder:
        return write_run_report(load_recipe(folder.recipe), folder)


def write_run_report(recipe: Recipe, folder: RunFolder) -> Report:
    """Put the records of all stages together, and write report.json, card.md and report.html."""
    exported = read_found(folder, "export", records.ExportsRecord)
    verified = read_found(folder, "verify", records.VerifiedRecord)
    measured = read_found(folder, "bench", records.MeasuredRecord)
    report = dated(
        Report(
            recipe=recipe.model_dump(mode="json", exclude_none=True),
            inputs=read_found(folder, "inputs", records.InputsRecord),
            training={phase: read_found(folder, phase, records.PhaseRecord) for phase in PHASES},
            cut=read_found(folder, "cut", records.CutRecord),
            export=exported,
            verify=verified,
            bench=measured,
            gate=gate_of(recipe.gate, exported, verified, measured),
        )
    )
    write_report(folder.path, report, read_metrics(folder.path))
    return report
