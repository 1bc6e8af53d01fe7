"""Clocks of a process: the time of day, how much of the time it is idle, how late its loop runs.

Durations are taken from `time.monotonic`: the time of day may be set at any moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import NamedTuple


def epoch_seconds() -> float:
    """Seconds since 1970 in UTC, for what is read beside a clock or a calendar."""
    return time.time()


def utc_now() -> str:
    """The time in UTC to the second, as ISO 8601 has it: "2031-05-01T12:00:00Z"."""
    return datetime.fromtimestamp(epoch_seconds(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class IdleClock:
    """Share of the time with nothing in flight, since the last reading."""

    def __init__(self) -> None:
        now = time.monotonic()
        self._changed_at = now
        self._read_at = now
        self._idle_s = 0.0
        self._is_busy = False

    def busy(self, in_flight: int) -> None:
        """Note how many things are in flight from now on."""
        now = time.monotonic()
        if not self._is_busy:
            self._idle_s += now - self._changed_at
        self._changed_at = now
        self._is_busy = in_flight > 0

    def share(self) -> float:
        """Read the idle share since the last call, and begin anew."""
        self.busy(int(self._is_busy))
        now = time.monotonic()
        elapsed_s = max(now - self._read_at, 1e-9)
        share = min(1.0, self._idle_s / elapsed_s)
        self._idle_s = 0.0
        self._read_at = now
        return share


class Lag(NamedTuple):
    """Seconds by which the loop was late, since the last read."""

    worst: float
    mean: float


class LoopLag:
    """How late an asyncio event loop runs what is due: the first sign that something blocks it.

    It sleeps again and again and measures by how much it oversleeps. Run it as a task
    (`asyncio.create_task(lag.run())`), or where a process has a loop of its own already, hand it
    each delay with `record`. `clock` and `sleep` are for tests.
    """

    def __init__(
        self,
        interval: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.interval = interval
        self._clock = clock
        self._sleep = sleep
        self._worst_s = 0.0
        self._sum_s = 0.0
        self._count = 0

    async def run(self) -> None:
        """Measure until it is canceled."""
        while True:
            due = self._clock() + self.interval
            await self._sleep(self.interval)
            self.record(self._clock() - due)

    def record(self, seconds: float) -> None:
        """Take one delay, in seconds; what is early counts as on time."""
        late_s = max(0.0, seconds)
        self._worst_s = max(self._worst_s, late_s)
        self._sum_s += late_s
        self._count += 1

    def read(self) -> Lag:
        """Worst and mean delay since the last call; zeros when nothing was measured."""
        lag = Lag(self._worst_s, self._sum_s / max(self._count, 1))
        self._worst_s = 0.0
        self._sum_s = 0.0
        self._count = 0
        return lag
