"""Which line of the user's own code an error comes from: whoever has to change it wants to know that first."""

import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten

import onnx
import torch

_FRAME = re.compile(r'File "([^"<]+)", line (\d+)')
_LIBRARIES = (*(str(Path(module.__file__ or "").parent) for module in (torch, onnx)), str(Path(__file__).parents[1]))
_STANDARD = sysconfig.get_path("stdlib")


def users_line(error: BaseException) -> str:
    """Return `` at FILE:LINE, `CODE` `` of the innermost line of a network's code behind an error; "" without one.

    Tracebacks say it, and where torch traced the network before it failed, messages quote them.
    """
    found = ""
    for path, line in _frames(error):
        found = f" at {path}:{line}, `{shorten(linecache.getline(path, int(line)), 60, placeholder=' ...')}`"
    return found


def _frames(error: BaseException) -> Iterator[tuple[str, str]]:
    """Yield the frames that are neither torch's nor Python's nor ours, except for networks of ours."""
    for path, line in _FRAME.findall("".join(traceback.format_exception(error))):
        standard = path.startswith(_STANDARD) and "site-packages" not in path
        library = path.startswith(_LIBRARIES) or "/onnxscript/" in path or "/onnx_ir/" in path
        if not standard and (not library or path.endswith("hoyer_export/networks.py")):
            yield path, line
