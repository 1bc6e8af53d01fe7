"""Figures of the policy that played trajectories for training.

Names and units: telemetry/metrics_schema.py. A mean over nothing is NaN, as all figures are
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from learner.data.samples import is_truncated
from protocol.arrays import FLOAT32, UINT8, unpack
from protocol.messages import Response, StopReason, Trajectory, Turn


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Measure the episodes of one training batch, none of them dropped."""
    turns = [turn for episode in trajectories for turn in episode.turns]
    rejected = [response for turn in turns for response in turn.rejected]
    events = [event for turn in turns for event in turn.kept.events]
    return {
        **episode_metrics(trajectories),
        "response_tokens": _mean([turn.kept.length for turn in turns]),
        "thinking_tokens": _mean([turn.kept.thinking for turn in turns]),
        "entropy": mean_entropy(turns),
        "generated_tokens": float(sum(map(count_generated_tokens, trajectories))),
        "wasted_tokens": float(sum(response.length for response in rejected)),
        "interventions": float(sum(event.kind == "intervene" for event in events)),
        "resamples": float(len(rejected)),
        "unscored_tokens": float(sum(map(_count_unscored_tokens, turns))),
        "early_stalls": _count_stops(rejected, StopReason.EARLY),
        "repetitions": _count_stops(rejected, StopReason.REPETITION),
    }


def episode_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Measure episodes, none of them dropped, by what training and evaluation have in common."""
    turns = [turn for episode in trajectories for turn in episode.turns]
    return {
        "episodes": float(len(trajectories)),
        "success": _mean([episode.success for episode in trajectories]),
        "reward": _mean([sum(turn.reward for turn in episode.turns) for episode in trajectories]),
        "turns": _mean([len(episode.turns) for episode in trajectories]),
        "overflowed_share": _mean([episode.overflowed for episode in trajectories]),
        "cut_off_share": _mean(
            [episode.overflowed or episode.truncated for episode in trajectories]
        ),
        "rewritten_share": _mean([episode.rewrites > 0 for episode in trajectories]),
        "truncated_share": _mean([is_truncated(turn) for turn in turns]),
        "valid_action_rate": _mean([turn.valid for turn in turns]),
        **_mean_scores(trajectories),
    }


def count_generated_tokens(episode: Trajectory) -> int:
    """Count the tokens generated for an episode, those of rejected responses included."""
    return sum(
        response.length for turn in episode.turns for response in (turn.kept, *turn.rejected)
    )


def mean_entropy(turns: Sequence[Turn]) -> float:
    """Return the mean entropy in nats of the tokens that the policy chose.

    Tokens count where the engine reported it; NaN without any.
    """
    total = 0.0
    count = 0
    for turn in turns:
        entropy = turn.kept.signal_table()[:, 0].astype(np.float64)
        if entropy.size:
            chosen = entropy[(unpack(turn.kept.mask, UINT8) > 0) & np.isfinite(entropy)]
            total += float(chosen.sum())
            count += chosen.size
    if not count:
        return math.nan
    return total / count


def _count_unscored_tokens(turn: Turn) -> int:
    """Count tokens of the kept response that the policy chose, and that have no log-prob."""
    log_probs = unpack(turn.kept.log_probs, FLOAT32)
    return int((~np.isfinite(log_probs) & ~turn.kept.forced()).sum())


def _count_stops(responses: Sequence[Response], reason: StopReason) -> float:
    return float(sum(response.stop is reason for response in responses))


def _mean_scores(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Average each score over the episodes that report it."""
    names = sorted({name for episode in trajectories for name in episode.scores})
    return {
        f"score/{name}": _mean(
            [episode.scores[name] for episode in trajectories if name in episode.scores]
        )
        for name in names
    }


def _mean(values: Sequence[float]) -> float:
    if not len(values):
        return math.nan
    return float(np.mean(values))
