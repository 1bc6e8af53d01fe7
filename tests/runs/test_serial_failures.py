"""Failures in runs in one process: each is one sentence, and costs no more than it must."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

import learner.publish
from controller.turns import TurnRunner
from envs.registry import make_environment
from learner.checkpoint import latest
from protocol.messages import DropReason
from supervisor.process import RunFailed
from supervisor.serial import train_serially
from telemetry.sinks.metrics_file import METRICS_FILE
from tests.fixtures.runs import (
    job_in,
    serial_run,
    small_config,
)

pytestmark = pytest.mark.slow


def test_weights_that_cannot_be_written_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are written beside training, which would wait for ever for episodes of theirs."""
    real = learner.publish.save_file

    def full(tensors: dict, path: Path) -> None:
        if ".v1-" in path.name:
            raise OSError("no space left on device")
        real(tensors, path)

    monkeypatch.setattr(learner.publish, "save_file", full)
    with pytest.raises((ExceptionGroup, RuntimeError, OSError)) as error:
        serial_run(tmp_path / "run", learner__max_staleness="0")
    assert re.search(
        r"v1\.safetensors cannot be written: no space left on device "
        r"\(run\.weights_dir; .* MB left\)",
        repr(error.value),
    )


def test_a_turn_that_fails_inside_the_controller_costs_its_episode_not_the_run(
    tmp_path: Path, monkeypatch
):
    calls = itertools.count(1)
    real = TurnRunner.run

    async def failing_once(self, request, seed):
        if next(calls) == 12:  # of training: evaluation has at most 8 turns
            raise ZeroDivisionError("injected")
        return await real(self, request, seed)

    monkeypatch.setattr(TurnRunner, "run", failing_once)
    summary, trajectories, _ = serial_run(tmp_path / "run")
    assert summary["ended"] == "finished" and summary["dropped"]["engine_error"] == 1
    failed = next(t for t in trajectories if t.drop_reason is DropReason.ENGINE_ERROR)
    assert "ZeroDivisionError" in failed.detail and summary["failures"] == {
        "engine_error": f"{failed.key.id}: {failed.detail}"
    }


def test_metrics_that_cannot_be_written_end_the_run_with_a_checkpoint(
    tmp_path: Path,
):
    """Figures that cannot be written end the run with a checkpoint and one sentence."""
    job = job_in(tmp_path / "run", small_config(run__max_updates="50"))
    (tmp_path / "run" / METRICS_FILE).symlink_to("/dev/full")
    sentence = (
        r"^\S*metrics\.jsonl cannot be written: No space left on device \(run\.dir; .* MB left\)$"
    )
    with pytest.raises(RunFailed, match=sentence) as error:
        asyncio.run(train_serially(job, Console(quiet=True)))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["ended"] == str(error.value)
    assert latest(tmp_path / "run").name == f"{summary['updates']:06d}" < "000050"


def test_an_environment_of_which_nothing_can_be_played_ends_the_run_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def start(self, split, index, seed):
        raise KeyError("no such room")

    job = job_in(tmp_path / "run", small_config())
    monkeypatch.setattr(type(make_environment("alfworld")), "start", start)
    with pytest.raises(
        RunFailed,
        match=(
            r"^none of the first 64 episodes "
            r".*KeyError: 'no such room' \(.*test_serial_failures.py:\d+ in start\)"
        ),
    ):
        asyncio.run(train_serially(job, Console(quiet=True)))
