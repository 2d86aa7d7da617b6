"""Pictures without labels: a folder of them, or an array in an .npy or .npz file. Enough to calibrate, not to judge.

Channels stand in the second place of an array, as networks take them, or in the last: [N, H, W, 1, 3 or 4] are channels
where the second axis has another length than these.
"""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from hoyer_export.data.folder_layout import Layout, is_image, visible_files
from hoyer_export.data.splits import Split
from hoyer_export.data.tensor_split import TensorSplit
from hoyer_export.errors import DataError, one_line

EXPECTED = "a folder of pictures, or an .npy or .npz file with images [N, C, H, W] or [N, H, W, C]"
_COLOURS = (1, 3, 4)
"""How many channels pictures have: grey, colours, colours and transparency."""


def read_array(path: Path) -> Tensor:
    """Return the images of an .npy file, or of the one array in an .npz file, as uint8 or float32 [N, C, H, W].

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            found: Any = np.load(file, allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                if len(found.files) != 1:
                    raise DataError(f"{path} holds {len(found.files)} arrays; expected one, images [N, C, H, W]")
                found = found[found.files[0]]
    except OSError as error:
        raise DataError(f"{path}: {one_line(error)}; expected {EXPECTED}") from error
    except (ValueError, EOFError, BadZipFile) as error:  # numpy takes what it does not know for a pickle
        raise DataError(
            f"{path} is no .npy or .npz file with numbers, or a damaged one; expected {EXPECTED}"
        ) from error
    numbers = found.dtype == np.uint8 or np.issubdtype(found.dtype, np.floating)
    if found.ndim != 4 or not numbers or len(found) < 4:
        raise DataError(
            f"{path} holds {found.dtype} {list(found.shape)}; expected images [N, C, H, W] or [N, H, W, C], N at least"
            " 4, as uint8 0..255, or as floats the way the network takes them"
        )
    if found.shape[3] in _COLOURS and found.shape[1] not in _COLOURS:
        found = found.transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.ascontiguousarray(found))
    images = images if images.dtype == torch.uint8 else images.float()
    if bad := (~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist():
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DataError(f"{path} holds numbers that are not finite: image {bad[0]}{more}, counted from 0")
    return images


def find_unlabelled(folder: Path, validation: float, seed: int) -> Layout:
    """Find all pictures in a folder and those in it, whatever their folders are called; there are no test images.

    Raises:
        DataError: there are fewer than four.
    """
    found = sorted(str(path) for path in visible_files(folder) if is_image(path))
    if len(found) < 4:
        raise DataError(f"{folder} holds {len(found)} pictures; expected at least 4, better some hundred")
    rest, held = _held_out(len(found), validation, seed)
    return Layout(([(found[i], 0) for i in rest.tolist()], [(found[i], 0) for i in held.tolist()], []))


def _held_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return (indices that stay, indices held out), both ascending, at least two of the latter."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = max(2, round(share * count))
    return order[held:].sort().values, order[:held].sort().values


def array_splits(
    images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], validation: float, seed: int
) -> tuple[Split, Split, Split]:
    """Return training, validation and (empty) test images of an array."""
    scale = 255 if images.dtype == torch.uint8 else 1
    rest, held = _held_out(len(images), validation, seed)
    nothing = torch.zeros(len(images), dtype=torch.int64)

    def split(chosen: Tensor) -> TensorSplit:
        return TensorSplit(images[chosen], nothing[chosen], full_scale=scale, mean=mean, std=std, seed=seed)

    return split(rest), split(held), split(rest[:0])
