"""A slim model, and one step of the surgery: a plan is carried out on a copy, proved, and joins the plan so far."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field

from torch import nn

from hoyer_export.call import Call
from hoyer_export.surgery.edits import ShortcutEdit
from hoyer_export.surgery.plan import PruningPlan, compose, with_plan
from hoyer_export.surgery.proof import in_float64, prove_equal, rel_difference
from hoyer_export.tensors import TensorRecord


@dataclass(frozen=True, eq=False, repr=False)
class SlimModel(TensorRecord):
    """A smaller model and how it came from the dense one.

    Args:
        model: the slim model.
        plan: what rebuilds it from the dense code, over all steps so far.
        max_rel_error: largest difference that the last step made, relative to the largest output, in float64; None
            for a model that was loaded.
        delivered_rel_error: the same step with the numbers that it computed (folded constants) rounded to the model's
            own type, as they are in ``model``.
        left: group → channel → why it stays although it is not in ``keep``: ``cut(..., fold=True)`` only.
    """

    model: nn.Module
    plan: PruningPlan
    _: KW_ONLY
    max_rel_error: float | None = None
    delivered_rel_error: float | None = None
    left: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        params = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"SlimModel({type(self.model).__name__} of {params:,} parameters, {len(self.plan.kept)} tensors sliced,"
            f" {len(self.plan.edits)} edits, max_rel_error={self.max_rel_error})"
        )


def as_slim(model: nn.Module | SlimModel) -> SlimModel:
    """Return a model to which nothing was done yet with an empty plan, and a slim one as it is."""
    return model if isinstance(model, SlimModel) else SlimModel(model, PruningPlan())


def proved_step(
    given: SlimModel,
    plan: PruningPlan,
    call: Call,
    *,
    cause: str,
    fill_: Callable[[nn.Module], None] | None = None,
) -> SlimModel:
    """Return what ``plan`` makes of a model, proved equal to it; the model is not changed.

    Args:
        given: the model, and the plan so far.
        plan: what is done to it.
        call: what it is called with.
        cause: what it means if both differ, for the message.
        fill_: puts the numbers that the step computes into the new model: in float64 into the one that is proved, and
            rounded once into the one that is returned.

    Raises:
        CutRefused: the new model computes something else.
    """
    slim = with_plan(given.model, plan)
    if fill_ is None:
        error = delivered = prove_equal(given.model, slim, call, cause).error
    else:
        proved = with_plan(in_float64(given.model), plan)
        for model in (proved, slim):
            fill_(model)
        gone = any(isinstance(edit, ShortcutEdit) for edit in plan.edits)
        error = prove_equal(given.model, proved, call, cause, part_is_gone=gone).error
        delivered = rel_difference(given.model, slim, call)
    return SlimModel(slim, compose(given.plan, plan), max_rel_error=error, delivered_rel_error=delivered)
