"""Prove that a file with its preprocessing inside does what ``Preprocessing`` does outside, and the network after it:

    interface   ``images`` uint8 [batch, height, width, channels] (else VerificationFailed: nothing further could run)
    bytes       those that the export wrote
    pictures    what it makes of pictures against Pillow, in levels of 255: at most 2 where it resizes (bicubic, which
                is clipped in between, 32) and half a one in the mean, else 0.01
    outputs     max |file − network of what the file made| ≤ tolerance, optimisations off, then all on
    top-1       the file's first class is that of pictures prepared outside, wherever that is clear

Pictures are real ones, brought to several sizes, in batches of 1, 2, 3 and 8.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from PIL import Image
from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.data.resizing import resized
from hoyer_export.deploy.checks import RELATIVE_TOLERANCE, VerifyRecord, check, closest
from hoyer_export.deploy.export import inference_copy
from hoyer_export.deploy.interface import signature, sizes_of
from hoyer_export.deploy.labelled import Agreement, Labelled, agreement_on
from hoyer_export.deploy.onnx_file import read_onnx
from hoyer_export.deploy.pictures import IMAGES, PREPARED, resizes
from hoyer_export.deploy.rounding import Rounding
from hoyer_export.deploy.runtime import DEFAULT, as_runtime
from hoyer_export.deploy.runtime.protocol import Runtime
from hoyer_export.deploy.verify import runtime_outputs
from hoyer_export.environment import usable_threads
from hoyer_export.errors import VerificationFailed
from hoyer_export.preprocessing import Preprocessing

MOST_LEVELS = {"bilinear": 2.5, "bicubic": 32.0}
"""Levels are whole numbers: 2 and its rounding. See ``pictures.py`` for what was measured."""
MOST_IN_MEAN = 0.5
CLEAR = 0.02
"""Relative: what a level of 255 may move a logit by."""


class Outside(nn.Module):
    """A network of pictures: each is prepared by Pillow, as images of the data are, before it goes in.

    Args:
        network: of what is prepared.
        how: it is prepared.
    """

    def __init__(self, network: nn.Module, how: Preprocessing) -> None:
        super().__init__()
        self.network, self.how = network, how if resizes(how) else how.model_copy(update={"resize": None})

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(self.prepared(images))
        return found

    def prepared(self, images: Tensor) -> Tensor:
        """Return float32 [N, C, H, W] of uint8 [N, height, width, C]."""
        made = []
        for pixels in images.numpy():
            image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            sized = np.asarray(image if self.how.resize is None else resized(image, self.how))
            made.append(sized.reshape(*sized.shape[:2], -1).transpose(2, 0, 1))
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.how.mean, self.how.std))
        return (torch.from_numpy(np.stack(made)).float() / 255 - mean) / std


def as_pictures(images: Tensor, how: Preprocessing) -> Tensor:
    """Return prepared images, float32 [N, C, H, W], as bytes [N, H, W, C]."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (how.mean, how.std))
    return ((images * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def verify_pictures(
    path: Path,
    model: nn.Module,
    images: Tensor,
    how: Preprocessing,
    *,
    sha256: str | None,
    batches: Sequence[int] = (1, 2, 3, 8),
    labelled: Labelled | None = None,
    tolerance: float = RELATIVE_TOLERANCE,
    runtime: Runtime | str = DEFAULT,
) -> VerifyRecord:
    """Compare the ONNX file ``path`` with what ``how`` says and ``model`` (steps above).

    Args:
        path: of the file.
        model: what was exported, without preprocessing.
        images: prepared ones, [N, C, H, W].
        how: they were prepared.
        sha256: of the file that was written; None where nobody knows.
        batches: batch sizes.
        labelled: batches of (pictures uint8 [N, height, width, C], classes).
        tolerance: as for ``verify_onnx``.
        runtime: what runs the file.

    Raises:
        FileError: the file is missing, damaged, or beyond this runtime.
        VerificationFailed: it has another interface, or does not take these pictures.
    """
    file, network = read_onnx(path), inference_copy(model)
    _check_interface(file, path, how)
    runner, torchs = as_runtime(runtime), Rounding(network)
    runs = [
        partial(runtime_outputs, path, runner.load(path, usable_threads(), optimise), [IMAGES])
        for optimise in (False, True)
    ]
    file.graph.output.append(onnx.helper.make_tensor_value_info(PREPARED, onnx.TensorProto.FLOAT, None))
    with TemporaryDirectory() as folder:
        opened = Path(folder) / path.name
        onnx.save(file, opened)
        prepare = partial(runtime_outputs, path, runner.load(opened, usable_threads(), False), [IMAGES])
        levels, judged = [], []
        for call in _pictures(images, how, batches):
            prepared = torch.from_numpy(prepare(call)[-1]).float()
            levels.append(_levels(prepared, Outside(network, how).prepared(call.tensors[0]), how))
            expected = torchs.expected(Call((prepared,), {}))
            judged += [torchs.judge(run(call), expected.outputs, expected, tolerance) for run in runs]
    checks = [check("interface", 0, 0)]
    if sha256 is not None:
        other = hashlib.sha256(path.read_bytes()).hexdigest() != sha256
        checks.append(check("bytes, file against export", float(other), 0))
    largest, mean = (max(of) for of in zip(*levels, strict=True))
    checks.append(check("pictures, levels of 255", largest, _most(how)))
    checks.append(check("pictures, levels of 255 in the mean", mean, MOST_IN_MEAN))
    checks.append(closest("outputs", judged))
    found = Agreement()
    if labelled is not None:
        found = agreement_on(runs[1], Outside(network, how), labelled, CLEAR)
        checks.append(check("top-1", found.clear_disagreements, 0))
    of_test = found.onnx_accuracy, found.torch_accuracy, found.class_images, found.class_correct
    return VerifyRecord(all(it.passed for it in checks), tuple(checks), (), *of_test)


def _check_interface(file: onnx.ModelProto, path: Path, how: Preprocessing) -> None:
    channels, *size = how.shape
    sides = ["height", "width"] if resizes(how) else size
    wanted = onnx.helper.make_tensor_value_info(IMAGES, onnx.TensorProto.UINT8, ["batch", *sides, channels])
    found = [signature(value) for value in file.graph.input]
    if found != [signature(wanted)] or sizes_of(file.graph.output[0])[:1] != ["batch"]:
        raise VerificationFailed(f"{path} takes {'; '.join(found)}, expected {signature(wanted)}; export it again")


def _pictures(images: Tensor, how: Preprocessing, batches: Sequence[int]) -> Iterator[Call]:
    """Yield batches of pictures, also larger, smaller, high and wide ones where the file resizes."""
    pictures, (_, height, width) = as_pictures(images, how), how.shape
    shapes = [(height, width)]
    if resizes(how):
        shapes += [(2 * height + 3, 3 * width // 2 + 1), (height + 1, 3 * width + 2), (max(height // 2, 1), width)]
    for at, batch in enumerate(batches):
        chosen = pictures[torch.arange(batch) % len(pictures)]
        for high, wide in shapes if at == 0 else shapes[at % len(shapes) :][:1]:
            yield Call((torch.stack([_of_size(picture, high, wide) for picture in chosen]),), {})


def _of_size(picture: Tensor, height: int, width: int) -> Tensor:
    """Return a picture as a camera of that size might have taken it."""
    planes = [
        np.asarray(Image.fromarray(plane.numpy()).resize((width, height), Image.Resampling.BICUBIC))
        for plane in picture.permute(2, 0, 1)
    ]
    return torch.from_numpy(np.stack(planes, 2))


def _most(how: Preprocessing) -> float:
    return MOST_LEVELS[how.interpolation or "bilinear"] if resizes(how) else 0.01


def _levels(found: Tensor, expected: Tensor, how: Preprocessing) -> tuple[float, float]:
    """Return the largest and the mean difference; infinite where something is not a number or has another shape."""
    if found.shape != expected.shape:
        return math.inf, math.inf
    off = ((found - expected).abs() * torch.tensor(how.std).view(-1, 1, 1) * 255).nan_to_num(math.inf)
    return float(off.max()), float(off.mean())
