"""Signals that ask a process to stop: taken for Control-C, so that whatever is half done is cleared on the way out."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hoyer_export.errors import HoyerExportError

# Who kills politely sends SIGTERM (kill, a scheduler, docker stop); SIGHUP comes when a terminal closes.
_NAMES = ("SIGTERM", "SIGHUP")


class Stop(KeyboardInterrupt):
    """A signal that asked to stop. Like Control-C, no ``except Exception`` of foreign code swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Interrupted(HoyerExportError):
    """Somebody stopped the process; the message says how to go on."""


def interrupted(stop: KeyboardInterrupt, then: str) -> Interrupted:
    """Return the error of ours: who stopped, ``then`` what; its exit code is 128 + the signal's number."""
    number = stop.number if isinstance(stop, Stop) else signal.SIGINT
    what = f"stopped by {signal.Signals(number).name}" if isinstance(stop, Stop) else "interrupted"
    error = Interrupted(f"{what}{then}")
    error.exit_code = 128 + number
    return error


_waiting: list[list[int]] = []
"""Where signals are kept that have to wait."""


def is_asked() -> bool:
    """Return whether a signal waits."""
    return any(_waiting)


@contextmanager
def held_back(wanted: bool = True) -> Iterator[None]:
    """Let the signals wait, and raise ``Stop`` afterwards."""
    came: list[int] = []
    if wanted:
        _waiting.append(came)
    try:
        yield
    finally:
        if wanted:
            _waiting.remove(came)
    if came:
        raise Stop(came[0])


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise ``Stop`` in the main thread when one of the signals comes; those that are ignored (nohup) stay so."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt what is being cleared
        if not _waiting:
            raise Stop(number)
        _waiting[-1].append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in _NAMES:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
