"""Write docs/schemas: the JSON schema of report.json, and of what every verb prints with --json.

    python scripts/publish_schemas.py [FOLDER]

``run``, ``cut`` and ``report`` print report.json. Later versions may write more keys; a reader has to allow for them.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hoyer_export.deploy.benchmark import BenchmarkRecord
from hoyer_export.deploy.macs import MacsRecord
from hoyer_export.report.report import Report
from hoyer_export.report.stage_records import ExportsRecord, VerifiedRecord
from hoyer_export.run.inspecting import Inspection

PUBLISHED = {
    "report": Report,
    "inspect": Inspection,
    "export": ExportsRecord,
    "verify": VerifiedRecord,
    "macs": MacsRecord,
    "bench": BenchmarkRecord,
}
DIALECT = {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def schema_of(kind: type) -> dict[str, Any]:
    """Return the JSON schema of a record that allows more keys than it has."""

    def open_to_more(part: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in part.items() if (key, value) != ("additionalProperties", False)}

    found: dict[str, Any] = json.loads(json.dumps(TypeAdapter(kind).json_schema()), object_hook=open_to_more)
    return DIALECT | found


def publish(folder: Path) -> None:
    """Write one file a verb."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in PUBLISHED.items():
        content = json.dumps(schema_of(kind), indent=1, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    publish(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "schemas")
