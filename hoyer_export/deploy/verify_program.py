"""Prove that a file of torch.export computes what the network computes:

bytes            those that the export wrote; others are not even loaded, for the format may hold a pickle
outputs          max |file − network| ≤ tolerance; batches 1, 2, 3 and 8; real images, zeros, ones, noise
top-1, or outputs on test images, as ``verify_onnx`` has them
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from hoyer_export.call import Call, ExampleInputs
from hoyer_export.deploy.checks import RELATIVE_TOLERANCE, VerifyRecord, check, closest
from hoyer_export.deploy.export import as_float32, inference_copy
from hoyer_export.deploy.labelled import Agreement, Labelled, agreement_on, measured
from hoyer_export.deploy.rounding import Outputs, Rounding, torch_outputs
from hoyer_export.deploy.verify import input_cases
from hoyer_export.metric import ACCURACY, Metric


def verify_program(
    path: Path,
    model: nn.Module,
    inputs: ExampleInputs,
    *,
    sha256: str,
    batches: Sequence[int] = (1, 2, 3, 8),
    labelled: Labelled | None = None,
    metric: Metric = ACCURACY,
    tolerance: float = RELATIVE_TOLERANCE,
) -> VerifyRecord:
    """Compare the file ``path`` with ``model`` (steps above); arguments as for ``verify_onnx``.

    Raises:
        DataError: the file does not run on these inputs.
    """
    bytes_ = check("bytes, file against export", float(_sha256(path) != sha256), 0)
    if not bytes_.passed:
        return VerifyRecord(False, (bytes_,), (), None, None)
    program = torch.export.load(path).module()

    def run(call: Call) -> Outputs:
        return torch_outputs(program, call)

    real, network = as_float32(Call.of(model, inputs)), inference_copy(model)
    torchs = Rounding(network)
    judged = []
    for call in input_cases(real, max(2, *batches)).values():
        for batch in batches:
            expected = torchs.expected(call.rows(slice(batch)))
            judged.append(torchs.judge(run(expected.call), expected.outputs, expected, tolerance))
    checks, found = [bytes_, closest("outputs", judged)], Agreement()
    if labelled is not None and metric is ACCURACY:
        found = agreement_on(run, network, labelled, tolerance)
        checks.append(check("top-1", found.clear_disagreements, 0))
    elif labelled is not None:
        found, on_test = measured(run, torchs, network, labelled, metric, tolerance)
        checks.append(closest("outputs on test images", on_test))
    of_test = None, found.torch_accuracy, found.class_images, found.class_correct
    return VerifyRecord(all(it.passed for it in checks), tuple(checks), (), *of_test)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
