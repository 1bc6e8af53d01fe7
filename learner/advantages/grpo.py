"""GRPO: an episode is as good as its return is better than that of the others of its group.

Shao et al. 2024, DeepSeekMath, arXiv 2402.03300, §4.1.2.
"""

from __future__ import annotations

import numpy as np

from config import GigpoAlgorithm, GrpoAlgorithm
from learner.advantages.returns import (
    GroupReturns,
    broadcast_to_turns,
    standardize_returns,
    validity_penalties,
)


def grpo(group: GroupReturns, settings: GrpoAlgorithm | GigpoAlgorithm) -> list[np.ndarray]:
    """Return the episode's advantage for each of its turns, less the penalty of invalid turns.

    With `statistics` "episode", mean and standard deviation are over the episodes' returns, one
    value an episode. With "turn", each return counts once a turn (T2PO's code does so): failures
    are longer than successes, so only then do the advantages of a group's turns add up to 0.
    Otherwise most tokens are pushed down, and the entropy rises until the policy collapses.

    The penalty (`invalid_penalty`) is centered over the group's turns, for the same reason. It is
    added afterwards, so it is in units of the advantage. Before it, a group of failures, whose
    returns differ by penalties alone, would be divided by next to nothing.
    """
    advantages = standardize_returns(
        group.returns, group.turn_counts, settings.baseline_weighting, settings.normalize_advantages
    )
    return broadcast_to_turns(group, advantages, validity_penalties(group, settings))
