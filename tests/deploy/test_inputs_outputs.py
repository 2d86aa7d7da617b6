"""Networks of any arguments and results: traced, cut, exported by name, verified, measured."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import hoyer_export as hx

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers in front of whatever ``end`` makes of them and the further arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.head, self.aux = nn.Conv2d(8, 4, 1), nn.Linear(8, 5)

    def body(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()).relu()

    def pooled(self, x: Tensor) -> Tensor:
        return self.aux(self.body(x).mean((2, 3)))


class ListIn(Net):
    def forward(self, images: list[Tensor], scale: float = 1.0) -> Tensor:
        return sum(self.pooled(x * scale) for x in images)


class ByName(Net):
    def forward(self, image: Tensor, *, mask: Tensor | None = None, flag: bool = False) -> Tensor:
        y = self.pooled(image if mask is None else image * mask)
        return -y if flag else y


class Batch(Net):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.pooled(batch["views"][0]) + self.pooled(batch["views"][1]) * batch["code"][:, None]


class Steered(Net):
    def forward(self, image: Tensor, temperature: Tensor) -> Tensor:
        return self.pooled(image) / temperature


class Dict(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        return {"out": self.head(y), "aux": self.aux(y.mean((2, 3)))}


@dataclass
class Found:
    boxes: Tensor
    maps: list[Tensor]
    loss: Tensor | None = None
    count: int = 3


class Detector(Net):
    def forward(self, x: Tensor) -> Found:
        y = self.body(x)
        return Found(self.head(y).flatten(2), [self.head(y), y.mean((2, 3))])


class Ordered(OrderedDict[str, Any]):
    """As the outputs of some libraries."""


class Library(Net):
    def forward(self, pixel_values: Tensor) -> Ordered:
        return Ordered(logits=self.pooled(pixel_values), hidden_states=(self.body(pixel_values),))


class Anchors(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.body(x)
        return self.aux(y.mean((2, 3))), torch.ones(2, 4), self.head(y).argmax(1)


CASES = [
    ("list", ListIn, ([X, X + 1],), {}, ["images_0", "images_1"], ["logits"]),
    ("list and number", ListIn, ([X, X + 1], 0.5), {}, ["images_0", "images_1"], ["logits"]),
    ("by name", ByName, X, {"mask": X.sign(), "flag": True}, ["image", "mask"], ["logits"]),
    ("all by name", ByName, {"mask": X.sign(), "image": X}, {}, ["mask", "image"], ["logits"]),
    ("flag", ByName, X, {"flag": True, "mask": None}, ["input"], ["logits"]),
    ("dict of lists", Batch, ({"views": [X, -X], "code": torch.tensor([1, 2])},), {},
     ["batch_views_0", "batch_views_1", "batch_code"], ["logits"]),
    ("a single number", Steered, (X, torch.tensor(2.0)), {}, ["image", "temperature"], ["logits"]),
    ("dict out", Dict, X, {}, ["input"], ["out", "aux"]),
    ("dataclass out", Detector, X, {}, ["input"], ["boxes", "maps_0", "maps_1"]),
    ("a library's mapping out", Library, X, {}, ["input"], ["logits", "hidden_states_0"]),
    ("what does not depend on the image out", Anchors, X, {}, ["input"], ["output_0", "output_1", "output_2"]),
]  # fmt: skip


def cut_in_half(model: nn.Module, inputs: Any, kwargs: dict[str, Any]) -> nn.Module:
    channels = hx.trace_channels(model, inputs, example_kwargs=kwargs)
    assert {group.name: group.width for group in channels.groups}["a"] == 8
    keep = {group.name: torch.arange(group.width // 2) for group in channels.groups}
    hx.zero_(model, channels, keep)
    return hx.cut(model, channels, keep, inputs, example_kwargs=kwargs).model


@pytest.mark.parametrize(
    ("make", "inputs", "kwargs", "taken", "returned"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_a_network_of_any_arguments_and_results_goes_all_the_way(
    tmp_path, make: type[Net], inputs: Any, kwargs: dict[str, Any], taken: list[str], returned: list[str]
) -> None:
    torch.manual_seed(0)
    tested = hx.self_test(make(), inputs, example_kwargs=kwargs)
    assert {verdict.verdict for verdict in tested.verdicts} <= {"proved", "unprunable"}
    slim, path = cut_in_half(make().eval(), inputs, kwargs), tmp_path / "slim.onnx"
    assert slim.a.weight.shape[0] == 4
    written = hx.export_onnx(slim, inputs, path, example_kwargs=kwargs)
    session = onnxruntime.InferenceSession(path)
    assert [value.name for value in session.get_inputs()] == taken
    assert [value.name for value in session.get_outputs()] == returned
    assert not any("network." in tensor.name for tensor in onnx.load(path).graph.initializer)
    record = hx.verify_onnx(path, slim, inputs, example_kwargs=kwargs, batches=(1, 3), sha256=written.sha256)
    assert [check for check in record.checks if not check.passed] == []
    assert {it.output for it in record.onnx} == set(returned)


def test_a_wrong_weight_behind_the_second_output_alone_is_found(tmp_path) -> None:
    torch.manual_seed(0)
    model, path = Dict().eval(), tmp_path / "f.onnx"
    hx.export_onnx(model, X, path)
    with torch.no_grad():
        model.aux.bias[0] += 1e-2
    record = hx.verify_onnx(path, model, X, batches=(2,))
    assert not record.passed
    assert {it.output for it in record.onnx if it.max_abs_error > it.tolerance} == {"aux"}


def test_names_can_be_given_and_have_to_fit(tmp_path) -> None:
    model, path = Dict().eval(), tmp_path / "f.onnx"
    hx.export_onnx(model, X, path, input_names=["image"], output_names=["mask", "class"])
    graph = onnx.load(path).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "mask", "class"]
    assert hx.verify_onnx(path, model, X, batches=(1, 2)).passed
    for names in (["mask"], ["mask", "mask"], ["image", "class"]):
        with pytest.raises(hx.NetworkError, match="output_names: expected 2 different names, for out, aux; got"):
            hx.export_onnx(model, X, path, input_names=["image"], output_names=names)


def test_an_output_that_is_called_like_an_input_gets_another_name(tmp_path) -> None:
    class Masks(Net):
        def forward(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
            return {"mask": self.head(self.body(image * mask)), "again": mask}

    hx.export_onnx(Masks(), (X, X), tmp_path / "f.onnx")
    assert [value.name for value in onnx.load(tmp_path / "f.onnx").graph.output] == ["mask_output", "again"]
    assert hx.verify_onnx(tmp_path / "f.onnx", Masks(), (X, X)).passed is False  # of other weights


def test_any_height_and_width_on_request(tmp_path) -> None:
    torch.manual_seed(0)
    model, path = Dict().eval(), tmp_path / "f.onnx"
    hx.export_onnx(model, X, path, dynamic_size=True)
    [value] = onnxruntime.InferenceSession(path).get_inputs()
    assert value.shape == ["batch", 3, "height", "width"]
    record = hx.verify_onnx(path, model, X, batches=(1, 2))
    assert record.passed
    assert "larger" in {it.inputs for it in record.onnx}
    images = torch.randn(3, 3, 20, 12)
    found = onnxruntime.InferenceSession(path).run(None, {"input": images.numpy()})
    for here, there in zip(found, model(images).values(), strict=True):
        np.testing.assert_allclose(here, there.detach().numpy(), atol=1e-5)
    flat = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 14 * 14, 3))
    with pytest.raises(hx.NetworkError, match="does not run on larger images, 2×3×32×16"):
        hx.export_onnx(flat, X, tmp_path / "g.onnx", dynamic_size=True)
    with pytest.raises(hx.NetworkError, match=r"dynamic_size is for images \[N, C, H, W\], got shapes 2×3;"):
        hx.export_onnx(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "g.onnx", dynamic_size=True)


class Reduces(nn.Module):
    """Operations that opset 18 writes in another way than 17."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = (x * 2).chunk(2, 1)
        parts = (first.norm(dim=1), second.amin(1), x.logsumexp(1), x.prod(1), x.amax(1))
        big = nn.functional.interpolate(nn.functional.pad(torch.stack(parts, 1), (1, 2)), scale_factor=2)
        return big.mean((2, 3))


@pytest.mark.parametrize("opset", [17, 21, 25])
def test_every_opset_from_17_on_that_torch_and_onnxruntime_know(tmp_path, opset: int) -> None:
    images, path = torch.randn(2, 4, 8, 8), tmp_path / "f.onnx"
    hx.export_onnx(Reduces(), images, path, opset=opset)
    assert {it.version for it in onnx.load(path).opset_import if it.domain == ""} == {opset}
    assert hx.verify_onnx(path, Reduces(), images, batches=(1, 3)).passed


def test_what_an_opset_does_not_have_is_said(tmp_path) -> None:
    class Scatters(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x).scatter_reduce(1, x.argsort(1), x, "amax")

    with pytest.raises(hx.NetworkError, match="opset 17 has no ScatterElements as this network needs it; ask for 18"):
        hx.export_onnx(Scatters(), torch.randn(2, 3), tmp_path / "f.onnx", opset=17)


def test_the_line_of_the_network_that_cannot_be_exported_is_named(tmp_path) -> None:
    class Branch(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.pooled(x)
            if y.sum() > 0:  # the line
                y = y + 1
            return y

    class Unknown(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svdvals(self.pooled(x))  # the other line

    for network, line in ((Branch(), "if y.sum.. > 0: # the line"), (Unknown(), r"return .*pooled\(x\)\) .*")):
        with pytest.raises(hx.NetworkError, match=rf"cannot export \w+ at .*test_inputs_outputs\.py:\d+, `{line}`"):
            hx.export_onnx(network, X, tmp_path / "f.onnx")
