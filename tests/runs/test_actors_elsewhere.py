"""Actors that are started elsewhere, and join a run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from supervisor.endpoints import free_port
from tests.fixtures.example_environment import guide_code
from tests.fixtures.runs import (
    Run,
    await_killed,
    await_trained_once,
    run_refused,
    running,
    running_small,
)

pytestmark = pytest.mark.slow


async def test_actors_from_elsewhere_join_and_do_the_work(tmp_path: Path, small_policy):
    """All connections encrypted, and those refused that have no key of this run."""
    port = free_port()
    keys = tmp_path / "keys"
    others = tmp_path / "others"
    for directory in (keys, others):
        async with running(tmp_path, "keys", str(directory), "host") as made:
            assert await made.ended(20) == 0, made.output
    joining = ("actor", "--connect", f"tcp://127.0.0.1:{port}", "--actors", "2")
    async with (
        running_small(
            tmp_path / "run",
            small_policy,
            actor__count="0",
            controller__port=str(port),
            security__keys=str(keys),
            run__max_updates="3",
        ) as run,
        running(tmp_path, *joining, "--wait", "60", "--keys", str(keys / "host")) as actors,
    ):
        await run.until(run.updates)
        for more in ((), ("--keys", str(others / "host"))):
            assert "no controller answers" in await run_refused(*joining, "--wait", "1", *more)
        assert await run.ended() == 0, run.output
        assert await actors.ended(20) == 0, "actors leave when the run is over"


async def test_run_plays_an_environments_file_here_and_in_actors_from_elsewhere(
    tmp_path: Path, small_policy
):
    """Every process finds an environment that is a file, though its own folder is another."""
    file = tmp_path / "games" / "game.py"
    file.parent.mkdir()
    file.write_text(guide_code())
    port = str(free_port())
    settings = {"env__name": str(file), "controller__port": port, "run__max_updates": "2"}
    async with (
        running_small(tmp_path / "run", small_policy, actor__count="2", **settings) as run,
        running(
            tmp_path, "actor", "--connect", f"tcp://127.0.0.1:{port}", "--wait", "60", cwd=tmp_path
        ) as actors,
    ):
        assert await run.ended() == 0, run.output
        assert await actors.ended(20) == 0
    assert {trajectory.task_type for trajectory in run.trajectories()} == {"bisection"}
    assert run.summary()["updates"] == 2 and run.summary()["failures"] == {}


async def test_invariant_4_actors_from_elsewhere_go_on_with_a_resumed_run(
    tmp_path: Path, small_policy
):
    """Invariant 4: actors from elsewhere go on with a run that is resumed from a checkpoint.

    First its controller is killed, then its learner.
    """
    port = str(free_port())
    settings = {"actor__count": "0", "controller__port": port, "actor__heartbeat_seconds": "0.2"}
    async with running(
        tmp_path, "actor", "--connect", f"tcp://127.0.0.1:{port}", "--actors", "2", "--wait", "90"
    ) as actors:
        done = 0
        for killed in ("controller", "learner"):
            async with running_small(
                tmp_path / "run", small_policy, run__max_updates="1000", **settings
            ) as run:
                done = await kill_after(run, done + 2, killed)
            settings["resume"] = str(tmp_path / "run")
        settings["run__max_updates"] = str(done + 2)
        async with running_small(tmp_path / "run", small_policy, **settings) as run:
            await await_trained_once(run, done + 2)
        assert await actors.ended(30) == 0 and actors.output.count("is lost: looking for it") >= 2


async def kill_after(run: Run, updates: int, killed: str) -> int:
    """Kill a process after so many updates; return the last one of the run, which ends by that."""
    await run.until(lambda: len(run.updates()) >= updates)
    os.kill(run.pid_of(killed), signal.SIGKILL)
    return await await_killed(run, killed)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5555", "tcp://127.0.0.1", "tcp://127.0.0.1:port", "tcp://:5555"]
)
async def test_an_actor_that_is_given_no_address_says_how_one_is_written(address: str):
    printed = await run_refused("actor", "--connect", address)
    assert "--connect: " in printed and "tcp://HOST:PORT" in printed


async def test_an_actor_that_finds_no_controller_says_so(tmp_path: Path):
    assert "--connect" in await run_refused(
        "actor", "--connect", "tcp://127.0.0.1:9", "--wait", "0.5"
    )
