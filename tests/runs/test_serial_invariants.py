"""Runs in one process hold the invariants of a run, by what they leave behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import engine.pool
from protocol.arrays import FLOAT16, FLOAT32, UINT8, unpack
from protocol.messages import Trajectory
from telemetry.metrics_schema import undocumented_names
from tests.fixtures.runs import (
    select_trained,
    serial_run,
    small_config,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[Trajectory], list[dict]]:
    """Play a run with control that acts often.

    Thinking is cut after 3 tokens, and every turn that can be is sampled again.
    """
    return serial_run(
        tmp_path_factory.mktemp("serial") / "run",
        run__max_updates="3",
        control__max_thinking="3",
        control__t2po__min_thinking="1",
        control__t2po__eta="1e9",
        control__t2po__max_resamples="1",
        learner__max_staleness="1",
        env__curriculum_half_life="10",
    )


def test_it_ends_by_itself_with_summary_and_metrics(finished):
    summary, _, metrics = finished
    assert (summary["ended"], summary["updates"]) == ("finished", 3)
    assert [m["kind"] for m in metrics] == [
        "evaluation",
        "update",
        "update",
        "update",
        "evaluation",
    ]


def test_curriculum_knows_the_tasks_that_were_played(finished):
    _, episodes, metrics = finished
    last_update = [line for line in metrics if line["kind"] == "update"][-1]
    tasks = {episode.task_index for episode in episodes if not episode.key.evaluation}
    assert 0 < last_update["curriculum_tasks"] <= len(tasks)
    assert 0 < last_update["curriculum_success"] <= 0.5  # its policy solves next to nothing
    assert 0 <= last_update["curriculum_known_share"] <= 1


def test_every_metric_it_writes_is_documented(finished):
    _, _, metrics = finished
    assert (
        undocumented_names(sorted({name for line in metrics for name in line if name != "kind"}))
        == []
    )


def test_invariant_1_nothing_is_played_before_the_learners_weights_are_in_the_engine(
    tmp_path: Path, monkeypatch
):
    """Weights that an engine starts with have no version, so would be older than any bound."""
    real = engine.pool.update_engine

    async def slow_at_first(engine, path, version, *rest, **named):
        await asyncio.sleep(2.0 if version == 0 else 0.0)  # a lease needs milliseconds
        return await real(engine, path, version, *rest, **named)

    monkeypatch.setattr(engine.pool, "update_engine", slow_at_first)
    _, trajectories, _ = serial_run(tmp_path / "run", run__max_updates="1")
    assert (
        min(span.version for t in trajectories for turn in t.turns for span in turn.kept.spans) == 0
    )


def test_invariant_2_age_is_per_token_from_the_engines_spans(finished):
    _, trajectories, metrics = finished
    for t in select_trained(trajectories):
        for turn in t.turns:
            spans = turn.kept.spans
            assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
            assert spans[-1].stop == len(turn.kept.mask)
    assert all(m["token_age_max"] <= 1 for m in metrics if m["kind"] == "update")


def test_invariant_3_every_admitted_episode_was_trained_on_or_dropped_once(finished):
    summary, trajectories, _ = finished
    assert set(Counter(t.key for t in trajectories).values()) == {1}
    assert len(select_trained(trajectories)) == 3 * 2 * 2 + summary["dropped"].get("canceled", 0)


def test_invariant_6_evaluation_has_no_control_and_rejected_attempts_say_why(finished):
    _, trajectories, _ = finished
    turns = [(t, turn) for t in trajectories for turn in t.turns]
    assert all(not turn.kept.events and not turn.rejected for t, turn in turns if t.key.evaluation)
    resampled = [turn for t, turn in turns if turn.rejected]
    assert resampled and all(
        attempt.events[-1].kind == "resample" for turn in resampled for attempt in turn.rejected
    )
    for _, turn in turns:
        finite = np.isfinite(unpack(turn.kept.log_probs, FLOAT32))
        assert not (unpack(turn.kept.mask, UINT8)[~finite]).any()


def test_invariant_12_credits_bound_every_queue_and_each_depth_is_a_metric(finished):
    """Credits admit (S+1) P groups of G episodes at most.

    An actor has one turn in flight for each episode it plays.
    """
    _, _, metrics = finished
    settings = small_config()
    groups = (1 + 1) * settings.learner.groups_per_update
    bounds = {
        "slots_taken": groups,
        "queue_leases": groups * settings.learner.group_size + settings.eval.episodes,
        "queue_trajectories": groups * settings.learner.group_size,
        "queue_weights": 1 + 1,
        "episodes_in_flight": settings.actor.count * settings.actor.episodes_per_actor,
        "turns_in_flight": settings.actor.count * settings.actor.episodes_per_actor,
    }
    for name, bound in bounds.items():
        depths = [m[name] for m in metrics if name in m]
        assert depths and max(depths) <= bound, name


def test_uncertainty_and_entropy_are_recorded_for_every_token(finished):
    _, trajectories, _ = finished
    for t in select_trained(trajectories):
        for turn in t.turns:
            assert np.isfinite(unpack(turn.kept.uncertainty, FLOAT16)).all()
            assert len(turn.kept.signal_table()) == len(turn.kept.mask)


def test_invariant_7_at_learning_rate_0_nothing_drifts(tmp_path: Path, imitating: dict[str, str]):
    _, _, metrics = serial_run(
        tmp_path / "run",
        **imitating,
        learner__learning_rate="0",
        run__max_updates="3",
        env__max_turns="4",
    )
    updates = [m for m in metrics if m["kind"] == "update"]
    assert len(updates) == 3
    for m in updates:
        assert abs(m["ratio_p99"] - 1) < 1e-3 and abs(m["ratio_p01"] - 1) < 1e-3
        assert abs(m["kl"]) < 1e-4
