"""The public interface is a literal list, and every name on it is there."""

import importlib
import inspect
import re
import subprocess
import sys

import hoyer_export as hx
from hoyer_export import errors


def test_every_public_name_can_be_imported_and_is_documented() -> None:
    for name in hx.__all__:
        assert inspect.getdoc(getattr(hx, name)), name


def test_the_list_is_what_the_package_offers() -> None:
    assert sorted(hx.__all__, key=lambda name: (not name.isupper(), name)) == hx.__all__  # constants first
    assert set(hx.__all__) == set(hx._HOME)
    for name, home in hx._HOME.items():
        module = importlib.import_module(f"hoyer_export.{home}")
        assert getattr(hx, name) is (module if home == name else getattr(module, name))


def test_every_error_that_a_user_can_catch_is_on_the_list() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert defined - set(hx.__all__) == set()
    assert all(issubclass(getattr(hx, name), hx.HoyerExportError) for name in defined)


def test_completion_and_help_show_every_name_before_any_is_used() -> None:
    code = "import hoyer_export as hx; print(*dir(hx)); import pydoc; print(pydoc.plain(pydoc.render_doc(hx)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    completed, _, described = done.stdout.partition("\n")
    assert {*hx.__all__, "__version__"} <= set(completed.split())
    assert [name for name in hx.__all__ if not re.search(rf"\b{name}\b", described)] == []


def test_listing_the_names_loads_nothing() -> None:
    code = "import sys, hoyer_export as hx; dir(hx), hx.__version__; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
