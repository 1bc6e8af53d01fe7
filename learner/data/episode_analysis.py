"""Advantages and log-probs of recorded episodes, for whoever shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import nan
from pathlib import Path

import msgspec
import numpy as np
import torch
from transformers import PreTrainedModel

from config import Config, LearnerSection
from learner.data.batching import collate
from learner.data.samples import TrainingSample, build_samples
from learner.model.policy import load_policy, log_probs
from protocol.messages import EpisodeKey, Trajectory

WITHIN_GROUP = ("gigpo", "grpo", "rloo")
"""Advantage estimators that look at one group; others need the batch, or a value head as it was."""


def turn_advantages(
    group: Sequence[Trajectory], settings: LearnerSection
) -> dict[EpisodeKey, list[float]]:
    """Return the advantage of each turn of a complete group's episodes.

    It is empty for an estimator that looks beyond the group.
    """
    if settings.algorithm.type not in WITHIN_GROUP:
        return {}
    played = [episode for episode in group if episode.drop_reason is None]
    advantages = iter([sample.advantage for sample in build_samples([played], 0, settings)])
    return {episode.key: [next(advantages) for _ in episode.turns] for episode in played}


def token_log_probs(
    directory: Path, config: Config, episodes: Sequence[Trajectory]
) -> Iterator[list[np.ndarray]]:
    """Compute log-probs of the kept responses by the policy in a checkpoint's directory.

    For each episode, an array [T] a turn, at the sampling temperature; NaN for tokens that no
    policy chose.
    """
    policy = load_policy(directory)
    settings = msgspec.structs.replace(config.learner, truncated="train")  # masks no turn
    for episode in episodes:
        played = msgspec.structs.replace(episode, drop_reason=None)
        samples = []
        if episode.turns:
            samples = build_samples([[played]], 0, settings)
        yield [_score_response(policy, sample, config.sampling.temperature) for sample in samples]


def _score_response(
    policy: PreTrainedModel, sample: TrainingSample, temperature: float
) -> np.ndarray:
    values = np.full(len(sample.mask), nan)
    if sample.mask.any():
        with torch.no_grad():
            log_pi, _ = log_probs(policy, collate([[sample]]), temperature)
        values[sample.mask] = log_pi.numpy()
    return values
