"""Calls of `Training` on all ranks: rank 0 makes them, and the others carry them out, too."""

from __future__ import annotations

import functools
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from config import Job
from learner import checkpoint
from learner.checkpoint import IntakeState
from learner.publish import Snapshot
from learner.ranks import Ranks
from learner.training import Stopped, Training
from learner.warm_start.warm_start import ReportProgress
from protocol.messages import Trajectory
from telemetry.sinks.metrics_file import Record

Result = TypeVar("Result")


@dataclass(frozen=True)
class StartCall:
    """Make the training that later calls are for."""

    restore: bool  # from the newest checkpoint

    def run(self, job: Job, report: ReportProgress, ranks: Ranks) -> Training:
        if self.restore:
            return Training.restore(job, report, ranks)
        return Training.begin(job, report, ranks)


class RankCall(ABC, Generic[Result]):
    """Something that all ranks do with their training at the same time."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, training: Training) -> Result:
        """Do it; what rank 0 returns is the result."""


@dataclass(frozen=True)
class UpdateCall(RankCall[dict[str, float]]):
    """Make one update on groups of played episodes."""

    groups: Sequence[Sequence[Trajectory]]
    progress: float  # share of the training that is over

    name = "update"

    def run(self, training: Training) -> dict[str, float]:
        return training.update(self.groups, self.progress)


@dataclass(frozen=True)
class WatchCall(RankCall[int | None]):
    """Look for signs of a collapse in an update's figures, and go back if there are any."""

    record: Record

    name = "watch"

    def run(self, training: Training) -> int | None:
        return training.watch(self.record)


@dataclass(frozen=True)
class SnapshotCall(RankCall[Snapshot]):
    """Copy the weights, to be published."""

    name = "snapshot"

    def run(self, training: Training) -> Snapshot:
        return training.snapshot()


@dataclass(frozen=True)
class ReleaseCall(RankCall[None]):
    """Give up the memory that only an update needs."""

    name = "release of memory"

    def run(self, training: Training) -> None:
        training.release_memory()


@dataclass(frozen=True)
class CheckpointCall(RankCall[Future[Path]]):
    """Copy what a checkpoint holds; the future has its directory, once it is written."""

    intake: IntakeState

    name = "checkpoint"

    def run(self, training: Training) -> Future[Path]:
        return training.begin_checkpoint(self.intake)


def start_all_ranks(ranks: Ranks, job: Job, report: ReportProgress) -> Training:
    """Begin, or go on from the newest checkpoint (`job.resume`), on all ranks.

    A run that had none yet begins again: what it has logged is then trained on as after any
    checkpoint.
    """
    has_checkpoint = checkpoint.latest(Path(job.run_dir)) is not None
    call = StartCall(restore=job.resume and has_checkpoint)
    ranks.broadcast_object(call)
    return call.run(job, report, ranks)


def call_all_ranks(ranks: Ranks, training: Training, call: RankCall[Result]) -> Result:
    """Make a call on all ranks, and return the result of this one."""
    ranks.broadcast_object(call)
    return call.run(training)


def stop_ranks(ranks: Ranks) -> None:
    """Tell the other ranks that no call follows."""
    ranks.broadcast_object(None)


def serve_rank(job: Job, ranks: Ranks) -> None:
    """Carry out the calls of rank 0, until it says that none follows."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides what follows from it
    receive_call = functools.partial(ranks.broadcast_object, None)
    start: StartCall | None = receive_call()
    if start is None:
        return
    try:
        training = start.run(job, _report_nothing, ranks)
    except Stopped:
        receive_call()  # which says that none follows
        return
    for call in iter(receive_call, None):
        call.run(training)
    training.wait_written()


def _report_nothing(
    phase: str, done: float | None = None, total: float | None = None, /, **figures: float
) -> None:
    """Leave it to rank 0 to report its progress."""
