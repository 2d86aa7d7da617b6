"""Prove that two ONNX files compute the same, step by step; every step can fail.

    interface     as many inputs and outputs, of the same types and sizes (else VerificationFailed)
    outputs       max |A − B| ≤ tolerance, A without the runtime's optimisations, then with all of them, B without,
                  by onnxruntime; batches 1, 2, 3 and 8, unless a file fixes it; noise, zeros and ones
    inputs left open  not all, as for a network
    weights       where all of that passes, and both are made of the same operations: the same tensors, to 1e-5

The tolerance is 1e-5 · max(1, max |B|), or four times what the runtime's optimisations change in B itself, at most
1e-3 · max(1, max |B|): where that would not do, B itself leaves the output open.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import onnx

from hoyer_export.deploy.checks import Optimization, VerifyRecord, check, check_outputs
from hoyer_export.deploy.departure import first_departure
from hoyer_export.deploy.feed import KINDS, feed_of
from hoyer_export.deploy.file_weights import differing_weights
from hoyer_export.deploy.input_sizes import Shapes, check_names, fixed_batch, input_sizes
from hoyer_export.deploy.interface import signature
from hoyer_export.deploy.onnx_file import fed_inputs, read_onnx
from hoyer_export.deploy.rounding import LEAST, MARGIN, MOST, Floats, Judged, max_error
from hoyer_export.deploy.runtime import DEFAULT, as_runtime
from hoyer_export.deploy.runtime.protocol import Arrays, RunFailed, Runtime, Session
from hoyer_export.environment import usable_threads
from hoyer_export.errors import FileError, VerificationFailed


@dataclass(frozen=True)
class _Case:
    """One input, and what B returns for it.

    Args:
        kind: of its values.
        batch: images.
        feed: by A's names.
        reference_feed: by B's names.
        expected: B's outputs, without optimisations.
        rounding: how far its optimisations move each.
    """

    kind: str
    batch: int
    feed: Arrays
    reference_feed: Arrays
    expected: list[Floats]
    rounding: list[float]


def verify_files(
    path: str | Path,
    reference: str | Path,
    *,
    shapes: Shapes | None = None,
    batches: Sequence[int] = (1, 2, 3, 8),
    tolerance: float = LEAST,
    runtime: Runtime | str = DEFAULT,
) -> VerifyRecord:
    """Compare the ONNX file ``path``, A, with the file ``reference``, B (steps above).

    Args:
        path: of the file that is to be trusted.
        reference: of the file that is right.
        shapes: input of A → sizes, where it leaves more than the batch open.
        batches: batch sizes, unless a file or ``shapes`` fixes it.
        tolerance: largest |A − B| in units of max(1, max |B|), where B itself rounds less.
        runtime: what runs A; onnxruntime runs B.

    Raises:
        FileError: a file is missing, damaged, beyond this runtime, or leaves a size open that ``shapes`` does not give.
        VerificationFailed: A takes or returns something else than B, or does not run where B does.
    """
    path, reference = Path(path), Path(reference)
    runners = (runner := as_runtime(runtime)), as_runtime(DEFAULT)
    graphs = read_onnx(path).graph, read_onnx(reference).graph
    check_names({str(path): graphs[0]}, shapes)
    names = _paired(graphs, (path, reference), shapes or {})
    fixed = fixed_batch(graphs[0], path, shapes)
    loaded = [
        [one.load(file, usable_threads(), optimise) for optimise in (False, True)]
        for one, file in zip(runners, (path, reference), strict=True)
    ]
    cases = _cases(graphs[0], path, names, loaded[1], shapes, (fixed,) if fixed else batches)
    if not cases:
        raise FileError(f"{reference} runs on none of {', '.join(KINDS)}; give sizes that it takes: `shapes`")
    judged: dict[tuple[str, int, Optimization], list[Judged]] = {}
    for case in cases:
        for level, session in zip(get_args(Optimization), loaded[0], strict=True):
            outputs = _run(session, case.feed)
            if isinstance(outputs, str):
                raise VerificationFailed(
                    f"{path} does not run on {case.kind}, batch {case.batch} ({outputs}), where {reference} does"
                )
            judged[case.kind, case.batch, level] = _judged(outputs, case, tolerance)
    comparisons, of_outputs = check_outputs(judged, [value.name for value in graphs[0].output])
    checks = [check("interface", 0, 0), *of_outputs]
    if all(it.passed for it in checks) and (wrong := differing_weights(path, reference)) is not None:
        checks.append(check("weights", wrong, 0))
    passed, departure = all(it.passed for it in checks), None
    if not passed:
        worst = max(cases, key=lambda case: _excess(judged[case.kind, case.batch, "disabled"]))
        departure = first_departure(path, reference, (worst.feed, worst.reference_feed), runner)
    return VerifyRecord(passed, tuple(checks), comparisons, None, None, departure=departure)


def _excess(judged: list[Judged]) -> float:
    return max(it.error / it.tolerance for it in judged)


def _paired(graphs: tuple[onnx.GraphProto, onnx.GraphProto], paths: tuple[Path, Path], given: Shapes) -> dict[str, str]:
    """Return input of A → input of B: of the same name, or else at the same place.

    Raises:
        VerificationFailed: they are not the same in number, type or sizes, or the outputs are not.
    """
    ours, other = (fed_inputs(graph) for graph in graphs)
    if {it.name for it in ours} == {it.name for it in other}:
        other = [next(it for it in other if it.name == name) for name in (it.name for it in ours)]
    sides = (ours, other, "takes"), (graphs[0].output, graphs[1].output, "returns")
    for first, second, verb in sides:
        fits = len(first) == len(second) and all(
            it.name in given or _fits(it, right, exact=verb == "takes") for it, right in zip(first, second, strict=True)
        )
        if not fits:
            came, wanted = ("; ".join(map(signature, values)) for values in (first, second))
            raise VerificationFailed(f"{paths[0]} {verb} {came}, but {paths[1]} {wanted}")
    return {it.name: right.name for it, right in zip(ours, other, strict=True)}


def _fits(ours: onnx.ValueInfoProto, other: onnx.ValueInfoProto, *, exact: bool) -> bool:
    """Return whether A's value has B's type, and B's sizes: where B takes any size, A must too."""
    first, second = (value.type.tensor_type for value in (ours, other))
    if first.elem_type != second.elem_type:
        return False
    if not first.HasField("shape") or not second.HasField("shape"):
        return True
    dims = zip(first.shape.dim, second.shape.dim, strict=False)
    return len(first.shape.dim) == len(second.shape.dim) and all(
        not a.HasField("dim_value") or a.dim_value == b.dim_value or not (exact or b.HasField("dim_value"))
        for a, b in dims
    )


def _cases(
    graph: onnx.GraphProto,
    path: Path,
    names: dict[str, str],
    reference: list[Session],
    shapes: Shapes | None,
    batches: Sequence[int],
) -> list[_Case]:
    """Return every input that B runs on; what is no index that it has, say, is none."""
    found = []
    for batch in batches:
        sizes = input_sizes(graph, path, shapes, batch)
        for kind in KINDS:
            feed = feed_of(graph, sizes, kind)
            reference_feed = {names[name]: value for name, value in feed.items()}
            plain, optimised = (_run(session, reference_feed) for session in reference)
            if not isinstance(plain, str) and not isinstance(optimised, str):
                rounding = [max_error(*pair) for pair in zip(optimised, plain, strict=True)]
                found.append(_Case(kind, batch, feed, reference_feed, plain, rounding))
    return found


def _run(session: Session, feed: Arrays) -> list[Floats] | str:
    """Return the outputs, or why there are none."""
    try:
        return [np.asarray(output).astype(np.float64) for output in session.run(feed)]
    except RunFailed as error:
        return str(error)


def _judged(outputs: list[Floats], case: _Case, least: float) -> list[Judged]:
    judged = []
    for output, expected, rounding in zip(outputs, case.expected, case.rounding, strict=True):
        largest = float(np.abs(expected).max(initial=0))
        scale = max(1.0, largest) if np.isfinite(largest) else 1.0
        error, wanted = max_error(output, expected), MARGIN * rounding
        tolerance = max(least * scale, min(wanted, MOST * scale))
        unsure = wanted > MOST * scale or not np.isfinite(expected).all()
        judged.append(Judged(error, tolerance, scale, error > tolerance and unsure))
    return judged
