"""RLOO: an episode's return less the mean of the others' of its group.

Ahmadian et al. 2024, arXiv 2402.14740, eq. 7.
"""

from __future__ import annotations

import numpy as np

from config import RlooAlgorithm
from learner.advantages.returns import (
    GroupReturns,
    broadcast_to_turns,
    standardize_returns,
    validity_penalties,
)


def rloo(group: GroupReturns, settings: RlooAlgorithm) -> list[np.ndarray]:
    """Return R_i - mean of R_j, j != i, for each turn of the episode. An episode alone has 0.

    It is unbiased, and never divided by a deviation. With `statistics` "turn", the others' mean
    counts each of their returns once a turn, as in GRPO; with "episode", as in the paper, once.
    Turns without a valid action are `invalid_penalty` below the others, as in GRPO, too.
    """
    turn_counts = group.turn_counts
    counts = np.ones_like(turn_counts)
    if settings.baseline_weighting == "turn":
        counts = turn_counts
    total = counts.sum()
    others = np.maximum(1, total - counts)
    # from the mean that includes the episode itself
    centered = standardize_returns(
        group.returns, turn_counts, settings.baseline_weighting, normalise=False
    )
    return broadcast_to_turns(group, centered * total / others, validity_penalties(group, settings))
