"""Weights in runs in one process: late ones, those of several engines, those before a collapse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from telemetry.analysis.collapse import SignWatch
from tests.fixtures.runs import (
    record_engines,
    serial_run,
)

pytestmark = pytest.mark.slow


def test_a_run_that_shows_signs_of_a_collapse_goes_on_from_the_weights_before_them(
    tmp_path: Path, imitating: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    observe = SignWatch.observe
    monkeypatch.setattr(
        SignWatch,
        "observe",
        lambda self, update: observe(self, update) | {"always": "each update is one"},
    )
    settings = imitating | {
        "run__max_updates": "3",
        "learner__rollback": "0.5",
        "learner__learning_rate": "1e-3",
        "env__max_turns": "4",
    }
    summary, trajectories, metrics = serial_run(
        tmp_path / "run", **settings, learner__max_staleness="0"
    )
    updates = [line for line in metrics if line["kind"] == "update"]
    assert [line.get("rolled_back_to") for line in updates] == [0, None, 0] and summary[
        "rollbacks"
    ] == 2
    assert [line["learning_rate"] for line in updates] == [1e-3, 5e-4, 5e-4]
    start, end = (
        load_file(tmp_path / "run" / "checkpoints" / name / "model.safetensors")
        for name in ("000000", "000003")
    )
    assert all(torch.equal(start[name], end[name]) for name in start) and any(
        line["grad_norm"] > 0 for line in updates
    )
    assert (
        max(span.version for t in trajectories for turn in t.turns for span in turn.kept.spans) == 3
    )


def test_weights_that_go_out_late_make_every_token_as_old_as_that(
    tmp_path: Path, imitating: dict[str, str]
):
    settings = imitating | {
        "learner__max_staleness": "2",
        "learner__publish_lag": "2",
        "run__max_updates": "5",
        "env__max_turns": "4",
    }
    _, trajectories, metrics = serial_run(tmp_path / "run", **settings)
    updates = [line for line in metrics if line["kind"] == "update"]
    assert [(line["token_age_mean"], line["token_age_max"]) for line in updates] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (2, 2),
        (2, 2),
    ]
    assert {
        span.version
        for t in trajectories
        if t.key.evaluation
        for turn in t.turns
        for span in turn.kept.spans
    } == {0, 5}


def test_engines_share_the_turns_and_all_run_the_newest_weights(tmp_path: Path, monkeypatch):
    made = record_engines(monkeypatch)
    summary, _, _ = serial_run(
        tmp_path / "run", engine__count="2", run__max_updates="1", env__max_turns="2"
    )
    assert summary["ended"] == "finished" and summary["updates"] == 1
    assert len(made) == 2 and {engine.generator.version for engine in made} == {"1"}
    assert all(engine.turns > 4 for engine in made)
