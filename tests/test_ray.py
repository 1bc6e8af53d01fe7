"""`run.py ray` on a Ray cluster of this machine alone: the run, its learner and its actors, each where Ray has put it."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_fixtures import running, small_elsewhere

from protocol.lifetime import dying_with_parent
from supervisor.endpoints import free_port

pytest.importorskip("ray", reason="pip install -e '.[ray]'")

pytestmark = pytest.mark.slow


async def test_no_cluster_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """First of all: Ray finds a cluster of this machine by itself."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    async with running(tmp_path, "ray", str(tmp_path / "run")) as run:
        assert await run.ended(60) == 2
        assert "there is no Ray cluster here" in run.output and not (tmp_path / "run-keys").exists()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """RAY_ADDRESS names it."""
    log = tmp_path_factory.mktemp("ray") / "ray.log"
    port = free_port()
    options = [
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=4",
        "--include-dashboard=false",
        "--disable-usage-stats",
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--object-store-memory={80 << 20}",
    ]
    with pytest.MonkeyPatch.context() as environment, log.open("wb") as output:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        environment.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        ray = str(Path(sys.executable).with_name("ray"))
        how = {"stdout": output, "stderr": output, "start_new_session": True, "preexec_fn": dying_with_parent()}
        process = subprocess.Popen([ray, "start", *options], **how)
        try:
            deadline = time.monotonic() + 60
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


async def test_a_run_with_places_of_their_own_for_actors_and_learner(cluster: None, tmp_path: Path, small_policy):
    """Begun, interrupted, and gone on with by the same command."""
    async with small_elsewhere(tmp_path / "run", small_policy) as arguments:
        command = ["ray", *arguments, "--learner-node"]
        async with running(tmp_path / "run", *command, "--updates", "1000") as run:
            await run.until(run.updates)
            run.process.send_signal(signal.SIGINT)
            assert await run.ended() == 130, run.output
            assert run.summary()["ended"] == "interrupted" and run.left_over() == []
            done = run.summary()["updates"]
        assert '"supervisor.on_ray"' in (run.directory / "config.toml").read_text(), "the learner was started by it, where Ray says"
        async with running(tmp_path / "run", *command, "--updates", str(done + 1)) as run:
            assert await run.ended() == 0, run.output
            assert run.summary()["updates"] == done + 1 and run.left_over() == []
            assert set(run.summary()["dropped"]) <= {"cancelled"}, "what was under way when it was interrupted"


async def test_too_small_a_cluster_is_said_so(cluster: None, tmp_path: Path):
    async with running(tmp_path, "ray", str(tmp_path / "run"), "--gpus", "8", "--wait", "1") as run:
        assert await run.ended(90) == 2
        assert "Ray has no room for" in run.output and "GPU" in run.output
