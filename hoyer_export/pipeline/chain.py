"""The chain on one screen: data to report, and the same stages one at a time from a run's files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hoyer_export.environment import environment_record
from hoyer_export.errors import FileError, RecipeError
from hoyer_export.pipeline.inputs import Inputs, check_budget, check_device, check_export, load_inputs
from hoyer_export.pipeline.phases import cut_again, cut_and_finetune, train_dense, train_sparse
from hoyer_export.pipeline.progress import Progress
from hoyer_export.pipeline.reporting import write_run_report
from hoyer_export.pipeline.shipping import bench_files, export_files, verify_files
from hoyer_export.pipeline.standing import standing
from hoyer_export.recipe import Recipe, changed_keys, dump_recipe, load_recipe
from hoyer_export.report.files import read_report
from hoyer_export.report.record import Report
from hoyer_export.run_folder import (
    RunFolder,
    claimed,
    drop_stages,
    opened,
    read_stages,
    write_stage,
    write_whole,
)
from hoyer_export.store.slim_file import load_slim
from hoyer_export.surgery.step import SlimModel


def run_recipe(
    recipe: Recipe, out: Path, *, resume: bool = False, allow_import: Sequence[str] = (), progress: Progress
) -> Report:
    """Run the whole chain into the folder ``out``; every stage that is already done is taken from its files.

    Args:
        recipe: as given; what it leaves open is settled by machine and data, and written into the folder's recipe.toml.
        out: absent or empty; with ``resume`` also the folder of an earlier run of the same recipe.
        resume: go on from the last whole epoch; a finished run is left untouched.
        allow_import: packages that may be imported for a network ``package.module:function``.
        progress: is told what happens.

    Returns:
        What report.json holds; whether verification passed and the budget was met is in it.

    Raises:
        HoyerExportError: an input is wrong (nothing has been written then), or training diverged, or a file is damaged.
    """
    with claimed(out, resume=resume) as begun:
        folder = RunFolder(out)
        if begun:
            recipe = _begun_with(recipe, folder)
            if "report" in read_stages(folder) and folder.report.is_file():
                progress.note(f"{out} is finished; nothing to do")
                return read_report(out)
            progress.headline(f"going on with {standing(folder)}")
        return _run(recipe, folder, begun, allow_import, progress)


def _run(recipe: Recipe, folder: RunFolder, begun: bool, allow_import: Sequence[str], progress: Progress) -> Report:
    environment = environment_record()
    with torch_threads(recipe.threads):
        inputs = load_inputs(recipe, allow_import=allow_import, progress=progress)
        inputs.data.check_readable()
        if not begun or "inputs" not in read_stages(folder):
            check_device(inputs)
            check_export(inputs)
            check_budget(inputs, progress)
        _begin(folder, inputs)
        train_dense(inputs, folder, progress)
        train_sparse(inputs, folder, progress)
        slim = cut_and_finetune(inputs, folder, progress)
        export_files(inputs, slim, folder, progress)
        verify_files(inputs, slim, folder, progress)
        bench_files(inputs, folder, environment, progress)
    report = write_run_report(inputs.recipe, folder)
    if folder.checkpoint.is_dir() and not any(folder.checkpoint.iterdir()):
        folder.checkpoint.rmdir()
    return report


def cut_run(path: Path, *, allow_import: Sequence[str] = (), progress: Progress) -> dict[str, Any]:
    """Select and cut again from the sparse weights of the run in ``path``, and return the figures.

    A slim network that comes out with the same channels stays as it is, fine-tuned or not; another one replaces it, and
    has yet to be fine-tuned and shipped.
    """
    with opened(path) as folder:
        inputs = _open_inputs(folder, "sparse", allow_import, progress)
        with torch_threads(inputs.recipe.threads):
            found = cut_again(inputs, folder, progress)
    if not found["changed"]:
        progress.note("the same channels stay as before; slim.safetensors is left as it is")
    else:
        progress.note(
            f"slim.safetensors is cut and not fine-tuned yet; go on with  hoyer-export run RECIPE --out {path} --resume"
        )
    return found


def export_run(path: Path, *, allow_import: Sequence[str] = (), progress: Progress) -> dict[str, Any]:
    """Write the ONNX files of the run in ``path`` again, and return their figures.

    The same network gives the same bytes. Where they differ (another version of torch), what was verified and measured
    holds no longer and is forgotten.
    """
    with opened(path) as folder:
        inputs, slim = _open_slim(folder, "finetune", allow_import, progress)
        before = read_stages(folder).get("export")
        after = export_files(inputs, slim, folder, progress, again=True)
        changed = before is not None and _hashes(before) != _hashes(after)
        if changed:
            drop_stages(folder, "verify", "bench", "report")
    if changed:
        progress.note(f"the files have changed; verify and measure them: hoyer-export run RECIPE --out {path} --resume")
    return after


def verify_run(path: Path, *, allow_import: Sequence[str] = (), progress: Progress) -> dict[str, Any]:
    """Verify slim.onnx of the run in ``path`` again, and return every check; a finished run's report follows."""
    with opened(path) as folder:
        inputs, slim = _open_slim(folder, "export", allow_import, progress)
        found = verify_files(inputs, slim, folder, progress, again=True)
        if "report" in read_stages(folder):
            write_run_report(inputs.recipe, folder)
    return found


def _hashes(exported: dict[str, Any]) -> list[str]:
    return [exported[file]["onnx_sha256"] for file in ("dense", "slim")]


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Give torch so many CPU threads for a while; None leaves its own choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _open_slim(
    folder: RunFolder, needed: str, allow_import: Sequence[str], progress: Progress
) -> tuple[Inputs, SlimModel]:
    inputs = _open_inputs(folder, needed, allow_import, progress)
    return inputs, load_slim(folder.slim_weights, into=inputs.network)


def _open_inputs(folder: RunFolder, needed: str, allow_import: Sequence[str], progress: Progress) -> Inputs:
    if needed not in read_stages(folder):
        raise FileError(
            f"{folder.path} has not come that far (no record of {needed}); go on with  hoyer-export run RECIPE "
            f"--out {folder.path} --resume"
        )
    recipe = load_recipe(folder.recipe)
    return load_inputs(recipe, allow_import=allow_import, progress=progress, pretrained=False)


def _begun_with(recipe: Recipe, folder: RunFolder) -> Recipe:
    """Return the recipe of the run in the folder, resolved; ``recipe`` must be the same, but may leave that open."""
    inputs = read_stages(folder).get("inputs")
    if inputs is None:  # it ended before anything was done
        return recipe
    begun = load_recipe(folder.recipe)
    changed = changed_keys(begun, recipe, inputs.get("settled", ()))
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise RecipeError(
            f"{folder.path} holds the run of another recipe, {changed[0]}{more}; give another --out, "
            f"or the recipe it was begun with"
        )
    return begun


def _begin(folder: RunFolder, inputs: Inputs) -> None:
    """Write what the run is before its first stage."""
    before = read_stages(folder).get("inputs")
    if before is None:
        write_whole(folder.recipe, dump_recipe(inputs.recipe))
    folder.checkpoint.mkdir(exist_ok=True)
    data = inputs.data
    images = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    record = {
        "data": {"name": data.name, "classes": data.classes, "images": images},
        "input": {"shape": list(data.input_shape), "mean": list(data.mean), "std": list(data.std)},
        # Of the recipe as it was first given: who goes on with the run may leave the same keys open.
        "settled": list(inputs.settled) if before is None else before.get("settled", []),
    }
    write_stage(folder, "inputs", record)
