"""A small data set as one tensor of bytes on the device; batches are made by indexing, crops and flips included."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hoyer_export.data.splits import Split


class TensorSplit(Split):
    """Images of one size, held as bytes, with the augmentation of small pictures.

    batch = (crop(flip(images[indices])) / full_scale − mean) / std

    Args:
        images: uint8 [count, C, H, W].
        labels: int64 [count].
        full_scale: the byte that stands for 1.0.
        mean: of each channel, of values in 0..1.
        std: of each channel.
        seed: with the epoch, decides order, crops and flips.
        crop_padding: an augmented image is a random window of the image with this many zero pixels around it.
        flip: half of the augmented images are mirrored left to right.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        full_scale: int = 255,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        crop_padding: int = 0,
        flip: bool = False,
    ) -> None:
        self._images = images
        self._labels = labels
        # x / full_scale / std − mean / std, as one factor and one offset a channel
        centre, scale = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
        self._factor, self._offset = (1 / (full_scale * scale)).float(), (-centre / scale).float()
        self.seed = seed
        self._crop_padding = crop_padding
        self._flip = flip

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def _made(
        self, indices: list[Tensor], epoch: int, generator: torch.Generator, device: torch.device, augment: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Make batches by indexing; the whole split moves to ``device`` at its first use there, and stays."""
        for name in ("_images", "_labels", "_factor", "_offset"):
            setattr(self, name, getattr(self, name).to(device))
        if augment and (self._crop_padding or self._flip):
            # Drawn for the whole epoch at once, so that they do not depend on the batch size.
            shifts = torch.randint(0, 2 * self._crop_padding + 1, (len(self), 2), generator=generator)
            mirrored = torch.rand(len(self), generator=generator) < (0.5 if self._flip else 0.0)
        for batch in indices:
            chosen = batch.to(self._images.device)
            images = self._images[chosen]  # uint8 [N, C, H, W]
            if augment and (self._crop_padding or self._flip):
                images = crop_and_flip(images, shifts[batch], mirrored[batch], self._crop_padding)
            yield images.float().mul_(self._factor).add_(self._offset), self._labels[chosen]

    def unreadable(self) -> list[str]:
        """Return nothing: all images have been read."""
        return []


def crop_and_flip(images: Tensor, shifts: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    """Cut one window out of each image with ``padding`` zero pixels around it, and mirror some of the windows.

    output[n, c, y, x] = padded[n, c, y + shifts[n, 0], x' + shifts[n, 1]], x' = W − 1 − x where mirrored

    Args:
        images: [N, C, H, W], any dtype.
        shifts: int64 [N, 2], top and left edge of the window, 0..2·padding; ``padding`` is the image as it was.
        mirrored: bool [N].
        padding: zero pixels on every side.

    Returns:
        [N, C, H, W], dtype and device of ``images``.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    padded_width = width + 2 * padding
    rows = shifts[:, :1] + torch.arange(height)  # [N, H]
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + shifts[:, 1:]  # [N, W]
    # One gather over flattened positions: half the time of a loop over images, and one kernel on a GPU.
    positions = (rows[:, :, None] * padded_width + columns[:, None, :]).view(count, 1, height * width)
    positions = positions.to(images.device).expand(count, channels, height * width)
    return padded.flatten(2).gather(2, positions).view(count, channels, height, width)
