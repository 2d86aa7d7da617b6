"""Arguments of any shape: which tensors are in them, what they are called, and that numbers and flags stay."""

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.errors import NetworkError

A, B = torch.zeros(2, 3), torch.ones(2, 4)
Pair = namedtuple("Pair", "left right")


class Takes(nn.Module):
    """A network of several arguments."""

    def forward(self, image: Any, mask: Any = None, *more: Any, scale: float = 1.0, **named: Any) -> Any:
        return image


class TakesOne(nn.Module):
    def forward(self, batch: Any) -> Any:
        return batch


CALLS = [
    ("a tensor", Takes(), A, None, ((A,), {}), ["input"]),
    ("a tuple", Takes(), (A, B), None, ((A, B), {}), ["image", "mask"]),
    ("numbers and flags", Takes(), (A, 0.5, True, None), None, ((A, 0.5, True, None), {}), ["input"]),
    ("further arguments", Takes(), A, {"mask": B}, ((A,), {"mask": B}), ["image", "mask"]),
    ("in another order", Takes(), (), {"mask": B, "image": A}, ((), {"mask": B, "image": A}), ["mask", "image"]),
    ("a dict by name", Takes(), {"image": A, "mask": B}, None, ((), {"image": A, "mask": B}), ["image", "mask"]),
    ("a dict as one", TakesOne(), {"x": A, "y": B}, {}, (({"x": A, "y": B},), {}), ["batch_x", "batch_y"]),
    ("a list that is one argument", TakesOne(), [A, B], None, (([A, B],), {}), ["batch_0", "batch_1"]),
    ("a list in a tuple", Takes(), ([A, {"y": B}],), None, (([A, {"y": B}],), {}), ["image_0", "image_1_y"]),
    ("a named tuple inside", Takes(), (Pair(A, B),), None, ((Pair(A, B),), {}), ["image_left", "image_right"]),
    ("arguments without a name", Takes(), (A, 1, B), None, ((A, 1, B), {}), ["image", "more_0"]),
    ("any name", Takes(), A, {"odd": B}, ((A,), {"odd": B}), ["image", "odd"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("network", "inputs", "kwargs", "is_called", "names"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS]
)
def test_a_network_is_called_as_was_asked_and_its_tensors_have_names(
    network: nn.Module, inputs: Any, kwargs: Any, is_called: tuple[Any, Any], names: list[str]
) -> None:
    call = Call.of(network, inputs, kwargs)
    assert call == Call(*is_called)
    assert call.names(network) == names
    assert Call.of(network, call) == call
    assert call.with_tensors(call.tensors) == call


def test_the_list_that_a_loader_makes_is_the_arguments_where_the_network_takes_as_many() -> None:
    assert Call.of(Takes(), [A, B], collated=True) == Call((A, B))
    assert Call.of(TakesOne(), [A], collated=True) == Call((A,))
    assert Call.of(TakesOne(), [A, B], collated=True) == Call(([A, B],))


def test_only_what_has_a_row_for_every_example_is_taken_row_by_row() -> None:
    call = Call((A, torch.tensor(3.0), torch.ones(5)), {"flag": True})
    assert call.batch_size == 2
    first = call.rows(slice(1))
    assert [tuple(tensor.shape) for tensor in first.tensors] == [(1, 3), (), (5,)]
    assert first.kwargs == {"flag": True}


def test_a_network_gets_copies() -> None:
    class Writes(nn.Module):
        def forward(self, xs: list[Tensor]) -> Tensor:
            return xs[0].add_(1)

    call = Call(([A.clone()],))
    assert torch.equal(call.on(Writes()), A + 1)
    assert torch.equal(call.tensors[0], A)


def test_tensors_that_nobody_can_replace_are_refused() -> None:
    from dataclasses import make_dataclass

    own = make_dataclass("Own", ["x"])
    with pytest.raises(NetworkError, match="an object of its own kind: give tuples, lists or dicts"):
        Call.of(TakesOne(), own(A))
