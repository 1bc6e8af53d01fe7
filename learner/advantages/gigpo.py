"""GiGPO: GRPO, and below it a comparison of turns that saw the same (Feng et al. 2025, arXiv 2505.10978, §4.2, eq. 6-8)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from config import LearnerSection
from learner.advantages.grpo import grpo
from learner.advantages.returns import GroupReturns, centred


def gigpo(group: GroupReturns, settings: LearnerSection) -> list[np.ndarray]:
    """A = A_episode + omega A_step; omega is `step_weight`."""
    steps = step_advantages(group, settings)
    return [episode + settings.step_weight * step for episode, step in zip(grpo(group, settings), steps, strict=True)]


def step_advantages(group: GroupReturns, settings: LearnerSection) -> list[np.ndarray]:
    """Each turn's discounted return, against those of all turns of the group with the same anchor. A turn alone: 0.

    An episode may be in a cluster more than once: it came back to what it had seen.
    """
    returns = [discounted(episode.rewards, settings.discount) for episode in group.episodes]
    clusters: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
    for i, episode in enumerate(group.episodes):
        for k, anchor in enumerate(episode.anchors):
            clusters[anchor].append((i, k))
    advantages = [np.zeros(len(r)) for r in returns]
    for members in clusters.values():
        values = centred(np.array([returns[i][k] for i, k in members]), settings.normalise)
        for (i, k), value in zip(members, values, strict=True):
            advantages[i][k] = value
    return advantages


def discounted(rewards: np.ndarray, discount: float) -> np.ndarray:
    """R_k = r_k + discount R_{k+1}, for rewards [K]."""
    returns = np.zeros(len(rewards))
    following = 0.0
    for k in reversed(range(len(rewards))):
        following = rewards[k] + discount * following
        returns[k] = following
    return returns
