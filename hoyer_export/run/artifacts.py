"""The files that a run ships: one entry each; export, verification, benchmark and report take them all.

docs/adding-an-artifact.md adds one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.verify import RELATIVE_TOLERANCE
from hoyer_export.run.job import Job
from hoyer_export.run_folder import RunFolder


def write_float32(artifact: "Artifact", job: Job, path: Path) -> None:
    """Export the artifact's network as it is, with what a client has to know in the metadata."""
    facts = {"network": job.recipe.network.name, "file": artifact.name}
    if job.has_data and job.data.mean:
        facts |= {"data": job.data.name, "mean": json.dumps(job.data.mean), "std": json.dumps(job.data.std)}
    export_onnx(artifact.network(job), job.example, path, opset=job.recipe.export.opset, metadata=facts)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file that is shipped.

    Args:
        name: its place in reports; the file is ``NAME.onnx``.
        kind: what the file holds, e.g. ``onnx``.
        network: returns what the file has to compute.
        write: writes it, the same bytes each time.
        tolerance: largest |runtime − network| in units of max(1, max |network|), as for ``verify_onnx``.
    """

    name: str
    kind: str = "onnx"
    network: Callable[[Job], nn.Module]
    write: Callable[["Artifact", Job, Path], None] = write_float32
    tolerance: float = RELATIVE_TOLERANCE

    def path(self, folder: RunFolder) -> Path:
        """Return where it lies."""
        return folder.path / f"{self.name}.onnx"


ARTIFACTS: dict[str, Artifact] = {
    it.name: it
    for it in (
        Artifact(name="dense", network=lambda job: job.dense()),
        Artifact(name="slim", network=lambda job: job.slim().model),
    )
}
"""By name, the dense one first: what all others are compared with."""
