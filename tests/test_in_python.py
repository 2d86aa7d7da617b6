"""``hx.run``: the whole chain with somebody's own network, batches, loss and metric."""

import json
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import hoyer_export as hx
from hoyer_export.errors import DataError, HoyerExportError
from hoyer_export.sparsify import training

pytestmark = pytest.mark.usefixtures("exported_once")

SHORT = {"epochs": 4, "lr": 0.02, "optimizer": "adamw"}
RECIPE = {
    "dense": SHORT,
    "train": SHORT | {"cut_at": 0.5, "lr": 0.01},
    "sparse": {"norms": "function"},
    "cut": {"macs": 0.5, "align": 4},
    "bench": {"min_seconds": 0},
    "threads": 1,
}


def discs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy pictures of discs [N, 1, 12, 12] and their masks."""
    generator = torch.Generator().manual_seed(seed)
    at, radius = (
        3 + 6 * torch.rand(count, 2, 1, 1, generator=generator),
        2 + 2 * torch.rand(count, 1, 1, generator=generator),
    )
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    masks = ((rows - at[:, 0]) ** 2 + (columns - at[:, 1]) ** 2 < radius**2).float().unsqueeze(1)
    return masks + 0.5 * torch.randn(masks.shape, generator=generator), masks


def loader(count: int, seed: int, *, shuffle: bool = False) -> DataLoader:
    return DataLoader(TensorDataset(*discs(count, seed)), 32, shuffle=shuffle)


class Segmenter(nn.Module):
    """Down and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
        )
        self.up, self.head = nn.ConvTranspose2d(32, 16, 2, stride=2), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(F.relu(self.down(x)))))


class IoU:
    """Intersection over union of the whole set, which is no mean over batches."""

    def reset(self) -> None:
        self.both = self.any = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        found, wanted = outputs > 0, targets > 0.5
        self.both += int((found & wanted).sum())
        self.any += int((found | wanted).sum())

    def compute(self) -> float:
        return self.both / self.any


def iou_of(model: nn.Module, batches: DataLoader) -> float:
    measure = IoU()
    measure.reset()
    with torch.no_grad():
        for images, masks in batches:
            measure.update(model.eval()(images), masks)
    return measure.compute()


def run_discs(out: Path, **changes) -> hx.run:
    torch.manual_seed(0)
    batches = {"train": loader(128, 0, shuffle=True), "validation": loader(32, 1), "test": loader(33, 2)}
    judged = {"loss": F.binary_cross_entropy_with_logits, "metric": IoU()}
    return hx.run(**{"network": Segmenter(), "recipe": RECIPE, "out": out} | batches | judged | changes)


def test_a_segmentation_network_is_trained_cut_and_judged_by_what_it_is_for(tmp_path: Path) -> None:
    report = run_discs(tmp_path / "out")
    assert report.passed
    assert report.budget.met
    assert report.metric == "IoU"
    assert report.inputs.images.model_dump() == {"train": 128, "validation": 32, "test": 33}
    assert report.dense.accuracy > 0.6
    assert report.slim.accuracy > 0.6
    slim = hx.load_slim(tmp_path / "out" / "slim.safetensors", into=Segmenter())
    assert report.slim.accuracy == pytest.approx(iou_of(slim.model, loader(33, 2)), rel=1e-6)
    assert report.slim.verified.onnx_accuracy == pytest.approx(report.slim.accuracy, rel=1e-3)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {(line["metric"], line["train_accuracy"]) for line in lines} == {("IoU", None)}
    assert lines[-1]["validation_accuracy"] == pytest.approx(iou_of(slim.model, loader(32, 1)), rel=1e-4)
    for name in ("card.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "IoU" in text
        assert "accuracy" not in text.lower()
        assert "Cross-entropy" not in text


class TwoHeads(Segmenter):
    """A mask, and whether its disc is large, by name or in a row."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.size, self.named = nn.Linear(32, 1), named

    def forward(self, x: Tensor) -> dict[str, Tensor] | tuple[Tensor, Tensor]:
        features = F.relu(self.down(x))
        mask, size = self.head(F.relu(self.up(features))), self.size(features.mean((2, 3)))
        return {"mask": mask, "size": size} if self.named else (mask, size)


@pytest.mark.parametrize(("named", "key", "names"), [(True, "mask", ["mask", "size"]), (False, 0, None)])
def test_a_network_of_two_outputs_is_trained_by_both_and_judged_by_one(
    named: bool, key: str | int, names: list[str] | None, tmp_path: Path
) -> None:
    class MaskIoU(IoU):
        def update(self, outputs, targets: Tensor) -> None:
            super().update(outputs[key], targets)

    def loss(outputs, masks: Tensor) -> Tensor:
        mask, size = outputs.values() if named else outputs
        large = (masks.mean((1, 2, 3)) > 0.2).float().unsqueeze(1)
        both = F.binary_cross_entropy_with_logits
        return both(mask, masks) + 0.1 * both(size, large)

    out = tmp_path / "out"
    torch.manual_seed(0)  # of the network's first weights
    report = run_discs(out, network=TwoHeads(named=named), loss=loss, metric=hx.Metric(MaskIoU(), "IoU"))
    assert (report.passed, report.budget.met, report.metric) == (True, True, "IoU")
    slim = hx.load_slim(out / "slim.safetensors", into=TwoHeads(named=named)).model.eval()
    graph = onnx.load(out / "slim.onnx").graph
    assert names in (None, [output.name for output in graph.output])
    session = ort.InferenceSession(out / "slim.onnx", providers=["CPUExecutionProvider"])
    masks_of = {
        "torch": lambda x: slim(x)[key],
        "onnx": lambda x: torch.tensor(session.run(None, {"input": x.numpy()})[0]),
    }
    for mask_of in masks_of.values():
        measure = IoU()
        measure.reset()
        with torch.no_grad():
            for images, masks in loader(33, 2):
                measure.update(mask_of(images), masks)
        assert report.slim.accuracy == pytest.approx(measure.compute(), rel=1e-3)
    assert report.slim.accuracy > 0.5


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_discs(tmp_path / "whole")
    real = training.save_checkpoint

    def stop(path: Path, *arguments, history, **options) -> None:
        real(path, *arguments, history=history, **options)
        if path.stem == "sparse" and len(history) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            run_discs(tmp_path / "broken")
    torch.manual_seed(7)  # nothing of it hangs on torch's generator as somebody left it
    run_discs(tmp_path / "broken", resume=True)
    for name in ("slim.safetensors", "slim.onnx", "widths.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_regression_network_is_judged_by_an_error_of_which_less_is_better(tmp_path: Path) -> None:
    def points(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        images, masks = discs(count, seed)
        return list(zip(images.split(16), masks.sum((1, 2, 3)).div(16).split(16), strict=True))

    class Area(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.body(x)).mean((2, 3))).squeeze(1)

    error = hx.Metric(F.l1_loss, "mean error", higher_is_better=False)
    batches = {"train": points(96, 0), "validation": points(32, 1), "test": points(32, 2)}
    report = hx.run(
        Area(),
        **batches,
        loss=F.mse_loss,
        metric=error,
        out=tmp_path / "out",
        recipe=RECIPE | {"data": {"name": "areas"}},
    )
    assert report.passed
    assert (report.metric, report.inputs.higher_is_better, report.inputs.data) == ("mean error", False, "areas")
    slim = hx.load_slim(tmp_path / "out" / "slim.safetensors", into=Area()).model.eval()
    found = sum(len(y) * float(F.l1_loss(slim(x), y).detach()) for x, y in batches["test"]) / 32
    assert report.slim.accuracy == pytest.approx(found, rel=1e-5)
    assert "lower is better" in (tmp_path / "out" / "card.md").read_text()


def test_a_classifier_needs_batches_alone_and_its_classes_may_weigh_more_or_less(tmp_path: Path) -> None:
    """With all weight on one class a network that cannot tell them apart says that one."""
    images, classes = torch.zeros(64, 1, 8, 8), torch.arange(64) % 2
    batches = [(images[:32], classes[:32]), (images[32:], classes[32:])]
    shares = {}
    for weights in ((1.0, 9.0), None):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        recipe = RECIPE | {
            "data": {} if weights is None else {"class_weights": weights},
            "dense": SHORT | {"epochs": 30},
        }
        out = tmp_path / str(weights)
        report = hx.run(network, train=batches, validation=batches, test=batches, recipe=recipe, out=out)
        assert (report.metric, report.slim.accuracy) == (None, 50)
        dense = nn.Sequential(*network)
        hx.load_weights(dense, out / "dense.safetensors")
        shares[weights] = float(dense(images[:1]).softmax(1)[0, 1].detach())
    assert shares[None] == pytest.approx(0.5, abs=0.05)
    assert shares[1.0, 9.0] == pytest.approx(0.9, abs=0.05)  # the least of the weighed cross-entropy


class Scaled(Segmenter):
    """Takes more than pictures; the rest has a default."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return super().forward(x if scale is None else x * scale)


def test_a_list_that_a_loader_makes_is_the_arguments_in_every_stage(tmp_path: Path) -> None:
    def batches(count: int, seed: int) -> list:
        images, masks = discs(count, seed)
        return [([images[at : at + 16], torch.ones(16, 1, 1, 1)], masks[at : at + 16]) for at in range(0, count, 16)]

    splits = {"train": batches(64, 0), "validation": batches(32, 1), "test": batches(32, 2)}
    recipe = RECIPE | {"dense": SHORT | {"epochs": 1}, "train": SHORT | {"epochs": 2, "cut_at": 0.5}}
    report = run_discs(tmp_path / "out", network=Scaled(), recipe=recipe, **splits)
    assert report.passed
    assert report.slim.verified.onnx_accuracy == pytest.approx(report.slim.accuracy, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validation": None}, "validation is missing"),
        ({"train": iter([])}, "train: expected batches .* got a list_iterator"),
        ({"train": [discs(4, 0)[0]]}, "expected batches .* got a Tensor"),
        ({"validation": []}, "validation: expected at least one batch"),
        ({"network": "cifar_resnet20"}, "expected a network, a torch.nn.Module, got a str"),
        ({"loss": None}, r"should return logits \[N, classes\]"),
        ({"metric": None}, "pass `loss` and `metric` for what it returns"),
        ({"metric": "IoU"}, "metric: expected a function"),
        ({"loss": lambda outputs, targets: (outputs - targets) ** 2}, r"loss: expected the batch's mean, .* \[32, 1"),
        ({"loss": lambda outputs, targets: outputs["mask"]}, "loss: fails on the first validation batch .TypeError"),
        ({"metric": lambda outputs, targets: float("nan")}, "metric lambda: expected a finite number, got nan"),
        ({"metric": lambda outputs, targets: outputs.mean(0)}, "metric lambda: expected one number, got a tensor"),
        ({"metric": lambda outputs, targets: targets["mask"]}, "metric lambda: fails on the first validation batch"),
        ({"recipe": RECIPE | {"distill": {"weight": 0.5}}}, "distill.weight"),
        ({"recipe": {"cut": {}}}, "needs exactly one of macs"),
        ({"recipe": None}, "recipe: expected the path of a TOML file, or its tables in a dict, got a NoneType"),
        ({"recipe": "absent.toml"}, "cannot read the recipe absent.toml"),
        ({"train": None, "validation": None, "test": None}, r"the table \[data\] is needed"),
    ],
)
def test_what_cannot_be_run_is_one_line(changes: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(HoyerExportError, match=said) as error:
        run_discs(tmp_path / "out", **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    network = Segmenter()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    run_discs(tmp_path / "out", network=network)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_batches_without_a_length_are_counted_once() -> None:
    from hoyer_export.data.own_batches import OwnBatches

    class Stream:
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield from [(torch.zeros(3, 2), None), (torch.zeros(2, 2), None)]

    split = OwnBatches(stream := Stream(), "train")
    assert (len(split), split.steps(7), split.steps(7)) == (5, 2, 2)
    assert stream.passes == 1
    dropping = DataLoader(TensorDataset(torch.zeros(10, 1), torch.zeros(10)), 4, drop_last=True)
    assert (len(OwnBatches(dropping, "train")), OwnBatches(dropping, "train").steps(1)) == (8, 2)
    with pytest.raises(DataError, match="got 3 parts"):
        next(iter(OwnBatches([(1, 2, 3)], "train").batches(1)))
