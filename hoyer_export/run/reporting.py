"""The last stage: the records of a run become report.json, card.md and report.html. Needs no torch."""

from pathlib import Path
from typing import Any

from hoyer_export.environment import OWN
from hoyer_export.errors import FileError
from hoyer_export.lock import only_writer
from hoyer_export.recipe import Recipe, load_recipe
from hoyer_export.report.files import read_report, write_report
from hoyer_export.report.metrics import read_metrics
from hoyer_export.report.record import Report, assemble_report
from hoyer_export.run_folder import RunFolder, opened, read_stages, write_stage

STAGES = ("inputs", "dense", "sparse", "cut", "finetune", "export", "verify", "bench")
"""What a report is put together from."""


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
    stages = read_stages(folder)
    missing = [stage for stage in STAGES if stage not in stages]
    if missing:
        raise FileError(
            f"{folder.path} has no record of {', '.join(missing)} yet; finish the run first: "
            "hoyer-export run RECIPE --out DIR --resume"
        )
    try:
        report = _assemble(recipe, stages)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"{folder.stages} is damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
            "start again in another folder"
        ) from error
    write_report(folder.path, report, read_metrics(folder.path))
    write_stage(folder, "report", {})
    return report


def _assemble(recipe: Recipe, stages: dict[str, dict[str, Any]]) -> Report:
    accuracy = stages["verify"]["accuracy"]
    bench = dict(stages["bench"])
    environment, _ = bench.pop("environment"), bench.pop("seconds")
    return assemble_report(
        network=recipe.network.name,
        data=stages["inputs"]["data"],
        input=stages["inputs"]["input"],
        # Nobody can tell whether given weights saw these images; training images are what weights are trained on.
        validation=None if recipe.dense.weights is None else "may have been seen in training",
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        environment=environment,
        seconds={stage: record["seconds"] for stage, record in stages.items() if "seconds" in record},
        dense=stages["export"]["dense"] | {"accuracy": accuracy["dense"]},
        sparse={"accuracy": accuracy["sparse"], "effective_width": stages["sparse"]["effective_width"]},
        slim=stages["export"]["slim"] | {"accuracy": accuracy["slim"], "onnx_accuracy": accuracy["slim_onnx"]},
        align=recipe.cut.align,
        widths=stages["cut"]["widths"],
        cut={key: stages["cut"][key] for key in ("dtype", "max_rel_error")},
        verify={key: stages["verify"][key] for key in ("passed", "checks", "onnx")},
        latency=bench,
        budget_asked=recipe.cut.asked(),
        tool_version=environment["versions"].get(OWN, "unknown"),
    )
