"""Compiled training: the same steps as ever where the kernels are the same, and one line where there is no compiler."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import hoyer_export as hx
from hoyer_export.errors import TrainingError
from hoyer_export.select.budget import MACS, Budget
from hoyer_export.sparsify.compiled import compiled
from hoyer_export.sparsify.function_hs import FunctionHS
from hoyer_export.sparsify.phase import TrainSettings
from hoyer_export.sparsify.training import train

STEPS = 6


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Let torch.compile trace, and keep torch's own kernels; return what was compiled."""
    compiled_graphs: list[object] = []

    def backend(graph, inputs):
        compiled_graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    return compiled_graphs


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 3)
    )


def batches(epoch: int):
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(STEPS):
        yield torch.randn(8, 1, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def trained(compile: bool) -> tuple[nn.Module, FunctionHS]:
    model = network()
    channels = hx.trace_channels(model, torch.randn(2, 1, 6, 6))
    fading = FunctionHS(channels, model, Budget(MACS, 0.5), 2 * STEPS, align=1, every=3)
    how = TrainSettings(phase="sparse", steps_per_epoch=STEPS, epochs=2, lr=0.05, compile=compile, distill_weight=0.5)
    train(model, batches, how, regulariser=fading, teacher=copy.deepcopy(network()))
    return model, fading


def test_a_compiled_training_makes_the_same_steps_and_measures_the_same_energies(kernels: list[object]) -> None:
    (plain, fading), (fast, compiled_fading) = trained(compile=False), trained(compile=True)
    assert len(kernels) == 2  # network and teacher, once each: no epoch and no watched step compiles them anew
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), fast.state_dict().values(), strict=True))
    norms, same = fading.norms(), compiled_fading.norms()
    assert all(torch.equal(norms[name], same[name]) for name in norms)
    assert any(bool(dead.any()) for dead in fading.dead().values())
    assert "forward" not in vars(fast)


def test_a_network_gets_its_own_forward_back(kernels: list[object]) -> None:
    model = network()
    model.forward = own = partial(nn.Sequential.forward, model)
    with compiled(model):
        assert model.forward is not own
    assert model.forward is own


def test_where_torch_cannot_compile_that_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph, inputs):
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    model = network()
    message = r"^torch.compile failed .*no C\+\+ compiler was found.*leave compile"
    with pytest.raises(TrainingError, match=message), compiled(model):
        model(torch.randn(2, 1, 6, 6))
    assert "forward" not in vars(model)
