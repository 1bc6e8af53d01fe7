"""What the learner makes of recorded episodes, for whoever shows them: advantages, and log-probs by
a policy of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import nan
from pathlib import Path

import msgspec
import numpy as np
import torch

from config import Config, LearnerSection
from learner.data.batching import collate
from learner.data.samples import build_samples
from learner.model.policy import load_policy, log_probs
from protocol.messages import EpisodeKey, Trajectory

WITHIN_GROUP = ("gigpo", "grpo", "rloo")
"""Advantage estimators that look at one group; others need the batch, or a value head as it was."""


def turn_advantages(
    group: Sequence[Trajectory], settings: LearnerSection
) -> dict[EpisodeKey, list[float]]:
    """The advantage of each turn of a whole group's episodes; empty for an estimator that looks
    beyond the group."""
    if settings.algorithm not in WITHIN_GROUP:
        return {}
    played = [episode for episode in group if episode.drop_reason is None]
    values = iter([sample.advantage for sample in build_samples([played], 0, settings)])
    return {episode.key: [next(values) for _ in episode.turns] for episode in played}


def token_log_probs(
    directory: Path, config: Config, episodes: Sequence[Trajectory]
) -> Iterator[list[np.ndarray]]:
    """For each episode, those of each turn's kept response [T] by the policy in a checkpoint's
    directory, at the sampling temperature; NaN for tokens that no policy chose."""
    policy = load_policy(directory)
    for episode in episodes:
        rows = []
        samples = (
            build_samples([[msgspec.structs.replace(episode, drop_reason=None)]], 0, config.learner)
            if episode.turns
            else []
        )
        for sample in samples:
            values = np.full(len(sample.mask), nan)
            if sample.mask.any():
                with torch.no_grad():
                    values[sample.mask] = log_probs(
                        policy, collate([sample]), config.sampling.temperature
                    )[0].numpy()
            rows.append(values)
        yield rows
