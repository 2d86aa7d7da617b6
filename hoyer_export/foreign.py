"""Somebody's own code by its name, ``package.module:NAME``: imported only if its package was allowed by name.

A name in a recipe from a stranger is data; importing what it says would run the stranger's choice of code.
"""

import difflib
import importlib
import re
from collections.abc import Sequence

from hoyer_export.errors import HoyerExportError, NetworkError, one_line


def imported(text: str, allow_import: Sequence[str], kind: str, error: type[HoyerExportError] = NetworkError) -> object:
    """Return what ``package.module:NAME`` names.

    Args:
        text: the name.
        allow_import: packages that may be imported; each stands for its subpackages too.
        kind: what it should be, for the error, e.g. "network".
        error: the class of the error.

    Raises:
        HoyerExportError: it is no such name, not allowed, or cannot be imported.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", text):
        raise error(f"{kind} {text!r}: expected package.module:name")
    module_name, name = text.split(":")
    # A lone string is a sequence of letters, and would allow every package that it contains.
    allowed = {allow_import} if isinstance(allow_import, str) else set(allow_import)
    parts = module_name.split(".")
    if not any(".".join(parts[:n]) in allowed for n in range(1, len(parts) + 1)):
        raise error(
            f"{kind} {text!r} would import and run the package {parts[0]!r}; "
            f'if you trust it, allow it with `allow_import=["{parts[0]}"]`'
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as raised:  # importing runs foreign code, which may raise anything
        reason = f"{type(raised).__name__}: {one_line(raised)}"
        raise error(f"{kind} {text!r}: cannot import {module_name}: {reason}") from raised
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        close = difflib.get_close_matches(name, public, n=3) or public[:8]
        raise error(f"{kind} {text!r}: {module_name} has no {name}; it has {', '.join(close) or 'nothing'}")
    return getattr(module, name)
