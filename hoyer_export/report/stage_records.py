"""What each stage of a run finds: one frozen record each, in memory, in stages.json and in report.json alike.

Shares are numbers between 0 and 1, accuracies percentages of correct top-1 on the test set; where ``metric`` of the
inputs names another number, what is called an accuracy is that one. A number that is not
finite (an output that overflowed, say) is ``null``: JSON has no word for it, and a check of it never passes. Needs no
torch.
"""

from typing import Annotated

from pydantic import Field

from hoyer_export.preprocessing import Preprocessing
from hoyer_export.record import Record

MOST_SAMPLES = 200
"""Latency samples kept for the plot; quantiles of more than that draw the same picture."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=0)]


class Images(Record):
    """How many images each split holds."""

    train: Size
    validation: Size
    test: Size


class InputsRecord(Preprocessing):
    """What the run starts from, and how a picture becomes what the ONNX files take.

    Args:
        data: name of the data set; None where there is none.
        classes: it has.
        images: of each split.
        notes: where its images come from, where that needs a word.
        left_out: image files that could not be read, each with the reason.
        metric: what networks are judged by, the name of a number; None: accuracy, top-1 in %.
        higher_is_better: whether more of it is better.
        validation: where the validation images come from if that needs a word, e.g. "may have been seen in training".
        settled: keys of the recipe that were left open, and that machine, data and network settled.
    """

    data: str | None = None
    classes: Count | None = None
    images: Images | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    metric: str | None = None
    higher_is_better: bool = True
    validation: str | None = None
    settled: tuple[str, ...] = ()


class CheckRecord(Record):
    """What was found before training: ``least`` is the share of the budget's cost that the narrowest network keeps."""

    seconds: NotNegative
    least: NotNegative | None


class PhaseRecord(Record):
    """One phase of training: ``effective_macs`` at its end, a share of dense; None where nothing is regularised."""

    seconds: NotNegative | None
    effective_macs: NotNegative | None = None


class GroupWidth(Record):
    """Channels of one group: dense; at least 0.1 of the natural threshold after training; kept after alignment."""

    group: str
    dense: Count
    alive: Size
    slim: Count


class Moved(Record):
    """How far zeroing the channels moved the network's outputs.

    Args:
        images: which: ``calibration``, ``held-out`` or ``noise``.
        count: how many.
        max_change: largest |zeroed − dense| of any output, float32; None where an output of either is not finite.
        max_output: largest |dense|, to compare it with; None likewise.
    """

    images: str
    count: Size
    max_change: NotNegative | None
    max_output: NotNegative | None


class StepRecord(Record):
    """A network on the way down: its share of the dense MACs, what it lost, and whether that may be.

    ``lost`` is in points of validation accuracy where a drop was asked for, else the mean relative change of the
    outputs on held-out images.
    """

    macs: NotNegative
    lost: float | None
    within: bool


class RefitRecord(Record):
    """The least-squares refit after the cut, a change of weights.

    Args:
        refitted: how many weights have new values.
        left: weights that stay as they were → why.
        images: calibration images, without labels.
        wanted: how many of them give every weight as many equations as unknowns.
        lost_by: what ``steps`` measure: ``accuracy`` or ``outputs``; None where nothing was measured.
        steps: the way down, the dense network first.
    """

    refitted: Size
    left: dict[str, str]
    images: Size
    wanted: Size
    lost_by: str | None = None
    steps: tuple[StepRecord, ...] = ()


class CutRecord(Record):
    """What was chosen and cut, and how exact that was.

    Args:
        dtype: in which the networks before and after each step were compared.
        max_rel_error: the largest over all steps (dead blocks, folding, cut, gather), each against the network before.
        tolerance: of that error.
        delivered_rel_error: the same with the numbers that a step computed (folded constants) rounded to float32, as
            they are delivered.
        align: multiple that widths were rounded up to, or that those chosen by time are of.
        widths: of every group, in the network's order.
        dead_blocks: names of the residual blocks that became their shortcuts.
        gathered: linear layer → (input features, those that it still reads).
        moved: outputs of the dense network and of the zeroed, or refitted, one, where nothing is trained after the cut.
        refit: what was done to the weights that are left.
        warning: what to be careful about, if anything.
    """

    seconds: NotNegative | None
    dtype: str
    max_rel_error: NotNegative | None
    tolerance: NotNegative
    delivered_rel_error: NotNegative | None = None
    align: Count | None
    widths: tuple[GroupWidth, ...]
    dead_blocks: tuple[str, ...] = ()
    gathered: dict[str, tuple[int, int]] = Field(default={})
    moved: tuple[Moved, ...] = ()
    refit: RefitRecord | None = None
    warning: str | None = None

    @property
    def passed(self) -> bool:
        """Whether zeroed and slim network agree within the tolerance."""
        return self.max_rel_error is not None and self.max_rel_error <= self.tolerance


class BudgetRecord(Record):
    """What was asked for and reached: shares of dense, milliseconds, points of accuracy, or the mean relative change of
    the outputs.

    A threshold asks for none of these and is always met.
    """

    asked: dict[str, float | str]
    met: bool
    reached: dict[str, float] = Field(default={})


class LimitRecord(Record):
    """One limit of the gate.

    Args:
        name: ``max_macs``, ``max_params``, ``max_bytes``, ``max_latency`` or ``max_accuracy_drop``.
        limit: the most that passes: a share of the dense file's, or points of accuracy.
        reached: in the same unit; None where it could not be told, which does not pass.
        passed: reached ≤ limit.
        note: what else there is to know: the interval, the noise, what was not counted.
    """

    name: str
    limit: NotNegative
    reached: float | None
    passed: bool
    note: str = ""


class GateRecord(Record):
    """The slim file against the limits that were asked for: whether all of them hold, and each."""

    passed: bool = True
    limits: tuple[LimitRecord, ...] = ()


class FileRecord(Record):
    """One artifact and the network in it.

    Args:
        name: of the artifact: dense, slim.
        file: its name in the folder.
        kind: what it holds.
        params: of the network.
        macs: of one image, counted on the graph.
        flops: 2 · MACs.
        uncounted: operator → number of nodes that may multiply and accumulate beside that.
        size_bytes: of the file.
        sha256: of the file.
    """

    name: str
    file: str
    kind: str
    params: Size
    macs: Size
    flops: Size
    uncounted: dict[str, int] = Field(default={})
    size_bytes: Count
    sha256: str | None


class LayerWeights(Record):
    """One weight of a convolution or linear layer: how many numbers it has, and how many of them are not zero."""

    name: str
    weights: Size
    nonzero: Size


class ExportsRecord(Record):
    """The files that were written, the dense one first, and what they say of the budget.

    Args:
        weights: of the slim network, in its order, where single weights went.
    """

    seconds: NotNegative | None
    artifacts: tuple[FileRecord, ...]
    budget: BudgetRecord
    weights: tuple[LayerWeights, ...] = ()


class Check(Record):
    """One step of the verification ladder: passed where ``value`` does not exceed ``tolerance``."""

    name: str
    value: float | bool | str | None
    tolerance: float | None
    passed: bool


class OnnxComparison(Record):
    """The largest difference of an output in torch and the runtime for one batch size, kind of input and level."""

    output: str = "logits"
    batch: Count
    inputs: str
    optimization: str
    max_abs_error: NotNegative | None
    tolerance: Positive

    @property
    def passed(self) -> bool:
        """Whether the two agree within the tolerance."""
        return self.max_abs_error is not None and self.max_abs_error <= self.tolerance


class ClassTally(Record):
    """Test images of one class, and how many of them the network calls by it."""

    images: Size
    correct: Size

    @property
    def accuracy(self) -> float | None:
        """In percent; None without images."""
        return 100 * self.correct / self.images if self.images else None


class FileVerification(Record):
    """One artifact against its network; ``onnx_accuracy`` is the runtime's, both are None without test images.

    ``by_class`` is the network's, in the order of its outputs; that of a file in int8, which has no ``accuracy`` of a
    network, is its own. ``departure`` is, where a check failed, the first node
    that computes something else, with how far it is off.
    """

    name: str
    passed: bool
    checks: tuple[Check, ...]
    onnx: tuple[OnnxComparison, ...]
    accuracy: Finite | None = None
    onnx_accuracy: Finite | None = None
    by_class: tuple[ClassTally, ...] = ()
    departure: str | None = None


class VerifiedRecord(Record):
    """Every artifact's verification, and what else was read on the test set: accuracy before the cut."""

    seconds: NotNegative | None
    passed: bool
    artifacts: tuple[FileVerification, ...]
    sparse_accuracy: Finite | None


class Environment(Record):
    """The machine; ``load`` is the system's load average when the run began (one number, or 1, 5 and 15 minutes)."""

    cpu: str
    flags: tuple[str, ...]
    cores: Count | None = None
    threads: Count
    versions: dict[str, str]
    load: NotNegative | tuple[NotNegative, ...] | None
    os: str | None = None
    python: str | None = None


class Speedup(Record):
    """Paired ratio dense / this: its median and the bootstrap 95 % interval of that; null on a noisy machine."""

    median: Positive
    ci95: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)] | None


class BlockedConvs(Record):
    """How many of a file's convolutions the runtime runs in its fast blocked layout."""

    blocked: Size
    total: Size


class NodeLatency(Record):
    """Median milliseconds a run of one node that multiplies, or of all others with one operator.

    Args:
        layer: the module whose weights it multiplies with, or the name of the node; empty for all others.
        op: operator type, as it runs.
        macs: of one run.
    """

    layer: str
    op: str
    ms: NotNegative
    macs: Size = 0


class FileLatency(Record):
    """Milliseconds of wall time a run of one artifact; ``cpu_p50`` is the median processor time of all threads.

    ``cpu`` is its mean, which older reports hold instead: what interrupted a run counts in it, and a median of the wall
    time cannot be compared with it. ``samples`` are at most 200 sorted quantiles of the n measured ones. ``speedup`` is
    None for the dense file. ``nodes`` are its parts by the runtime's profiler, which adds some time of its own, in the
    order in which they run, and ``findings`` what holds them back, in words; empty where no profiler was asked.
    """

    name: str
    p50: Positive
    p90: Positive
    p99: Positive
    min: Positive
    n: Count
    cpu: NotNegative | None = None
    cpu_p50: NotNegative | None = None
    samples: Annotated[tuple[Positive, ...], Field(max_length=MOST_SAMPLES)] = ()
    blocked_convs: BlockedConvs | None = None
    speedup: Speedup | None = None
    nodes: tuple[NodeLatency, ...] = ()
    findings: tuple[str, ...] = ()


class MeasuredRecord(Record):
    """What a run of each took, all artifacts interleaved; none where nothing was measured.

    Args:
        environment: the machine as the run found it.
        runtime: what the files were verified and measured in.
        threads: of one run.
        batch_size: images a run.
        artifacts: one each, in the order of the files.
        block: channels of a block of the fast layout on this machine.
        noise: why the machine was too busy to tell.
        budget: what the files make of a budget of time, which nobody could judge before.
    """

    seconds: NotNegative | None
    environment: Environment
    runtime: str = "onnxruntime"
    threads: Count
    batch_size: Count
    artifacts: tuple[FileLatency, ...]
    block: Count | None = None
    noise: str | None = None
    budget: BudgetRecord | None = None

    @property
    def engine(self) -> str:
        """The runtime, with its version where that is known."""
        version = self.environment.versions.get(self.runtime.partition(":")[0], "")
        return f"{self.runtime} {version}".rstrip()


class ReportRecord(Record):
    """report.json, card.md and report.html are written."""
