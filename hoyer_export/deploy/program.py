"""A network as a program of torch.export: ``torch.export.load("slim.pt2").module()`` runs it with torch alone.

As the ONNX file: float32, eval mode, on the CPU, a dynamic batch, no stack traces or paths, the same bytes each time.
"""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import torch
from torch import nn

from hoyer_export.call import Call, ExampleInputs
from hoyer_export.deploy.export import as_float32, inference_copy
from hoyer_export.deploy.interface import dynamic_axes, input_names
from hoyer_export.deploy.onnx_file import first_line
from hoyer_export.deploy.users_code import root_cause, users_line
from hoyer_export.errors import NetworkError
from hoyer_export.run_folder import write_whole

FACTS = "hoyer_export.json"
"""What the ONNX file has in its metadata, among the archive's extra files."""


def write_program(model: nn.Module, example_inputs: ExampleInputs, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write ``model`` to the file ``path``, whole or not at all; the model itself stays as it is.

    Args:
        model: any network that ``export_onnx`` takes.
        example_inputs: what it is called with; their values do not get into the file.
        path: of the file.
        metadata: key → text.

    Raises:
        NetworkError: torch.export cannot follow it.
        FileError: ``path`` cannot be written.
    """
    network, call = inference_copy(model), as_float32(Call.of(model, example_inputs))
    # A batch of one would be taken for a constant; images of whoever exports are nobody else's business.
    call = call.rows(torch.arange(2) % call.batch_size).map(lambda x: torch.zeros_like(x) if x.ndim else x)
    shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor, axes in zip(call.tensors, dynamic_axes(call, input_names(network, call), size=False), strict=True):
        if axes:
            shapes[tensor] = axes
    try:
        program = torch.export.export(network, call.args, dict(call.kwargs), dynamic_shapes=shapes)
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)
        content = BytesIO()
        torch.export.save(program, content, extra_files={FACTS: json.dumps(metadata, sort_keys=True)})
    except Exception as error:  # of torch._dynamo, torch.export, or whatever the forward raises
        reason = f"{users_line(error)} ({first_line(root_cause(error))})"
        raise NetworkError(
            f"torch.export cannot export {type(model).__name__}{reason}; leave export.pt2 out"
        ) from error
    write_whole(path, content.getvalue())
