"""GRPO: an episode is as good as its return is better than that of the others of its group (Shao et
al. 2024, §4.1.2)."""

from __future__ import annotations

import numpy as np

from config import LearnerSection
from learner.advantages.returns import (
    GroupReturns,
    broadcast_to_turns,
    compared,
    turns_of,
    validity,
)


def grpo(group: GroupReturns, settings: LearnerSection) -> list[np.ndarray]:
    """The episode's advantage on each of its turns, with turns without a valid action
    `invalid_penalty` below the others.

    With `statistics` "episode", mean and standard deviation are over the episodes' returns, one
    value an episode. With "turn", each return counts once a turn (T2PO's code does so): failures
    are longer than successes, so only then do the advantages of a group's turns add up to 0.
    Otherwise most tokens are pushed down, and the entropy rises until the policy collapses.

    The penalty is centred over the group's turns, for the same reason. It is added afterwards, so
    it is in units of the advantage: before it, a group of failures, whose returns differ by
    penalties alone, would be divided by next to nothing.
    """
    returns = np.array([episode.rewards.sum() for episode in group.episodes])
    advantages = compared(returns, turns_of(group), settings.statistics, settings.normalise)
    return broadcast_to_turns(group, advantages, validity(group, settings))
