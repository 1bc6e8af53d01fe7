"""Commands that cannot become a run are refused in a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

import pytest

from protocol.lifetime import dying_with_parent
from supervisor.job import job_file, save_job
from tests.fixtures import ROOT
from tests.fixtures.runs import (
    job_in,
    run_refused,
    running,
    small_config,
)
from tests.fixtures.servers import silent_server

pytestmark = pytest.mark.slow


async def test_an_unknown_setting_is_refused_with_the_nearest_name(tmp_path: Path):
    assert "did you mean learner.learning_rate?" in await run_refused(
        "--learner.learning-rat=1", f"--run-dir={tmp_path / 'run'}"
    )
    assert not (tmp_path / "run").exists()


async def test_a_model_that_does_not_exist_is_refused(tmp_path: Path):
    assert "model.name" in await run_refused(
        "--model", str(tmp_path / "none"), f"--run-dir={tmp_path / 'run'}"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["controller.port", "learner.port"])
async def test_a_port_in_use_is_refused_naming_the_setting(tmp_path: Path, setting: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert setting in await run_refused(f"--{setting}={port}", f"--run-dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


async def test_too_little_memory_for_the_engine_is_refused_naming_the_setting(tmp_path: Path):
    assert "engine.kv_cache_gb" in await run_refused(
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
    assert "run.dir" in await run_refused(f"--run-dir={tmp_path}")


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
