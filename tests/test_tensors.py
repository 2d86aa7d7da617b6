"""Tensors are found wherever people put them, named once, and records of them compare as records do."""

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from hoyer_export.tensors import TensorRecord, hidden_in, named_tensors, tensors_in

A, B = torch.zeros(1), torch.ones(2)
Pair = namedtuple("Pair", "first second")


@dataclass
class Answer:
    boxes: Any
    scores: Any = None


class Bag:
    """A container that only its author knows, and tells torch about."""

    def __init__(self, *items: Any) -> None:
        self.items = items


_pytree.register_pytree_node(Bag, lambda bag: (list(bag.items), None), lambda items, _: Bag(*items))


class Named(OrderedDict[str, Any]):
    """As the outputs of some libraries."""


CONTAINERS: dict[str, Callable[[Any, Any], Any]] = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, [b]],
    "dict": lambda a, b: {"z": a, "a": b},
    "ordered dict": lambda a, b: OrderedDict(z=a, a=b),
    "a dict of a type of its own": lambda a, b: Named(z=a, a=b),
    "a mapping that is no dict": lambda a, b: UserDict(z=a, a=b),
    "named tuple": lambda a, b: Pair(a, b),
    "dataclass": lambda a, b: Answer(a, b),
    "dataclass in a dict in a tuple": lambda a, b: (1, {"x": Answer(boxes=[a], scores={"b": b})}, "text", None),
    "registered with torch": lambda a, b: Bag(a, {"b": b}),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_tensors_are_found_in_their_order(kind: str) -> None:
    value = CONTAINERS[kind](A, B)
    assert [id(tensor) for tensor in tensors_in(value)] == [id(A), id(B)]
    assert hidden_in(value) is None


def test_sets_hold_tensors_too() -> None:
    assert (
        {id(tensor) for tensor in tensors_in({A, B})}
        == {id(A), id(B)}
        == {id(tensor) for tensor in tensors_in(frozenset([A, B]))}
    )


def test_a_tensor_is_its_own_only_one_and_a_number_holds_none() -> None:
    assert list(tensors_in(A)) == [A]
    assert list(tensors_in((3, "x", None, Answer))) == []


def test_what_nobody_can_look_into_is_named() -> None:
    class Hidden:
        tensor = A

    assert isinstance(hidden_in({"x": (A, Answer(Hidden()))}), Hidden)


def test_a_shared_tensor_has_one_name_and_buffers_have_theirs() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.append(model[0])
    assert list(named_tensors(model)) == [
        *("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
    ]


@dataclass(frozen=True, eq=False, repr=False)
class Inner(TensorRecord):
    name: str
    tensor: Tensor


@dataclass(frozen=True)
class Outer:
    parts: tuple[Inner, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Full(TensorRecord):
    named: dict[str, Tensor]
    inner: Inner | None = None
    numbers: tuple[float, ...] = (1.0,)
    listed: list[Tensor] = field(default_factory=list)


def full() -> Full:
    return Full({"a": torch.arange(3), "b": B.clone()}, Inner("x", A.clone()), (1.0, 2.0), [torch.arange(2)])


def test_records_that_hold_the_same_are_equal() -> None:
    assert full() == full()
    assert Outer((Inner("x", A.clone()),)) == Outer((Inner("x", A.clone()),))
    assert replace(full(), named=dict(reversed(full().named.items()))) == full(), "a mapping has no order"


@pytest.mark.parametrize(
    "change",
    [
        {"named": {"a": torch.arange(3)}},
        {"named": {"a": torch.arange(3), "b": torch.zeros(2)}},
        {"named": {"a": torch.arange(3).float(), "b": torch.ones(2)}},
        {"named": {"a": torch.arange(3)[:, None], "b": torch.ones(2)}},
        {"named": {"a": [0, 1, 2], "b": torch.ones(2)}},
        {"inner": Inner("y", A)},
        {"inner": None},
        {"numbers": (1.0, 3.0)},
        {"numbers": (1.0,)},
        {"listed": []},
        {"listed": (torch.arange(2),)},
        {"named": {"a": torch.arange(3).to("meta"), "b": torch.ones(2)}},
    ],
    ids=str,
)
def test_records_that_differ_anywhere_are_not(change: dict[str, Any]) -> None:
    assert full() != replace(full(), **change)
    assert replace(full(), **change) != full()
    assert Inner("x", A) != ("x", A)


def test_a_record_shows_shapes_and_no_numbers() -> None:
    assert repr(Inner("x", torch.zeros(3, 4))) == "Inner(name='x', tensor=float32[3, 4])"
    assert repr(full()) == (
        "Full(named={'a': int64[3], 'b': float32[2]}, inner=Inner(name='x', tensor=float32[1]), numbers=(1.0, 2.0),"
        " listed=[int64[2]])"
    )


def test_a_record_of_tensors_is_no_key() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(full())
