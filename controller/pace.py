"""How long an episode may take before another actor is given it: the environment's own pace
decides. No IO, no clock.

An episode is slow if it takes FACTOR times as long as 95 % of those that came to an end. Each
further lease of the episode has twice the time of the one before: what needs it gets it, and an
episode that never ends is given up after five leases of 31 limits together, instead of five times
`actor.episode_seconds`. What was taken back counts, too, for as long as it had lasted: if
everything becomes slow, the limit follows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

FACTOR = 4.0
ENOUGH = 20
"""Episodes that must have ended before their pace is known."""
MOST = 256
"""The latest episodes that are looked at."""
LEAST_SECONDS = 60.0
"""The shortest limit: engines that stand still for a moment make all episodes longer."""


@dataclass
class Pace:
    longest_seconds: float
    """The limit while nothing is known, and the highest one (`actor.episode_seconds`)."""
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=MOST))

    def add(self, seconds: float) -> None:
        """Take note of an episode that ended after so long, or was taken back then."""
        self._seconds.append(seconds)

    def limit_seconds(self, attempt: int) -> float:
        """How long the lease number `attempt` of an episode may last."""
        if len(self._seconds) < ENOUGH:
            return self.longest_seconds
        usual = sorted(self._seconds)[int(0.95 * len(self._seconds))]
        return min(self.longest_seconds, max(LEAST_SECONDS, FACTOR * usual) * 2**attempt)
