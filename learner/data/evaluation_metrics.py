"""Figures of an evaluation: of each set of tasks, by the version of the weights that played it.

Names and units: telemetry/metrics_schema.py.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from config import EvaluationPlan
from config.evaluation import ONLY_SET, PlannedSet
from learner.data.rollout_metrics import count_generated_tokens, episode_metrics
from protocol.messages import Trajectory
from telemetry.analysis.repeated_trials import (
    Estimate,
    Trials,
    estimate_pass_at_k,
    reported_ks,
)
from telemetry.metrics_schema import SET_PREFIX


def evaluation_metrics(
    trajectories: Sequence[Trajectory], plan: EvaluationPlan, version: int
) -> dict[str, float]:
    """Measure the episodes of an evaluation of the weights `version`.

    One that was dropped counts for nothing: it is neither a success nor a failure. Neither is one
    with a token of other weights (invariant 13). Where sets have names, the first one's figures are
    the evaluation's.
    """
    episodes_by_set: dict[str, list[Trajectory]] = {one.name: [] for one in plan.sets}
    for episode in trajectories:
        if is_of_version(episode, version):
            episodes_by_set[plan.locate(episode.key.member).set.name].append(episode)
    metrics = _set_metrics(plan, plan.sets[0], episodes_by_set[plan.sets[0].name])
    metrics["evaluation_tokens"] = float(sum(map(count_generated_tokens, trajectories)))
    for one in plan.sets:
        if one.name != ONLY_SET:
            figures = _set_metrics(plan, one, episodes_by_set[one.name])
            metrics |= {
                f"{SET_PREFIX}{one.name}/{name}": figure for name, figure in figures.items()
            }
    return metrics


def is_of_version(episode: Trajectory, version: int) -> bool:
    """Tell if an episode was played to its end, and by no other weights."""
    return episode.drop_reason is None and all(
        span.version == version
        for turn in episode.turns
        for response in (turn.kept, *turn.rejected)
        for span in response.spans
    )


def count_trials(plan: EvaluationPlan, episodes: Iterable[Trajectory]) -> list[Trials]:
    """Count samples and successes of each task that was played, in the plan's order."""
    outcomes: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for episode in episodes:
        planned = plan.locate(episode.key.member)
        outcomes[planned.set.name, planned.index].append(episode.success)
    return [Trials(sum(of_task), len(of_task)) for of_task in outcomes.values()]


def _set_metrics(
    plan: EvaluationPlan, planned: PlannedSet, episodes: Sequence[Trajectory]
) -> dict[str, float]:
    trials = count_trials(plan, episodes)
    success = estimate_pass_at_k(trials) or Estimate(math.nan, math.nan, math.nan, 0)
    episodes_by_type = defaultdict(list)
    for episode in episodes:
        episodes_by_type[episode.task_type].append(episode)
    metrics = {
        **episode_metrics(episodes),
        "tasks": float(success.tasks),
        "unplayed": float(planned.episodes - len(episodes)),
        "success": success.mean,
        "success_low": success.low,
        "success_high": success.high,
    }
    for k in reported_ks(planned.samples):
        estimate = estimate_pass_at_k(trials, k)
        metrics[f"pass_at/{k}"] = estimate.mean if estimate else math.nan
    for name, of_type in sorted(episodes_by_type.items()):
        estimate = estimate_pass_at_k(count_trials(plan, of_type))
        metrics[f"success/{name}"] = estimate.mean if estimate else math.nan
    return metrics
