"""The record of a run: the whole of ``report.json``, made of what its stages found."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath, PureWindowsPath
from typing import Literal

from pydantic import JsonValue, model_validator
from pydantic_core import PydanticCustomError

from hoyer_export.environment import OWN
from hoyer_export.record import Record
from hoyer_export.report.stage_records import (
    BudgetRecord,
    CutRecord,
    Environment,
    ExportsRecord,
    FileLatency,
    FileRecord,
    FileVerification,
    GateRecord,
    InputsRecord,
    MeasuredRecord,
    PhaseRecord,
    VerifiedRecord,
)

FORMAT: Literal["hoyer-export-report/2"] = "hoyer-export-report/2"


class Tool(Record):
    """What wrote the report."""

    name: str
    version: str


@dataclass(frozen=True)
class Artifact:
    """One shipped file with everything that was found about it; ``latency`` is None where it was not measured."""

    file: FileRecord
    verified: FileVerification
    latency: FileLatency | None
    batch_size: int

    @property
    def accuracy(self) -> float | None:
        """Top-1 of its network on the test set in percent, or what the report's metric names."""
        return self.verified.accuracy

    @property
    def gmac_per_s(self) -> float | None:
        """MACs · batch size / p50, in 1e9 MACs a second."""
        return None if self.latency is None else self.file.macs * self.batch_size / self.latency.p50 / 1e6


class Report(Record):
    """The whole of report.json: the recipe as resolved, and the record of every stage.

    Args:
        created: when, UTC.
        training: phase (dense, sparse, finetune) → what it took.
    """

    format: Literal["hoyer-export-report/2"] = FORMAT
    created: str | None = None
    tool: Tool | None = None
    recipe: dict[str, JsonValue]
    inputs: InputsRecord
    training: dict[str, PhaseRecord]
    cut: CutRecord
    export: ExportsRecord
    verify: VerifiedRecord
    bench: MeasuredRecord
    gate: GateRecord = GateRecord()

    @model_validator(mode="after")
    def _same_artifacts(self) -> "Report":
        names = [it.name for it in self.export.artifacts]
        verified = [it.name for it in self.verify.artifacts]
        measured = [it.name for it in self.bench.artifacts]
        if names[:2] != ["dense", "slim"] or verified != names or measured not in ([], names):
            message = "expected the artifacts dense, slim, ... , each of them verified, and measured all or none"
            raise PydanticCustomError("artifacts", message)
        return self

    @model_validator(mode="after")
    def _accuracies_in_percent(self) -> "Report":
        read = [self.verify.sparse_accuracy]
        read += [found for it in self.verify.artifacts for found in (it.accuracy, it.onnx_accuracy)]
        if self.inputs.metric is None and not all(0 <= it <= 100 for it in read if it is not None):
            raise PydanticCustomError("accuracies", "expected accuracies in per cent, 0 to 100")
        return self

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Every shipped file, the dense one first."""
        verified = {it.name: it for it in self.verify.artifacts}
        latencies = {it.name: it for it in self.bench.artifacts}
        return tuple(
            Artifact(file, verified[file.name], latencies.get(file.name), self.bench.batch_size)
            for file in self.export.artifacts
        )

    def artifact(self, name: str) -> Artifact:
        """Return the shipped file of that name."""
        return next(it for it in self.artifacts if it.file.name == name)

    @property
    def dense(self) -> Artifact:
        """What everything is compared with."""
        return self.artifact("dense")

    @property
    def slim(self) -> Artifact:
        """What is shipped."""
        return self.artifact("slim")

    @property
    def metric(self) -> str | None:
        """What networks are judged by; None: accuracy in %."""
        return self.inputs.metric

    @property
    def metric_name(self) -> str:
        """The same in words."""
        return self.inputs.metric or "accuracy"

    @property
    def effective_macs(self) -> float | None:
        """Share of the dense MACs at effective widths after the sparse phase; None where nothing was regularised."""
        sparse = self.training.get("sparse")
        return None if sparse is None else sparse.effective_macs

    @property
    def speed(self) -> FileLatency | None:
        """The slim file's latency with its speed-up; None where it was not measured."""
        return self.slim.latency

    @property
    def environment(self) -> Environment:
        """The machine."""
        return self.bench.environment

    @property
    def budget(self) -> BudgetRecord:
        """What was asked for and reached."""
        return self.bench.budget or self.export.budget

    @property
    def passed(self) -> bool:
        """Whether the cut is exact and every file computes what its network computes."""
        return self.cut.passed and self.verify.passed

    @property
    def seconds(self) -> dict[str, float | None]:
        """Stage → wall seconds, in the order of the run."""
        training = {name: phase.seconds for name, phase in self.training.items()}
        after = {"finetune": training.pop("finetune")} if "finetune" in training else {}
        shipping = {"export": self.export.seconds, "verify": self.verify.seconds, "bench": self.bench.seconds}
        return training | {"cut": self.cut.seconds} | after | shipping


def dated(report: Report) -> Report:
    """Return a report with what made it and when; every absolute path in it loses its folders."""
    tool = Tool(name="hoyer_export", version=report.environment.versions.get(OWN, "unknown"))
    made = report.model_copy(update={"created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "tool": tool})
    return Report.model_validate_json(json.dumps(_without_folders(made.model_dump(mode="json"))))


def _without_folders(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {without_folders(key): _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return without_folders(value) if isinstance(value, str) else value


def without_folders(text: str) -> str:
    """Return ``text`` with every absolute path in it shortened to its last name: whose machine it was is private."""
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
        return _last_name(text)
    return _PATH.sub(lambda found: _last_name(found.group()), text)


# An absolute path of two names or more inside a text: its slash or drive does not go on from a word (torch/onnx), a
# path, a URL or a tag.
_PATH = re.compile(r"(?<![\w./\\~<-])(?:file:/+|[A-Za-z]:[\\/]|/(?=[^\s/]+/))[^\s'\"`,;:()<>]+")


def _last_name(path: str) -> str:
    return PureWindowsPath(path).name or "…"
