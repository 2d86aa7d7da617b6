"""Dropout keeps zeroed channels zero, but for alpha dropout while it drops: that is asked of the operation itself."""

from collections.abc import Callable

import pytest
import torch
from networks import Net, conv
from torch import Tensor, nn
from torch.nn import functional as F

from hoyer_export.channels.trace import trace_channels
from hoyer_export.surgery.cut import cut
from hoyer_export.surgery.zero import zero_

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Operation = Callable[[Tensor, bool], Tensor]
OPERATIONS: dict[str, Operation] = {
    "F.dropout": lambda x, drops: F.dropout(x, 0.5, drops),
    "torch.dropout": lambda x, drops: torch.dropout(x, 0.5, drops),
    "torch.dropout by name": lambda x, drops: torch.dropout(x, p=0.5, train=drops),
    "F.dropout1d": lambda x, drops: F.dropout1d(x.flatten(2), 0.5, drops).view_as(x),
    "F.dropout2d": lambda x, drops: F.dropout2d(x, 0.5, drops),
    "F.dropout3d": lambda x, drops: F.dropout3d(x[:, :, None], 0.5, drops)[:, :, 0],
    "feature_dropout": lambda x, drops: torch.feature_dropout(x, 0.5, drops),
    "rrelu": lambda x, drops: F.rrelu(x, 0.1, 0.3, drops),
    "F.alpha_dropout": lambda x, drops: F.alpha_dropout(x, 0.5, drops),
    "F.alpha_dropout by name": lambda x, drops: F.alpha_dropout(x, training=drops),
    "F.alpha_dropout in place": lambda x, drops: F.alpha_dropout(x, 0.5, drops, True),
    "torch.alpha_dropout": lambda x, drops: torch.alpha_dropout(x, 0.5, drops),
    "torch.alpha_dropout by name": lambda x, drops: torch.alpha_dropout(x, p=0.5, train=drops),
    "torch.alpha_dropout_": lambda x, drops: torch.alpha_dropout_(x, 0.5, drops),
    "F.feature_alpha_dropout": lambda x, drops: F.feature_alpha_dropout(x, 0.5, drops),
    "torch.feature_alpha_dropout": lambda x, drops: torch.feature_alpha_dropout(x, 0.5, drops),
    "SELU, AlphaDropout": lambda x, drops: nn.AlphaDropout(0.5).train(drops)(F.selu(x)),
    "FeatureAlphaDropout": lambda x, drops: nn.FeatureAlphaDropout(0.5).train(drops)(x),
    "Dropout": lambda x, drops: nn.Dropout(0.5).train(drops)(x),
    "Dropout2d": lambda x, drops: nn.Dropout2d(0.5).train(drops)(x),
}


def network(operation: Operation, drops: bool) -> Net:
    """Sum over the channels of ``a`` after the operation: only what is zero there can go without a trace."""
    return Net(
        lambda n, x: n.fc(F.relu(n.b(operation(n.a(x), drops).sum(1, keepdim=True))).mean((2, 3))),
        a=conv(3, 12), b=conv(1, 8), fc=nn.Linear(8, 5),
    )  # fmt: skip


def offered(model: nn.Module) -> set[str]:
    return {group.name for group in trace_channels(model, IMAGE).groups}


@pytest.mark.parametrize("name", OPERATIONS)
def test_channels_in_front_of_dropout_that_drops_can_go_where_it_leaves_zeros_alone(name: str) -> None:
    torch.manual_seed(0)
    stays_zero = not OPERATIONS[name](torch.zeros(2, 12, 8, 8), True).any()
    assert stays_zero == ("alpha" not in name.lower())
    assert offered(network(OPERATIONS[name], drops=True)) == ({"a", "b"} if stays_zero else {"b"})


@pytest.mark.parametrize("name", OPERATIONS)
def test_channels_in_front_of_dropout_that_rests_are_cut_exactly(name: str) -> None:
    torch.manual_seed(0)
    model = network(OPERATIONS[name], drops=False).eval()
    channels = trace_channels(model, IMAGE)
    keep = {"a": torch.arange(5), "b": torch.arange(3)}
    zero_(model, channels, keep)
    slim = cut(model, channels, keep, IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(slim.model(IMAGE), model(IMAGE))
    assert slim.model.a.weight.shape[0] == 5


@pytest.mark.parametrize(("dropout", "groups"), [(nn.Dropout, {"a", "b"}), (nn.AlphaDropout, {"b"})])
def test_a_head_that_runs_only_in_training_drops_there(dropout: type[nn.Module], groups: set[str]) -> None:
    def wiring(n: Net, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = n.a(x)
        out: Tensor = n.fc(n.b(y).mean((2, 3)))
        return (out, n.head(n.dropout(y).sum(1).flatten(1))) if n.training else out

    model = Net(wiring, a=conv(3, 12), b=conv(12, 8), fc=nn.Linear(8, 5), head=nn.Linear(64, 5), dropout=dropout(0.5))
    assert offered(model) == groups
