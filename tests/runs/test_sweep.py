"""Sweeps as they run: how one goes on after it was killed, and what it says of runs that fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from learner.checkpoint import by_update
from protocol.lifetime import dying_with_parent
from supervisor.cli.main import main
from supervisor.cli.sweep import Cell, count_updates, is_finished
from tests.fixtures import ROOT
from tests.fixtures.runs import options, processes, small_engine, with_shadows


@pytest.mark.slow
async def test_a_sweep_that_was_killed_goes_on_where_it_stopped(
    tmp_path: Path, small_policy: Path
) -> None:
    directory = tmp_path / "sweep"
    first, second = (directory / Cell((("max_staleness", value),), 0).name for value in "01")
    async with small_engine(small_policy) as settings:
        settings |= {"run.max_updates": "3", "max_staleness": "0,1"}
        process = await begin_sweep(directory, settings)
        async with asyncio.timeout(120):
            while count_updates(second) < 1:
                assert process.returncode is None, (await process.stdout.read()).decode()
                await asyncio.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        async with asyncio.timeout(30):
            while any(str(directory) in command for _, command in processes()):
                await asyncio.sleep(0.05)
        assert is_finished(first) and not is_finished(second)
        before = (first / "metrics.jsonl").stat().st_mtime_ns
        process = await begin_sweep(
            directory, settings, with_shadows(tmp_path / "mine", "random")
        )  # where none of ours is another one
        async with asyncio.timeout(120):
            out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert "2 of 2 runs" in out.decode() and (first / "metrics.jsonl").stat().st_mtime_ns == before
    assert count_updates(second) == 3
    assert len(by_update(second)) == 3  # those of the process that was killed, too
    written = json.loads((directory / "figures.json").read_text())
    assert [row["settings"] for row in written["rows"]] == [
        {"max_staleness": "0"},
        {"max_staleness": "1"},
    ]
    assert [effect["setting"] for effect in written["effects"]] == ["max_staleness"]
    assert written["rows"][1]["speed_up"] > 0 and "<table" in (directory / "sweep.html").read_text()


async def begin_sweep(
    directory: Path, settings: dict[str, str], cwd: Path = ROOT
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "run.py"),
        "sweep",
        str(directory),
        *options(settings),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=dying_with_parent(),
    )


def test_a_run_that_fails_is_named_with_its_last_words_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "[/red]"
    model.mkdir(parents=True)  # a path that reads like markup
    assert main(["sweep", str(tmp_path / "sweep"), "--model", str(model)]) == 1
    said = capsys.readouterr().out
    assert (
        "seed=0 failed" in said
        and "[/red]" in said
        and "no Hugging Face" in said.replace("\n", " ")
    )
