"""What each stage finds: the records in stages.json, and what a report is put together from. Needs no torch."""

from hoyer_export.record import Record
from hoyer_export.report.sections import (
    BlockedConvsOfBoth,
    Check,
    Environment,
    GroupWidth,
    Images,
    LatencyMs,
    OnnxComparison,
    Speedup,
)


class InputsRecord(Record):
    """What the run starts from.

    Args:
        data: name of the data set.
        classes: it has.
        images: of each split.
        shape: (C, H, W) of one image.
        mean, std: a channel, of pixels in 0..1.
        settled: keys of the recipe that were left open, and that machine, data and network settled.
    """

    data: str
    classes: int
    images: Images
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settled: tuple[str, ...]


class CheckRecord(Record):
    """What was found before training: ``least`` is the share of the budget's cost that the narrowest network keeps."""

    seconds: float
    least: float | None


class PhaseRecord(Record):
    """One phase of training: ``effective_macs`` at its end, a share of dense; None where nothing is regularised."""

    seconds: float
    effective_macs: float | None = None


class CutRecord(Record):
    """The cut: ``max_rel_error`` of zeroed against slim network, in ``dtype``."""

    seconds: float
    dtype: str
    max_rel_error: float
    widths: tuple[GroupWidth, ...]


class FileRecord(Record):
    """One exported file and the network in it; MACs of one image, counted on the graph."""

    params: int
    macs: int
    flops: int
    onnx_bytes: int
    onnx_sha256: str


class ExportsRecord(Record):
    """The files that were written."""

    seconds: float
    dense: FileRecord
    slim: FileRecord


class Accuracies(Record):
    """Top-1 on the test set in percent; ``slim_onnx`` through onnxruntime."""

    dense: float
    sparse: float
    slim: float | None
    slim_onnx: float | None


class VerifiedRecord(Record):
    """Every step of the verification of slim.onnx, and all that was read on the test set."""

    seconds: float
    passed: bool
    checks: tuple[Check, ...]
    onnx: tuple[OnnxComparison, ...]
    accuracy: Accuracies


class MeasuredRecord(Record):
    """Latency of dense.onnx and slim.onnx, and the machine as the run found it."""

    seconds: float
    environment: Environment
    threads: int
    batch_size: int
    dense_ms: LatencyMs
    slim_ms: LatencyMs
    speedup: Speedup
    blocked_convs: BlockedConvsOfBoth
    block: int | None
    noise: str | None


class ReportRecord(Record):
    """report.json, card.md and report.html are written."""
