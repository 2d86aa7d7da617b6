"""How the slim network was made, in sentences that follow the recipe and the record: nothing that was not done."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hoyer_export.choices import AUTO, BY_ELEMENTS, ELEMENTS, LATENCY
from hoyer_export.recipe.tables import GIVEN, RANDOM
from hoyer_export.report.number_format import exact, score, share, small
from hoyer_export.report.report import Report
from hoyer_export.report.sparsity import NO_FASTER, weights_words
from hoyer_export.report.stage_records import CutRecord

LITTLE_EFFECT = 0.99
"""Share of the dense MACs at effective widths above which Group-HS has made next to no channel weak."""


@dataclass(frozen=True)
class Making:
    """What a run did.

    Args:
        dense_epochs: of the dense network; None where the recipe does not say (a report of somebody else's).
        weights: file that the dense network started from, if any, or "random".
        sparse_epochs: of the phase for Group-HS; None likewise.
        strength: of the regulariser; None likewise, and where it has none.
        norms: what Group-HS acted on, "weights" or "function".
        regulariser: of the sparse phase; None likewise.
        finetune_epochs: of the slim network, here; None likewise.
        finetuned: file with weights that the slim network got elsewhere, if any, or "given".
        method: that chose the channels; None likewise.
        before: channels of all groups.
        after: those that stay.
    """

    dense_epochs: int | None
    weights: str | None
    sparse_epochs: int | None
    strength: float | None
    norms: str
    regulariser: str | None
    finetune_epochs: int | None
    finetuned: str | None
    method: str | None
    before: int
    after: int

    @property
    def group_hs(self) -> bool:
        """Whether Group-HS took part."""
        return self.sparse_epochs != 0 and self.strength != 0 and self.regulariser not in ELEMENTS

    @property
    def of_elements(self) -> bool:
        """Whether single weights went, and no channel."""
        return self.method == BY_ELEMENTS

    @property
    def regularised_by(self) -> str:
        """What took part in the sparse phase; empty for nothing."""
        if self.regulariser is not None and self.regulariser in ELEMENTS and self.sparse_epochs != 0:
            return self.regulariser
        return "Group-HS" if self.group_hs else ""

    @property
    def norms_tell(self) -> bool:
        """Whether norms say which channels are alive: Group-HS pulled them apart, and no other score chose."""
        return self.group_hs and self.method in (None, "group-hs", "magnitude")

    @property
    def cut(self) -> bool:
        """Whether a channel was removed."""
        return self.after < self.before

    @property
    def random(self) -> bool:
        """Whether nobody ever trained the weights."""
        return self.weights == RANDOM and not self.trained

    @property
    def trained(self) -> bool:
        """Whether any phase had an epoch, here or elsewhere."""
        return (self.dense_epochs, self.sparse_epochs) != (0, 0) or self.trained_after

    @property
    def trained_after(self) -> bool:
        """Whether the slim network was trained after the cut."""
        return self.finetuned is not None or self.finetune_epochs != 0


def making(report: Report) -> Making:
    """Return what the report's run did."""
    weights, finetuned = (_key(report, table, "weights") for table in ("dense", "finetune"))
    strength, method = _key(report, "sparse", "strength"), _key(report, "cut", "method")
    return Making(
        dense_epochs=_epochs(report, "dense"),
        weights=weights if isinstance(weights, str) else None,
        sparse_epochs=_epochs(report, "sparse"),
        strength=float(strength) if isinstance(strength, (int, float)) else None,
        norms=_key(report, "sparse", "norms") or "weights",
        regulariser=_key(report, "sparse", "regulariser"),
        finetune_epochs=0 if finetuned else _epochs(report, "finetune"),
        finetuned=finetuned if isinstance(finetuned, str) else None,
        method=method if isinstance(method, str) else None,
        before=sum(group.dense for group in report.cut.widths),
        after=sum(group.slim for group in report.cut.widths),
    )


def _key(report: Report, table: str, key: str) -> Any:
    section = report.recipe.get(table)
    return section.get(key) if isinstance(section, dict) else None


def _epochs(report: Report, table: str) -> int | None:
    epochs = _key(report, table, "epochs")
    return epochs if isinstance(epochs, int) else None


def changed_little(report: Report) -> bool:
    """Whether Group-HS took part and left next to all MACs at effective widths."""
    width = report.effective_macs
    made = making(report)
    return made.group_hs and made.norms == "weights" and width is not None and width > LITTLE_EFFECT


def little_effect_words(effective_width: float) -> str:
    """Return that Group-HS changed little, and what to do."""
    return (
        f"{share(effective_width)} of the MACs are left at effective widths, so next to no channel is weak enough to "
        "go without a loss; raise sparse.strength or sparse.epochs"
    )


def how_it_was_made(report: Report) -> tuple[str, ...]:
    """Return one sentence a phase, plain text."""
    made = making(report)
    found = [_dense_words(made), _sparse_words(report, made), _before_words(report, made), _cut_words(report, made)]
    if more := "; ".join(cut_details(report.cut)):
        found.append(f"The cut: {more}.")
    if made.finetuned is not None:
        weights = "" if made.finetuned == GIVEN else f" ({made.finetuned})"
        found.append(f"The slim network's weights{weights} come from a training loop of its user, not from here.")
    elif made.finetune_epochs == 0:
        found.append("The slim network was not trained after the cut.")
    elif made.finetune_epochs is not None:
        together = _together_words(report, made) if report.recipe.get("train") else ""
        held = ", what was zero staying zero" if made.of_elements else ""
        found.append(f"The slim network then trained for {_counted(made.finetune_epochs)}{held}{together}.")
    return tuple(sentence for sentence in found if sentence)


def _together_words(report: Report, made: Making) -> str:
    """Return that both phases were one schedule, and what it saved that the slim network took a part of the epochs."""
    epochs = (made.sparse_epochs or 0) + (made.finetune_epochs or 0)
    saved = (made.finetune_epochs or 0) * (1 - report.slim.file.macs / max(report.dense.file.macs, 1)) / max(epochs, 1)
    schedule = ", in one schedule with the epochs before the cut"
    if made.of_elements:  # the network keeps its shape, and saves nothing
        return schedule
    return (
        f"{schedule}; {share(saved)} of the multiply-accumulates that these {epochs:,} epochs take in the dense network"
        " were saved"
    )


def _dense_words(made: Making) -> str:
    if made.random:
        return "The dense network has random weights."
    if made.weights in (None, RANDOM):
        return "" if not made.dense_epochs else f"The dense network trained for {_counted(made.dense_epochs)}."
    given = "The dense network is the given one" + ("" if made.weights == GIVEN else f" ({made.weights})")
    trained = f"trained here for {_counted(made.dense_epochs)}" if made.dense_epochs else "not trained here"
    return f"{given}, {trained}; this run cannot tell which images it had seen."


def _sparse_words(report: Report, made: Making) -> str:
    if made.method == GIVEN:
        return ""
    if made.sparse_epochs == 0:
        return "" if made.of_elements else "There was no training with Group-HS."
    epochs = "" if made.sparse_epochs is None else f" for {_counted(made.sparse_epochs)}"
    strength = "" if made.strength is None else f" at strength {made.strength:g}"
    if made.regulariser in ELEMENTS:
        ramp = _key(report, "sparse", "ramp")
        went = f"; single weights went in the last {share(ramp)} of its steps, the smallest first" if ramp else ""
        penalty = f"with the regulariser {made.regulariser} on single weights{epochs}{strength}"
        return f"The network trained {penalty if made.strength else f'without a penalty{epochs}'}{went}."
    if made.strength == 0:
        return f"The network trained{epochs} with a Group-HS strength of 0, which is without Group-HS."
    if made.norms == "function":
        return (
            f"The network trained with Group-HS on function{epochs}: the channels that bring least to what reads them, "
            "for the MACs that they cost, faded there to exactly zero."
        )
    return f"The network trained with Group-HS{epochs}{strength}, which draws whole channels towards zero."


def _before_words(report: Report, made: Making) -> str:
    if made.method == GIVEN:  # what there was before is the dense network
        return ""
    accuracy, width = report.verify.sparse_accuracy, report.effective_macs
    found = [] if accuracy is None else [f"{score(accuracy, report.metric)} test {report.metric_name}"]
    if width is not None and made.norms_tell:
        little = ": Group-HS made next to no channel weak" if changed_little(report) else ""
        found.append(f"{share(width)} of the MACs at effective widths{little}")
    return f"Before the cut: {', '.join(found)}." if found else ""


def _cut_words(report: Report, made: Making) -> str:
    if made.of_elements:
        smallest = "The smallest weights of convolution and linear layers were set to zero"
        return f"{smallest}: {weights_words(report.export.weights)}. No channel was cut: {NO_FASTER}."
    groups = f"{len(report.cut.widths)} group{'' if len(report.cut.widths) == 1 else 's'}"
    if not made.cut:
        return f"Nothing was cut: all {exact(made.before)} channels of {groups} stay."
    blocks = f", {aligned_words(report)}" if (report.cut.align or 1) > 1 else ""
    method = "zero" if made.group_hs and made.norms == "function" else made.method or ""
    chosen = _CHOSEN.get(method, _CHOSEN["group-hs"])
    taken = sum(step.within for step in report.cut.refit.steps) - 1 if report.cut.refit else 0  # the dense one is first
    steps = f" in {taken} steps, each refitted before the next was chosen" if taken > 1 else ""
    first = (
        "Channels that never fire on the calibration images went first. " if _key(report, "cut", "dead_first") else ""
    )
    return (
        f"{first}{chosen} were zeroed and removed{steps}: {exact(made.before)} channels in {groups} became "
        f"{exact(made.after)}{blocks}."
    )


def cut_details(cut: CutRecord) -> Iterator[str]:
    """Yield what else the cut did, and how far zeroing moved the outputs."""
    if cut.dead_blocks:
        yield f"dead blocks, now their shortcuts: {', '.join(cut.dead_blocks)}"
    for layer, (features, read) in cut.gathered.items():
        yield f"{layer} reads {read:,} of {features:,} input features"
    if (refit := cut.refit) is not None:
        few = f"; {refit.wanted:,} would give every weight as many equations as unknowns"
        yield (
            f"{refit.refitted} {'weight was' if refit.refitted == 1 else 'weights were'} refitted by least squares"
            f" on {refit.images:,} images without labels"
            f"{few if refit.wanted > refit.images else ''}"
        )
        for weight, why in refit.left.items():
            yield f"{weight} is not refitted: {why}"
    what = "zeroing" if cut.refit is None else "cut and refit"
    for moved in cut.moved:
        images = f"{moved.count:,} {'images of noise' if moved.images == 'noise' else f'{moved.images} images'}"
        if moved.max_change is None:
            yield f"an output is not finite on {images}: nobody can say how far {what} moved it"
        elif moved.max_change == 0:
            yield f"{what} moved no output by a single bit on {images}"
        else:
            reach = f"they reach {small(moved.max_output)}"
            yield f"{what} moved outputs by up to {small(moved.max_change)} on {images}; {reach}"


_CHOSEN = {
    "group-hs": "The channels with the smallest norms in their groups",
    "magnitude": "The channels with the least magnitude (torch-pruning's score)",
    "function": "The channels that bring least to what reads them, for the MACs that they cost,",
    "sensitivity": "The channels on which the outputs depend least, for the MACs that they cost,",
    "dead": "The channels that never fire on the calibration images",
    "zero": "The channels that were exactly zero, or that nothing read,",
    GIVEN: "The channels that its user chose",
}


def aligned_words(report: Report) -> str:
    """Return to what widths were rounded up, or chosen in: beside whole blocks of 16, 8 is allowed."""
    align = report.cut.align or 1
    budget = any(_key(report, "cut", key) for key in LATENCY)
    by_time = _key(report, "cut", "align") == AUTO or (budget and _key(report, "cut", "align") is None)
    if by_time:
        return f"widths chosen by measured time, in whole blocks of {align}{' or 8' if align == 16 else ''}"
    return f"widths rounded up to whole blocks of {align}{' or to 8' if align == 16 else ''}"


def _counted(count: int) -> str:
    return f"{count:,} epoch{'' if count == 1 else 's'}"


def stage_seconds(report: Report) -> tuple[tuple[str, float | None], ...]:
    """Return what each stage took; trainings of no epochs are left out."""
    made = making(report)
    trainings = {
        "dense": ("dense training", made.dense_epochs),
        "sparse": (
            f"{made.regularised_by} training" if made.regularised_by else "training without Group-HS",
            made.sparse_epochs,
        ),
        "finetune": ("fine-tuning", made.finetune_epochs),
    }
    named = {stage: trainings.get(stage, (stage, None)) for stage in report.seconds}
    return tuple((named[stage][0], seconds) for stage, seconds in report.seconds.items() if named[stage][1] != 0)
