"""Figures of evaluations: by set and by task, of one version of the weights."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from config import EvalSection, EvalSetSection, EvaluationPlan
from config.evaluation import plan_evaluation
from learner.data.evaluation_metrics import evaluation_metrics
from protocol.messages import DropReason, EpisodeKey, Trajectory
from telemetry.metrics_schema import undocumented_names
from tests.fixtures.learner import random_turn

VERSION = 4


def episode(member: int, success: bool, versions: tuple[int, ...] = (VERSION,), **changes):
    """An episode of two turns, the second of which comes from weights `versions`."""
    rng = np.random.default_rng(member)
    turns = [random_turn(rng, 300, (VERSION,)), random_turn(rng, 300, versions)]
    played = Trajectory(
        key=EpisodeKey(0, member, True),
        lease_attempt=0,
        task_index=member,
        task_type="ab"[member % 2],
        task="t",
        success=success,
        turns=turns,
    )
    return msgspec.structs.replace(played, **changes)


def plan(samples: int = 1, **tasks: int) -> EvaluationPlan:
    sets = {name: EvalSetSection(tasks=count) for name, count in tasks.items()}
    return plan_evaluation(EvalSection(episodes=4, samples=samples, sets=sets))


def test_evaluation_metrics_without_sets_have_plain_names() -> None:
    outcomes = [True, False, False, True]
    metrics = evaluation_metrics([episode(i, s) for i, s in enumerate(outcomes)], plan(), VERSION)
    assert (metrics["success"], metrics["episodes"], metrics["tasks"]) == (0.5, 4, 4)
    assert (metrics["success/a"], metrics["success/b"]) == (0.5, 0.5)
    assert metrics["success_low"] < 0.5 < metrics["success_high"]
    assert not any("/" in name.replace("success/", "") for name in metrics)
    assert undocumented_names(list(metrics)) == []


def test_evaluation_metrics_of_sets_have_the_first_ones_as_the_evaluations() -> None:
    played = [episode(0, True), episode(1, False), episode(2, True), episode(3, True)]
    metrics = evaluation_metrics(played, plan(easy=1, hard=3), VERSION)
    assert (metrics["eval/easy/success"], metrics["eval/hard/success"]) == (1.0, 2 / 3)
    assert (metrics["success"], metrics["tasks"]) == (1.0, 1)
    assert metrics["eval/hard/episodes"] == 3 and metrics["eval/hard/success/b"] == 0.5
    assert metrics["evaluation_tokens"] == sum(
        turn.kept.length for one in played for turn in one.turns
    )
    assert undocumented_names(list(metrics)) == []


def test_evaluation_metrics_of_several_samples_count_each_task_once() -> None:
    """Task 0 is solved in one of two samples, task 1 in its only one, the others in none."""
    outcomes = {0: True, 4: False, 1: True, 2: False, 6: False, 3: False, 7: False}
    played = [episode(member, success) for member, success in outcomes.items()]
    metrics = evaluation_metrics(played, plan(samples=2), VERSION)
    assert (metrics["episodes"], metrics["tasks"], metrics["unplayed"]) == (7, 4, 1)
    assert metrics["success"] == pytest.approx((0.5 + 1) / 4)
    assert metrics["pass_at/2"] == pytest.approx(1 / 3), "of the tasks with two samples"
    assert undocumented_names(list(metrics)) == []


@pytest.mark.parametrize("changes", [{"versions": (VERSION, 5)}, {"versions": (3,)}])
def test_invariant_13_episodes_with_tokens_of_other_weights_count_for_nothing(
    changes: dict,
) -> None:
    played = [episode(0, True), episode(1, False, **changes), episode(2, False), episode(3, True)]
    metrics = evaluation_metrics(played, plan(), VERSION)
    assert (metrics["success"], metrics["unplayed"]) == (pytest.approx(2 / 3), 1)


def test_evaluation_metrics_of_dropped_episodes_are_of_nothing() -> None:
    dropped = [episode(i, True, drop_reason=DropReason.ENV_ERROR, turns=[]) for i in range(4)]
    metrics = evaluation_metrics(dropped, plan(), VERSION)
    assert (metrics["unplayed"], metrics["tasks"]) == (4, 0) and math.isnan(metrics["success"])
