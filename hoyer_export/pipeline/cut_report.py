"""What ``hoyer-export cut`` found out about a network of one's own."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FileFigures:
    """What one of the two networks is, as it was written.

    Args:
        params: elements of its parameters.
        macs: of one image, counted on the ONNX graph.
        uncounted: operator → number of nodes that may multiply and accumulate beside that.
        onnx_bytes: of the file.
        max_error: largest |onnxruntime − torch| in units of max(1, max |torch|); None where that is not finite.
        left_open: comparisons of outputs that torch's own rounding decides, so that nothing follows from them.
        failed: the checks of the file against the network that did not pass.
        accuracy: top-1 on the whole test set in percent; None without data.
    """

    params: int
    macs: int
    uncounted: dict[str, int]
    onnx_bytes: int
    max_error: float | None
    left_open: int
    failed: tuple[str, ...]
    accuracy: float | None


@dataclass(frozen=True)
class Moved:
    """How far zeroing the channels moved the network's outputs.

    Args:
        images: which: ``calibration``, ``held-out`` or ``noise``.
        count: how many.
        max_change: largest |zeroed − dense| of any output, float32; None where an output of either is not finite.
        max_output: largest |dense|, to compare it with; None likewise.
    """

    images: str
    count: int
    max_change: float | None
    max_output: float | None


@dataclass(frozen=True)
class CutReport:
    """What a cut did.

    Args:
        network: its name.
        input_shape: (C, H, W).
        weights: name of the file; None where the weights are random.
        data: name of the data set, if there was one.
        method: how channels were chosen.
        dead_first: what never fires went before that.
        dead_blocks: names of the residual blocks that became their shortcuts.
        gathered: linear layer → (input features, those that it still reads).
        align: multiple that widths were rounded up to.
        seed: of random weights, and of which images calibrate.
        asked: the budget, e.g. ``{"macs": 0.5}``; empty for ``dead``.
        met: it holds for the files; never where MACs are asked for and a file has more than are counted.
        widths: group name → (dense, slim) number of channels.
        max_rel_error: the largest over all steps (dead blocks, folding, cut, gather) in float64, each against the
            network before it.
        delivered_rel_error: the same with the numbers that a step computed (folded constants) rounded to float32, as
            they are delivered.
        moved: outputs before and after zeroing.
        dense: the network that came.
        slim: the one that goes.
        warning: what to be careful about, if anything.
    """

    network: str
    input_shape: tuple[int, ...]
    weights: str | None
    data: str | None
    method: str
    dead_first: bool
    dead_blocks: tuple[str, ...]
    gathered: dict[str, tuple[int, int]]
    align: int
    seed: int
    asked: dict[str, float | str]
    met: bool
    widths: dict[str, tuple[int, int]]
    max_rel_error: float
    delivered_rel_error: float
    moved: tuple[Moved, ...]
    dense: FileFigures
    slim: FileFigures
    warning: str | None

    @property
    def uncounted(self) -> dict[str, int]:
        """What multiplies in either file and nobody counts, so that a budget of MACs cannot be judged."""
        return self.dense.uncounted | self.slim.uncounted

    @property
    def passed(self) -> bool:
        """Whether both files were verified and the budget is met."""
        return self.met and not self.dense.failed and not self.slim.failed
