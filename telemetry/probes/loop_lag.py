"""How late an asyncio event loop runs what is due: the first sign that something blocks it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple


class Lag(NamedTuple):
    """Seconds by which the loop was late, since the last read."""

    worst: float
    mean: float


class LoopLag:
    """Sleeps again and again and measures by how much it oversleeps.

    Run it as a task (`asyncio.create_task(lag.run())`), or where a process has a loop of its own
    already, hand it each delay with `record`. `clock` and `sleep` are for tests.
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
        self._worst = self._sum = 0.0
        self._count = 0

    async def run(self) -> None:
        """Measures until it is cancelled."""
        while True:
            due = self._clock() + self.interval
            await self._sleep(self.interval)
            self.record(self._clock() - due)

    def record(self, seconds: float) -> None:
        """One delay, in seconds; what is early counts as on time."""
        seconds = max(0.0, seconds)
        self._worst = max(self._worst, seconds)
        self._sum += seconds
        self._count += 1

    def read(self) -> Lag:
        """Worst and mean delay since the last call; zeros when nothing was measured."""
        lag = Lag(self._worst, self._sum / self._count if self._count else 0.0)
        self._worst = self._sum = 0.0
        self._count = 0
        return lag
