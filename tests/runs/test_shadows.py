"""Modules of the user's own with the names of ours take the place of none of ours.

They are in the working directory or on PYTHONPATH.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from supervisor.process import our_environment, spawn
from tests.fixtures import ROOT
from tests.fixtures.runs import SMALL, options, running, with_shadows

FOREIGN = ("random", "torch", "zmq")
"""Names of others' modules, which are found in the working directory by `python -m` alone."""


async def test_serial_run_in_a_directory_of_shadows_runs_and_is_interrupted(
    tmp_path: Path, small_policy: Path
) -> None:
    """A run of one process goes on in a directory full of modules with the names of ours."""
    settings = SMALL | {
        "run.dir": str(tmp_path / "run"),
        "model.name": str(small_policy),
        "env.max_turns": "2",
        "run.max_updates": "1000",
        "learner.checkpoint_every": "1000",
    }
    async with running(
        tmp_path / "run",
        "--serial",
        *options(settings),
        cwd=with_shadows(tmp_path / "mine", *FOREIGN),
    ) as run:
        await run.until(run.updates)
        run.process.send_signal(signal.SIGTERM)
        assert await run.ended() == 130, run.output
        assert run.output.endswith(f"to go on: python run.py --serial --resume {run.directory}\n")
        assert run.summary()["ended"] == "interrupted"
        assert [int(path.name) for path in (run.directory / "checkpoints").iterdir()] == [
            run.summary()["updates"]
        ]


@pytest.mark.parametrize("path", [[ROOT], [ROOT, ""]], ids=["ours alone", "and an empty entry"])
async def test_run_as_a_module_finds_ours_wherever_it_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: list
) -> None:
    mine = with_shadows(tmp_path / "mine")
    (mine / "run.py").unlink()  # `python -m run` asks for it by name
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, path)))
    async with running(
        tmp_path, "play", "--watch", "expert", cwd=mine, program=("-m", "run")
    ) as run:
        assert await run.ended() == 0 and "solved" in run.output, run.output


async def test_run_py_finds_ours_where_python_leaves_out_its_directory(tmp_path: Path) -> None:
    async with running(
        tmp_path,
        "--dry-run",
        cwd=with_shadows(tmp_path / "mine"),
        program=("-P", str(ROOT / "run.py")),
    ) as run:
        assert await run.ended() == 0 and "[learner]" in run.output, run.output


def test_process_of_a_run_finds_our_modules_first_then_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of a run finds ours first then the users and nothing in the working directory."""
    monkeypatch.chdir(with_shadows(tmp_path / "mine", "random"))
    theirs = with_shadows(tmp_path / "theirs")
    (theirs / "their_game.py").write_text(
        "import config, random, sys\nprint(config.__file__, sys.flags.safe_path)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(theirs)]))
    child = spawn("game", ["their_game"], tmp_path / "log")
    assert child.process.wait(60) == 0, child.log.read_text()
    assert child.log.read_text().split() == [str(ROOT / "config/__init__.py"), "True"]
    assert our_environment()["PYTHONPATH"] == os.pathsep.join([str(ROOT), str(theirs)])
