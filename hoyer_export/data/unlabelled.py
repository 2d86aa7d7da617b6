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


def pictures(folder: Path) -> list[str]:
    """Return the paths of all pictures in a folder and those in it, sorted; hidden ones are none.

    Raises:
        DataError: there are fewer than four.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension  # takes a second to import

    found = sorted(
        str(path)
        for path in folder.rglob("*")
        if has_file_allowed_extension(path.name, IMG_EXTENSIONS)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if len(found) < 4:
        raise DataError(f"{folder} holds {len(found)} pictures; expected at least 4, better some hundred")
    return found


def array_splits(
    images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], validation: float, seed: int
) -> tuple[Split, Split, Split]:
    """Return training, validation and (empty) test images of an array."""
    scale = 255 if images.dtype == torch.uint8 else 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held = max(2, round(validation * len(images)))
    nothing = torch.zeros(len(images), dtype=torch.int64)

    def split(chosen: Tensor) -> TensorSplit:
        return TensorSplit(images[chosen], nothing[chosen], full_scale=scale, mean=mean, std=std, seed=seed)

    return split(order[held:].sort().values), split(order[:held].sort().values), split(order[:0])
