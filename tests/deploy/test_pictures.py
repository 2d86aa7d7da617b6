"""A file with its preprocessing inside prepares pictures as Pillow does outside, and what does not is seen."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from hoyer_export.deploy.export import export_onnx
from hoyer_export.deploy.pictures import check_pictures, write_pictures
from hoyer_export.deploy.verify_pictures import verify_pictures
from hoyer_export.errors import DataError, VerificationFailed
from hoyer_export.preprocessing import Preprocessing

pytestmark = pytest.mark.usefixtures("exported_once")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 18, 5)).eval()


def prepared(resize: str | None = None, interpolation: str | None = None, short: int | None = None) -> Preprocessing:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    return Preprocessing(
        shape=(3, 16, 20), mean=mean, std=std, resize=resize, short_side=short, interpolation=interpolation
    )


def images(how: Preprocessing) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (how.mean, how.std))
    return (torch.rand(8, 3, 16, 20, generator=torch.Generator().manual_seed(1)) - mean) / std


def written(folder: Path, how: Preprocessing) -> Path:
    export_onnx(network(), torch.zeros(2, 3, 16, 20), folder / "f.onnx", metadata=how.metadata())
    write_pictures(folder / "f.onnx", folder / "p.onnx", how)
    return folder / "p.onnx"


@pytest.mark.parametrize(
    ("how", "size"),
    [
        (prepared(), [16, 20]),
        (prepared("crop", "bilinear", 20), ["height", "width"]),
        (prepared("crop", "bicubic", 27), ["height", "width"]),
        (prepared("squash", "bilinear"), ["height", "width"]),
        (prepared("pad", "bicubic"), ["height", "width"]),
        (prepared("pad", None), ["height", "width"]),
        (prepared("crop", "lanczos", 20), [16, 20]),
        (prepared("squash", "nearest"), [16, 20]),
    ],
)
def test_pictures_are_prepared_as_outside(tmp_path, how, size):
    path = written(tmp_path, how)
    model = onnx.load(path)
    dims = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", *size, 3]
    facts = {prop.key.removeprefix("hoyer_export."): prop.value for prop in model.metadata_props}
    outside = how.resize is not None and size == [16, 20]
    assert ("resize" in facts) == outside
    assert "mean" not in facts
    found = verify_pictures(path, network(), images(how), how, sha256=None)
    assert [check.name for check in found.checks if not check.passed] == []


def test_a_wrong_mean_crop_or_weight_is_seen(tmp_path):
    how = prepared("crop", "bilinear", 20)
    path = written(tmp_path, how)

    def failed(told: Preprocessing, model: nn.Module) -> list[str]:
        found = verify_pictures(path, model, images(how), told, sha256="0" * 64)
        return [check.name for check in found.checks if not check.passed]

    assert failed(how, network()) == ["bytes, file against export"]
    pictures = ["bytes, file against export", "pictures, levels of 255", "pictures, levels of 255 in the mean"]
    assert failed(how.model_copy(update={"mean": (0.42, 0.5, 0.6)}), network()) == pictures
    assert failed(how.model_copy(update={"short_side": 21}), network()) == pictures
    wrong = network()
    with torch.no_grad():
        wrong[3].bias[0] += 1e-3
    assert failed(how, wrong) == ["bytes, file against export", "outputs"]
    with pytest.raises(VerificationFailed, match="takes images UINT8"):
        verify_pictures(path, network(), images(how), prepared("crop", "lanczos", 20), sha256=None)


def test_batches_of_ones_own_are_refused():
    with pytest.raises(DataError, match=r"export\.preprocess: .* leave it out"):
        check_pictures(Preprocessing(shape=(3, 8, 8)), "given")
