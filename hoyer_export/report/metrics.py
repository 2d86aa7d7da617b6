"""The lines of metrics.jsonl: what training wrote down, one line an epoch."""

from pathlib import Path

from pydantic import ValidationError

from hoyer_export.errors import FileError
from hoyer_export.record import first_complaint
from hoyer_export.sparsify.phase import EpochRecord


def read_metrics(folder: Path) -> tuple[EpochRecord, ...]:
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
            epochs.append(EpochRecord.model_validate_json(line, extra="ignore"))
        except ValidationError as error:
            raise FileError(
                f"{path} is damaged in line {number}: {first_complaint(error)}; "
                "put the run's own file back, or remove it for a report without curves"
            ) from None
    return tuple(epochs)
