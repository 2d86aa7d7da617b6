"""A folder as the Hugging Face hub expects a model: the card as README.md beside what it describes, large files in LFS.

Source: https://huggingface.co/docs/hub/model-cards and https://huggingface.co/docs/hub/repositories-getting-started.
"""

import shutil
from pathlib import Path

from hoyer_export.errors import FileError
from hoyer_export.report.card import render_card
from hoyer_export.report.report import Report
from hoyer_export.run_folder import claimed, whole_folder

WITH_THEM = ("slim.safetensors", "report.json", "report.html", "headline.png", "recipe.toml")
LARGE = ("*.onnx", "*.safetensors", "*.pt2", "*.png")


def write_hub_folder(run: Path, report: Report, out: Path) -> None:
    """Copy what is shipped of a run, all but the dense file, to ``out``, together or not at all.

    Args:
        run: folder of the run, or what a cut left.
        report: of it.
        out: absent or empty.

    Raises:
        FileError: a file of the run failed its verification or is missing, or ``out`` holds something.
    """
    if not report.passed:
        raise FileError(f"{run} failed its verification, and is nothing to publish; its report says where")
    shipped = [it.file.file for it in report.artifacts if it.file.name != "dense"]
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileError(f"`hub` {out} is taken; give a folder that is absent or empty")
    if missing := [name for name in shipped if not (run / name).is_file()]:
        raise FileError(f"{run} has no {missing[0]}; make it again: hoyer-export export {run}")
    with claimed(out), whole_folder(out) as folder:
        for name in (*shipped, *(it for it in WITH_THEM if (run / it).is_file())):
            shutil.copyfile(run / name, folder.path / name)
        (folder.path / "README.md").write_text(render_card(report), encoding="utf-8")
        lines = (f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE)
        (folder.path / ".gitattributes").write_text("".join(lines), encoding="utf-8")
