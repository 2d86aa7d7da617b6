"""A float32 ONNX file in float16: weights and arithmetic, while it takes and returns float32 as before.

The converter is onnxruntime's (onnxruntime/transformers/float16.py), which goes on where onnxconverter-common's began.
"""

import subprocess
import sys
from pathlib import Path

import onnx

from hoyer_export.deploy.onnx_file import first_line, read_onnx
from hoyer_export.errors import NetworkError
from hoyer_export.run_folder import whole_file

# In a process of its own: onnxruntime 1.32 dies of some files (a ViT-B/16 of torchvision) while it optimises them.
_LOAD = """
import onnxruntime, sys
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def write_half(path: Path, half: Path) -> None:
    """Write the ONNX file ``path`` in float16 to ``half``, the same bytes each time.

    Numbers above 65,504 become that, below 6e-8 that.

    Raises:
        FileError: ``path`` is missing or damaged, ``half`` cannot be written.
        NetworkError: the converter does not come to an end, or to a graph that onnxruntime loads.
    """
    model = read_onnx(path)
    searched = list(sys.path)
    from onnxruntime.quantization.onnx_model import ONNXModel  # most of a second
    from onnxruntime.transformers.float16 import convert_float_to_float16

    sys.path[:] = searched  # where the package puts itself, names such as `optimizer` of its own would be found
    try:
        model = convert_float_to_float16(model, keep_io_types=True)
        ONNXModel(model).topological_sort()  # it appends casts to the end
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # it has no error of its own
        raise NetworkError(
            f"{path.name} cannot be converted to float16 ({first_line(error)}); leave export.fp16 out"
        ) from error
    with whole_file(half) as part:
        part.write_bytes(model.SerializeToString(deterministic=True))
        if subprocess.run([sys.executable, "-c", _LOAD, part], capture_output=True, check=False).returncode:
            raise NetworkError(f"onnxruntime does not load {path.name} in float16; leave export.fp16 out")
