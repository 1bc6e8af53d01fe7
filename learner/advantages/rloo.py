"""RLOO: an episode's return less the mean of the others' of its group (Ahmadian et al.

2024, arXiv 2402.14740, eq. 7).
"""

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


def rloo(group: GroupReturns, settings: LearnerSection) -> list[np.ndarray]:
    """R_i - mean of R_j, j != i, on each turn of the episode; unbiased, and never divided by a
    deviation. An episode alone: 0.

    With `statistics` "turn", the others' mean counts each of their returns once a turn, as in GRPO;
    with "episode", as in the paper, once. Turns without a valid action are `invalid_penalty` below
    the others, likewise.
    """
    returns = np.array([episode.rewards.sum() for episode in group.episodes])
    turns = turns_of(group)
    counts = turns if settings.statistics == "turn" else np.ones_like(turns)
    others = np.maximum(1, counts.sum() - counts)
    difference = compared(
        returns, turns, settings.statistics, normalise=False
    )  # from the mean that includes the episode itself
    return broadcast_to_turns(group, difference * counts.sum() / others, validity(group, settings))
