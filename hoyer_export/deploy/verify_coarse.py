"""Look at a file that rounds coarsely, as int8 does: no tolerance could say whether its outputs are right.

    interface        as ``verify_onnx`` has it
    bytes            those that the export wrote, so that no weight is another
    relative change  ‖file − network‖ / ‖network‖ of all outputs on real inputs, as a figure; finite

and top-1, or another metric, on labelled images through the runtime. Whether that is good enough to be shipped is for
whoever knows what may be lost.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hoyer_export.call import Call, ExampleInputs
from hoyer_export.deploy.checks import RELATIVE_CHANGE, Check, VerifyRecord, check
from hoyer_export.deploy.export import as_float32, inference_copy
from hoyer_export.deploy.interface import check_interface
from hoyer_export.deploy.labelled import Agreement, Labelled, agreement_on, measured
from hoyer_export.deploy.onnx_file import read_onnx
from hoyer_export.deploy.rounding import Outputs, Rounding, torch_outputs
from hoyer_export.deploy.runtime import DEFAULT, as_runtime
from hoyer_export.deploy.runtime.protocol import Runtime
from hoyer_export.deploy.verify import runtime_outputs
from hoyer_export.environment import usable_threads
from hoyer_export.metric import ACCURACY, Metric


def verify_coarse(
    path: Path,
    model: nn.Module,
    inputs: ExampleInputs,
    *,
    sha256: str | None,
    batches: Sequence[int] = (1, 2, 3, 8),
    labelled: Labelled | None = None,
    metric: Metric = ACCURACY,
    runtime: Runtime | str = DEFAULT,
) -> VerifyRecord:
    """Compare the ONNX file ``path`` with ``model`` (steps above).

    Args:
        path: of the file.
        model: what it was made of.
        inputs: real ones, as for ``verify_onnx``.
        sha256: of the file that was written; None where nobody knows.
        batches: batch sizes that it has to run with.
        labelled: batches of (inputs, targets).
        metric: read on them.
        runtime: what runs the file.

    Raises:
        FileError: the file is missing, damaged, or beyond this runtime.
        VerificationFailed: the file has another interface, or does not take these inputs.
    """
    real, network = as_float32(Call.of(model, inputs)), inference_copy(model)
    names = check_interface(read_onnx(path), path, network, real)
    session = as_runtime(runtime).load(path, usable_threads(), True)
    run = partial(runtime_outputs, path, session, names)
    calls = [real.rows(torch.arange(batch) % real.batch_size) for batch in batches]
    differences = [(run(call), torch_outputs(network, call)) for call in calls]
    change = _change(differences)
    checks = [check("interface", 0, 0), Check(RELATIVE_CHANGE, change, None, math.isfinite(change))]
    if sha256 is not None:
        other = hashlib.sha256(path.read_bytes()).hexdigest() != sha256
        checks.insert(1, check("bytes, file against export", float(other), 0))
    found = Agreement()
    if labelled is not None and metric is ACCURACY:
        found = agreement_on(run, network, labelled, math.inf)
    elif labelled is not None:
        found, _ = measured(run, Rounding(network), network, labelled, metric, math.inf)
    of_file = found.onnx_accuracy, None, found.class_images, found.onnx_class_correct
    return VerifyRecord(all(it.passed for it in checks), tuple(checks), (), *of_file)


def _change(pairs: list[tuple[Outputs, Outputs]]) -> float:
    """Return ‖found − expected‖ / ‖expected‖ over all outputs; infinite where something is not a number."""
    found, expected = (np.concatenate([y.ravel() for pair in pairs for y in pair[side]]) for side in (0, 1))
    change = float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), np.finfo(np.float32).tiny))
    return change if math.isfinite(change) else math.inf
