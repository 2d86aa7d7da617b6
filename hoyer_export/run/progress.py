"""What a stage tells whoever is watching. A run prints nothing itself."""

from typing import Protocol

from hoyer_export.sparsify.phase import EpochRecord, StepProgress


class Progress(Protocol):
    """Somebody who watches: a terminal, a log, nobody."""

    def headline(self, text: str) -> None:
        """A stage begins."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def step(self, step: StepProgress) -> None:
        """A training step was made."""

    def epoch(self, epoch: EpochRecord, epochs: int) -> None:
        """An epoch of ``epochs`` is whole."""


class Silent:
    """Nobody watches."""

    def headline(self, text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def step(self, step: StepProgress) -> None:
        """Say nothing."""

    def epoch(self, epoch: EpochRecord, epochs: int) -> None:
        """Say nothing."""
