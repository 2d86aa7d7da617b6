"""Rules are found by the names of their operations, and a name that torch drops takes nothing with it but its rule."""

import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import hoyer_export as hx
from hoyer_export.channels.rules import BUILT_IN, MODULES, rule_table, rules_of
from hoyer_export.rules import Rule, rule

DROPPED = """
import torch
del torch.fft.hfft, torch.linalg.vector_norm, torch.nn.functional.local_response_norm
from hoyer_export.channels.rules import BUILT_IN, MODULES, rules_of
print(len(BUILT_IN), *sorted(name for module in MODULES for rule in rules_of(module) for name in rule.absent))
"""
RULES = [found for module in MODULES for found in rules_of(module)]


def nothing(*_: object) -> None:
    """Stand for a rule."""


def test_this_torch_has_every_name_that_a_rule_asks_for() -> None:
    assert [name for found in RULES for name in found.absent] == []


def test_what_torch_drops_is_named_and_every_other_rule_stays() -> None:
    done = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, check=True)
    count, *absent = done.stdout.split()
    assert absent == ["hfft", "local_response_norm", "vector_norm"]
    assert int(count) == len(BUILT_IN) - 3


def test_an_operation_has_one_rule() -> None:
    owners = Counter(operation for found in RULES for operation in found.operations)
    assert [operation for operation, count in owners.items() if count > 1] == []
    assert owners.keys() == BUILT_IN.keys()


def test_a_name_stands_for_the_function_the_method_and_the_form_in_place() -> None:
    functional = torch.nn.functional
    expected = {torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, functional.relu, functional.relu_}
    assert set(rule("relu")(nothing).operations) == expected
    assert set(rule("relu", in_place=False)(nothing).operations) == {torch.relu, Tensor.relu, functional.relu}
    assert rule("rfft2", "irfft2")(nothing).operations == (torch.fft.rfft2, torch.fft.irfft2)
    assert rule("shape", spaces=(Tensor,))(nothing).operations == (Tensor.shape.__get__,)


def test_an_absent_name_is_remembered() -> None:
    found = rule("relu no_such_operation", "nor_this", torch.sinc)(nothing)
    assert found.absent == ("no_such_operation", "nor_this")
    assert set(found.operations) == {*rule("relu")(nothing).operations, torch.sinc}


def test_a_rule_is_called_like_its_function() -> None:
    assert rule(torch.sinc)(lambda *arguments, **options: (arguments, options))(1, 2, three=3) == ((1, 2), {"three": 3})


def test_a_rule_serves_another_operation_too() -> None:
    again = rule(torch.sinc)(hx.rules.elementwise)
    assert again.function is hx.rules.elementwise.function
    assert again.operations == (torch.sinc,)


def test_rules_of_ones_own_come_as_rules_or_by_operation_and_go_before_the_built_in_ones() -> None:
    one, other = rule(torch.sinc)(nothing), rule("relu")(nothing)
    assert rule_table(None) == BUILT_IN
    assert rule_table(one) == {**BUILT_IN, torch.sinc: one}
    assert rule_table([one, other]) == {**BUILT_IN, torch.sinc: one, **dict.fromkeys(other.operations, other)}
    assert rule_table({torch.sinc: other, torch.relu: None}) == {**BUILT_IN, torch.sinc: other, torch.relu: None}
    plain = rule_table({torch.sinc: nothing})[torch.sinc]
    assert isinstance(plain, Rule)
    assert plain.function is nothing


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (nothing, "expected {operation: rule}, or rules that are decorated with .*got <function nothing"),
        ([nothing], "got <function nothing"),
        (3, "got 3"),
        ({"relu": nothing}, "got {'relu': <function nothing"),
        ({torch.relu: 3}, "relu.*: 3}"),
        (rule("no_such_operation")(nothing), "torch has no operation called no_such_operation"),
        (Rule(nothing), "a rule of no operation"),
    ],
)
def test_what_is_no_rule_is_refused_in_one_line(rules: object, message: str) -> None:
    model, image = nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4)
    with pytest.raises(hx.HoyerExportError, match=message) as caught:
        hx.trace_channels(model, image, rules=rules)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
