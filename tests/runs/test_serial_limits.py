"""Ends of runs in one process: updates, minutes and tokens, before a resume and after it."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from controller.controller import Controller
from learner.learner import Learner
from learner.training import Training
from supervisor.cli.train import resolve_run
from supervisor.job import prepare_job
from supervisor.serial import train_serially
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics
from tests.fixtures.runs import (
    play_serially,
    serial_run,
    small_config,
)

pytestmark = pytest.mark.slow


def test_the_step_size_falls_with_the_updates_that_are_left(tmp_path: Path):
    settings = {
        "learner__lr_decay_fraction": "1",
        "learner__learning_rate": "1e-3",
        "run__max_updates": "4",
        "run__max_minutes": "1000000",
        "env__max_turns": "1",
    }
    summary, _, metrics = serial_run(tmp_path / "run", **settings)
    assert [m["learning_rate"] for m in metrics if m["kind"] == "update"] == pytest.approx(
        [1e-3, 0.75e-3, 0.5e-3, 0.25e-3], rel=1e-4
    )
    assert list(summary["seconds_by_phase"])[-2:] == ["training", "ending"]


def test_the_minutes_before_a_resume_count(tmp_path: Path):
    directory = tmp_path / "run"
    play_serially(
        directory, small_config(run__dir=str(directory), run__max_updates="1", env__max_turns="1")
    )
    lasted = read_metrics(directory / METRICS_FILE)[-1]["wall_seconds"]

    def resumed(minutes: float) -> dict:
        resolution, _ = resolve_run(
            None, directory, {"run.max_updates": "2", "run.max_minutes": str(minutes)}, serial=True
        )
        return asyncio.run(
            train_serially(
                prepare_job(resolution.config, resume=True, model=None), Console(quiet=True)
            )
        )

    assert resumed(lasted / 60)["updates"] == 1
    assert resumed(lasted / 60 + 10)["updates"] == 2


def test_a_clock_that_is_set_forward_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hours = itertools.count()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * next(hours))  # an hour at each look
    summary, _, metrics = serial_run(tmp_path / "run", run__max_minutes="10", env__max_turns="1")
    assert summary["ended"] == "finished" and summary["updates"] == 2
    assert max(line["wall_seconds"] for line in metrics) < 600


def test_a_resumed_run_keeps_when_its_training_began_and_its_curriculum(tmp_path: Path):
    """From when it began the step size falls by time."""
    directory = tmp_path / "run"
    config = small_config(
        run__dir=str(directory),
        run__max_updates="1",
        env__max_turns="1",
        env__curriculum_half_life="100",
    )
    play_serially(directory, config)
    resolution, _ = resolve_run(None, directory, {"run.max_updates": "2"}, serial=True)
    job = prepare_job(resolution.config, resume=True, model=None)
    asyncio.run(train_serially(job, Console(quiet=True)))
    states = [
        json.loads(file.read_text())
        for file in sorted(directory.glob("checkpoints/*/training_state/state.json"))
    ]
    records = [json.loads(state["control"])["curriculum"] for state in states]
    assert records[0].keys() < records[1].keys()
    first, second = (state["began"] for state in states)
    assert 0 < first == second < read_metrics(directory / METRICS_FILE)[-1]["wall_seconds"]


def test_training_ends_when_its_tokens_are_generated_though_other_batches_wait(
    tmp_path: Path, monkeypatch
):
    real = Training.update

    def slow(self, *arguments):
        time.sleep(2.0)  # in the training thread; other batches are played meanwhile
        return real(self, *arguments)

    monkeypatch.setattr(Training, "update", slow)
    _, _, metrics = serial_run(
        tmp_path / "run",
        run__max_updates="50",
        run__max_tokens="1",
        env__max_turns="1",
        learner__max_staleness="5",
    )
    assert len([m["training_tokens"] for m in metrics if m["kind"] == "update"]) == 1


def test_the_end_waits_for_what_is_canceled_however_late_the_controller_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = Controller.finish_training

    async def late(self):
        await asyncio.sleep(3.0)  # the learner has nothing else to do meanwhile
        await real(self)

    monkeypatch.setattr(Controller, "finish_training", late)
    monkeypatch.setattr(Learner, "evaluate", no_evaluation)
    summary, _, _ = serial_run(
        tmp_path / "run",
        run__max_updates="50",
        run__max_tokens="1",
        env__max_turns="1",
        learner__max_staleness="1",
    )
    assert summary["dropped"] == {"canceled": 8}, "all episodes of the four slots"


async def no_evaluation(self, wait: bool) -> None:
    """As after Ctrl-C."""
