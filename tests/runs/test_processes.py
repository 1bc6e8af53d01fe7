"""Runs of real processes, some of which are killed.

The engine is the small one: what is tested here is everything around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest

from protocol.lifetime import dying_with_parent
from supervisor.endpoints import free_port
from supervisor.job import job_file, save_job
from tests.fixtures import ROOT
from tests.fixtures.runs import (
    Run,
    job_in,
    processes,
    running,
    running_small,
    silent_server,
    small_config,
)

PROMPTLY_S = 20.0
"""How long Ctrl-C may take: 5 s, on a machine that does much else."""

pytestmark = pytest.mark.slow


def leases_in_play(run: Run) -> list[int]:
    """Pids of the actors, once turns are being played."""
    fleet = run.pid_of("actors")
    return (
        run.children_of(fleet)
        if fleet and any(line["kind"] == "evaluation" for line in run.metrics())
        else []
    )


async def test_run_with_two_ranks_ends_by_itself_and_leaves_what_is_promised(
    tmp_path: Path, small_policy
):
    """A run with a learner of two ranks ends by itself and leaves what the documents promise."""
    async with running_small(tmp_path / "run", small_policy, learner__ranks="2") as run:
        assert await run.ended() == 0, run.output
        summary = run.summary()
        assert (summary["ended"], summary["updates"]) == ("finished", 2)
        assert [line["update"] for line in run.metrics() if line["kind"] == "evaluation"] == [0, 2]
        assert sorted(path.name for path in (run.directory / "checkpoints").iterdir()) == [
            "000001",
            "000002",
        ]
        assert list((run.directory / "tensorboard").iterdir())
        assert (run.directory / "logs" / "learner-1.log").exists() and run.left_over() == []


async def test_a_killed_actor_is_replaced_and_no_episode_is_lost(tmp_path: Path, small_policy):
    async with running_small(
        tmp_path / "run", small_policy, actor__heartbeat_seconds="0.2", run__max_updates="3"
    ) as run:
        actors = await run.until(lambda: leases_in_play(run))
        os.kill(actors[0], signal.SIGKILL)
        assert await run.ended() == 0, run.output
        assert run.summary()["dropped"] == {}
        trained = [t.key for t in run.trajectories() if not t.key.evaluation]
        assert len(trained) == len(set(trained)) == 3 * 2 * 2
        assert "replaced" in (run.directory / "logs" / "actors.log").read_text()


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


async def test_ctrl_c_ends_a_learner_of_two_ranks_in_its_warm_start(tmp_path: Path, small_policy):
    cache = tmp_path / "cache"
    settings = {"learner__ranks": "2", "warm_start__episodes": "4000", "run__cache_dir": str(cache)}
    async with running_small(tmp_path / "run", small_policy, **settings) as run:
        await run.until(lambda: list(cache.glob(".policy-*.lock")))
        os.kill(run.process.pid, signal.SIGINT)
        assert await run.ended() == 130, run.output
        assert run.left_over() == [] and not list(cache.glob("policy-*"))


@pytest.mark.parametrize("phase", ["starting", "demonstrations", "evaluating"])
async def test_ctrl_c_before_there_is_an_engine_ends_the_run_as_interrupted(
    tmp_path: Path, small_policy, phase: str
):
    """A run that is interrupted before there is an engine ends at once.

    The interrupt comes as soon as there is a learner, in its warm start, or after it; nobody waits
    for the engine, which never comes.
    """
    episodes = 0 if phase == "evaluating" else 4000
    settings = {"model.name": small_policy, "warm_start.episodes": episodes}
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
            assert run.left_over() == []
            assert not (run.directory / "logs" / "controller.log").exists()


async def test_invariant_4_learner_killed_before_a_checkpoint_trains_each_episode_once(
    tmp_path: Path, small_policy
):
    """Invariant 4: a learner killed before its first checkpoint trains on each episode once."""
    async with running_small(
        tmp_path / "run", small_policy, run__max_updates="50", learner__checkpoint_every="1000"
    ) as run:
        await run.until(lambda: len(run.updates()) >= 2)
        os.kill(run.pid_of("learner"), signal.SIGKILL)
        done = await dead(run, "learner")
    async with running_small(
        tmp_path / "run", small_policy, resume=str(tmp_path / "run"), run__max_updates=str(done + 2)
    ) as run:
        await each_trained_on_once(run, done + 2)


async def dead(run: Run, killed: str) -> int:
    """The last update of a run one of whose processes was killed, when it has ended for it."""
    assert await run.ended() == 1
    assert (
        f"error: the {killed} was killed (SIGKILL, as the system does when memory runs out)"
        in run.output
    )
    assert (
        f"to go on: python run.py --resume {run.directory}" in run.output
        and "Traceback" not in run.output
    )
    assert run.left_over() == []
    return run.updates()[-1]["update"]


async def each_trained_on_once(run: Run, updates: int) -> None:
    """Assert that a resumed run ends with that many updates, each episode trained on once.

    Every episode that they needed is in the log, in one copy.
    """
    assert await run.ended() == 0, run.output
    assert [line["update"] for line in run.updates()] == list(range(1, updates + 1))
    copies = Counter(t.key for t in run.trajectories() if not t.key.evaluation)
    assert set(copies.values()) == {1}, "an episode was played again although it was in the log"
    assert {key.group for key in copies} >= set(range(2 * updates))


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
    async with running_small(
        tmp_path / "run", small_policy, run__max_updates="1000", learner__checkpoint_every="1000"
    ) as run:
        await run.until(run.updates)
        run.process._transport.get_pipe_transport(1).close()
        run.process.send_signal(signal.SIGHUP)
        assert await asyncio.wait_for(run.process.wait(), 60) == 130
        assert run.summary()["ended"] == "interrupted"
        assert int(max((run.directory / "checkpoints").iterdir()).name) == run.summary()["updates"]
        assert (
            run.left_over() == []
            and not Path(
                json.loads((run.directory / "job.json").read_text())["weights_dir"]
            ).exists()
        )


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
            assert "no controller answers" in await refused(*joining, "--wait", "1", *more)
        assert await run.ended() == 0, run.output
        assert await actors.ended(20) == 0, "actors leave when the run is over"


@pytest.mark.parametrize("killed", ["controller", "learner"])
async def test_invariant_4_actors_from_elsewhere_go_on_with_a_resumed_run(
    tmp_path: Path, small_policy, killed: str
):
    """Invariant 4: actors from elsewhere go on with a run that is resumed from a checkpoint."""
    port = str(free_port())
    settings = {"actor__count": "0", "controller__port": port, "actor__heartbeat_seconds": "0.2"}
    async with running(
        tmp_path, "actor", "--connect", f"tcp://127.0.0.1:{port}", "--actors", "2", "--wait", "90"
    ) as actors:
        async with running_small(
            tmp_path / "run", small_policy, run__max_updates="1000", **settings
        ) as run:
            await run.until(lambda: len(run.updates()) >= 2)
            os.kill(run.pid_of(killed), signal.SIGKILL)
            done = await dead(run, killed)
        settings |= {"resume": str(tmp_path / "run"), "run__max_updates": str(done + 2)}
        async with running_small(tmp_path / "run", small_policy, **settings) as run:
            await each_trained_on_once(run, done + 2)
        assert await actors.ended(30) == 0 and "is lost: looking for it" in actors.output


async def refused(*arguments: str) -> str:
    """Return what a command line prints that is refused.

    Fails if it is not, or if it says more than a sentence.
    """
    async with running(Path(), *arguments) as run:
        assert await run.ended(30) in (1, 2)
        assert run.output.startswith("error: ") and len(run.output.strip().splitlines()) == 1, (
            run.output
        )
        return run.output


async def test_an_unknown_setting_is_refused_with_the_nearest_name(tmp_path: Path):
    assert "did you mean learner.learning_rate?" in await refused(
        "--learner.learning-rat=1", f"--run-dir={tmp_path / 'run'}"
    )
    assert not (tmp_path / "run").exists()


async def test_a_model_that_does_not_exist_is_refused(tmp_path: Path):
    assert "model.name" in await refused(
        "--model", str(tmp_path / "none"), f"--run-dir={tmp_path / 'run'}"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["controller.port", "learner.port"])
async def test_a_port_in_use_is_refused_naming_the_setting(tmp_path: Path, setting: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert setting in await refused(f"--{setting}={port}", f"--run-dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


async def test_too_little_memory_for_the_engine_is_refused_naming_the_setting(tmp_path: Path):
    assert "engine.kv_cache_gb" in await refused(
        "--engine.kv_cache_gb=100000", f"--run-dir={tmp_path / 'run'}"
    )
    assert not (tmp_path / "run").exists()


async def test_a_controller_that_cannot_begin_says_why_and_ends(tmp_path: Path):
    """It used to wait for its own sockets for ever, with the reason unsaid."""
    job = job_in(tmp_path / "run", small_config())
    save_job(job)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(job.endpoints.learner.rsplit(":", 1)[1])))
        taken.listen()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "controller",
            str(job_file(job)),
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=dying_with_parent(),
        )
        try:
            _, said = await asyncio.wait_for(process.communicate(), 60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    assert process.returncode == 1 and b"Address already in use" in said


async def test_a_run_directory_that_is_not_empty_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    assert "run.dir" in await refused(f"--run-dir={tmp_path}")


async def test_an_engine_that_does_not_answer_ends_the_run_naming_the_setting(
    tmp_path: Path, small_policy
):
    settings = {
        "model.name": small_policy,
        "engine.start_seconds": 1,
        "run.dir": tmp_path / "run",
    }
    with silent_server() as url:
        settings["engine.urls"] = url
        options = (f"--{name}={value}" for name, value in settings.items())
        async with running(tmp_path / "run", *options) as run:
            assert await run.ended(60) == 1
            assert "engine.start_seconds" in run.output
            assert run.left_over() == []
            assert not (run.directory / "summary.json").exists()
            assert not (run.directory / "checkpoints").exists()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5555", "tcp://127.0.0.1", "tcp://127.0.0.1:port", "tcp://:5555"]
)
async def test_an_actor_that_is_given_no_address_says_how_one_is_written(address: str):
    printed = await refused("actor", "--connect", address)
    assert "--connect: " in printed and "tcp://HOST:PORT" in printed


async def test_an_actor_that_finds_no_controller_says_so(tmp_path: Path):
    assert "--connect" in await refused("actor", "--connect", "tcp://127.0.0.1:9", "--wait", "0.5")
