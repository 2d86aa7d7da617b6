"""The user's mistakes, each explained by one line: what was expected, what came, what to do.

Everything else that is raised is a bug of ours and keeps its traceback.
"""


def one_line(error: BaseException) -> str:
    """Return the message of somebody else's exception on one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class HoyerExportError(Exception):
    """A mistake that its message explains; the command line prints the message and exits with ``exit_code``."""

    exit_code = 1


class RecipeError(HoyerExportError):
    """A recipe that cannot be read, or holds a wrong key or value."""


class DataError(HoyerExportError):
    """A data set that is missing, damaged, or does not fit the network."""


class NetworkError(HoyerExportError):
    """A network that cannot be built, loaded or traced."""


class FileError(HoyerExportError):
    """A file or folder that is missing, damaged, or in the way."""


class CutRefused(HoyerExportError):
    """A cut that would change what the network computes."""


class TrainingError(HoyerExportError):
    """A training that cannot go on, for instance because the loss is not a number."""


class VerificationFailed(HoyerExportError):
    """A check of the exported file that did not pass, or a budget that was missed."""

    exit_code = 3
