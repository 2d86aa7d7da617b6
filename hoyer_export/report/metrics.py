"""The lines of metrics.jsonl: what training wrote down, one line an epoch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hoyer_export.errors import FileError
from hoyer_export.record import first_complaint
from hoyer_export.report.sections import NotNegative, Percent


class Epoch(BaseModel):
    """One epoch; null is what its phase or data does not have. Shares of MACs are of the dense network's."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    phase: Literal["dense", "sparse", "finetune"]
    epoch: Annotated[int, Field(ge=0)]
    seconds: NotNegative | None = None
    learning_rate: NotNegative | None = None
    loss: float
    penalty: float | None = None
    train_accuracy: Percent | None = None
    validation_accuracy: Percent | None = None
    effective_macs: NotNegative | None = None
    alive_macs: NotNegative | None = None


def read_metrics(folder: Path) -> tuple[Epoch, ...]:
    """Return the epochs in ``folder``'s metrics.jsonl; none where there is no such file.

    Raises:
        FileError: the file cannot be read, or a line of it is no epoch.
    """
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}; make it a file that can be read") from error
    epochs = []
    for number, line in enumerate(lines, start=1):
        try:
            epochs.append(Epoch.model_validate_json(line))
        except ValidationError as error:
            raise FileError(
                f"{path} is damaged in line {number}: {first_complaint(error)}; "
                "put the run's own file back, or remove it for a report without curves"
            ) from None
    return tuple(epochs)
