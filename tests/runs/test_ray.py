"""`run.py ray` on a Ray cluster: the run, its learner and its actors, each where Ray has put it.

The machines are raylets of this one, with addresses of their own where that is permitted.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from benchmarks.hosts import NotPermitted, addresses
from protocol.lifetime import dying_with_parent
from tests.fixtures import ROOT
from tests.fixtures.runs import Run, processes, running, small_elsewhere

pytest.importorskip("ray", reason="pip install -e '.[ray]'")

pytestmark = pytest.mark.slow

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}
"""Environment of the cluster: a machine that is lost is missed within seconds."""


async def test_no_cluster_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """First of all: Ray finds a cluster of this machine by itself."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    async with running(tmp_path, "ray", str(tmp_path / "run")) as run:
        assert await run.ended(60) == 2
        assert "there is no Ray cluster here" in run.output and not (tmp_path / "run-keys").exists()


@dataclass(frozen=True)
class Machines:
    """A Ray cluster; on its first machine there is no room."""

    raylets: list[int]

    def lose(self, pid: int) -> None:
        """Kill the raylet of the machine where this process is."""
        above = {parent.pid for parent in psutil.Process(pid).parents()}
        (raylet,) = above & set(self.raylets)
        os.kill(raylet, signal.SIGKILL)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Four with four places each; RAY_ADDRESS names them."""
    with pytest.MonkeyPatch.context() as environment, ExitStack() as stack:
        for name, value in ENVIRONMENT.items():
            environment.setenv(name, value)
        environment.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        try:
            at = stack.enter_context(addresses(5))
        except NotPermitted:
            at = [""] * 5
        program = ROOT / "tests" / "fixtures" / "ray_program.py"
        command = [sys.executable, "-P", str(program), *at]
        how = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.DEVNULL,
            "text": True,
        }
        with subprocess.Popen(
            command, start_new_session=True, preexec_fn=dying_with_parent(), **how
        ) as cluster:
            address, *raylets = cluster.stdout.readline().split()
            environment.setenv("RAY_ADDRESS", address)
            yield Machines([int(raylet) for raylet in raylets])
            cluster.stdin.close()


async def test_too_small_a_cluster_is_said_so(machines: Machines, tmp_path: Path):
    async with running(tmp_path, "ray", str(tmp_path / "run"), "--gpus", "8", "--wait", "1") as run:
        assert await run.ended(90) == 2
        assert "Ray has no room for" in run.output and "GPU" in run.output


async def test_ray_run_goes_on_without_a_machine_and_resumes_without_its_learner(
    machines: Machines, tmp_path: Path, small_policy: Path
):
    """And once more after it was interrupted: always by the same command."""
    async with small_elsewhere(tmp_path / "run", small_policy) as arguments:
        command = ["ray", *arguments, "--learner-nodes", "1", "--actor-nodes", "2"]
        async with running(tmp_path / "run", *command, "--updates", "1000") as run:
            await run.until(lambda: run.updates() and len(run.fleets()) == 2, 120)
            lost = run.fleets()[0]
            machines.lose(lost)
            await run.until(lambda: not psutil.pid_exists(lost))
            await run.until(lambda: len(run.fleets()) == 2)
            before = len(run.updates())
            await run.until(lambda: len(run.updates()) >= before + 3)
            machines.lose(learner_of(run))
            assert await run.ended() == 1 and "Ray has lost the machine" in run.output, run.output
            assert run.left_over() == [] and run.fleets() == []
            done = len(run.updates())
        async with running(tmp_path / "run", *command, "--updates", "1000") as run:
            await run.until(lambda: len(run.updates()) > done, 120)
            machines.lose(run.pid_of("controller"))
            assert (
                await run.ended() == 1 and "the machine of the controller is lost" in run.output
            ), run.output
            assert run.left_over() == [] and run.fleets() == []
            done = len(run.updates())
        async with running(tmp_path / "run", *command, "--updates", "1000") as run:
            await run.until(lambda: len(run.updates()) > done, 120)
            run.process.send_signal(signal.SIGINT)
            assert await run.ended() == 130, run.output
            assert run.summary()["ended"] == "interrupted" and run.left_over() == []
            done = run.summary()["updates"]
        async with running(tmp_path / "run", *command, "--updates", str(done + 1)) as run:
            assert await run.ended() == 0, run.output
            assert run.summary()["updates"] == done + 1 and run.left_over() == []
            assert set(run.summary()["dropped"]) <= {"canceled"}, (
                "what was under way when it was interrupted"
            )
            played = [t.key for t in run.trajectories() if not t.key.evaluation]
            assert len(played) == len(set(played))


def learner_of(run: Run) -> int:
    """The learner itself, and not what waits for it where the controller is."""
    start = f" -m learner {run.directory}/job.json"
    (found,) = [
        pid
        for pid, command in processes()
        if start in command and "supervisor.cluster.ray" not in command
    ]
    return found
