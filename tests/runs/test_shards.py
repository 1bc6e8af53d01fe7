"""Runs with shards: what is lost with one, and what is not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.fixtures.runs import Run, record_engines, running_small, serial_run

pytestmark = pytest.mark.slow


def test_two_shards_play_a_run_to_its_end_with_an_engine_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = record_engines(monkeypatch)
    settings = {
        "engine__count": "2",
        "cluster__shards": "2",
        "actor__count": "8",
        "learner__max_staleness": "1",
        "env__max_turns": "4",
    }
    summary, trajectories, _ = serial_run(tmp_path / "run", **settings)
    assert (summary["ended"], summary["updates"], summary["dropped"]) == ("finished", 2, {})
    assert {engine.generator.version for engine in made} == {"2"} and all(
        engine.turns for engine in made
    )
    sampled = [
        attempt for t in trajectories for turn in t.turns for attempt in (turn.kept, *turn.rejected)
    ]
    assert {span.version for attempt in sampled for span in attempt.spans} <= {0, 1, 2}
    assert summary["generated_tokens"] >= sum(attempt.length for attempt in sampled), (
        "what the other shard generated is not counted"
    )
    watched = [
        attempt
        for t in trajectories
        for turn in t.turns
        for attempt in [turn.kept]
        if not t.key.evaluation
    ]
    assert watched and all(attempt.uncertainty for attempt in watched), (
        "signals of an engine did not come to its shard"
    )


SHARDED = {
    "cluster__shards": "2",
    "actor__count": "8",
    "actor__heartbeat_seconds": "0.2",
    "learner__max_staleness": "1",
}


def spans(run: Run, shard: str) -> int:
    """Bytes of what a shard noted of its turns."""
    return sum(file.stat().st_size for file in (run.directory / "spans").glob(f"{shard}.*"))


async def ends_well(run: Run) -> None:
    """Interrupt it; each episode was trained on once, no token of it too old."""
    run.process.send_signal(signal.SIGINT)
    assert await run.ended() == 130, run.output
    keys = [t.key for t in run.trajectories() if not t.key.evaluation]
    assert len(keys) == len(set(keys)) and run.left_over() == []
    assert set(run.summary()["dropped"]) <= {"canceled"}
    assert max(line["token_age_max"] for line in run.updates()) <= 2


async def test_a_shard_that_is_stopped_or_killed_comes_back_and_others_take_its_turns(
    tmp_path: Path, small_policy
):
    """First it is stopped for a while, then it is killed, and started again."""
    async with running_small(
        tmp_path / "run", small_policy, run__max_updates="1000", **SHARDED
    ) as run:
        await run.until(lambda: run.updates() and spans(run, "controller-1"))
        stopped = run.pid_of("controller", "1")
        await stop_for_a_while(run, stopped)
        killed = run.pid_of("controller", "1")
        assert killed == stopped
        os.kill(killed, signal.SIGKILL)
        await run.until(lambda: run.pid_of("controller", "1") not in (None, killed))
        before = spans(run, "controller-1")
        await run.until(lambda: spans(run, "controller-1") > before)
        await ends_well(run)
        assert (
            "The controller-1 was killed (SIGKILL, as the system does when memory runs out): "
            "started again." in run.output
        )


async def stop_for_a_while(run: Run, shard: int) -> None:
    """Stop shard 1 until others have its turns; it goes on, and takes turns again."""
    os.kill(shard, signal.SIGSTOP)
    try:
        await run.until(lambda: "shard 1 was silent" in log_of(run))
        done = len(run.updates())
        await run.until(lambda: len(run.updates()) > done + 2)
        before = spans(run, "controller-1")
    finally:
        os.kill(shard, signal.SIGCONT)
    await run.until(lambda: spans(run, "controller-1") > before)


def log_of(run: Run) -> str:
    return (run.directory / "logs" / "controller.log").read_text()
