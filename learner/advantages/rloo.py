"""RLOO: an episode's return less the mean of the others' of its group (Ahmadian et al. 2024, arXiv 2402.14740, eq. 7)."""

from __future__ import annotations

import numpy as np

from config import LearnerSection
from learner.advantages.returns import GroupReturns, by_turn, centred, validity


def rloo(group: GroupReturns, settings: LearnerSection) -> list[np.ndarray]:
    """R_i - mean of R_j, j != i, on each turn of the episode; unbiased, and never divided by a deviation. An episode alone: 0.

    Turns without a valid action are `invalid_penalty` below the others, as in GRPO.
    """
    returns = np.array([episode.rewards.sum() for episode in group.episodes])
    count = len(returns)
    advantages = centred(returns, normalise=False) * count / max(1, count - 1)
    return by_turn(group, advantages, validity(group, settings))
