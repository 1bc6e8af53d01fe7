"""What trajectories say about the policy that played them.

Names and units: telemetry/metrics_schema.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from protocol.arrays import FLOAT32, UINT8, unpack
from protocol.messages import StopReason, Trajectory, Turn


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Of the episodes of one training batch, none of them dropped."""
    turns = [turn for t in trajectories for turn in t.turns]
    rejected = [attempt for turn in turns for attempt in turn.rejected]
    return {
        **_common(trajectories, turns),
        "response_tokens": _mean([turn.kept.length for turn in turns]),
        "thinking_tokens": _mean([turn.kept.thinking for turn in turns]),
        "truncated_share": _mean([turn.kept.stop is StopReason.LENGTH for turn in turns]),
        "entropy": mean_entropy(turns),
        "generated_tokens": float(sum(map(tokens_of, trajectories))),
        "wasted_tokens": float(sum(attempt.length for attempt in rejected)),
        "interventions": float(
            sum(event.kind == "intervene" for turn in turns for event in turn.kept.events)
        ),
        "resamples": float(len(rejected)),
        "unscored_tokens": float(sum(map(_unscored, turns))),
        "early_stalls": float(sum(attempt.stop is StopReason.EARLY for attempt in rejected)),
        "repetitions": float(sum(attempt.stop is StopReason.REPETITION for attempt in rejected)),
    }


def evaluation_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Of held-out episodes.

    One that was dropped counts for nothing: it is neither a success nor a failure.
    """
    played = [t for t in trajectories if t.drop_reason is None]
    turns = [turn for t in played for turn in t.turns]
    by_type = defaultdict(list)
    for t in played:
        by_type[t.task_type].append(t.success)
    return {
        **_common(played, turns),
        "evaluation_tokens": float(sum(map(tokens_of, played))),
        "evaluation_versions": float(
            len({span.version for turn in turns for span in turn.kept.spans})
        ),
        **{f"success/{name}": _mean(successes) for name, successes in sorted(by_type.items())},
    }


def tokens_of(episode: Trajectory) -> int:
    """Tokens generated for an episode, those of rejected attempts included."""
    return sum(attempt.length for turn in episode.turns for attempt in (turn.kept, *turn.rejected))


def mean_entropy(turns: Sequence[Turn]) -> float:
    """Mean entropy in nats of the tokens the policy chose, where the engine reported it; NaN
    without any."""
    total = 0.0
    count = 0
    for turn in turns:
        entropy = turn.kept.signal_table()[:, 0].astype(np.float64)
        if entropy.size:
            chosen = entropy[(unpack(turn.kept.mask, UINT8) > 0) & np.isfinite(entropy)]
            total = total + float(chosen.sum())
            count = count + chosen.size
    return total / count if count else float("nan")


def _unscored(turn: Turn) -> int:
    """Tokens of the kept response that the policy chose, and that have no log-prob."""
    return int((~np.isfinite(unpack(turn.kept.log_probs, FLOAT32)) & ~turn.kept.forced()).sum())


def _common(trajectories: Sequence[Trajectory], turns: Sequence[Turn]) -> dict[str, float]:
    return {
        "episodes": float(len(trajectories)),
        "success": _mean([t.success for t in trajectories]),
        "reward": _mean([sum(turn.reward for turn in t.turns) for t in trajectories]),
        "turns": _mean([len(t.turns) for t in trajectories]),
        "overflowed_share": _mean([t.overflowed for t in trajectories]),
        "cut_off_share": _mean([t.overflowed or t.truncated for t in trajectories]),
        "valid_action_rate": _mean([turn.valid for turn in turns]),
        **_scores(trajectories),
    }


def _scores(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over the episodes that report them."""
    names = sorted({name for t in trajectories for name in t.scores})
    return {
        f"score/{name}": _mean([t.scores[name] for t in trajectories if name in t.scores])
        for name in names
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
