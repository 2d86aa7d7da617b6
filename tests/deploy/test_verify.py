import math

import networks
import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision.models import get_model

from hoyer_export.call import Call
from hoyer_export.deploy import checks, file_weights, rounding
from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.rounding import MOST, Judged
from hoyer_export.deploy.verify import verify_onnx
from hoyer_export.deploy.weight_sizes import contraction_weights
from hoyer_export.errors import DataError, NetworkError, VerificationFailed

torch.manual_seed(0)
IMAGES = torch.randn(5, 2, 8, 8)


class Net(nn.Module):
    """A convolution with a folded norm, a pre-activation norm that stays, a transposed convolution, a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.pre = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 3, 2)
        self.linear = nn.Linear(3, 5)
        self.unused = nn.Linear(9, 9)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        return self.linear(self.up(self.pre(x).relu()).mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)  # whatever ran before
    model = Net().train()
    model(IMAGES)  # running statistics that are not the identity
    return model


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "slim.onnx"
    export_onnx(net, IMAGES, path)
    return path


def changed(file, tmp_path, change):
    """Return a copy of the file with a change made to its graph."""
    model = onnx.load(file)
    change(model.graph)
    onnx.save(model, tmp_path / "changed.onnx")
    return tmp_path / "changed.onnx"


def change_weight(name, change):
    def apply(graph):
        [tensor] = [t for t in graph.initializer if t.name == name]
        array = onnx.numpy_helper.to_array(tensor).copy()
        tensor.CopyFrom(onnx.numpy_helper.from_array(change(array), name))

    return apply


def failed(record):
    return [check.name for check in record.checks if not check.passed]


def test_a_right_file_passes_every_step(net, file):
    labels = net.eval()(IMAGES).argmax(1)
    record = verify_onnx(file, net.train(), IMAGES, labelled=[(IMAGES[:3], labels[:3]), (IMAGES[3:], labels[3:] + 1)])
    assert record.passed
    assert [check.name for check in record.checks] == [
        "interface",
        "outputs, optimisation disabled",
        "outputs, optimisation all",
        "rows of a batch",
        "weight sizes",
        "subnormal weights",
        "top-1",
        "weights",
    ]
    assert {(c.batch, c.inputs, c.optimization) for c in record.onnx} == {
        (batch, kind, optimization)
        for batch in (1, 2, 3, 8)
        for kind in ("real", "zeros", "ones", "noise")
        for optimization in ("disabled", "all")
    }
    assert all(c.max_abs_error <= c.tolerance and c.tolerance >= 1e-5 for c in record.onnx)
    assert record.onnx_accuracy == record.torch_accuracy == 60
    assert net.training


def test_without_labelled_images_there_is_no_accuracy(net, file):
    record = verify_onnx(file, net, IMAGES, batches=(2,))
    assert (record.passed, record.onnx_accuracy, record.torch_accuracy) == (True, None, None)
    assert "top-1" not in [check.name for check in record.checks]


def test_a_wrong_weight_fails_the_outputs(net, file, tmp_path):
    wrong = changed(file, tmp_path, change_weight("linear.weight", lambda w: w + 1e-3))
    record = verify_onnx(wrong, net, IMAGES)
    assert not record.passed
    assert failed(record) == ["outputs, optimisation disabled", "outputs, optimisation all"]
    value = next(check.value for check in record.checks if not check.passed)
    assert value > 1e-5


def test_an_error_of_twice_the_tolerance_fails_and_of_half_of_it_passes(net, file, tmp_path):
    largest = max(1, net.eval()(IMAGES).abs().max().item())
    for share, passes in ((0.5, True), (2, False)):
        shift = 1e-5 * largest * share
        moved = changed(file, tmp_path, change_weight("linear.bias", lambda b, shift=shift: b + np.float32(shift)))
        assert verify_onnx(moved, net, IMAGES, batches=(5,)).passed == passes


def test_an_output_that_is_not_a_number_fails(net, file, tmp_path):
    wrong = changed(file, tmp_path, change_weight("linear.bias", lambda b: b * np.float32(np.nan)))
    record = verify_onnx(wrong, net, IMAGES, batches=(1,))
    assert failed(record)[:2] == ["outputs, optimisation disabled", "outputs, optimisation all"]
    assert math.isinf(record.onnx[0].max_abs_error)


def test_a_subnormal_weight_fails_its_step_alone(net, file, tmp_path):
    def change(array):
        array[0] = 1e-40
        return array

    pruned = Net()
    pruned.load_state_dict(net.state_dict())
    with torch.no_grad():
        pruned.linear.weight[0] = 0
    export_onnx(pruned, IMAGES, tmp_path / "pruned.onnx")
    record = verify_onnx(
        changed(tmp_path / "pruned.onnx", tmp_path, change_weight("linear.weight", change)), pruned, IMAGES
    )
    assert failed(record) == ["subnormal weights"]
    assert next(check.value for check in record.checks if not check.passed) == 3


def test_a_file_of_another_width_fails_the_weight_sizes_alone(net, file):
    wider = Net()  # one more channel in conv, that nothing reads: the outputs are the same
    wider.conv, wider.norm, wider.pre = nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.BatchNorm2d(5)
    wider.up = nn.ConvTranspose2d(5, 3, 2)
    narrow = net.state_dict()
    padded = {
        name: torch.cat([narrow[name], torch.zeros_like(narrow[name][:1])])
        if name.split(".")[0] in ("conv", "norm", "pre", "up") and narrow[name].shape[:1] == (4,)
        else narrow[name]
        for name in narrow
    }
    wider.load_state_dict(padded)
    record = verify_onnx(file, wider, IMAGES)
    assert failed(record) == ["weight sizes"]
    assert next(check.value for check in record.checks if not check.passed) == 4  # conv and up, on both sides


def test_a_network_that_mixes_the_images_of_a_batch_fails_the_rows(tmp_path):
    class Mixing(nn.Module):
        def forward(self, x):
            return (x - x.mean(0)).mean((2, 3))

    export_onnx(Mixing(), IMAGES, tmp_path / "f.onnx")
    assert failed(verify_onnx(tmp_path / "f.onnx", Mixing(), IMAGES)) == ["rows of a batch"]


def test_every_class_has_its_own_count_of_images_and_of_right_answers(net, file):
    with torch.no_grad():
        answers = net.eval()(IMAGES).argmax(1)
    labels = answers.clone()
    labels[0] = (answers[0] + 1) % 5
    record = verify_onnx(file, net, IMAGES, labelled=[(IMAGES[:3], labels[:3]), (IMAGES[3:], labels[3:])])
    seen, right = labels.bincount(), labels[labels == answers].bincount(minlength=len(labels.bincount()))
    assert (record.class_images, record.class_correct) == (tuple(seen.tolist()), tuple(right.tolist()))
    assert record.torch_accuracy == 100 * sum(record.class_correct) / sum(record.class_images)


def test_top_1_counts_clear_disagreements_only(net, file, tmp_path):
    labels = net.eval()(IMAGES).argmax(1)
    bias = 100 * np.eye(5, dtype=np.float32)[(labels[0] + 1) % 5]  # every image gets a class that is not the first's
    biased = changed(file, tmp_path, change_weight("linear.bias", lambda b: b + bias))
    record = verify_onnx(biased, net, IMAGES, labelled=[(IMAGES, labels)])
    assert "top-1" in failed(record)
    assert record.torch_accuracy == 100 > record.onnx_accuracy
    # No two logits are further apart: nothing is clear.
    assert failed(verify_onnx(biased, net, IMAGES, labelled=[(IMAGES, labels)], tolerance=1000.0)) == ["weights"]


def fix_batch(graph):
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "batch":
                dim.dim_value = 2


INTERFACES = [
    ("fixed batch", fix_batch, r"takes input FLOAT \[2, 2, 8, 8\], expected input FLOAT \[batch, 2, 8, 8\]"),
    ("output name", lambda g: rename(g, "logits", "scores"), r"returns scores FLOAT \[batch, 5\], expected logits"),
    ("input name", lambda g: rename(g, "input", "image"), "takes image FLOAT .* expected input FLOAT"),
]


def rename(graph, old, new):
    for value in (*graph.input, *graph.output):
        value.name = new if value.name == old else value.name
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


@pytest.mark.parametrize(("change", "line"), [c[1:] for c in INTERFACES], ids=[c[0] for c in INTERFACES])
def test_another_interface_is_said_in_one_line(net, file, tmp_path, change, line):
    with pytest.raises(VerificationFailed, match=line) as caught:
        verify_onnx(changed(file, tmp_path, change), net, IMAGES)
    assert len(str(caught.value).splitlines()) == 1


def test_images_of_another_size_or_no_images_are_said_in_one_line(net, file):
    with pytest.raises(
        VerificationFailed, match=r"takes input FLOAT \[batch, 2, 8, 8\], expected .* \[batch, 2, 9, 9\]"
    ):
        verify_onnx(file, net, torch.zeros(2, 2, 9, 9))
    with pytest.raises(DataError, match=r"needs images and batches of at least 1, got 0×2×8×8"):
        verify_onnx(file, net, IMAGES[:0])
    with pytest.raises(DataError, match="top-1 needs labelled images, got none"):
        verify_onnx(file, net, IMAGES, batches=(1,), labelled=[])


def test_a_network_of_two_inputs_is_compared_too(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x, index):
            return self.linear(x) * index[:, None]

    inputs = torch.randn(3, 4), torch.tensor([1, 2, 3])
    model = Two()
    export_onnx(model, inputs, tmp_path / "f.onnx")
    record = verify_onnx(tmp_path / "f.onnx", model, inputs, labelled=[(inputs, torch.tensor([0, 0, 0]))])
    assert record.passed


def test_a_parameter_on_the_left_and_a_module_that_runs_twice_pass(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Parameter(torch.randn(6, 8))
            self.conv = nn.Conv2d(2, 8, 3)
            self.linear = nn.Linear(6, 5)

        def forward(self, x):
            x = self.conv(x) + self.conv(x)
            return self.linear((self.left @ x.flatten(2)).mean(2))

    model = Twice()
    export_onnx(model, IMAGES, tmp_path / "f.onnx")
    assert verify_onnx(tmp_path / "f.onnx", model, IMAGES).passed


def test_a_network_that_writes_into_its_input_passes_and_leaves_the_callers_alone(tmp_path):
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 5, 3)

        def forward(self, x):
            return self.conv(x.sub_(0.5)).mean((2, 3))

    model, images = Writes(), IMAGES.clone()
    export_onnx(model, images, tmp_path / "f.onnx")
    labels = torch.zeros(len(images), dtype=torch.int64)
    assert verify_onnx(tmp_path / "f.onnx", model, images, labelled=[(images, labels)]).passed
    assert torch.equal(images, IMAGES)


def test_labels_that_do_not_fit_the_images_are_refused(net, file):
    with pytest.raises(DataError, match="one class an image"):
        verify_onnx(file, net, IMAGES, labelled=[(IMAGES, torch.zeros(len(IMAGES) + 1))])


def test_weights_are_those_that_meet_the_input_whatever_holds_them():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Parameter(torch.randn(6, 4))
            self.table = nn.Linear(7, 2)
            self.auxiliary = nn.Linear(11, 11)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):  # [N, T, 6]
            x = x @ self.used + self.table(torch.ones(4, 7)).sum()
            return self.attention(x, x, x, need_weights=False)[0]

    found = contraction_weights(Odd().eval().requires_grad_(False), Call((torch.randn(2, 3, 6),)))
    assert found == {(4, 6), (4, 12), (4, 4)}
    assert torch.backends.mha.get_fastpath_enabled()


class Sub(torch.Tensor):
    """A type of one's own."""


def dressed():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    for layer in (network[0], network[4]):
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Sub))
    return network


def blurred():
    def blur(net, x):
        x = net.a(x)
        return net.fc(nn.functional.conv2d(x, net.kernel.expand(4, 1, 3, 3), groups=4).mean((2, 3)))

    kernel = nn.Parameter(torch.rand(1, 1, 3, 3))
    return networks.Net(blur, a=nn.Conv2d(2, 4, 3), kernel=kernel, fc=nn.Linear(4, 5))


def expanded():
    def product(net, x):
        return net.fc(torch.matmul(net.w.expand(2, 3, 3), net.a(x).flatten(2).unflatten(1, (2, 3))).mean((1, 3)))

    return networks.Net(product, a=nn.Conv2d(2, 6, 3), w=nn.Parameter(torch.randn(1, 3, 3)), fc=nn.Linear(3, 5))


def recurrent():
    return networks.Net(
        lambda net, x: net.fc(net.gru(net.a(x).mean(2).mT[:, :2])[0][:, -1]),
        a=nn.Conv2d(2, 4, 3), gru=nn.GRU(4, 3, batch_first=True), fc=nn.Linear(3, 5),
    )  # fmt: skip


@pytest.mark.parametrize("make", [dressed, blurred, expanded, recurrent], ids=lambda make: make.__name__)
def test_weights_in_another_form_than_torchs_are_right_and_a_wrong_one_of_them_is_not(tmp_path, make):
    torch.manual_seed(0)
    model, images = make(), IMAGES.as_subclass(Sub)
    export_onnx(model, images, tmp_path / "f.onnx")
    assert failed(verify_onnx(tmp_path / "f.onnx", model, images)) == []
    largest = max(onnx.load(tmp_path / "f.onnx").graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    wrong = changed(tmp_path / "f.onnx", tmp_path, change_weight(largest.name, lambda w: w * np.float32(1.1)))
    assert failed(verify_onnx(wrong, model, images)) != []


def constant_features():
    """A constant image has the variance 0, by which it is divided."""
    layers = nn.Conv2d(2, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


@pytest.mark.parametrize("most", [MOST, 2e-5])
def test_a_norm_of_constant_images_condemns_no_right_file_and_passes_no_wrong_one(tmp_path, monkeypatch, most):
    monkeypatch.setattr(rounding, "MOST", most)  # beyond it torch leaves the output open
    torch.manual_seed(0)
    model, images = constant_features(), torch.randn(4, 2, 48, 48)
    sha256 = export_onnx(model, images, tmp_path / "f.onnx").sha256
    record = verify_onnx(tmp_path / "f.onnx", model, images, sha256=sha256)
    assert record.passed
    assert all(c.max_abs_error <= c.tolerance <= most * c.scale for c in record.onnx)
    assert all(check.value <= check.tolerance for check in record.checks)
    left_open = {c.name: c.value for c in record.checks}.get("inputs left open", 0)
    assert (left_open > 0, len(record.onnx)) == (most < MOST, 32 - left_open)
    if not left_open:
        assert any(c.max_abs_error > 1e-5 * c.scale for c in record.onnx)  # more than the least was needed
    assert {c.inputs for c in record.onnx} >= {"real", "noise"}
    weights = [t.name for t in onnx.load(tmp_path / "f.onnx").graph.initializer if len(t.dims) > 1]
    assert len(weights) == 3
    for name in weights:
        wrong = changed(tmp_path / "f.onnx", tmp_path, largest_too_large(name))
        assert failed(verify_onnx(wrong, model, images, sha256=sha256)) != [], name


def test_where_torch_leaves_every_input_open_nothing_is_verified():
    judged = [Judged(error=1.0, tolerance=1e-3, scale=1.0, is_open=True)]
    check = checks.closest("outputs", [judged])
    assert (check.value, check.passed) == (math.inf, False)


def largest_too_large(name):
    def change(array):
        array.flat[np.abs(array).argmax()] *= 1.1
        return array

    return change_weight(name, change)


# Of these the outputs show every wrong weight but that of a query's bias, which softmax forgets.
SWEPT = ["chain", "transposed", "Attention"]


@pytest.mark.parametrize(
    "wiring",
    [pytest.param(w, marks=() if w.__name__ in SWEPT else pytest.mark.slow) for w in networks.WIRINGS],
    ids=lambda wiring: wiring.__name__,
)
def test_the_largest_weight_of_every_layer_times_1_1_is_caught(tmp_path, wiring):
    torch.manual_seed(0)
    model, images = networks.perturbed(wiring()), torch.randn(4, 3, 16, 16)
    try:
        written = export_onnx(model, images, tmp_path / "f.onnx")
    except NetworkError as error:
        pytest.skip(str(error))
    right = verify_onnx(tmp_path / "f.onnx", model, images, sha256=written.sha256)
    assert failed(right) == []
    floats = [t for t in onnx.load(tmp_path / "f.onnx").graph.initializer if t.data_type == 1 and np.prod(t.dims) > 1]
    weights = [t for t in floats if onnx.numpy_helper.to_array(t).any()]  # 1.1 times zeros is what it was
    assert len(weights) >= 2
    for weight in weights:
        wrong = changed(tmp_path / "f.onnx", tmp_path, largest_too_large(weight.name))
        record = verify_onnx(wrong, model, images, batches=(2,), sha256=written.sha256)
        assert failed(record) != [], weight.name
        # Where an output moves ten times its tolerance, that is what shows it.
        moved = max(c.max_abs_error / c.tolerance for c in record.onnx)
        assert ("weights" not in failed(record)) or moved <= 1, weight.name
        assert any(name.startswith("outputs") for name in failed(record)) or moved < 10, weight.name


class Silent(nn.Module):
    """A layer that no output shows: its ReLU never fires."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.dead, self.fc = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 5)
        nn.init.constant_(self.dead.bias, -1e3)

    def forward(self, x):
        x = self.norm(self.a(x)).mean((2, 3))
        return self.fc(x + self.dead(x).relu())


def test_a_wrong_weight_that_no_output_shows_is_found_in_the_file(tmp_path, monkeypatch):
    model = Silent()
    written = export_onnx(model, IMAGES, tmp_path / "f.onnx")
    assert verify_onnx(tmp_path / "f.onnx", model, IMAGES).passed
    wrong = changed(tmp_path / "f.onnx", tmp_path, largest_too_large("dead.weight"))
    assert failed(verify_onnx(wrong, model, IMAGES, sha256=written.sha256)) == ["weights"]
    # rounding is no wrong weight: another processor may fold a norm in another order
    near = changed(tmp_path / "f.onnx", tmp_path, change_weight("dead.weight", lambda w: w * np.float32(1 + 1e-6)))
    assert verify_onnx(near, model, IMAGES).passed


def test_the_bytes_that_were_written_need_no_second_export(net, file, tmp_path, monkeypatch):
    monkeypatch.setattr(file_weights, "export_onnx", None)  # not to be called
    sha256 = export_onnx(net, IMAGES, tmp_path / "same.onnx").sha256
    assert verify_onnx(file, net, IMAGES, sha256=sha256).passed
    with pytest.raises(TypeError):
        verify_onnx(file, net, IMAGES, sha256="0" * 64)


def test_logits_that_are_not_numbers_agree_with_nothing(net, file, tmp_path):
    labels = torch.zeros(5, dtype=torch.int64)
    wrong = changed(file, tmp_path, change_weight("linear.bias", lambda b: b * np.float32(np.nan)))
    record = verify_onnx(wrong, net, IMAGES, batches=(1,), labelled=[(IMAGES, labels)])
    assert next(check.value for check in record.checks if check.name == "top-1") == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "densenet121", "googlenet", "vit_b_16", "swin_v2_t", "convnext_tiny"])
def test_torchvision_networks_pass(tmp_path, name):
    model = get_model(name, **({"init_weights": True, "aux_logits": True} if name == "googlenet" else {}))
    images = torch.randn(4, 3, 224 if name == "vit_b_16" else 64, 224 if name == "vit_b_16" else 64)
    export_onnx(model, images, tmp_path / "f.onnx")
    assert verify_onnx(tmp_path / "f.onnx", model, images, batches=(1, 2)).passed
