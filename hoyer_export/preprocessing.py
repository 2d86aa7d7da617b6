"""What is done to an image before the network sees it, and what its outputs are called.

One record: images are made by it, it stands in the ONNX file's metadata and in the report, and the client follows it.
Needs no torch.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from hoyer_export.record import Record

Resize = Literal["crop", "squash", "pad"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Preprocessing(Record):
    """How a picture becomes an input: it is brought to its size, scaled to 0..1, and normalised channel by channel.

    Args:
        shape: (C, H, W) of one input, float32.
        mean: subtracted from each channel.
        std: divides each channel after that.
        resize: how it gets its size. ``crop``: the shorter side becomes ``short_side`` long, and the middle stays.
            ``squash``: both sides are resized, whatever the proportions. ``pad``: it is resized to fit, and black is
            put around it. None: it has that size already.
        short_side: in pixels, with ``crop``.
        interpolation: of the resize.
        class_names: of the outputs, in their order; None: there are no labels.
    """

    shape: tuple[Count, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None
    resize: Resize | None = None
    short_side: Count | None = None
    interpolation: Interpolation | None = None
    class_names: tuple[str, ...] | None = None

    def metadata(self) -> dict[str, str]:
        """Return what a file's metadata say of it beside the shape: words as they are, all else as JSON."""
        facts = self.model_dump(include=set(Preprocessing.model_fields) - {"shape"}, exclude_none=True)
        return {
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in facts.items()
        }

    @staticmethod
    def told_by(metadata: Mapping[str, str]) -> "Preprocessing":
        """Return what ``metadata`` wrote; other keys are passed over. ValueError where a value is damaged."""
        words = ("resize", "interpolation")
        kept = {key: text for key, text in metadata.items() if key in Preprocessing.model_fields and key != "shape"}
        facts = {key: text if key in words else json.loads(text) for key, text in kept.items()}
        return Preprocessing.model_validate_json(json.dumps(facts))

    def words(self) -> str:
        """Return how a picture gets its size, e.g. ``a picture is resized to 32×32 (bilinear), ...``."""
        size, by = "×".join(map(str, self.shape[1:])), f"({self.interpolation})"
        match self.resize:
            case "crop":
                side = f"a picture's shorter side is resized to {self.short_side} pixels"
                return f"{side} {by}, and the middle {size} is cut out"
            case "squash":
                return f"a picture is resized to {size} {by}, whatever its proportions"
            case "pad":
                return f"a picture is resized to fit into {size} {by}, with black around it"
            case None:
                return f"a picture is {size} already, and used as it is"
