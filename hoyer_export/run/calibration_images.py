"""The images that a cut looks at: without augmentation, and their labels are not looked at."""

from math import prod

from torch import Tensor

from hoyer_export.data.splits import Split
from hoyer_export.run.job import Job
from hoyer_export.tensors import examples_in, rows_of

NUMBERS = 2**23
"""Of the calibration images that the network works on at a time: 2,730 of 3×32×32, 55 of 3×224×224."""


def calibration_images(job: Job, split: Split, *, shuffle: bool = False) -> list[Tensor]:
    """Return as many images as calibrate, or all there are, in batches and without augmentation."""
    found, left = [], job.recipe.cut.images
    for images, _ in split.batches(calibration_batch(job), shuffle=shuffle):
        found.append(rows_of(images, min(left, examples_in(images))))
        left -= examples_in(found[-1])
        if left == 0:
            break
    return found


def calibration_batch(job: Job) -> int:
    """Return how many calibration images go at a time."""
    return max(2, NUMBERS // prod(job.shape))
