"""The public interface is a literal list, and every name on it is there."""

import importlib
import inspect

import hoyer_export as hx


def test_every_public_name_can_be_imported_and_is_documented() -> None:
    for name in hx.__all__:
        assert inspect.getdoc(getattr(hx, name)), name


def test_the_list_is_what_the_package_offers() -> None:
    assert sorted(hx.__all__) == hx.__all__
    assert set(hx.__all__) == set(hx._HOME)
    for name, home in hx._HOME.items():
        assert getattr(hx, name) is getattr(importlib.import_module(f"hoyer_export.{home}"), name)
