"""A process that is stopped for longer than its connections last, and goes on.

Nothing of what it said or was told is lost or doubled.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.fixtures.runs import Run, running_small

HEARTBEAT = 0.2
STOPPED = 30 * HEARTBEAT
"""Seconds: ten times as long as a connection is given over which nothing comes."""


def process_called(run: Run, name: str) -> int:
    match name:
        case "supervisor":
            return run.process.pid
        case "an actor":
            return run.children_of(run.pid_of("actors"))[0]
    return run.pid_of(name)


async def freeze(run: Run, name: str) -> None:
    """Stop a process for a while, and wait until the run has gone on after that."""
    pid = process_called(run, name)
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + STOPPED
    await run.until(lambda: time.monotonic() > until)
    os.kill(pid, signal.SIGCONT)
    before = len(run.updates())
    await run.until(lambda: len(run.updates()) >= before + 4)


@pytest.mark.slow
async def test_processes_that_were_frozen_lose_nothing_and_double_nothing(
    tmp_path: Path, small_policy: Path
) -> None:
    """One after the other, in one run."""
    settings = {
        "actor__heartbeat_seconds": str(HEARTBEAT),
        "run__max_updates": "100000",
        "learner__checkpoint_every": "100000",
    }
    async with running_small(
        tmp_path / "run", small_policy, env__max_turns="1", actor__max_leases="100", **settings
    ) as run:
        await run.until(lambda: len(run.updates()) >= 2)
        for name in ("learner", "controller", "supervisor", "an actor"):
            await freeze(run, name)
        run.process.send_signal(signal.SIGINT)
        assert await run.ended() == 130, run.output
        numbers = [line["update"] for line in run.updates()]
        assert numbers == list(range(1, len(numbers) + 1)) and run.summary()["updates"] == len(
            numbers
        )
        keys = [t.key for t in run.trajectories() if not t.key.evaluation]
        assert len(keys) == len(set(keys)) and run.summary()["dropped"].keys() <= {"canceled"}
