"""Write what is made of the code and of finished runs: docs/schemas/, docs/recipe.md and models/README.md.

    python scripts/publish_docs.py [FOLDER]

schemas/ has that of report.json, which ``run``, ``cut`` and ``report`` print, and of what the other verbs print with
--json. Later versions may write more keys; a reader has to allow for them. recipe.md has every key of a recipe, and
models/README.md a row for each of its folders.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hoyer_export.deploy.benchmark import BenchmarkRecord
from hoyer_export.deploy.explain import Explanation
from hoyer_export.deploy.info import FileInfo
from hoyer_export.deploy.macs import MacsRecord
from hoyer_export.recipe.keys import Key, keys_of, meaning_of, own_keys, table_class, table_names
from hoyer_export.recipe.reading import load_recipe
from hoyer_export.recipe.tables import Phase, Recipe
from hoyer_export.report.files import read_report
from hoyer_export.report.number_format import count, percent, share, size
from hoyer_export.report.report import Report
from hoyer_export.report.stage_records import ExportsRecord, GateRecord, VerifiedRecord
from hoyer_export.report.sweep import SweepRecord
from hoyer_export.run.inspecting import Inspection
from hoyer_export.run.proposing import Proposal
from hoyer_export.run.timing import Times

PUBLISHED = {
    "report": Report,
    "init": Proposal,
    "inspect": Inspection,
    "export": ExportsRecord,
    "verify": VerifiedRecord,
    "check": GateRecord,
    "macs": MacsRecord,
    "bench": BenchmarkRecord,
    "explain": Explanation,
    "info": FileInfo,
    "time-table": Times,
    "sweep": SweepRecord,
}
DIALECT = {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def schema_of(kind: type) -> dict[str, Any]:
    """Return the JSON schema of a record that allows more keys than it has."""

    def open_to_more(part: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in part.items() if (key, value) != ("additionalProperties", False)}

    found: dict[str, Any] = json.loads(json.dumps(TypeAdapter(kind).json_schema()), object_hook=open_to_more)
    return DIALECT | found


def reference() -> str:
    """Return docs/recipe.md."""
    parts = [INTRODUCTION, _rows(keys_of(Recipe))]
    for name in table_names():
        kind = table_class(name)
        assert kind is not None
        phase = issubclass(kind, Phase)
        if phase and PHASES not in parts:
            parts += [PHASES, _rows(key for key in own_keys(Phase) if key.name not in ("epochs", "lr"))]
        text = "\n\n".join(" ".join(it.split()) for it in meaning_of(kind).split("\n\n"))
        needed = ", needed" if Recipe.model_fields[name].is_required() else ""
        parts += [f"## `[{name}]`{needed}\n\n{text}", _rows(own_keys(kind))]
    return "\n\n".join(parts).replace("``", "`") + "\n"


INTRODUCTION = """# The recipe

A recipe is a TOML file. `hoyer-export init` writes one for your network and data, with comments; `models/*/recipe.toml`
are others. What a table leaves out has its default; a key that is not here is refused, and values are not converted
(`epochs = "3"` is text, and wrong). `--set table.key=value` sets one key on the command line. Paths are relative to the
recipe, those of `--set` to the working directory. A run writes down what its recipe left open: the `recipe.toml` in its
folder alone makes the same run again. A recipe that trains nothing needs no `[data]`, and `dense.weights` is
`"random"` or a file. This page is made of `hoyer_export/recipe/tables.py` by `scripts/publish_docs.py`.

## Outside of tables"""

PHASES = """## `[dense]`, `[train]`, `[sparse]`, `[finetune]`

What the phases of training have in common; what each has of its own is below. `[train]` decides it for `[sparse]` and
`[finetune]`."""


def _rows(keys: Iterable[Key]) -> str:
    """Return a table of keys."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        default = "needed" if key.needed else f"`{key.default}`" if key.default is not None else "unset"
        rows.append(f"| `{key.name}` | {key.type} | {default} | {key.meaning[:1].upper()}{key.meaning[1:]} |")
    return "\n".join(rows)


ZOO = """# The zoo

Each folder holds a recipe, with its command and arithmetic, and where it was run what came out: `card.md`,
`report.json`, `widths.json` and the file itself. One run each, seed 0; accuracy on the test images. *Recipe only*: its
data or the time was not at hand; it was tried on generated files of the same layout, with random weights. The table is
made by `scripts/publish_docs.py`.

| entry | data | MACs, or weights that are not zero, dense → slim | accuracy, dense → slim | file |
|---|---|--:|--:|--:|"""


def zoo(models: Path) -> str:
    """Return models/README.md."""
    rows = [ZOO]
    for folder in sorted(path.parent for path in models.glob("*/recipe.toml")):
        recipe = load_recipe(folder / "recipe.toml")
        entry = f"| [`{folder.name}`]({folder.name}/recipe.toml), `{recipe.network.name}`"
        data = recipe.data.name if recipe.data else ""
        if not (folder / "report.json").exists():
            asked = " ".join(f"{key} = {value}" for key, value in recipe.cut.asked().items())
            rows.append(f"{entry} | {data} | {asked} | recipe only | |")
            continue
        report = read_report(folder)
        dense, slim = report.dense, report.slim
        size_left = f"{count(dense.file.macs)} → {count(slim.file.macs)} ({share(slim.file.macs / dense.file.macs)})"
        if weights := report.export.weights:
            whole, left = (sum(getattr(it, key) for it in weights) for key in ("weights", "nonzero"))
            size_left = f"weights: {count(whole)} → {count(left)} ({percent(100 * left / whole)})"
        accuracy = f"{percent(dense.accuracy)} → {percent(slim.accuracy)}"
        file = f"[{size(slim.file.size_bytes)}]({folder.name}/slim.onnx), [card]({folder.name}/card.md)"
        rows.append(f"{entry} | {data} | {size_left} | {accuracy} | {file} |")
    return "\n".join(rows) + "\n"


def publish(folder: Path) -> None:
    """Write schemas/, one file a verb, and recipe.md."""
    schemas = folder / "schemas"
    schemas.mkdir(parents=True, exist_ok=True)
    for name, kind in PUBLISHED.items():
        content = json.dumps(schema_of(kind), indent=1, ensure_ascii=False) + "\n"
        (schemas / f"{name}.json").write_text(content, encoding="utf-8")
    (folder / "recipe.md").write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    home = Path(__file__).parents[1]
    publish(Path(sys.argv[1]) if len(sys.argv) > 1 else home / "docs")
    (home / "models" / "README.md").write_text(zoo(home / "models"), encoding="utf-8")
