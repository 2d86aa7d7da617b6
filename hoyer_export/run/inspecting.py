"""What a network offers before any training: its channel groups, what each carries, and what can be reached."""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hoyer_export.channels.channel_map import ChannelMap
from hoyer_export.channels.cost import dense_macs, macs_of_keep, params_of_keep
from hoyer_export.channels.trace import trace_channels
from hoyer_export.deploy.export import export_onnx
from hoyer_export.errors import NetworkError
from hoyer_export.recipe.tables import Recipe
from hoyer_export.run.inputs import macs_in_torch
from hoyer_export.run.job import Job
from hoyer_export.run.progress import Silent
from hoyer_export.run_folder import RunFolder
from hoyer_export.select.align import least_keep
from hoyer_export.select.rival import CrossCheck, cross_check
from hoyer_export.surgery.self_test import Verdict, self_test


@dataclass(frozen=True)
class GroupCost:
    """One channel group.

    Args:
        name: of the group.
        width: its channels.
        macs: MACs that would go with the whole group: of every layer that writes or reads its channels. A layer
            between two groups counts in both.
        share: of the dense MACs.
        params: parameters that would go with it, likewise.
        least: the fewest channels that alignment allows.
    """

    name: str
    width: int
    macs: int
    share: float
    params: int
    least: int


@dataclass(frozen=True)
class Reason:
    """Why some channels cannot be removed exactly: ``channels`` indices of ``parameters`` (name, dimension)."""

    reason: str
    parameters: tuple[str, ...]
    channels: int


@dataclass(frozen=True)
class Inspection:
    """What tracing found.

    Args:
        network: its name.
        input_shape: (C, H, W).
        params: of the dense network.
        macs: of the dense network, one image.
        uncounted: operator, or "MACs" → how many of them torch runs beside those: what may multiply in a way that
            nobody counts, and MACs of operations that tracing does not know.
        groups: in the network's order.
        unprunable: by reason, the most channels first.
        verdicts: of the self-test, one a group and one for what is unprunable; None where it was not asked for. The
            refuted groups are not among ``groups``, but unprunable.
        align: multiple that widths are rounded up to.
        least_macs: share of the dense MACs at the least widths.
        asked_macs: share that was asked for, if any.
        reachable: whether that can be reached; None where nothing was asked, or something is not counted.
        cross_check: what torch-pruning finds on the same network, where that was asked and it can trace it.
        cross_check_failed: why it cannot.
        export_failed: why torch.onnx cannot write the network; None where it can, or where nothing was proved.
    """

    network: str
    input_shape: tuple[int, ...]
    params: int
    macs: int
    uncounted: dict[str, int]
    groups: tuple[GroupCost, ...]
    unprunable: tuple[Reason, ...]
    verdicts: tuple[Verdict, ...] | None
    align: int
    least_macs: float
    asked_macs: float | None
    reachable: bool | None
    cross_check: CrossCheck | None
    cross_check_failed: str | None
    export_failed: str | None


def inspect_recipe(
    recipe: Recipe, *, prove: bool = False, second_opinion: bool = False, allow_import: Sequence[str] = ()
) -> Inspection:
    """Inspect the network of a recipe, on its data where it names any.

    Args:
        recipe: its network, data, and of [cut] the share of the MACs that is wanted and the alignment.
        prove: zero and cut random channels of every group, and compare (the self-test); and try the export.
        second_opinion: also ask torch-pruning which channels are coupled.
        allow_import: packages that may be imported for ``package.module:function``.

    Raises:
        NetworkError: the network cannot be built or traced, or its input shape is not known.
    """
    job = Job(recipe, RunFolder(Path()), Silent(), allow_import)  # nothing is written
    network, example, asked, align = job.network(), job.example, recipe.cut.macs, recipe.cut.alignment
    tested = self_test(network, example, rules=job.rules) if prove else None
    channels = trace_channels(network, example, rules=job.rules) if tested is None else tested.channels
    dense, params = dense_macs(channels), params_of_keep(channels, {})
    least = least_keep(channels, align)
    groups = []
    for group in channels.groups:
        nothing = {group.name: torch.zeros(0, dtype=torch.int64)}
        carried = dense - macs_of_keep(channels, nothing)
        held = params - params_of_keep(channels, nothing)
        groups.append(
            GroupCost(group.name, group.width, carried, carried / max(dense, 1), held, len(least[group.name]))
        )
    share = macs_of_keep(channels, least) / max(dense, 1)
    uncounted = _uncounted(network, example, dense)
    opinion, failed = None, None
    if second_opinion:
        try:
            opinion = cross_check(network, example, channels)
        except NetworkError as error:  # theirs alone: what was found here holds
            failed = str(error)
    return Inspection(
        network=recipe.network.name,
        input_shape=tuple(example.shape[1:]),
        params=sum(parameter.numel() for parameter in network.parameters()),
        macs=dense,
        uncounted=uncounted,
        groups=tuple(groups),
        unprunable=_by_reason(channels),
        verdicts=None if tested is None else tested.verdicts,
        align=align,
        least_macs=share,
        asked_macs=asked,
        reachable=None if asked is None or uncounted else share <= asked,
        cross_check=opinion,
        cross_check_failed=failed,
        export_failed=_export_failed(network, example, recipe.export.opset) if prove else None,
    )


def _export_failed(network: nn.Module, example: Tensor, opset: int) -> str | None:
    """Return why a network cannot be exported; better now than after the cut."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_onnx(network, example, Path(folder) / "dense.onnx", opset=opset)
        except NetworkError as error:
            return str(error)
    return None


def _uncounted(network: nn.Module, example: Tensor, traced: int) -> dict[str, int]:
    """Return what torch multiplies beside the traced MACs."""
    try:
        run = macs_in_torch(network, example)
    except (
        Exception
    ):  # on three images where the network takes two: then it cannot be exported either, and export says so
        return {}
    more = run.macs - traced
    return run.uncounted | ({"MACs": more} if more > 0 else {})


def _by_reason(channels: ChannelMap) -> tuple[Reason, ...]:
    parameters: dict[str, list[str]] = defaultdict(list)
    count: dict[str, int] = defaultdict(int)
    for entry in channels.unprunable:
        parameters[entry.reason].append(f"{entry.parameter} dim {entry.dim}")
        count[entry.reason] += len(entry.indices)
    reasons = [Reason(reason, tuple(names), count[reason]) for reason, names in parameters.items()]
    return tuple(sorted(reasons, key=lambda reason: -reason.channels))
