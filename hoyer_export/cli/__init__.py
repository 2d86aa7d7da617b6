"""The command line: parse, one call, print. Nothing heavy is imported before a verb needs it.

Exit codes: 0 done; 1 the input is wrong (one line); 2 usage; 3 a verification failed, or a budget or limit was missed;
70 a bug of ours (with its traceback); 130 interrupted, 143 told to stop (128 + the signal's number, as in a shell).
"""

from hoyer_export.cli import chain, files, machine, sweeping
from hoyer_export.cli.program import app, main

__all__ = ["app", "chain", "files", "machine", "main", "sweeping"]  # all but app and main hold the verbs
