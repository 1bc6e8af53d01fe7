"""Runs of real processes that are interrupted, by Ctrl-C at each moment or by a lost terminal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from tests.fixtures.runs import (
    options,
    running,
    running_small,
    small_engine,
)
from tests.fixtures.servers import silent_server

PROMPTLY_S = 20.0
"""How long Ctrl-C may take: 5 s, on a machine that does much else."""


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("phase", ["starting", "demonstrations", "starting engines"])
async def test_ctrl_c_before_there_is_an_engine_ends_the_run_as_interrupted(
    tmp_path: Path, small_policy, phase: str
):
    """A run that is interrupted before there is an engine ends at once.

    The interrupt comes as soon as there is a learner, in its warm start (here of two ranks), or
    after it; nobody waits for the engine, which never comes.
    """
    ranks = 2 if phase == "demonstrations" else 1
    episodes = 0 if phase == "starting engines" else 4000
    settings = {"model.name": small_policy, "warm_start.episodes": episodes}
    settings["learner.ranks"] = ranks
    settings |= {"run.dir": tmp_path / "run", "run.cache_dir": tmp_path / "cache"}
    with silent_server() as url:
        settings["engine.urls"] = url
        options = (f"--{name}={value}" for name, value in settings.items())
        async with running(tmp_path / "run", *options) as run:
            await run.until(lambda: run.pid_of("learner"))
            async with asyncio.timeout(60):
                said = b""
                while phase != "starting" and phase.encode() not in said:
                    said = await run.process.stdout.readline()
            run.process.send_signal(signal.SIGINT)
            assert await run.ended(PROMPTLY_S) == 130, run.output
            assert "error" not in run.output
            assert f"Interrupted ({phase}): nothing to keep yet, stopping." in run.output
            assert run.output.endswith(f"to go on: python run.py --resume {run.directory}\n")
            assert run.left_over() == [] and not list((tmp_path / "cache").glob("policy-*"))
            assert not (run.directory / "logs" / "controller.log").exists()


async def test_ctrl_c_finishes_the_update_of_both_ranks_writes_a_checkpoint_and_a_summary(
    tmp_path: Path, small_policy
):
    settings = {
        "run__max_updates": "1000",
        "learner__checkpoint_every": "1000",
        "learner__ranks": "2",
    }
    async with running_small(tmp_path / "run", small_policy, **settings) as run:
        await run.until(lambda: run.updates())
        run.process.send_signal(signal.SIGINT)
        assert await run.ended() == 130, run.output
        assert run.summary()["ended"] == "interrupted"
        assert int(max((run.directory / "checkpoints").iterdir()).name) == run.summary()["updates"]
        assert run.summary()["dropped"] == {"canceled": 8}, (
            "all episodes of the four slots: none is forgotten in the hurry"
        )
        assert run.left_over() == []


async def test_ctrl_c_in_an_evaluation_gives_it_up_and_writes_a_checkpoint(
    tmp_path: Path, small_policy
):
    async with running_small(tmp_path / "run", small_policy, eval__episodes="5000") as run:
        async with asyncio.timeout(60):
            while b"evaluating" not in await run.process.stdout.readline():
                pass
        run.process.send_signal(signal.SIGINT)
        assert await run.ended(PROMPTLY_S) == 130, run.output
        assert (
            "Interrupted: this evaluation is given up, and a checkpoint is written." in run.output
        )
        assert [path.name for path in (run.directory / "checkpoints").iterdir()] == [
            "000000"
        ] and run.left_over() == []


async def test_a_terminal_that_goes_away_ends_a_run_as_ctrl_c_does(tmp_path: Path, small_policy):
    """First nobody reads its output any more, then it is told so. Nothing else comes of either."""
    reader, writer = os.pipe()
    async with small_engine(small_policy) as settings:
        settings |= {"run.max_updates": "1000", "learner.checkpoint_every": "1000"}
        settings |= {"run.dir": str(tmp_path / "run")}
        async with running(tmp_path / "run", *options(settings), stdout=writer) as run:
            os.close(writer)
            await run.until(run.updates)
            os.close(reader)
            run.process.send_signal(signal.SIGHUP)
            assert await asyncio.wait_for(run.process.wait(), 60) == 130
            assert run.summary()["ended"] == "interrupted"
            assert (
                int(max((run.directory / "checkpoints").iterdir()).name) == run.summary()["updates"]
            )
            assert (
                run.left_over() == []
                and not Path(
                    json.loads((run.directory / "job.json").read_text())["weights_dir"]
                ).exists()
            )


async def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, small_policy):
    async with running_small(tmp_path / "run", small_policy, run__max_updates="1000") as run:
        await run.until(lambda: run.updates())
        os.kill(run.pid_of("learner"), signal.SIGSTOP)  # a learner that would never finish
        run.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            while (
                b"Interrupted" not in await run.process.stdout.readline()
            ):  # or the two signals might become one
                pass
        run.process.send_signal(signal.SIGINT)
        assert await run.ended() == 130, run.output
        assert run.left_over() == []
