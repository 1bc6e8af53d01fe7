"""How much of a run is over, and how much is left: updates, tokens and time."""

from __future__ import annotations

import time
from math import inf

from config import RunSection
from learner.training import Training
from learner.update import training_fraction


class RunLimits:
    """The limits of a run, and its clock."""

    def __init__(self, settings: RunSection, elapsed_s: float) -> None:
        """`elapsed_s`: what the run had lasted before, other processes' time included."""
        self._settings = settings
        # no time of day, which may be set, nor that of another machine
        self._started = time.monotonic() - elapsed_s

    def elapsed_s(self) -> float:
        """Seconds of the run, those before a resume included."""
        return time.monotonic() - self._started

    def seconds_left(self) -> float:
        return self._settings.max_seconds() - self.elapsed_s()

    def updates_left(self, training: Training) -> int:
        return max(0, self._settings.max_updates - training.update_number)

    def are_reached(self, training: Training) -> bool:
        """Tell whether the run's time or its tokens are used up."""
        return self.seconds_left() <= 0 or self._tokens_left(training) <= 0

    def fraction(self, training: Training) -> float:
        """Return the share of the training that is over."""
        limits: list[tuple[float, float]] = [(training.update_number, self._settings.max_updates)]
        if self._settings.max_minutes:
            total_s = self._settings.max_seconds()
            limits.append((self.elapsed_s() - training.began, total_s - training.began))
        if self._settings.max_tokens:
            limits.append((training.tokens, self._settings.max_tokens))
        return training_fraction(*limits)

    def _tokens_left(self, training: Training) -> float:
        if not self._settings.max_tokens:
            return inf
        return self._settings.max_tokens - training.tokens
