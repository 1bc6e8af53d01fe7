"""Stand-ins for the two processes whose computing is not what is loaded.

They are an engine without a model, and a learner without gradients.

`python -m benchmarks.load_processes engine|learner JOB [--stall SECONDS]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import zmq.asyncio

from config import Job
from engine.fake import server
from engine.fake.generation import Generator, Request
from engine.fake.server import FakeEngine
from learner.checkpoint import IntakeState
from learner.learner import build_learner
from learner.model.policy import load_policy
from learner.publish import Snapshot, copy_weights
from learner.ranks import Ranks
from learner.training_host import TrainingHost, open_instruments
from learner.warm_start.warm_start import ReportProgress
from protocol.codec import FrameReader
from protocol.files import allow_many_files
from protocol.messages import Message, Trajectory

INTAKE = "intake.json"
"""File that the learner leaves in the run's directory.

It has "episodes" (actor -> how many it delivered), "turns" (second -> turns delivered in it),
"stall" (its beginning and end; seconds since the epoch).
"""


class Noise(Generator):
    """Logits from a table in place of a model's.

    Everything else is the fake engine's: requests, sampling, signals, weights.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._rows = torch.randn(64, self.vocabulary)

    def compute_logits(self, request: Request) -> torch.Tensor:
        return self._rows[(len(request.prompt) + len(request.tokens)) % len(self._rows)]


class Training:
    """In the place of learner.training.Training: an update waits.

    The weights that it publishes are real, and always the same.
    """

    def __init__(self, job: Job, stall: float) -> None:
        self._job = job
        self._stall = stall
        self._model = load_policy(Path(job.model_dir))
        self.update_number = 0
        self.tokens = 0
        self.control = ""
        self.intake_state = IntakeState()
        self.began = 0.0
        self.spare: Snapshot | None = None
        self.stalled: list[float] = []
        """When the stall began and ended; seconds since the epoch."""

    def update(self, groups: Sequence[Sequence[Trajectory]], progress: float) -> dict[str, float]:
        seconds = 0.0
        if self.update_number == self._job.config.run.max_updates // 2:
            seconds = self._stall
            started = time.time()
            time.sleep(seconds)
            self.stalled = [started, time.time()]
        self.update_number += 1
        return {"seconds_train": seconds}

    def watch(self, record: dict) -> None:
        return None

    def snapshot(self) -> Snapshot:
        into = self.spare
        self.spare = None
        return copy_weights(self._model, self.update_number, "float32", into)

    def begin_checkpoint(self, intake: IntakeState) -> Future[Path]:
        written: Future[Path] = Future()
        written.set_result(Path(self._job.run_dir))
        return written

    def wait_written(self) -> None:
        return None

    def note_evaluation(self, update: int, success: float) -> None:
        return None

    def release_memory(self) -> None:
        return None


class Counting(FrameReader):
    """Counts who delivered how much, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: Counter[str] = Counter()
        self.turns: Counter[int] = Counter()

    def read(self, peer: bytes, frame: bytes) -> Message | None:
        message = super().read(peer, frame)
        if (
            isinstance(message, Trajectory)
            and not message.key.evaluation
            and message.drop_reason is None
        ):
            self.episodes[peer.decode()] += 1
            self.turns[int(time.time())] += len(message.turns)
        return message


class WaitingHost(TrainingHost):
    """Starts the stand-in."""

    def __init__(self, job: Job, stall: float) -> None:
        super().__init__(job, Ranks(), open_instruments(job))
        self.stand_in: Any = Training(job, stall)

    async def start(self, report: ReportProgress) -> None:
        self.training = self.stand_in


async def learn(job: Job, stall: float) -> None:
    """Run the learner with all its loops, but for Training."""
    context = zmq.asyncio.Context()
    counts = Counting()
    host = WaitingHost(job, stall)
    try:
        await build_learner(job, context, host, reader=counts).run()
    finally:
        figures = {
            "episodes": counts.episodes,
            "turns": counts.turns,
            "stall": host.stand_in.stalled,
        }
        (Path(job.run_dir) / INTAKE).write_text(json.dumps(figures))
        context.term()


async def serve(job: Job) -> None:
    """An engine, until SIGTERM."""
    server.Generator = Noise
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    engine = FakeEngine(
        job.model_dir,
        port=urlsplit(job.endpoints.engines[0]).port or 0,
        signals=job.endpoints.signals[0],
    )
    await engine.start()
    await over.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_processes")
    parser.add_argument("which", choices=["engine", "learner"])
    parser.add_argument("job", type=Path)
    parser.add_argument("--stall", type=float, default=0.0)
    options = parser.parse_args()
    allow_many_files()
    job = Job.load(options.job)
    asyncio.run(serve(job) if options.which == "engine" else learn(job, options.stall))


if __name__ == "__main__":
    main()
