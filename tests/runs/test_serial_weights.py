"""Weights in runs in one process: late ones, those of several engines, those before a collapse."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.fake.server import FakeEngine
from telemetry.analysis.collapse import SignWatch
from telemetry.metrics_schema import undocumented_names
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


def test_invariant_13_evaluations_beside_training_are_of_one_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An evaluation beside training is of one version, though engines are started again.

    There is one after each update, longer than that, of two sets and two samples. Engines lose
    their weights and their turns now and then, as one that is started again does.
    """
    restarts = itertools.count()

    class Restarting(FakeEngine):
        async def _generate(self, request):
            generator = self.generator
            if generator.version == "1" and next(restarts) % 40 == 20:
                generator.version = "default"
                for running in generator.requests:
                    running.finish("abort")
            return await super()._generate(request)

    monkeypatch.setattr("supervisor.serial.FakeEngine", Restarting)
    summary, trajectories, metrics = serial_run(
        tmp_path / "run",
        engine__count="2",
        run__max_updates="4",
        learner__max_staleness="2",
        eval__every="1",
        eval__samples="2",
        eval__sets__late__tasks="3",
        eval__sets__late__first_task="7",
        eval__sets__heat__tasks="2",
        eval__sets__heat__settings__task_types="pick_heat_then_place_in_recep",
        env__max_turns="6",
    )
    assert next(restarts) > 20, "an engine has lost its weights"
    evaluations = [line for line in metrics if line["kind"] == "evaluation"]
    assert [line["update"] for line in evaluations] == [0, 1, 2, 3, 4]
    assert all(line["unplayed"] == line["eval/heat/unplayed"] == 0 for line in evaluations)
    versions: dict[int, set[int]] = {}
    for episode in trajectories:
        spans = {span.version for turn in episode.turns for span in turn.kept.spans}
        if episode.key.evaluation:
            versions.setdefault(episode.key.group, set()).update(spans)
    assert versions == {number: {line["update"]} for number, line in enumerate(evaluations)}
    assert summary["success_by_set"].keys() == {"late", "heat"}
    assert summary["pass_at"].keys() == {"2"}
    assert (
        undocumented_names(sorted({name for line in evaluations for name in line} - {"kind"})) == []
    )
