"""The files that a run ships: one entry each; export, verification, benchmark and report take them all.

docs/adding-an-artifact.md adds one.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from platform import python_version
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from hoyer_export.call import Call
from hoyer_export.deploy.checks import RELATIVE_TOLERANCE, VerifyRecord
from hoyer_export.deploy.export import as_float32
from hoyer_export.deploy.half import write_half
from hoyer_export.deploy.input_sizes import Shapes
from hoyer_export.deploy.pictures import IMAGES, resizes, write_pictures
from hoyer_export.deploy.program import write_program
from hoyer_export.deploy.quantise import write_int8
from hoyer_export.deploy.runtime.protocol import Runtime
from hoyer_export.deploy.verify import verify_onnx
from hoyer_export.deploy.verify_coarse import verify_coarse
from hoyer_export.deploy.verify_pictures import as_pictures, verify_pictures
from hoyer_export.deploy.verify_program import verify_program
from hoyer_export.environment import versions
from hoyer_export.metric import ACCURACY
from hoyer_export.recipe.tables import Recipe
from hoyer_export.report.further import INT8
from hoyer_export.run.elements import layer_weights
from hoyer_export.run.exporting import export_as_asked
from hoyer_export.run.job import Job
from hoyer_export.run.train import EVALUATION_BATCH
from hoyer_export.run_folder import RunFolder

REJECTED = ".rejected"
CALIBRATION = 512
"""Training images that the ranges of int8 activations come from."""
HALF_TOLERANCE = 1e-2
"""A number of float16 has 11 bits, and is off by up to 5e-4 of itself; they add up over the layers."""


def write_float32(artifact: "Artifact", job: Job, path: Path) -> None:
    """Export the artifact's network as it is, with what a client has to know in the metadata."""
    export_as_asked(artifact.network(job), job, path, facts_of(artifact, job))


def facts_of(artifact: "Artifact", job: Job) -> dict[str, str]:
    """Return what a file says of itself: whose it is, how images are prepared, and which versions made it."""
    made = {"python": python_version()} | versions()
    facts = {"network": job.recipe.network.name, "file": artifact.name, "versions": json.dumps(made)}
    if artifact.name != "dense" and job.recipe.cut.of_elements:
        layers = layer_weights(artifact.network(job))
        facts["weights"] = str(sum(it.weights for it in layers))
        facts["nonzero_weights"] = str(sum(it.nonzero for it in layers))
    return facts | ({"data": job.data.name, **job.data.preprocessing.metadata()} if job.has_data else {})


def verify_float32(artifact: "Artifact", job: Job, path: Path, sha256: str | None, runtime: Runtime) -> VerifyRecord:
    """Compare what the file computes with what the artifact's network does, within its tolerance."""
    batches, network = job.recipe.verify.batches, artifact.network(job)
    return verify_onnx(
        path,
        network,
        some_images(job, network, max(batches)),
        batches=batches,
        labelled=job.data.test.batches(EVALUATION_BATCH) if job.has_labels else None,
        metric=job.metric,
        sha256=sha256,
        tolerance=artifact.tolerance,
        runtime=runtime,
    )


def some_images(job: Job, network: nn.Module, count: int) -> Call:
    """Return a batch of ``count`` validation images, if there are as many, or noise."""
    images = next(iter(job.data.validation.batches(count)))[0] if job.has_data else job.example
    return Call.of(network, images, collated=True)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file that is shipped.

    Args:
        name: its place in reports.
        file: its name in the folder; ``NAME.onnx`` where empty. What is no ONNX file is not measured.
        counted: name of the artifact whose graph is counted in the place of its own, where it multiplies as much.
        kind: what the file holds, e.g. ``onnx``.
        network: returns what the file has to compute.
        asked: whether a recipe wants it.
        write: writes it, the same bytes each time.
        verify: compares the file at a path with the network; is given the sha256 of what was written,
            where known, and what runs it.
        sizes: input → sizes that latency is measured with, where the file leaves more than the batch open.
        tolerance: largest |runtime − network| in units of max(1, max |network|), as for ``verify_onnx``.
    """

    name: str
    file: str = ""
    counted: str = ""
    kind: str = "onnx"
    network: Callable[[Job], nn.Module]
    asked: Callable[[Recipe], bool] = lambda recipe: True
    write: Callable[["Artifact", Job, Path], None] = write_float32
    verify: Callable[["Artifact", Job, Path, str | None, Runtime], VerifyRecord] = verify_float32
    sizes: Callable[[Job], Shapes] = lambda job: {}
    tolerance: float = RELATIVE_TOLERANCE

    def path(self, folder: RunFolder) -> Path:
        """Return where it is written, and lies unless its verification failed."""
        return folder.path / (self.file or f"{self.name}.onnx")

    def rejected(self, folder: RunFolder) -> Path:
        """Return where it lies once its verification has failed: under no name that anybody ships."""
        path = self.path(folder)
        return path.with_name(path.name + REJECTED)

    def found(self, folder: RunFolder) -> Path:
        """Return where it lies now."""
        path, rejected = self.path(folder), self.rejected(folder)
        return rejected if rejected.exists() and not path.exists() else path


def _float32(artifact: Artifact, job: Job, folder: str) -> Path:
    """Return the file that the artifact is made of."""
    path = artifact.path(RunFolder(Path(folder)))
    write_float32(artifact, job, path)
    return path


def _write_half(artifact: Artifact, job: Job, path: Path) -> None:
    with TemporaryDirectory() as folder:
        write_half(_float32(artifact, job, folder), path)


def _write_int8(artifact: Artifact, job: Job, path: Path) -> None:
    with TemporaryDirectory() as folder:
        write_int8(_float32(artifact, job, folder), path, _calibration(artifact.network(job), job))


def _calibration(network: nn.Module, job: Job) -> Iterator[Call]:
    """Yield the training images that say how large activations become, without augmentation."""
    for images, _ in islice(job.data.train.batches(32, shuffle=True), CALIBRATION // 32):
        yield as_float32(Call.of(network, images, collated=True))


def _verify_int8(artifact: Artifact, job: Job, path: Path, sha256: str | None, runtime: Runtime) -> VerifyRecord:
    batches, network = job.recipe.verify.batches, artifact.network(job)
    return verify_coarse(
        path,
        network,
        some_images(job, network, max(batches)),
        sha256=sha256,
        batches=batches,
        labelled=job.data.test.batches(EVALUATION_BATCH) if job.has_labels else None,
        metric=job.metric,
        runtime=runtime,
    )


def _write_pictures(artifact: Artifact, job: Job, path: Path) -> None:
    with TemporaryDirectory() as folder:
        write_pictures(_float32(artifact, job, folder), path, job.data.preprocessing)


def _verify_pictures(artifact: Artifact, job: Job, path: Path, sha256: str | None, runtime: Runtime) -> VerifyRecord:
    batches, how = job.recipe.verify.batches, job.data.preprocessing
    return verify_pictures(
        path,
        artifact.network(job),
        next(iter(job.data.validation.batches(max(batches))))[0],
        how,
        sha256=sha256,
        batches=batches,
        labelled=_pictures(job) if job.has_labels and job.metric is ACCURACY else None,
        tolerance=artifact.tolerance,
        runtime=runtime,
    )


def _pictures(job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the test images as the file takes them: from disk where it resizes, else as bytes."""
    test, how = job.data.test, job.data.preprocessing
    taken = test.pictures() if resizes(how) else None
    return taken or ((as_pictures(images, how), classes) for images, classes in test.batches(EVALUATION_BATCH))


def _picture_sizes(job: Job) -> dict[str, tuple[int, ...]]:
    """Return the pictures that latency is measured on: of twice the sides of the input, where the file resizes."""
    channels, height, width = job.shape
    batch = job.recipe.bench.batch_size
    return {IMAGES: (batch, 2 * height, 2 * width, channels)} if resizes(job.data.preprocessing) else {}


def _write_program(artifact: Artifact, job: Job, path: Path) -> None:
    write_program(artifact.network(job), job.example, path, metadata=facts_of(artifact, job))


def _verify_program(artifact: Artifact, job: Job, path: Path, sha256: str | None, runtime: Runtime) -> VerifyRecord:
    batches, network = job.recipe.verify.batches, artifact.network(job)
    return verify_program(
        path,
        network,
        some_images(job, network, max(batches)),
        sha256=sha256 or "",
        batches=batches,
        labelled=job.data.test.batches(EVALUATION_BATCH) if job.has_labels else None,
        metric=job.metric,
        tolerance=artifact.tolerance,
    )


def _slim(job: Job) -> nn.Module:
    return job.slim().model


ARTIFACTS: dict[str, Artifact] = {
    it.name: it
    for it in (
        Artifact(name="dense", network=lambda job: job.dense()),
        Artifact(name="slim", network=_slim),
        Artifact(
            name="slim-fp16",
            kind="onnx, float16 inside, float32 in and out",
            network=_slim,
            asked=lambda recipe: recipe.export.fp16,
            write=_write_half,
            tolerance=HALF_TOLERANCE,
        ),
        Artifact(
            name="slim-int8",
            kind=INT8,
            network=_slim,
            asked=lambda recipe: recipe.export.int8,
            write=_write_int8,
            verify=_verify_int8,
        ),
        Artifact(
            name="slim-preprocess",
            counted="slim",
            kind="onnx, takes pictures: uint8 [batch, height, width, channels]",
            network=_slim,
            asked=lambda recipe: recipe.export.preprocess,
            write=_write_pictures,
            verify=_verify_pictures,
            sizes=_picture_sizes,
        ),
        Artifact(
            name="slim-pt2",
            file="slim.pt2",
            counted="slim",
            kind="torch.export, float32, runs with torch alone",
            network=_slim,
            asked=lambda recipe: recipe.export.pt2,
            write=_write_program,
            verify=_verify_program,
        ),
    )
}
"""By name, the dense one first: what all others are compared with."""


def artifacts_of(recipe: Recipe) -> dict[str, Artifact]:
    """Return those that a recipe wants, by name."""
    return {name: it for name, it in ARTIFACTS.items() if it.asked(recipe)}
