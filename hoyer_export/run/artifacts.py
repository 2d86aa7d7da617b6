"""The files that a run ships: one entry each; export, verification, benchmark and report take them all.

docs/adding-an-artifact.md adds one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hoyer_export.call import Call
from hoyer_export.deploy.checks import RELATIVE_TOLERANCE
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.input_sizes import Shapes
from hoyer_export.deploy.onnx_file import fed_inputs, read_onnx
from hoyer_export.run.job import Job
from hoyer_export.run_folder import RunFolder

REJECTED = ".rejected"


def write_float32(artifact: "Artifact", job: Job, path: Path) -> None:
    """Export the artifact's network as it is, with what a client has to know in the metadata."""
    facts = {"network": job.recipe.network.name, "file": artifact.name}
    if job.has_data:
        facts |= {"data": job.data.name, **job.data.preprocessing.metadata()}
    export_as_asked(artifact.network(job), job, path, facts)


def export_as_asked(network: nn.Module, job: Job, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Export a network as the table [export] says."""
    asked = job.recipe.export
    export_onnx(
        network,
        job.example,
        path,
        opset=asked.opset,
        input_names=asked.input_names,
        output_names=asked.output_names,
        dynamic_size=asked.dynamic_size,
        metadata=metadata,
    )


def sizes_of_run(path: Path, job: Job, batch: int = 1) -> Shapes | None:
    """Return what a file is counted and measured at that leaves height and width open: the images' size."""
    if not job.recipe.export.dynamic_size:
        return None
    call, inputs = Call.of(job.network(), job.example), fed_inputs(read_onnx(path).graph)
    return {
        value.name: (batch, *x.shape[1:]) if call.is_batched(x) else tuple(x.shape)
        for value, x in zip(inputs, call.tensors, strict=True)
    }


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
        """Return where it is written, and lies unless its verification failed."""
        return folder.path / f"{self.name}.onnx"

    def rejected(self, folder: RunFolder) -> Path:
        """Return where it lies once its verification has failed: under no name that anybody ships."""
        return folder.path / f"{self.name}.onnx{REJECTED}"

    def found(self, folder: RunFolder) -> Path:
        """Return where it lies now."""
        path, rejected = self.path(folder), self.rejected(folder)
        return rejected if rejected.exists() and not path.exists() else path


ARTIFACTS: dict[str, Artifact] = {
    it.name: it
    for it in (
        Artifact(name="dense", network=lambda job: job.dense()),
        Artifact(name="slim", network=lambda job: job.slim().model),
    )
}
"""By name, the dense one first: what all others are compared with."""
