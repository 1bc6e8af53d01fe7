"""The learner's reports to the supervisor: phases, figures of updates, gauges, failures."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from learner.data.groups import GroupBuffer
from learner.training import Stopped
from learner.training_host import Instruments
from learner.warm_start.warm_start import ReportProgress
from protocol.codec import FrameReader
from protocol.delivery import DeliveryClient
from protocol.messages import Stats
from telemetry.state import phase_stats

GAUGE_INTERVAL_S = 1.0
"""Seconds between two words on queues, waits and failures."""


class Reporter:
    """Sends the learner's figures to the supervisor."""

    def __init__(
        self,
        stats: DeliveryClient,
        buffer: GroupBuffer,
        reader: FrameReader,
        instruments: Instruments,
        stop: asyncio.Event,
    ) -> None:
        """`stop`: once it is set, `thread_reporter` raises Stopped."""
        self._stats = stats
        self._buffer = buffer
        self._reader = reader
        self._instruments = instruments
        self._stop = stop

    async def run(self) -> None:
        """Tell of queues, waits and failures once a second, until canceled."""
        while True:
            await asyncio.sleep(GAUGE_INTERVAL_S)
            self._instruments.spans.flush()
            gauges = {
                "loop_lag": self._instruments.lag.read().worst,
                "queue_trajectories": self._buffer.unconsumed_count(),
                "bad_frames": self._reader.dropped_frames,
            }
            await self.send("gauge", gauges)
            await self.send_waits()
            await self.send_failures()

    async def send(self, event: str, values: Mapping[str, float | str | None]) -> None:
        await self._stats.send(Stats(source="learner", event=event, values=dict(values)))

    async def send_phase(
        self, phase: str, done: float | None = None, total: float | None = None, **figures: float
    ) -> None:
        """Tell what is under way, how far it is, if that can be said, and what it came to."""
        await self._stats.send(phase_stats("learner", phase, done, total, **figures))

    async def send_waits(self) -> None:
        """Tell what is waited for now; what was told before, and is not named, is over."""
        await self.send("waiting", self._instruments.waits.seconds())

    async def send_failures(self) -> None:
        """Tell how many episodes were dropped, and what those that failed say."""
        ledger = self._buffer.ledger
        if ledger.totals:
            await self.send(
                "drops", {str(reason): count for reason, count in (+ledger.totals).items()}
            )
        if ledger.failures:
            await self.send("failures", ledger.failures)

    def thread_reporter(self) -> ReportProgress:
        """Return a function by which other threads tell what is under way."""
        loop = asyncio.get_running_loop()

        def report(
            phase: str,
            done: float | None = None,
            total: float | None = None,
            /,
            **figures: float,
        ) -> None:
            if self._stop.is_set():
                raise Stopped
            asyncio.run_coroutine_threadsafe(self.send_phase(phase, done, total, **figures), loop)

        return report
