"""The last stage: the records of a run become report.json, card.md and report.html. Needs no torch."""

from pathlib import Path

from hoyer_export.environment import OWN
from hoyer_export.lock import only_writer
from hoyer_export.recipe import Recipe, load_recipe
from hoyer_export.report.files import read_report, write_report
from hoyer_export.report.metrics import read_metrics
from hoyer_export.report.record import Report, assemble_report
from hoyer_export.run import records
from hoyer_export.run.log import read_found
from hoyer_export.run_folder import RunFolder, opened


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
    inputs = read_found(folder, "inputs", records.InputsRecord)
    dense, sparse, finetune = (
        read_found(folder, phase, records.PhaseRecord) for phase in ("dense", "sparse", "finetune")
    )
    cut = read_found(folder, "cut", records.CutRecord)
    exported = read_found(folder, "export", records.ExportsRecord)
    verified = read_found(folder, "verify", records.VerifiedRecord)
    measured = read_found(folder, "bench", records.MeasuredRecord)
    seconds = {"dense": dense.seconds, "sparse": sparse.seconds, "cut": cut.seconds, "finetune": finetune.seconds}
    seconds |= {"export": exported.seconds, "verify": verified.seconds, "bench": measured.seconds}
    accuracy = verified.accuracy
    report = assemble_report(
        network=recipe.network.name,
        data={"name": inputs.data, "classes": inputs.classes, "images": inputs.images.model_dump()},
        input={"shape": inputs.shape, "mean": inputs.mean, "std": inputs.std},
        # Nobody can tell whether given weights saw these images; training images are what weights are trained on.
        validation=None if recipe.dense.weights is None else "may have been seen in training",
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        environment=measured.environment.model_dump(),
        seconds=seconds,
        dense=exported.dense.model_dump() | {"accuracy": accuracy.dense},
        sparse={"accuracy": accuracy.sparse, "effective_width": sparse.effective_macs},
        slim=exported.slim.model_dump() | {"accuracy": accuracy.slim, "onnx_accuracy": accuracy.slim_onnx},
        align=recipe.cut.align,
        widths=[width.model_dump() for width in cut.widths],
        cut={"dtype": cut.dtype, "max_rel_error": cut.max_rel_error},
        verify=verified.model_dump(include={"passed", "checks", "onnx"}),
        latency=measured.model_dump(exclude={"seconds", "environment"}),
        budget_asked=recipe.cut.asked(),
        tool_version=measured.environment.versions.get(OWN, "unknown"),
    )
    write_report(folder.path, report, read_metrics(folder.path))
    return report
