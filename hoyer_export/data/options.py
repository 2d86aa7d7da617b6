"""What can be asked of a data set's images beside what is usual for it."""

from dataclasses import dataclass

from hoyer_export.preprocessing import Interpolation, Resize


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What is asked; None: as is usual for the data set.

    Args:
        resize, interpolation: as in ``Preprocessing``, of image files: ``crop`` and ``bilinear`` where None.
        short_side: with ``crop``, at least the image size; 256/224 of it where None.
        class_names: of the outputs, in their order. Where they are the names of an image folder's classes, they say
            which output is which; else what the classes are called.
        flip: whether half of the augmented images are mirrored left to right.
        crop_scale: the least share of an image file's area that a random crop shows, 0.08 where None; 1: no crops.
        shift: pixels by which small images are shifted at most, an eighth of the side where None.
        skip_unreadable: leave out the image files that cannot be read.
    """

    resize: Resize | None = None
    short_side: int | None = None
    interpolation: Interpolation | None = None
    class_names: tuple[str, ...] | None = None
    flip: bool | None = None
    crop_scale: float | None = None
    shift: int | None = None
    skip_unreadable: bool = False


@dataclass(frozen=True)
class Augmentation:
    """What training images get, as it is in force.

    Args:
        flip: half of them are mirrored left to right.
        crop_scale: the least share of the area that a random crop of an image file shows; 1: no crops.
        shift: of a small image: it is a window of the image with so many black pixels around it.
    """

    flip: bool
    crop_scale: float | None = None
    shift: int | None = None
