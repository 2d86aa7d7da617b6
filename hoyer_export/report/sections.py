"""The sections of ``report.json`` (format hoyer-export-report/1), one frozen record each.

Shares are numbers between 0 and 1, accuracies percentages of correct top-1 on the test set. A number that is not
finite (an output that overflowed, say) is ``null``: JSON has no word for it, and a check of it never passes.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST_SAMPLES = 200
"""Latency samples kept for the plot; quantiles of more than that draw the same picture."""
CUT_TOLERANCE = 1e-9
"""Zeroed and slim network agree to this, relative, in float64 (the condition under which a cut is made at all)."""

Percent = Annotated[float, Field(ge=0, le=100)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of report.json; more keys than those named are allowed and kept."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)


class Images(Section):
    """How many images each split holds."""

    train: Size
    validation: Size
    test: Size


class Data(Section):
    """The data set."""

    name: str
    classes: Count | None = None
    images: Images | None = None


class Input(Section):
    """What the ONNX file expects: NCHW, float32, (pixels in 0..1 - mean) / std a channel."""

    shape: tuple[Count, ...]
    mean: tuple[float, ...]
    std: tuple[Positive, ...]


class Environment(Section):
    """The machine; ``load`` is the system's load average when the run began (one number, or 1, 5 and 15 minutes)."""

    cpu: str
    flags: tuple[str, ...]
    threads: Count
    versions: dict[str, str]
    load: NotNegative | tuple[NotNegative, ...] | None


class Seconds(Section):
    """Wall time a stage; null where the stage was not run."""

    dense: NotNegative | None
    sparse: NotNegative | None
    cut: NotNegative | None
    finetune: NotNegative | None
    export: NotNegative | None
    verify: NotNegative | None
    bench: NotNegative | None


class DenseFigures(Section):
    """The dense network and its file."""

    accuracy: Percent
    params: Count
    macs: Count
    flops: Count
    onnx_bytes: Count


class SparseFigures(Section):
    """After Group-HS, before the cut: ``effective_width`` is the share of the dense MACs at effective widths."""

    accuracy: Percent | None
    effective_width: NotNegative | None


class SlimFigures(DenseFigures):
    """The slim network and the file that is shipped; ``onnx_accuracy`` is read through onnxruntime."""

    onnx_accuracy: Percent | None
    onnx_sha256: str | None = None


class GroupWidth(Section):
    """Channels of one group: dense; at least 0.1 of the natural threshold after training; kept after alignment."""

    group: str
    dense: Count
    alive: Size
    slim: Count


class CutCheck(Section):
    """Zeroed against slim network before the slim one trained on."""

    dtype: str
    max_rel_error: NotNegative | None
    tolerance: NotNegative = CUT_TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether the two agree within the tolerance."""
        return self.max_rel_error is not None and self.max_rel_error <= self.tolerance


class Check(Section):
    """One step of the verification ladder: passed where ``value`` does not exceed ``tolerance``."""

    name: str
    value: float | bool | str | None
    tolerance: float | None
    passed: bool


class OnnxComparison(Section):
    """The largest difference between torch and onnxruntime for one batch size, kind of input and optimisation level."""

    batch: Count
    inputs: str
    optimization: str
    max_abs_error: NotNegative | None
    tolerance: Positive

    @property
    def passed(self) -> bool:
        """Whether the two agree within the tolerance."""
        return self.max_abs_error is not None and self.max_abs_error <= self.tolerance


class Verification(Section):
    """The whole ladder."""

    passed: bool
    cut: CutCheck
    checks: tuple[Check, ...]
    onnx: tuple[OnnxComparison, ...]

    @property
    def every_step_passed(self) -> bool:
        """Whether the cut, every check and every comparison passed."""
        found = [self.cut.passed, *(check.passed for check in self.checks), *(row.passed for row in self.onnx)]
        return all(found)


class LatencyMs(Section):
    """Milliseconds of wall time a run of one file; ``cpu_p50`` is the median processor time of all threads.

    ``cpu`` is its mean, which older reports hold instead: what interrupted a run counts in it, and a median of the wall
    time cannot be compared with it. ``samples`` are at most 200 sorted quantiles of the n measured ones.
    """

    p50: Positive
    p90: Positive
    p99: Positive
    min: Positive
    n: Count
    cpu: NotNegative | None = None
    cpu_p50: NotNegative | None = None
    samples: Annotated[tuple[Positive, ...], Field(max_length=MOST_SAMPLES)] = ()


class Speedup(Section):
    """Paired ratio dense / slim: its median and the bootstrap 95 % interval of that; null on a noisy machine."""

    median: Positive
    ci95: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)] | None


class BlockedConvs(Section):
    """How many of a file's convolutions onnxruntime runs in its fast blocked layout."""

    blocked: Size
    total: Size


class BlockedConvsOfBoth(Section):
    """Blocked convolutions of both files."""

    dense: BlockedConvs
    slim: BlockedConvs


class GmacPerSecond(Section):
    """MACs · batch size / p50, in 1e9 MACs a second."""

    dense: Positive
    slim: Positive


class Latency(Section):
    """What onnxruntime took, dense and slim interleaved; ``noise`` says why the machine was too busy to tell."""

    threads: Count
    batch_size: Count
    dense_ms: LatencyMs
    slim_ms: LatencyMs
    speedup: Speedup
    blocked_convs: BlockedConvsOfBoth
    gmac_per_s: GmacPerSecond | None = None
    block: Count | None = None
    noise: str | None = None


class Budget(Section):
    """Shares of dense that were asked for and reached; a threshold asks for no share and is always met."""

    asked: dict[str, float | str]
    met: bool
    reached: dict[str, NotNegative] = {}


class Tool(Section):
    """What wrote the report."""

    name: str
    version: str
