"""stages.json: which stages were begun, what they read of the recipe, and what they found."""

import json
from typing import TypeVar

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from hoyer_export.errors import FileError
from hoyer_export.record import Record, first_complaint, read_record
from hoyer_export.run_folder import RunFolder, write_whole

R = TypeVar("R", bound=Record)


class Entry(BaseModel):
    """What stages.json holds of a stage: the values that it read, and what it found; None until it is done."""

    read: dict[str, JsonValue]
    found: JsonValue = None


_LOG = TypeAdapter(dict[str, Entry])


def read_log(folder: RunFolder) -> dict[str, Entry]:
    """Return the stages that were begun, by name.

    Raises:
        FileError: stages.json is damaged.
    """
    try:
        return _LOG.validate_json(folder.stages.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FileError(f"cannot read {folder.stages}: {error.strerror}; make it a file that can be read") from error
    except ValidationError as error:
        raise FileError(
            f"{folder.stages} is damaged: {first_complaint(error)}; start again in another folder"
        ) from None


def write_log(folder: RunFolder, log: dict[str, Entry]) -> None:
    """Write stages.json."""
    write_whole(folder.stages, _LOG.dump_json(log, indent=1) + b"\n")


def is_found(folder: RunFolder, stage: str) -> bool:
    """Return whether a stage is done."""
    entry = read_log(folder).get(stage)
    return entry is not None and entry.found is not None


def read_found(folder: RunFolder, stage: str, record: type[R]) -> R:
    """Return what the stage of that name found, a record of that class.

    Raises:
        FileError: it is not done, or stages.json is damaged.
    """
    entry = read_log(folder).get(stage)
    if entry is None or entry.found is None:
        raise FileError(
            f"{folder.path} has not come that far (no record of {stage}); go on with  hoyer-export run RECIPE "
            f"--out {folder.path} --resume"
        )
    return read_record(record, json.dumps(entry.found), folder.stages, "start again in another folder")
