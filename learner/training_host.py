"""The training on all ranks, in a thread of its own, as the learner's loops call it."""

from __future__ import annotations

import asyncio
import functools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from config import Job
from learner.publish import Snapshot, Weights
from learner.rank_rpc import RankCall, SnapshotCall, call_all_ranks, start_all_ranks
from learner.ranks import Ranks
from learner.training import Training
from learner.warm_start.warm_start import ReportProgress
from telemetry.probes.clocks import LoopLag
from telemetry.probes.spans import SpanFile
from telemetry.probes.waits import OwnWaits

Result = TypeVar("Result")


class Instruments(NamedTuple):
    """The learner's means to measure itself."""

    waits: OwnWaits
    spans: SpanFile
    lag: LoopLag


def open_instruments(job: Job) -> Instruments:
    """Open the learner's file of spans."""
    spans = SpanFile(Path(job.run_dir), "learner")
    return Instruments(OwnWaits(time.monotonic), spans, LoopLag())


class TrainingHost:
    """Runs calls of `Training` on all ranks.

    One thread for all that computes: how many cores torch uses (`learner.threads`) is a property of
    the calling thread.
    """

    def __init__(self, job: Job, ranks: Ranks, instruments: Instruments) -> None:
        self.instruments = instruments
        self.training: Training | None = None
        """The training on this rank; None before `start`."""
        self._job = job
        self._ranks = ranks
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="training")

    async def start(self, report: ReportProgress) -> None:
        """Begin or restore the training; `report` is called in its thread and may raise Stopped."""
        start = functools.partial(start_all_ranks, self._ranks, self._job, report)
        self.training = await asyncio.get_running_loop().run_in_executor(self._thread, start)

    def _begun(self) -> Training:
        """The training; RuntimeError before `start`."""
        if self.training is None:
            raise RuntimeError("the training has not begun")
        return self.training

    async def call(self, call: RankCall[Result]) -> Result:
        """Make a call on all ranks, and return what it returned on this one."""
        run = functools.partial(call_all_ranks, self._ranks, self._begun(), call)
        with self.instruments.waits.on(f"its own {call.name}, which is computed"):
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def take_snapshot(self) -> Snapshot:
        """Copy the weights of now, to be published."""
        return await self.call(SnapshotCall())

    def recycle(self, snapshot: Snapshot, weights: Weights) -> None:
        """Take a snapshot back that has been written, or sent, as `weights`."""
        self._begun().spare = snapshot
        spans = self.instruments.spans
        end = spans.now()
        spans.add("write weights", end - weights.seconds, end, "weights", version=snapshot.version)

    def close(self) -> None:
        self._thread.shutdown(wait=False)
