"""Runs of real processes: what is killed or stopped costs nothing that was promised."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.fixtures.runs import (
    Run,
    await_killed,
    await_trained_once,
    processes,
    running_small,
)

pytestmark = pytest.mark.slow


def leases_in_play(run: Run) -> list[int]:
    """Pids of the actors, once turns are being played."""
    fleet = run.pid_of("actors")
    return (
        run.children_of(fleet)
        if fleet and any(line["kind"] == "evaluation" for line in run.metrics())
        else []
    )


async def test_a_killed_actor_is_replaced_and_a_run_of_two_ranks_leaves_what_is_promised(
    tmp_path: Path, small_policy
):
    """No episode is lost; the run ends by itself and leaves what the documents promise."""
    settings = {
        "learner__ranks": "2",
        "actor__heartbeat_seconds": "0.2",
    }
    async with running_small(tmp_path / "run", small_policy, **settings) as run:
        actors = await run.until(lambda: leases_in_play(run))
        os.kill(actors[0], signal.SIGKILL)
        assert await run.ended() == 0, run.output
        summary = run.summary()
        assert (summary["ended"], summary["updates"]) == ("finished", 2)
        assert summary["dropped"] == {}
        trained = [t.key for t in run.trajectories() if not t.key.evaluation]
        assert len(trained) == len(set(trained)) == 2 * 2 * 2
        assert "replaced" in (run.directory / "logs" / "actors.log").read_text()
        assert [line["update"] for line in run.metrics() if line["kind"] == "evaluation"] == [0, 2]
        checkpoints = sorted(path.name for path in (run.directory / "checkpoints").iterdir())
        assert checkpoints == ["000001", "000002"]
        assert list((run.directory / "tensorboard").iterdir())
        assert (run.directory / "logs" / "learner-1.log").exists() and run.left_over() == []


async def test_actor_that_was_stopped_plays_on_and_no_episode_is_trained_on_twice(
    tmp_path: Path, small_policy
):
    """It is the only one: whatever comes afterwards, it has played."""
    settings = {"actor__heartbeat_seconds": "0.2", "run__max_updates": "1000", "actor__count": "1"}
    async with running_small(tmp_path / "run", small_policy, **settings) as run:
        (stopped,) = await run.until(lambda: leases_in_play(run))
        os.kill(stopped, signal.SIGSTOP)
        try:
            await run.until(
                lambda: "was silent" in (run.directory / "logs" / "controller.log").read_text()
            )
        finally:
            os.kill(stopped, signal.SIGCONT)
        before = len(run.updates())
        await run.until(lambda: len(run.updates()) >= before + 3)
        assert run.children_of(run.pid_of("actors")) == [stopped]
        run.process.send_signal(signal.SIGINT)
        assert await run.ended() == 130, run.output
        keys = [t.key for t in run.trajectories() if not t.key.evaluation]
        assert (
            len(keys) == len(set(keys))
            and ": replaced" not in (run.directory / "logs" / "actors.log").read_text()
        )


async def test_a_run_ends_when_a_rank_of_its_learner_does(tmp_path: Path, small_policy):
    async with running_small(
        tmp_path / "run", small_policy, learner__ranks="2", run__max_updates="1000"
    ) as run:
        await run.until(run.updates)
        ranks = [
            pid for pid, command in processes() if f"-m learner {run.directory}/job.json" in command
        ]
        second = next(
            pid for pid in ranks if "RANK=1" in Path(f"/proc/{pid}/environ").read_text().split("\0")
        )
        os.kill(second, signal.SIGKILL)
        assert await run.ended() == 1
        assert "the learner" in run.output and run.left_over() == []


async def test_invariant_4_learner_killed_before_a_checkpoint_trains_each_episode_once(
    tmp_path: Path, small_policy
):
    """Invariant 4: a learner killed before its first checkpoint trains on each episode once."""
    async with running_small(
        tmp_path / "run", small_policy, run__max_updates="50", learner__checkpoint_every="1000"
    ) as run:
        await run.until(lambda: len(run.updates()) >= 2)
        os.kill(run.pid_of("learner"), signal.SIGKILL)
        done = await await_killed(run, "learner")
    async with running_small(
        tmp_path / "run", small_policy, resume=str(tmp_path / "run"), run__max_updates=str(done + 2)
    ) as run:
        await await_trained_once(run, done + 2)


async def test_a_run_whose_directory_takes_no_more_says_so_in_two_lines(
    tmp_path: Path, small_policy
):
    """A run that can write neither its metrics nor its summary says so in two lines.

    The processes that write the rest of the directory are not in its way.
    """
    async with running_small(tmp_path / "run", small_policy, run__max_updates="1000") as run:
        await run.until(run.updates)
        _, most = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (0, most))
        assert await run.ended() == 1
        told = run.output.partition("error: ")[2]
        why = re.escape(
            f"{run.directory}/metrics.jsonl cannot be written: File too large (run.dir; "
        )
        go_on = re.escape(f"to go on: python run.py --resume {run.directory}\n")
        assert (
            re.fullmatch(why + r"[^\n]* MB left\)\n" + go_on, told)
            and "Traceback" not in run.output
        ), run.output
        assert run.left_over() == []


async def test_run_resumed_after_its_end_plays_and_trains_on_each_group(
    tmp_path: Path, small_policy
):
    """A run that ended by run.max_tokens and is resumed plays and trains on each group.

    An evaluation follows its end, in which the learner hears of each episode that is canceled.
    """
    async with running_small(
        tmp_path / "run", small_policy, run__max_updates="1000", run__max_tokens="1"
    ) as run:
        assert await run.ended() == 0, run.output
        done = run.summary()["updates"]
        assert run.summary()["dropped"]["canceled"] > 0
    more = {"run__max_updates": str(done + 3), "run__max_tokens": "0"}
    async with running_small(
        tmp_path / "run", small_policy, resume=str(tmp_path / "run"), **more
    ) as run:
        assert await run.ended() == 0, run.output
        assert run.summary()["updates"] == done + 3
        played = [t for t in run.trajectories() if not t.key.evaluation]
        assert {t.drop_reason for t in played} == {None}, "the end of a run is none of its groups'"
        members = Counter(t.key.group for t in played)
        assert len({t.key for t in played}) == len(played) and [
            members[group] for group in range(2 * (done + 3))
        ] == [2] * 2 * (done + 3)


async def test_a_controller_that_is_told_to_end_ends_the_run_with_its_name(
    tmp_path: Path, small_policy
):
    async with running_small(tmp_path / "run", small_policy, run__max_updates="1000") as run:
        await run.until(lambda: run.updates())
        os.kill(run.pid_of("controller"), signal.SIGTERM)
        assert await run.ended() == 1
        assert "the controller was told to end (SIGTERM)" in run.output and run.left_over() == []


async def test_killing_the_supervisor_leaves_no_process_behind(tmp_path: Path, small_policy):
    async with running_small(tmp_path / "run", small_policy, run__max_updates="1000") as run:
        await run.until(lambda: run.updates())
        run.process.kill()
        await run.process.wait()
        async with asyncio.timeout(10):
            while run.left_over():
                await asyncio.sleep(0.05)
