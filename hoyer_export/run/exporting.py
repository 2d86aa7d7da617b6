"""What the table [export] says of every ONNX file of a run: how it is written, and with what sizes it is counted."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from hoyer_export.call import Call
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.input_sizes import Shapes
from hoyer_export.deploy.onnx_file import fed_inputs, read_onnx
from hoyer_export.run.job import Job


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
