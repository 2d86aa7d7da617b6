"""Rules are found by the names of their operations, and a name that torch drops takes nothing with it but its rule."""

import subprocess
import sys

import pytest
import torch

from hoyer_export.channels.rules import RULES, names
from hoyer_export.channels.rules.names import functions_named, getters, named

DROPPED = """
import torch
del torch.fft.hfft, torch.linalg.vector_norm, torch.nn.functional.local_response_norm
from hoyer_export.channels.rules import RULES, names
print(len(RULES), *sorted(names.ABSENT))
"""


def nothing(*_: object) -> None:
    """Stand for a rule."""


def test_this_torch_has_every_name_that_a_rule_asks_for() -> None:
    assert sorted(names.ABSENT) == []


def test_what_torch_drops_is_named_and_every_other_rule_stays() -> None:
    done = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, check=True)
    count, *absent = done.stdout.split()
    assert absent == ["hfft", "local_response_norm", "vector_norm"]
    assert int(count) == len(RULES) - 3


def test_a_name_stands_for_the_function_the_method_and_the_form_in_place() -> None:
    functional = torch.nn.functional
    expected = {torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_, functional.relu, functional.relu_}
    assert set(functions_named("relu")) == expected
    assert named("relu", nothing, in_place=False).keys() == {torch.relu, torch.Tensor.relu, functional.relu}
    assert functions_named("rfft2", spaces=(torch.fft,)) == [torch.fft.rfft2]


def test_an_absent_name_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "ABSENT", set())
    assert list(named("relu no_such_operation", nothing)) == functions_named("relu")
    assert list(getters("shape no_such_property", nothing)) == [torch.Tensor.shape.__get__]
    assert {"no_such_operation", "no_such_property"} == names.ABSENT
