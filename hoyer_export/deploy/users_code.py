"""Which line of the user's own code an error comes from: whoever has to change it wants to know that first."""

import linecache
import re
import sysconfig
import traceback
from pathlib import Path
from textwrap import shorten

import onnx
import torch

_FRAME = re.compile(r'File "([^"<]+)", line (\d+)')
_LIBRARIES = (*(str(Path(module.__file__ or "").parent) for module in (torch, onnx)), str(Path(__file__).parents[1]))
_STANDARD = sysconfig.get_path("stdlib")


def root_cause(error: BaseException) -> BaseException:
    """Return the error that others were raised from."""
    return error if error.__cause__ is None else root_cause(error.__cause__)


def users_line(error: BaseException) -> str:
    """Return `` at FILE:LINE, `CODE` `` of the innermost line of a network's code behind an error; "" without one.

    Tracebacks say it, messages quote it where torch traced the network before it failed, and where the exporter does
    not know an operation, the node that it looks at does.
    """
    traced = "".join(traceback.format_exception(error))
    cause = root_cause(error).__traceback__
    nodes = (frame.f_locals.get("node") for frame, _ in traceback.walk_tb(cause))
    context = "".join(getattr(node, "stack_trace", None) or "" for node in nodes)
    for text in (traced, context):
        if lines := list(filter(_is_users, _FRAME.findall(text))):
            path, line = lines[-1]
            return f" at {path}:{line}, `{shorten(linecache.getline(path, int(line)), 60, placeholder=' ...')}`"
    return ""


def _is_users(frame: tuple[str, str]) -> bool:
    """Return whether a frame is neither torch's nor Python's nor ours, but for the networks that we have."""
    path, _ = frame
    standard = path.startswith(_STANDARD) and "site-packages" not in path
    library = path.startswith(_LIBRARIES) or "/onnxscript/" in path or "/onnx_ir/" in path
    return not standard and (not library or path.endswith("hoyer_export/networks.py"))
