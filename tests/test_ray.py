"""`run.py ray` on a Ray cluster of this machine alone: the run, its learner and its actors, each where Ray has put it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from run_fixtures import running, small_elsewhere

from supervisor.endpoints import free_port

pytest.importorskip("ray", reason="pip install -e '.[ray]'")

pytestmark = pytest.mark.slow


@contextlib.asynccontextmanager
async def cluster(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """RAY_ADDRESS names it while inside."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    port = free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    options = [
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=4",
        "--include-dashboard=false",
        "--disable-usage-stats",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    options += [f"--object-store-memory={80 << 20}"]
    with (directory / "ray.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("ray")), "start", *options, stdout=log, stderr=log, start_new_session=True
        )
    try:
        async with asyncio.timeout(60):
            while "Ray runtime started" not in (directory / "ray.log").read_text():
                assert process.returncode is None, (directory / "ray.log").read_text()
                await asyncio.sleep(0.1)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.wait(), 30)


async def test_a_run_with_places_of_their_own_for_actors_and_learner(tmp_path: Path, small_policy, monkeypatch: pytest.MonkeyPatch):
    """Begun, interrupted, and gone on with by the same command."""
    async with small_elsewhere(tmp_path / "run", small_policy) as arguments, cluster(tmp_path, monkeypatch):
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


async def test_no_cluster_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    async with running(tmp_path, "ray", str(tmp_path / "run")) as run:
        assert await run.ended(60) == 2
        assert "there is no Ray cluster here" in run.output and not (tmp_path / "run-keys").exists()


async def test_too_small_a_cluster_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with cluster(tmp_path, monkeypatch), running(tmp_path, "ray", str(tmp_path / "run"), "--gpus", "8", "--wait", "1") as run:
        assert await run.ended(90) == 2
        assert "Ray has no room for" in run.output and "GPU" in run.output
