"""How much of the time something had nothing to do."""

from __future__ import annotations

import time


class IdleClock:
    """Share of the time with nothing in flight, since the last reading."""

    def __init__(self) -> None:
        self._since = self._read = time.monotonic()
        self._idle = 0.0
        self._busy = False

    def busy(self, in_flight: int) -> None:
        now = time.monotonic()
        if not self._busy:
            self._idle += now - self._since
        self._since = now
        self._busy = in_flight > 0

    def share(self) -> float:
        self.busy(int(self._busy))
        span = max(time.monotonic() - self._read, 1e-9)
        share, self._idle, self._read = min(1.0, self._idle / span), 0.0, time.monotonic()
        return share
