"""The chain: a recipe to a report, stage by stage.

``hx.run(network, ...)`` is a call of this package: Python puts it under that name as soon as a module of it is
imported, so that no function could stand there. ``in_python.run`` says what it takes.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Run(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("hoyer_export.in_python").run(*args, **kwargs)  # of a layer above this one


sys.modules[__name__].__class__ = _Run
