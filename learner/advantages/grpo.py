"""GRPO: an episode is as good as its return is better than that of the others of its group (Shao et al. 2024, §4.1.2)."""

from __future__ import annotations

import numpy as np

from config import LearnerSection
from learner.advantages.returns import GroupReturns, centred


def grpo(group: GroupReturns, settings: LearnerSection) -> list[np.ndarray]:
    """The episode's advantage on each of its turns, less `invalid_penalty` on turns without a valid action.

    Mean and standard deviation are over the episodes' returns, one value an episode. The penalty is subtracted afterwards, so
    it is in units of the advantage: before it, a group of failures, whose returns differ by penalties alone, would be divided
    by next to nothing.
    """
    advantages = centred(np.array([episode.rewards.sum() for episode in group.episodes]), settings.normalise)
    return [
        advantage - settings.invalid_penalty * ~episode.valid for advantage, episode in zip(advantages, group.episodes, strict=True)
    ]
